"""Several prompts at once go on as each would alone, and as `transformers` has it."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.core.model_directory import write_model_directory
from shoal.models import hugging_face
from shoal.models.cache import make_cache
from shoal.models.decoding import Decoding, decode
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer
from tests.models.shapes import FAMILIES, GPT2, LLAMA, random_model

PROMPTS = [[5, 9, 2, 30], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [20, 21], [33, 3, 3, 12, 8, 8]]
MODELS = {name: random_model(replace(config, tied=False), seed=3) for name, config in FAMILIES.items()}
"""Untied: a random model whose input and output are tied repeats itself. Now and then they write 4 and 17."""


def theirs(model: Transformer, folder: Path) -> Any:
    write_model_directory(
        folder, hugging_face.config_to_hugging_face(model.config, 3), hugging_face.weights_to_hugging_face(model),
        lambda folder: None, "# A\n",
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_and_beam_texts_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    model = MODELS[family]
    reference = theirs(model, tmp_path / "model")
    lengths = set()
    for beams, penalty, end in [(1, 1.0, 17), (1, 1.0, 4), (4, 1.0, 17), (4, 0.0, 17), (4, 0.0, 4), (4, 2.0, 17)]:
        found = decode(model, PROMPTS, Decoding(end, 12, beams, penalty, offset=0))
        for prompt, text in zip(PROMPTS, found, strict=True):
            expected = reference.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False, max_new_tokens=12,
                num_beams=beams, length_penalty=penalty, eos_token_id=end, pad_token_id=end,
            )[0, len(prompt) :].tolist()  # fmt: skip
            assert text == (expected[: expected.index(end)] if end in expected else expected)
            lengths.add(len(text))
    assert len(lengths) > 2, "no text ended by itself"


def sees(length: int, prefix: int) -> Reach:
    place = torch.arange(length, dtype=torch.int32)[None]
    return Reach(torch.zeros_like(place), torch.where(place < prefix, prefix, place + 1).int())


def plain_search(model: Transformer, prompt: Sequence[int], how: Decoding, prefix: bool) -> list[int]:
    """Beam search as it is written down: one text, no cache, and Wu et al.'s penalty."""

    def worth(log_probability: float, length: int) -> float:
        return log_probability / ((5 + length) ** how.length_penalty / (5 + 1) ** how.length_penalty)

    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, how.most + 1):
        candidates = []
        for score, said in beams:
            tokens = [*prompt, *said]
            reach = sees(len(tokens), len(prompt) if prefix else 0)
            logits = model.project(model(torch.tensor([tokens]), reach=reach)[0, -1])
            candidates += [(score + p, [*said, token]) for token, p in enumerate(logits.log_softmax(-1).tolist())]
        candidates.sort(key=lambda pair: -pair[0])
        best = candidates[: 2 * how.beams]
        over = length == how.most
        ended += [
            (worth(score, length), said[:-1] if said[-1] == how.end else said)
            for score, said in best[: how.beams]
            if said[-1] == how.end or over
        ]
        ended = sorted(ended, key=lambda pair: -pair[0])[: how.beams]
        beams = [] if over else [pair for pair in best if pair[1][-1] != how.end][: how.beams]
        if len(ended) == how.beams and (not beams or worth(beams[0][0], length) <= ended[-1][0]):
            break
    return ended[0][1]


@torch.no_grad()
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_of_a_batch_are_those_of_a_plain_search_one_by_one(family: str, prefix: bool) -> None:
    model = deepcopy(MODELS[family]).double()
    for how in (Decoding(17, 9, 3, 1.0), Decoding(17, 9, 2, 0.3)):
        found = decode(model, PROMPTS, how, prefix)
        assert found == [plain_search(model, prompt, how, prefix) for prompt in PROMPTS]
        assert found == [decode(model, [prompt], how, prefix)[0] for prompt in PROMPTS]
    greedy = Decoding(17, 9)
    assert decode(model, PROMPTS, greedy, prefix) == [decode(model, [prompt], greedy, prefix)[0] for prompt in PROMPTS]


def test_a_text_ends_where_the_context_does_and_a_vocabulary_may_be_smaller_than_the_models() -> None:
    model = random_model(GPT2)
    full = list(range(24))
    for beams in (1, 2):
        long, short = decode(model, [full, full[:20]], Decoding(36, 50, beams, vocabulary=30))
        assert (len(long), len(short)) == (1, 5)
        assert max(*long, *short) < 30
    with pytest.raises(ValueError, match="a prompt of 25 tokens: from 1 to the model's context of 24"):
        decode(model, [[1], list(range(25))], Decoding(36, 5))
    with pytest.raises(ValueError, match="a prompt of 0 tokens"):
        decode(model, [[]], Decoding(36, 5))
    assert decode(model, [], Decoding(36, 5)) == []


@torch.no_grad()
@pytest.mark.parametrize("config", [GPT2, replace(LLAMA, kv_heads=2)], ids=["learned", "rotary"])
def test_rows_of_different_lengths_are_reordered_repeated_and_left_out(config: Any) -> None:
    model = random_model(config)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    cache = make_cache(config.layers, 3, config.kv_heads, 12, config.head_dim, model.head_weight)
    padded = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    model(padded, cache)
    cache.lengths = torch.tensor([len(row) for row in rows])
    for kept in ([2, 0, 0], [1, 2, 0], [2, 0], [0, 1, 1, 0]):
        cache.keep(torch.tensor(kept))
        rows = [list(rows[number]) for number in kept]
        new = [[20 + number, 30 - number] for number in range(len(rows))]
        hidden = model(torch.tensor(new), cache)
        for row, more, found in zip(rows, new, hidden, strict=True):
            row += more
            torch.testing.assert_close(found, model(torch.tensor([row]))[0, -2:], rtol=1e-5, atol=1e-5)
    assert cache.lengths.tolist() == [len(row) for row in rows]
