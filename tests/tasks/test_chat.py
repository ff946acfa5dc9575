"""Task chat: the loss and the replies of `transformers`, and judges."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.core.errors import InputError
from shoal.data.chat_template import Turn
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows
from shoal.tasks import Chat
from shoal.tasks.judge import Judge
from shoal.train.models import read_model
from tests.tasks.dialogues import dialogues, tuning_recipe, write_decoder
from tests.tasks.texts import tokenizer

EXAMPLES = [Example(row, f"f.jsonl:{number}") for number, row in enumerate(dialogues(6), 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has the template's tokens already."""
    folder = tmp_path_factory.mktemp("chat")
    template = Chat(tuning_recipe("chat", folder, folder), tokenizer(), 64, []).template
    return write_decoder(folder / "model", template.tokenizer)


@pytest.mark.parametrize("layout", ["joined", "padded"])
def test_loss_and_replies_are_those_of_transformers(folder: Path, layout: Any) -> None:
    recipe = tuning_recipe("chat", folder, folder)
    model = read_model(recipe.model).eval()
    task = Chat(recipe, tokenizer(), 64, [])
    rows = LabelledRows([sample for example in EXAMPLES for sample in task.samples(example)], causal=True, layout=layout)
    batch = task.batch(rows.read(np.arange(6), np.zeros(6, dtype=np.uint64)), torch.device("cpu"))
    with torch.no_grad():
        loss, count = task.loss(model, batch)
        outputs = task.outputs(model, batch, final=True)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    total = targets = 0.0
    for (nats, size, reply), example in zip(outputs, EXAMPLES, strict=True):
        turns = [Turn(**message) for message in example.values["messages"]]
        ids, owner = task.template.encode(turns, "here")
        labels = torch.from_numpy(np.where(owner >= 0, ids, -100))[None]
        with torch.no_grad():
            mean = theirs(input_ids=torch.from_numpy(ids)[None], labels=labels).loss.item()
        assert nats == pytest.approx(mean * (owner >= 0).sum(), rel=1e-5)
        assert size == sum(len(turn.content) for turn in turns if turn.role == "assistant")
        total, targets = total + nats, targets + (owner >= 0).sum()
        prompt = torch.from_numpy(ids[: int(np.flatnonzero(owner == owner.max())[0])])[None]
        ends = sorted(task.template.ends)
        written = theirs.generate(prompt, do_sample=False, max_new_tokens=6, eos_token_id=ends, pad_token_id=ends[0])
        assert reply == [token for token in written[0, prompt.shape[1] :].tolist() if token not in ends]
    assert loss.item() == pytest.approx(total, rel=1e-5) and int(count) == targets
    predictions = task.predict(EXAMPLES, [[output] for output in outputs])
    size = sum(prediction["bytes"] for prediction in predictions)
    assert task.measure(EXAMPLES, predictions) == {"bpb": pytest.approx(total / math.log(2) / size)}


def test_a_template_that_rewrites_turns_has_each_read_by_itself_and_predictions_are_of_whole_dialogues(
    folder: Path, tmp_path: Path
) -> None:
    last_is_marked = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{% if loop.last and m.role == 'assistant' %}{{ '!' }}{% endif %}"
        + ("{{ m.content ~ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
    )
    (tmp_path / "t.jinja").write_text(last_is_marked)
    words = Chat(tuning_recipe("chat", folder, folder), tokenizer(), 64, []).tokenizer
    recipe = tuning_recipe("chat", folder, folder, chat={"template": str(tmp_path / "t.jinja")})
    task, model = Chat(recipe, words, 64, []), read_model(recipe.model).eval()
    samples = [task.samples(example) for example in EXAMPLES]
    assert [len(its) for its in samples] == [1, 2] * 3
    for example, its in zip(EXAMPLES, samples, strict=True):
        replies = [message["content"] for message in example.values["messages"] if message["role"] == "assistant"]
        for (piece,), reply in zip(its, replies, strict=True):
            assert piece.targets is not None
            assert words.decode(piece.targets[piece.targets >= 0]) == f"!{reply}<|end|>"
            assert piece.values["bytes"] == len(reply)
    assert task.notes()[0].endswith(
        "3 of 6 dialogues are read once for each of the assistant's turns, each time with what is before it as the model "
        "will see it"
    )
    rows = LabelledRows([sample for its in samples for sample in its], causal=True)
    outputs = iter(
        task.outputs(model, task.batch(rows.read(np.arange(9), np.zeros(9, np.uint64)), torch.device("cpu")), True)
    )
    of_dialogues = [[next(outputs) for _ in its] for its in samples]
    assert [reply is not None for its in of_dialogues for *_, reply in its] == [True, False, True] * 3
    predictions = task.predict(EXAMPLES, of_dialogues)
    assert all("reply" in prediction for prediction in predictions)
    assert predictions[1]["loss"] == pytest.approx(of_dialogues[1][0][0] + of_dialogues[1][1][0])


