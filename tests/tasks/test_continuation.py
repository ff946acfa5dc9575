"""`translate` and `generate`: what is read, what is learnt, and what it is worth."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from shoal.core import native
from shoal.core.errors import InputError
from shoal.core.native.attention import attention
from shoal.core.recipe_file import build_recipe
from shoal.data.examples.example import Example
from shoal.data.examples.rows import LabelledRows, Layout
from shoal.data.special_tokens import BETWEEN
from shoal.data.tokenizer import train_bpe
from shoal.models.transformer import Attention
from shoal.tasks import Generate, Translate
from shoal.tasks.continuation import Continuation
from shoal.tasks.task import Batch
from tests.models.shapes import GPT2, LLAMA
from tests.serve.languages import write_language_model

PAIRS = [
    ("a red fish", "ein roter Fisch"),
    ("the sea", "das Meer"),
    ("two men swim in the blue sea", "zwei Männer schwimmen im blauen Meer"),
]
TOKENIZER = train_bpe([text for pair in PAIRS for text in pair] * 2, 290, [BETWEEN])
SEPARATOR, END = TOKENIZER.special("separator"), TOKENIZER.end_of_text


def translate(length: int = 64, **settings: Any) -> Translate:
    return Translate(build_recipe({"task": "translate", "translate": settings}), TOKENIZER, length, [])


def generate(length: int = 64, **settings: Any) -> Generate:
    return Generate(build_recipe({"task": "generate", "generate": settings}), TOKENIZER, length, [])


def examples(task: Continuation, pairs: list[tuple[str, str]] = PAIRS) -> list[Example]:
    names = [role.name for role in task.roles]
    return [Example(dict(zip(names, pair, strict=True)), f"pairs:{n}") for n, pair in enumerate(pairs, 1)]


def batch_of(task: Continuation, layout: Layout) -> Batch:
    samples = [sample for example in examples(task) for sample in task.samples(example)]
    rows = LabelledRows(samples, causal=True, layout=layout)
    numbers = np.arange(rows.samples)
    return task.batch(rows.read(numbers, numbers.astype(np.uint64)), torch.device("cpu"))


def test_a_piece_is_source_separator_target_and_its_targets_are_the_target_and_its_end() -> None:
    ((piece,),) = translate().samples(examples(translate())[0])
    source, target = (TOKENIZER.encode(text).tolist() for text in PAIRS[0])
    assert piece.tokens.tolist() == [*source, SEPARATOR, *target]
    assert piece.targets is not None
    assert piece.targets.tolist() == [*[-100] * len(source), *target, END]
    assert (piece.prefix, piece.values) == (len(source) + 1, {"given": len(source) + 1, "bytes": len(PAIRS[0][1])})
    ((plain,),) = generate(between=" =>").samples(examples(generate())[0])
    assert plain.tokens.tolist() == [*source, *TOKENIZER.encode(" =>"), *target]
    assert plain.prefix == 0


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_the_loss_is_that_of_transformers_in_float64_with_a_mask_written_out(
    tmp_path: Path, config: Any, prefix: bool
) -> None:
    config = replace(config, vocabulary=TOKENIZER.vocabulary, context=64)
    model = write_language_model(tmp_path, TOKENIZER, config).double()
    reference: Any = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True, attn_implementation="eager")
    reference.double().eval()
    task = translate(prefix=prefix)
    expected, count = 0.0, 0
    for source, target in PAIRS:
        head, tail = [*TOKENIZER.encode(source), SEPARATOR], [*TOKENIZER.encode(target), END]
        size = len(head) + len(tail) - 1
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        if prefix:
            seen[: len(head), : len(head)] = True
        mask = torch.zeros(1, 1, size, size, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
        with torch.no_grad():
            logits = reference(torch.tensor([[*head, *tail[:-1]]]), attention_mask=mask).logits[0]
        expected += F.cross_entropy(logits[len(head) - 1 :], torch.tensor(tail), reduction="sum").item()
        count += len(tail)
    for layout in ("padded", "joined"):
        sums = task.sums(model, batch_of(task, layout))
        assert sums["loss"].item() == pytest.approx(expected, rel=1e-6)  # summed in fp32
        figures = task.figures({name: value.item() for name, value in sums.items()})
        size = sum(len(target.encode()) for _, target in PAIRS)
        assert figures == {
            "loss": pytest.approx(expected / count), "targets": count, "bpb": pytest.approx(expected / math.log(2) / size),
        }  # fmt: skip


@pytest.mark.skipif(not native.available(), reason="no compiler for our kernels")
@pytest.mark.parametrize("prefix", [False, True])
def test_joined_rows_learn_by_our_kernel_what_padded_ones_do(tmp_path: Path, prefix: bool) -> None:
    config = replace(LLAMA, head_dim=8, vocabulary=TOKENIZER.vocabulary, context=64)
    model = write_language_model(tmp_path, TOKENIZER, config)
    task = translate(prefix=prefix)
    found = {}
    for layout, kernel in (("padded", None), ("joined", attention)):
        for module in model.modules():
            if isinstance(module, Attention):
                module.kernel = kernel
        model.zero_grad()
        loss_sum, count = task.loss(model, batch_of(task, layout))
        loss_sum.backward()
        found[layout] = loss_sum.item(), count.item(), [parameter.grad for parameter in model.parameters()]
    assert found["joined"][:2] == pytest.approx(found["padded"][:2], rel=1e-5)
    for ours, theirs in zip(found["joined"][2], found["padded"][2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_what_is_written_follows_from_the_given_text_alone(tmp_path: Path) -> None:
    model = write_language_model(tmp_path, TOKENIZER, replace(LLAMA, vocabulary=TOKENIZER.vocabulary, context=64))
    task = translate(beams=2, tokens=8)
    batches = [batch_of(task, layout) for layout in ("padded", "joined")]
    written = [task.predict([], [[tokens] for tokens in task.outputs(model, batch, True)]) for batch in batches]
    answers = [{"text": task.answer(model, source)} for source, _ in PAIRS]
    assert written == [answers, answers]
    assert task.outputs(model, batches[0], False) == [None] * 3
    early = translate(beams=2, tokens=8, early=2)
    assert [tokens is None for tokens in early.outputs(model, batches[0], False)] == [False, False, True]


def test_what_is_too_long_is_cut_by_the_rule_and_counted() -> None:
    long, target = "the sea " * 30, "das Meer " * 30
    tokens = {text: TOKENIZER.encode(text).tolist() for text in (long, target)}
    task = translate(length=40, tokens=16)
    ((piece,),) = task.samples(Example({"source": long, "target": target}, "pairs:1"))
    assert piece.tokens.tolist() == [*tokens[long][:23], SEPARATOR, *tokens[target][:16]]
    assert piece.targets is not None and piece.targets.tolist()[23:] == tokens[target][:17]  # and no end
    assert piece.values["bytes"] == len(TOKENIZER.decode(tokens[target][:17]).encode())
    task.samples(Example({"source": "a", "target": "b"}, "pairs:2"))
    assert task.notes() == [
        "1 of 2 examples have a source that is too long for 40 tokens, and lost its end",
        "1 of 2 examples have a target that is too long for 40 tokens, and lost its end",
    ]
    ((piece,),) = generate(length=40, tokens=16, cut="start", between="!").samples(
        Example({"prompt": long, "completion": "a"}, "pairs:1")
    )
    assert piece.tokens.tolist() == [*tokens[long][-23:], *TOKENIZER.encode("!"), *TOKENIZER.encode("a")]
    with pytest.raises(InputError, match="4 tokens leave no room for a prompt"):
        generate(length=4, between="one two three")


def test_an_empty_target_is_an_error_that_names_its_place_and_an_empty_prompt_begins_a_text() -> None:
    with pytest.raises(InputError, match="pairs:1: the target is empty, so there is nothing to learn"):
        translate().samples(examples(translate(), [("a", " \n")])[0])
    ((piece,),) = generate(between="").samples(examples(generate(), [("", "a")])[0])
    assert piece.tokens.tolist() == [END, *TOKENIZER.encode("a")]


def test_bleu_and_chrf_are_those_of_sacrebleu_and_rouge_that_of_its_authors() -> None:
    written = ["the cat sat on the mat", "two dogs", "nothing"]
    references = ["the cat sat on a mat", "two dogs ran away from the house", "a fish"]
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    found = translate().compare(written, references)
    assert found["bleu"] == pytest.approx(corpus_bleu(written, [references]).score)
    assert found["chrf"] == pytest.approx(corpus_chrf(written, [references]).score)
    assert "tok:13a" in found["bleu_signature"] and "version:" in found["chrf_signature"]
    assert "tok:char" in translate(words="char").compare(written, references)["bleu_signature"]
    scorer = RougeScorer(["rouge1", "rougeLsum"], use_stemmer=True)
    pairs = [scorer.score(reference, text) for text, reference in zip(written, references, strict=True)]
    found = generate().compare(written, references)
    assert found["rouge_1"] == pytest.approx(np.mean([pair["rouge1"].fmeasure for pair in pairs]))
    assert found["rouge_l"] == pytest.approx(np.mean([pair["rougeLsum"].fmeasure for pair in pairs]))


def test_a_tokenizer_without_a_separator_has_its_end_in_its_place() -> None:
    plain = train_bpe([text for pair in PAIRS for text in pair] * 2, 280)
    task = Translate(build_recipe({"task": "translate"}), plain, 64, [])
    assert task.prompt("a").tolist() == [*plain.encode("a"), plain.end_of_text]
