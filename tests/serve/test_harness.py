"""Tasks of lm-eval on Shoal's models: as lm-eval's own model of transformers does them, and from local files alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from shoal.core.errors import InputError
from shoal.data.tokenizer import train_bpe
from shoal.serve.generation import LanguageModel, generate
from shoal.serve.sampling import Sampling
from tests.conftest import fixed_text
from tests.models.shapes import BERT, LLAMA, random_model
from tests.serve.languages import write_language_model

pytest.importorskip("lm_eval", reason="lm-eval, which `make test-thorough` installs, is missing")
pytestmark = pytest.mark.thorough  # importing lm-eval alone takes seconds

TOKENIZER = train_bpe([fixed_text(200)], 300)

ANSWERS = ["the shoal", " a mind", "sea", "every fish reads a part"]
QUESTIONS: list[dict[str, Any]] = [
    {"question": f"{sentence}\nWhat swims", "choices": ANSWERS, "answer": number % 4}
    for number, sentence in enumerate(fixed_text(12).splitlines())
]

CHOICE = {
    "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}  # fmt: skip
WRITE = {
    "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["e"], "max_gen_toks": 12}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
READ = {
    "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}} {{choices[answer]}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of all three kinds, each in its file, and the questions beside them."""
    path = tmp_path_factory.mktemp("tasks")
    (path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "questions.jsonl"}}, "test_split": "test"}
    for name, task in (("choose", CHOICE), ("write", WRITE), ("read", READ)):
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"task": f"fish_{name}", **source, **task}))
    return path


def language(config: Any = LLAMA, context: int = 40) -> LanguageModel:
    return LanguageModel(random_model(replace(config, vocabulary=TOKENIZER.vocabulary, context=context)), TOKENIZER)


def test_every_answer_is_that_of_lm_evals_own_model_on_the_same_folder(folder: Path, tmp_path: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from shoal.serve.harness import tasks
    from shoal.serve.harness.model import HarnessModel

    model = write_language_model(tmp_path, TOKENIZER, replace(LLAMA, vocabulary=TOKENIZER.vocabulary, context=40))
    theirs = HFLM(pretrained=str(tmp_path), batch_size=1, dtype="float32", device="cpu")
    ours = HarnessModel(LanguageModel(model, TOKENIZER), batch=5)
    with tasks._by_itself():
        found, expected = (
            simple_evaluate(one, tasks=tasks._read([str(folder)]), bootstrap_iters=0, log_samples=True)
            for one in (ours, theirs)
        )
    assert found is not None
    assert expected is not None
    for name in ("fish_choose", "fish_write", "fish_read"):
        for mine, other in zip(found["samples"][name], expected["samples"][name], strict=True):
            if name == "fish_write":
                assert mine["resps"] == other["resps"]
                continue
            pairs = zip(mine["resps"], other["resps"], strict=True)
            values = [tuple(one[0] if isinstance(one[0], tuple | list) else one for one in pair) for pair in pairs]
            for one, two in values:
                assert one[0] == pytest.approx(two[0], rel=1e-4)
                assert one[1:] == two[1:]


def test_figures_come_with_their_errors_whatever_the_batch(folder: Path) -> None:
    from shoal.serve.harness.tasks import run_tasks

    one, several = (run_tasks(language(), [str(folder)], batch) for batch in (1, 7))
    assert [task.name for task in one] == ["fish_choose", "fish_read", "fish_write"]
    for mine, other in zip(one, several, strict=True):
        assert mine.questions == other.questions == len(QUESTIONS)
        assert mine.figures == pytest.approx(other.figures, rel=1e-5)
    assert one[0].figures.keys() == one[0].errors.keys() == {"acc", "acc_norm"}


def test_one_file_few_questions_and_examples_before_them(folder: Path) -> None:
    from shoal.serve.harness.tasks import run_tasks

    (found,) = run_tasks(language(context=400), [str(folder / "choose.yaml")], 4, fewshot=2, limit=3)
    assert (found.name, found.questions) == ("fish_choose", 3)


def test_a_text_ends_before_a_stop_string_or_when_enough_is_written() -> None:
    from lm_eval.api.instance import Instance

    from shoal.serve.harness.model import HarnessModel

    model = HarnessModel(language(context=64), 3)

    def written(**asked: Any) -> list[str]:
        prompts = ["the shoal", "every fish reads", "a mind"]
        return model.generate_until([
            Instance("generate_until", {}, (prompt, asked), number) for number, prompt in enumerate(prompts)
        ])  # fmt: skip

    whole = written(until=[], max_gen_toks=40)
    assert written(max_gen_toks=40) == whole
    for stop in (whole[0][3], whole[1][5:7]):
        assert written(until=[stop], max_gen_toks=40) == [text.partition(stop)[0] for text in whole]
    assert whole[0] == "".join(generate(model.language, "the shoal", 40, Sampling(0)))
    for asked, expected in (
        ({"do_sample": True, "temperature": 1.0}, "asks for texts that are drawn"),
        ({"num_beams": 4}, "asks for 'num_beams'"),
        ({"max_gen_toks": 64}, "a task asks for 64 tokens, and the model's context is 64"),
    ):
        with pytest.raises(InputError, match=expected):
            written(**asked)


def test_the_loss_of_a_continuation_is_that_of_the_plain_formula() -> None:
    from lm_eval.api.instance import Instance

    from shoal.serve.harness.model import HarnessModel

    one = language()
    context, goes_on = "the shoal swims", " with one mind"
    before = TOKENIZER.encode(context).tolist()
    whole = TOKENIZER.encode(context + goes_on).tolist()
    with torch.no_grad():
        told = one.model.project(one.model(torch.tensor([whole[:-1]])))[0].log_softmax(-1)
    expected = sum(float(told[place - 1, whole[place]]) for place in range(len(before), len(whole)))
    ((value, greedy),) = HarnessModel(one, 1).loglikelihood([Instance("loglikelihood", {}, (context, goes_on), 0)])
    assert value == pytest.approx(expected, rel=1e-5)
    assert greedy is False


def test_a_continuation_that_is_one_token_with_what_is_before_costs_nothing() -> None:
    from shoal.serve.harness.model import HarnessModel

    before, after = TOKENIZER.encode("the shoal").tolist(), TOKENIZER.encode(" swims").tolist()
    model = HarnessModel(language(), 2)
    ((expected, likeliest),) = model._loglikelihood_tokens([(None, before, after)])
    found = model._loglikelihood_tokens([(None, before, []), (None, before, after), (None, before[:1], [])])
    assert found == [(0.0, True), (pytest.approx(expected, rel=1e-6), likeliest), (0.0, True)]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("empty", "empty: holds no task of lm-eval"),
        ("nowhere.yaml", "nowhere.yaml: no such file"),
        ("lacking.yaml", "lacking.yaml: the task can't be read: "),
        ("arc_eazy", "'arc_eazy' is no folder, no YAML file and no task of lm-eval; did you mean 'arc_easy'?"),
    ],
)
def test_what_is_no_task_is_told(named: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.serve.harness.tasks import run_tasks

    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "not_there.jsonl"}}, "test_split": "test"}
    Path("lacking.yaml").write_text(yaml.safe_dump({"task": "lacking", **source, **CHOICE}))
    with pytest.raises(InputError) as failed:
        run_tasks(language(), [named], 1)
    assert expected in str(failed.value)


def test_a_model_that_sees_both_ways_has_nothing_to_say() -> None:
    from shoal.serve.harness.tasks import run_tasks

    with pytest.raises(InputError, match="--harness asks how a text goes on"):
        run_tasks(language(BERT), ["anything"], 1)
