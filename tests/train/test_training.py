"""The loop: the same answer however the work is divided, and however often it is interrupted."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from shoal.core import native
from shoal.core.errors import InputError, Interrupted, ShoalError
from shoal.core.files import write_json
from shoal.core.native import matrices
from shoal.core.recipe import Model
from shoal.core.run_directory import RunDirectory
from shoal.data.shards import Corpus
from shoal.tasks import Task
from shoal.train.loop import train
from shoal.train.sizes import estimate
from shoal.train.telemetry import read_metrics
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe

GOLDEN = Path(__file__).with_name("golden_losses.json")
KEYS = {
    "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "step_seconds", "data_seconds", "sync_seconds",
    "wire_bytes", "bits_per_parameter", "memory_bytes",
}  # fmt: skip


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [
        ("interleaved", "adamw"),
        pytest.param("blocks", "muon", marks=pytest.mark.thorough),
        pytest.param("interleaved", "muon", marks=pytest.mark.thorough),
        pytest.param("blocks", "adamw", marks=pytest.mark.thorough),
    ],
)
def test_two_and_four_ranks_train_as_one_does(corpus: Path, tmp_path: Path, kind: str, strategy: str) -> None:
    # seven sequences a step: ranks have unequal shares, and so do their micro-batches
    recipe = tiny_recipe(
        corpus,
        data={"partition": strategy},
        optimizer={"kind": kind},
        train={"global_batch": 7, "micro_batch": 2},
        parallel={"bucket_megabytes": 0.01},
    )
    reference, weights = run_training(alone(), recipe, tmp_path / "one")
    for size in (2, 4):
        results = run_ranks(size, run_training, recipe, tmp_path / str(size))
        assert losses(results[0][0]) == pytest.approx(losses(reference), rel=1e-5)
        for record, other in zip(results[0][0], reference, strict=True):
            assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
            assert record["tokens"] == other["tokens"]
        for _, own in results:
            for name, value in own.items():
                assert torch.equal(value, results[0][1][name]), f"rank weights differ: {name}"
                torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=2e-5)


def test_gradient_accumulation_is_the_same_step(corpus: Path, tmp_path: Path) -> None:
    at_once, _ = run_training(alone(), tiny_recipe(corpus), tmp_path / "once")
    in_parts, _ = run_training(alone(), tiny_recipe(corpus, train={"micro_batch": 3}), tmp_path / "parts")
    assert losses(in_parts) == pytest.approx(losses(at_once), rel=1e-5)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("preset", ["gpt2-small", "qwen3-tiny"])
def test_own_kernels_train_as_torch_does(corpus: Path, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"preset": preset, "dim": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "hidden": 48}
    recipe = tiny_recipe(corpus, model=shape)
    monkeypatch.setattr(matrices, "serves", lambda: False)
    torchs, weights = run_training(alone(), recipe, tmp_path / "torch")
    called = []
    monkeypatch.setattr(matrices, "serves", lambda: True)
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    monkeypatch.setattr(matrices, "call", lambda name, *rest: (called.append(name), native.call(name, *rest)))
    own, own_weights = run_training(alone(), recipe, tmp_path / "own")
    assert {"linear_forward", "linear_backward", "mlp_forward", "mlp_backward", "cross_entropy"} <= set(called)
    assert losses(own) == pytest.approx(losses(torchs), rel=1e-5)
    for name, value in own_weights.items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_interrupted_and_resumed_is_bitwise_like_never_stopped(corpus: Path, tmp_path: Path, kind: str) -> None:
    recipe = tiny_recipe(
        corpus, optimizer={"kind": kind, "lookahead": {"every": 4}}, model={"dropout": 0.1}, evaluation={"every": 5}
    )
    reference, weights = run_training(alone(), recipe, tmp_path / "straight")
    for stop_at in (7, 13):
        parts = build_parts(recipe, tmp_path / "stopped", alone(), resume=stop_at > 7)
        steps = parts.progress
        parts = dataclasses.replace(parts, stop_requested=lambda steps=steps, stop_at=stop_at: steps.step + 1 >= stop_at)
        with pytest.raises(Interrupted, match=f"saved at step {stop_at}"):
            train(parts)
        parts.telemetry.close()
    parts = build_parts(recipe, tmp_path / "stopped", alone(), resume=True)
    train(parts)
    parts.telemetry.close()
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, weights[name])
    records, evaluations = read_metrics(RunDirectory(tmp_path / "stopped").metrics)
    assert losses(records) == losses(reference)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert [record["step"] for record in evaluations] == [5, 10, 15, 20]


def resumed_on(world: Any, recipe: Any, folder: Path) -> list[float]:
    torch.set_num_threads(1)
    parts = build_parts(recipe, folder, world, resume=True)
    train(parts)
    parts.telemetry.close()
    return losses(read_metrics(RunDirectory(folder).metrics)[0]) if world.is_main else []


def test_a_run_goes_on_with_another_number_of_ranks_over_the_same_samples(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus)
    reference, _ = run_training(alone(), recipe, tmp_path / "straight")
    parts = build_parts(recipe, tmp_path / "moved", alone())
    steps = parts.progress
    with pytest.raises(Interrupted):
        train(dataclasses.replace(parts, stop_requested=lambda: steps.step + 1 >= 9))
    parts.telemetry.close()
    assert run_ranks(2, resumed_on, recipe, tmp_path / "moved")[0] == pytest.approx(losses(reference), rel=1e-5)


def test_losses_of_a_fixed_run_never_change(corpus: Path, tmp_path: Path) -> None:
    """A refactoring must not change these; a change that is meant to rewrites the file and says why."""
    golden = json.loads(GOLDEN.read_text())
    for name, sections in golden["runs"].items():
        records, _ = run_training(alone(), tiny_recipe(corpus, **sections["recipe"]), tmp_path / name)
        assert losses(records) == pytest.approx(sections["losses"], rel=2e-5), name


def test_compiled_blocks_train_as_eager_ones(corpus: Path, tmp_path: Path) -> None:
    eager, _ = run_training(alone(), tiny_recipe(corpus, train={"steps": 4}), tmp_path / "eager")
    compiled, _ = run_training(alone(), tiny_recipe(corpus, train={"steps": 4, "compile": "auto"}), tmp_path / "compiled")
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-5)


def test_bf16_matrix_products_stay_close_to_fp32(corpus: Path, tmp_path: Path) -> None:
    exact, _ = run_training(alone(), tiny_recipe(corpus), tmp_path / "fp32")
    rough, weights = run_training(alone(), tiny_recipe(corpus, train={"precision": "bf16"}), tmp_path / "bf16")
    assert losses(rough) == pytest.approx(losses(exact), rel=0.02)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_every_logged_step_has_the_agreed_keys(corpus: Path, tmp_path: Path) -> None:
    records, _ = run_training(alone(), tiny_recipe(corpus, train={"steps": 3}), tmp_path)
    assert all(record.keys() == KEYS for record in records)
    assert list((tmp_path / "tensorboard").iterdir())


def test_training_learns(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, train={"steps": 150}, optimizer={"kind": "muon", "learning_rate": 1e-2})
    records, _ = run_training(alone(), recipe, tmp_path)
    # knowing only how often each letter occurs gives 2.75; words are drawn at random, so about 0.8 is the floor
    assert records[-1]["loss"] < 1.5


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(corpus: Path, tmp_path: Path) -> None:
    parts = build_parts(tiny_recipe(corpus, optimizer={"learning_rate": 1e30}), tmp_path, alone())
    with pytest.raises(ShoalError, match=r"diverged.*learning_rate"):
        train(parts)
    parts.telemetry.close()


def test_a_checkpoint_of_another_model_is_refused(corpus: Path, tmp_path: Path) -> None:
    run_training(alone(), tiny_recipe(corpus, train={"steps": 2}), tmp_path)
    with pytest.raises(InputError, match="doesn't fit"):
        build_parts(tiny_recipe(corpus, model={"dim": 64}), tmp_path, alone(), resume=True)


def other_code(world: Any, corpus: Path, folder: Path) -> str:
    with mock.patch("shoal.train.setup.code_fingerprint", lambda: f"edited on {world.rank}"):
        try:
            build_parts(tiny_recipe(corpus), folder, world)
        except InputError as error:
            return str(error)
    return "no error"


def test_ranks_with_other_code_are_refused_by_all_with_one_message(corpus: Path, tmp_path: Path) -> None:
    expected = "ranks 1, 2 started with another Shoal than rank 0: give all ranks the same"
    assert run_ranks(3, other_code, corpus, tmp_path) == [expected] * 3


def two_recipes(world: Any, corpus: Path, folder: Path) -> str:
    try:
        build_parts(tiny_recipe(corpus, seed=world.rank), folder, world)
    except InputError as error:
        return str(error)
    return "accepted"


def test_ranks_with_different_recipes_are_all_refused(corpus: Path, tmp_path: Path) -> None:
    assert (
        run_ranks(2, two_recipes, corpus, tmp_path)
        == ["rank 1 started with another recipe than rank 0: give all ranks the same"] * 2
    )


def test_weights_to_start_from_may_come_from_a_folder(corpus: Path, tmp_path: Path) -> None:
    from shoal.core.model_directory import write_model_directory
    from shoal.data.tokenizer import read_tokenizer
    from shoal.models import hugging_face

    parts = build_parts(tiny_recipe(corpus), tmp_path / "first", alone())
    parts.telemetry.close()
    config, weights = hugging_face.config_to_hugging_face(parts.model.config), parts.model
    folder = tmp_path / "model"
    tokenizer = read_tokenizer(corpus)
    write_model_directory(folder, config, hugging_face.weights_to_hugging_face(weights), tokenizer.write, "")
    with pytest.raises(InputError, match=r"model\.context.*beside"):
        build_parts(tiny_recipe(corpus, model={"init_from": str(folder)}), tmp_path / "refused", alone())
    recipe = dataclasses.replace(tiny_recipe(corpus, seed=9), model=Model(init_from=str(folder), dropout=0.5))
    again = build_parts(recipe, tmp_path / "second", alone())
    assert again.model.config.dropout == 0.5
    again.telemetry.close()
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name])
    # a run's folder will do, and what can't be started from is told before anything is
    size, run = sum(value.numel() for value in parts.model.parameters()), Model(init_from=str(tmp_path))
    assert estimate(dataclasses.replace(recipe, model=run), Corpus.open(corpus).vocabulary, 1)["parameters"] == size
    write_json(folder / "config.json", config | {"model_type": "bart"})
    with pytest.raises(InputError, match=r"model type 'bart' is not supported"):
        estimate(recipe, Corpus.open(corpus).vocabulary, 1)


@dataclasses.dataclass
class NowAndThen:
    """A task that finds nothing to learn in every second step."""

    task: Task
    steps: int = 0

    def batch(self, *arguments: Any) -> Any:
        self.steps += 1
        return self.task.batch(*arguments)

    def loss(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(value * (self.steps % 2) for value in self.task.loss(*arguments))  # type: ignore[return-value]


def test_a_step_without_a_target_is_a_step_whose_loss_is_zero(corpus: Path, tmp_path: Path) -> None:
    parts = build_parts(tiny_recipe(corpus, train={"max_skipped": 0}), tmp_path, alone())
    train(dataclasses.replace(parts, task=NowAndThen(parts.task)))
    parts.telemetry.close()
    told = losses(read_metrics(RunDirectory(tmp_path).metrics)[0])
    assert told[1::2] == [0.0] * 10 and min(told[::2]) > 1


def test_going_on_where_nothing_was_saved_is_refused_and_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        build_parts(tiny_recipe(corpus), tmp_path, alone(), resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sections", [{"seed": 5}, {"model": {"context": 8}}, {"optimizer": {"kind": "muon"}}])
def test_a_resume_that_would_not_be_the_same_run_is_refused_and_keeps_the_metrics(
    corpus: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    run_training(alone(), tiny_recipe(corpus, train={"steps": 3}), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(InputError):
        build_parts(tiny_recipe(corpus, **sections), tmp_path, alone(), resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def resumed_apart(world: Any, recipe: Any, folder: Path) -> str:
    try:
        build_parts(recipe, folder / str(world.rank), world, resume=True)
    except ShoalError as error:
        return str(error)
    return "accepted"


def test_ranks_that_do_not_see_one_folder_are_all_refused(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, train={"steps": 4}, checkpoint={"every": 2})
    for rank in (0, 1):
        run_training(alone(), recipe, tmp_path / str(rank))
    (tmp_path / "1" / "checkpoints" / "step-00000004" / "state.json").unlink()
    told = run_ranks(2, resumed_apart, recipe, tmp_path)
    assert all("rank 1 doesn't see the checkpoint that rank 0 goes on from" in text for text in told), told


def test_compiled_blocks_resume_bitwise(corpus: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(corpus, train={"steps": 6, "compile": "auto"})
    reference, weights = run_training(alone(), recipe, tmp_path / "straight")
    parts = build_parts(recipe, tmp_path / "stopped", alone())
    steps = parts.progress
    with pytest.raises(Interrupted):
        train(dataclasses.replace(parts, stop_requested=lambda: steps.step + 1 >= 3))
    parts.telemetry.close()
    parts = build_parts(recipe, tmp_path / "stopped", alone(), resume=True)
    train(parts)
    parts.telemetry.close()
    assert losses(read_metrics(RunDirectory(tmp_path / "stopped").metrics)[0]) == losses(reference)
    for name, value in parts.model.state_dict().items():
        assert torch.equal(value, weights[name])
