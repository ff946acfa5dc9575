"""`shoal bench network --losses`: every method trains a model to the end, over real ranks."""

from pathlib import Path

import pytest

from shoal.bench.losses import Plan, measure, table
from shoal.bench.methods import METHODS, to_the_end
from shoal.bench.raw import Raw
from tests.threads import one_thread  # noqa: F401 (a fixture)

RECIPE = """
name: tiny
data: {{directory: {corpus}}}
model: {{preset: qwen3-tiny, context: 16, layers: 1, dim: 32, heads: 2, hidden: 32}}
train: {{steps: 1, global_batch: 8, compile: "off"}}
evaluation: {{sequences: 8, final_sequences: 8}}
"""


def test_every_method_trains_to_the_end_and_is_held_against_plain_training(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.bench.losses.TOKENS_PER_PARAMETER", 1)
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(corpus=corpus))
    raw, told = Raw(tmp_path / "raw.json"), list[str]()
    plan = Plan(tmp_path / "tiny.yaml", methods=("fp32", "1-bit Adam", "auto"))
    measure(plan, raw, told.append)
    plain, one_bit = raw.rows  # the link decides what `auto` is
    assert len(told) == table(raw).row_count == 2
    assert plain["tokens"] == one_bit["tokens"] == plain["steps"] * 8 * 16
    bits, plain_bits = (8 * row["wire_bytes"] / row["parameters"] for row in (one_bit, plain))
    # plain for 15% of the steps, then a bit a parameter and a scale a block
    assert 0.15 * plain_bits < bits < 0.15 * plain_bits + 2
    measure(plan, raw, told.append)
    assert len(told) == 2


def test_one_bit_adam_is_plain_for_a_share_of_the_steps() -> None:
    assert to_the_end(METHODS["1-bit Adam"], 1000)["optimizer.onebit_warmup"] == 150
    assert to_the_end(METHODS["int4"], 1000) == METHODS["int4"]


def test_a_method_is_held_against_plain_training_with_the_same_seeds(tmp_path: Path) -> None:
    raw = Raw(tmp_path / "raw.json")
    for method, seed, loss in (
        ("fp32", 1, 2.0), ("fp32", 2, 4.0), ("local", 1, 2.2), ("local", 2, 4.8), ("one seed", 2, 4.1), ("no plain", 3, 5.0)
    ):  # fmt: skip
        key = {"kind": "loss", "recipe": "tiny", "hosts": 2, "method": method, "seed": seed}
        raw.add(key | {"eval_loss": loss, "wire_bytes": 100.0, "parameters": 800})
    shown = dict(zip(table(raw).columns[1].cells, table(raw).columns[4].cells, strict=True))
    assert shown == {"fp32": "+0.00% ± 0.00%", "local": "+15.00% ± 7.07%", "one seed": "+2.50%", "no plain": ""}