JUDGES = {
    "the longer one": "more = len(row['ours']) - len(row['reference'])\n"
    "print('ours' if more > 0 else 'reference' if more else 'tie')",
    "the first": "print('ours')",
}


def judge(folder: Path, program: str, seconds: float = 20.0) -> Judge:
    (folder / "judge.py").write_text(f"import json, sys, time\nrow = json.load(sys.stdin)\n{program}\n")
    return Judge.of(f"{sys.executable} {folder / 'judge.py'}", seconds)


def test_a_judge_is_asked_in_either_order_and_its_liking_for_the_first_evens_out(tmp_path: Path) -> None:
    prompts = [[Turn("user", f"question {number}")] for number in range(12)]
    longer, first = (judge(tmp_path, program) for program in JUDGES.values())
    judge(tmp_path, JUDGES["the longer one"])
    assert [longer.compare(prompt, "long", "so", "f:1") for prompt in prompts[:4]] == ["ours"] * 4
    assert longer.compare(prompts[0], "so", "long", "f:1") == "reference"
    assert longer.compare(prompts[0], "long", "long", "f:1") == "tie"
    judge(tmp_path, JUDGES["the first"])
    found = [first.compare(prompt, "a", "b", "f:1") for prompt in prompts]
    assert {"ours", "reference"} == set(found) and found == [first.compare(prompt, "a", "b", "f:1") for prompt in prompts]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('mine')", "answered 'mine'; accepted: ours, reference, tie"),
        ("sys.exit('no model')", "failed with exit code 1: no model"),
        ("time.sleep(60)", "gave no answer in 0.5 s; let it have more by chat.judge_seconds"),
    ],
)
def test_a_judge_that_does_not_judge_is_named_with_the_dialogue(tmp_path: Path, program: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        judge(tmp_path, program, 0.5 if "sleep" in program else 20).compare([Turn("user", "a")], "b", "c", "f.jsonl:7")
    assert str(refused.value).startswith("f.jsonl:7: the judge '")


def test_replies_are_compared_with_the_datas_or_another_models(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("")
    against = tmp_path / "predictions.jsonl"
    lines = [{**example.values, "prediction": {"reply": "b"}} for example in EXAMPLES[:1]]
    against.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = judge(tmp_path, JUDGES["the longer one"])
    recipe = tuning_recipe("chat", folder, folder, chat={"judge": " ".join(made.command), "against": str(against)})
    task = Chat(recipe, tokenizer(), 64, [])
    told = [task.judged(EXAMPLES[0], {"reply": reply, "loss": 1.0, "bytes": 2}) for reply in ("bb", "", "c")]
    assert [one["verdict"] for one in told] == ["ours", "reference", "tie"]
    measured = task.measure(EXAMPLES[:3], told)
    assert (measured["win_rate"], measured["won"], measured["tied"]) == (0.5, 1 / 3, 1 / 3)
    with pytest.raises(InputError, match=r"f.jsonl:2: the file of 'chat.against' has no reply"):
        task.judged(EXAMPLES[1], {"reply": "b"})
    task = Chat(tuning_recipe("chat", folder, folder, chat={"judge": " ".join(made.command)}), tokenizer(), 64, [])
    answer = EXAMPLES[0].values["messages"][-1]["content"]
    assert task.judged(EXAMPLES[0], {"reply": answer})["verdict"] == "tie"
