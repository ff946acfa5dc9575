"""Training through parameter servers, with threads for workers: what it must equal, and how it goes on."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from shoal.core.errors import InputError, Interrupted
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import merged
from shoal.core.run_directory import RunDirectory
from shoal.data.audit import audit
from shoal.data.ledger import read_ledger
from shoal.train import cluster
from shoal.train.averages import evaluated_weight
from shoal.train.checkpoint import Saved
from shoal.train.cluster import check_cluster
from shoal.train.finetune import finetuning
from shoal.train.loop import train
from shoal.train.server import Seat, Worker, gathered, make_codec
from shoal.train.telemetry import read_metrics
from tests.ranks import alone
from tests.train import test_writers
from tests.train.labelled import finetune, labelled_recipe, losses_in, write_encoder, write_texts
from tests.train.runs import build_parts, run_training, tiny_recipe
from tests.train.served import ServedRun


def served(corpus: Path, mode: str = "synchronous", shards: int = 2, bound: int = 2, **sections: Any) -> Recipe:
    server = {"mode": mode, "shards": shards, "bound": bound, "lease": 60.0}
    parallel = {"sync": "server", "server": server} | sections.pop("parallel", {})
    return tiny_recipe(corpus, parallel=parallel, **sections)


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


def test_one_worker_and_one_server_are_plain_training_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    plain, weights = run_training(alone(), tiny_recipe(corpus), tmp_path / "plain")
    records, own = ServedRun(served(corpus, shards=1), tmp_path / "served", 1).train()
    assert losses(records) == losses(plain)
    assert all(torch.equal(own[name], value) for name, value in weights.items())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_synchronous_workers_do_what_one_rank_does(corpus: Path, tmp_path: Path, kind: str) -> None:
    changes = {"optimizer": {"kind": kind}, "train": {"global_batch": 7, "micro_batch": 2}}
    plain, _ = run_training(alone(), tiny_recipe(corpus, **changes), tmp_path / "plain")
    for workers, shards in ((2, 3), (4, 1)):
        records, _ = ServedRun(served(corpus, shards=shards, **changes), tmp_path / str(workers), workers).train()
        assert losses(records) == pytest.approx(losses(plain), rel=1e-5)
        assert [record["tokens"] for record in records] == [record["tokens"] for record in plain]
        for record, other in zip(records, plain, strict=True):
            assert record["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_stale_workers_without_a_bound_to_use_do_what_one_rank_does(corpus: Path, tmp_path: Path) -> None:
    # with no step ahead, and an optimizer that takes the mean of all: the same updates; a worker's loss is of its share.
    # Who is slow to pull may find more than the step it waited for, as stale workers may: here none pushes before all pulled
    changes = {"optimizer": {"kind": "muon"}, "train": {"clip": 0.0}, "schedule": {"kind": "constant", "warmup": 0.0}}
    _, weights = run_training(alone(), tiny_recipe(corpus, **changes), tmp_path / "plain")
    run = ServedRun(served(corpus, "stale", bound=0, **changes), tmp_path / "stale", 2)
    _, own = run.train(before_each_push=Barrier(2, timeout=20).wait)
    for name, value in weights.items():
        torch.testing.assert_close(own[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("mode", ["stale", "asynchronous"])
def test_workers_without_a_common_step_use_just_the_budget_of_tokens(corpus: Path, tmp_path: Path, mode: str) -> None:
    run = ServedRun(served(corpus, mode, train={"steps": 30}), tmp_path / mode, 2)
    _, weights = run.train()
    assert run.clock.now_standing().tokens == 30 * 8 * 16
    # how many of the steps a worker got, and which, is up to the machine: so the weights are asked, not its losses
    fresh = build_parts(tiny_recipe(corpus), tmp_path / "fresh", alone())
    before = fresh.evaluate(fresh.model)["eval_loss"]
    fresh.model.load_state_dict(weights)
    after = fresh.evaluate(fresh.model)["eval_loss"]
    assert after < before - 0.2


def test_bytes_counted_are_those_pushed_and_pulled(corpus: Path, tmp_path: Path) -> None:
    recipe = served(corpus, parallel={"codec": {"kind": "bf16"}}, train={"steps": 2})
    run = ServedRun(recipe, tmp_path / "run", 1)
    worker = run.worker(0)
    records, _ = run.train()
    parameters = sum(value.numel() for value in worker.parts.model.parameters())
    codec, lengths = make_codec(recipe), [portion.length for portion in run.portions]
    assert records[-1]["wire_bytes"] == sum(codec.nbytes(length) + 4 * length for length in lengths)
    assert records[-1]["wire_bytes"] == pytest.approx((2 + 4) * parameters, rel=0.01)  # but for what fills blocks up


def interrupted(run: ServedRun, steps: int, resume: bool = False) -> None:
    worker = run.worker(0)
    worker.parts = replace(worker.parts, stop_requested=lambda: worker.parts.progress.step == steps - 1)
    worker.seed(resume, quiet=True)
    with pytest.raises(Interrupted):
        worker.train()
    worker.parts.telemetry.close()


@pytest.mark.parametrize("codec", ["none", "bf16"])
def test_resumed_a_synchronous_run_goes_on_bitwise(corpus: Path, tmp_path: Path, codec: str) -> None:
    recipe = served(corpus, parallel={"codec": {"kind": codec}})
    _, whole = ServedRun(recipe, tmp_path / "whole", 1).train()
    interrupted(ServedRun(recipe, tmp_path / "halves", 1), 9)
    records, own = ServedRun(recipe, tmp_path / "halves", 1).train(resume=True)
    assert [record["step"] for record in records] == list(range(1, 21))
    assert all(torch.equal(own[name], value) for name, value in whole.items())
    found = audit(read_ledger(RunDirectory(tmp_path / "halves").ledger))
    assert (found.consumed, found.faults) == (20 * 8, [])


def test_a_run_goes_on_with_other_servers_and_without(corpus: Path, tmp_path: Path) -> None:
    plain, _ = run_training(alone(), tiny_recipe(corpus), tmp_path / "plain")
    interrupted(ServedRun(served(corpus, shards=3), tmp_path / "run", 1), 7)
    interrupted(ServedRun(served(corpus, shards=1), tmp_path / "run", 1), 14, resume=True)
    parts = build_parts(tiny_recipe(corpus), tmp_path / "run", alone(), resume=True)
    train(parts)
    parts.telemetry.close()
    records, _ = read_metrics(RunDirectory(tmp_path / "run").metrics)
    assert losses(records) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "workers", "elastic", "message"),
    [
        ({"parallel": {"shard": "zero1"}}, 2, False, "'parallel.shard' at replicate"),
        ({"mode": "stale"}, 3, False, "'train.global_batch' is 8, which 3 workers can't share equally"),
        ({}, 2, True, "start one process with --workers N"),
        ({"parallel": {"link": {"megabits": 1.0}}}, 2, False, "'parallel.link' slows down"),
        ({"schedule": {"batch_start": 4}}, 2, False, "parameter servers count in steps of one size"),
        ({"mode": "stale", "regular": {"ema": 0.9}}, 2, False, "'regular.ema' acts once a step"),
        ({}, 2, False, r"pip install 'shoal\[cluster\]'"),
    ],
)
def test_what_servers_cannot_do_is_refused_before_anything_starts(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], workers: int, elastic: bool, message: str
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        check_cluster(served(corpus, **changes), workers, elastic)


PARTS: dict[str, dict[str, Any]] = {
    "all": {"layer_decay": 0.5, "head_rate": 3.0},
    "top": {"what": "top", "top": 1},
    "lora": {"what": "lora", "lora": {"rank": 3}},
    "frozen": {"what": "frozen"},
}


@pytest.fixture(scope="module")
def labelled(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small encoder, and texts with labels."""
    folder = tmp_path_factory.mktemp("labelled")
    return write_encoder(folder / "encoder", corpus), write_texts(folder / "texts.tsv", 120)


@pytest.mark.parametrize("part", PARTS)
def test_workers_that_train_a_part_of_a_model_do_what_one_rank_does(
    labelled: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr("shoal.train.features.cache_folder", lambda: tmp_path)
    parallel = {"sync": "server", "server": {"shards": 2, "lease": 60.0}}
    parts, _ = finetune(alone(), labelled_recipe(*labelled, tuning=PARTS[part]), tmp_path / "alone")
    run = RunDirectory(tmp_path / "served")
    recipe = labelled_recipe(*labelled, tuning=PARTS[part], parallel=parallel)
    served = ServedRun(recipe, run.root, 2, partial(finetuning, run=run))
    records, _ = served.train()
    assert losses_in(run.root) == pytest.approx(losses_in(tmp_path / "alone"), rel=1e-5)
    learnt = parts.sync.shards.keys()
    assert {piece.name for portion in served.portions for piece in portion.pieces} == learnt
    assert Saved.open(run.checkpoints / "step-00000006").wholes["model"].keys() == learnt
    assert records[-1]["wire_bytes"] == pytest.approx(8 * parts.parameters, rel=0.01, abs=8)
    lone = RunDirectory(tmp_path / "alone").predictions.read_text().splitlines()
    assert len(run.predictions.read_text().splitlines()) == len(lone) > 20


def test_workers_that_begin_with_random_weights_share_a_tokenizer(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "served")
    recipe = test_writers.tiny(test_writers.write_pairs(tmp_path), parallel={"sync": "server"})
    ServedRun(recipe, run.root, 2, partial(finetuning, run=run)).train()
    told, _ = test_writers.trained(alone(), replace(recipe, parallel=Recipe().parallel), tmp_path / "alone")
    found = read_metrics(run.metrics)[1][-1]
    assert found["eval_loss"] == pytest.approx(told["eval_loss"], rel=1e-4)
    assert found["eval_bleu"] == pytest.approx(told["eval_bleu"])


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_workers_end_together_when_patience_ends_and_the_best_is_written(corpus: Path, tmp_path: Path, ema: float) -> None:
    # no evaluation is better by so much, so that the first is the best
    evaluation = {"every": 2, "patience": 2, "min_improvement": 9.0}
    recipe = served(corpus, evaluation=evaluation, checkpoint={"keep": 1}, regular={"ema": ema})
    run = ServedRun(recipe, tmp_path / "run", 2)
    records, weights = run.train()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [worker.parts.progress.step for worker in run.started] == [6, 6]
    saved = Saved.open(run.run.checkpoints / "step-00000002")
    assert all(torch.equal(saved.read("model", name), value) for name, value in weights.items())
    evaluations = read_metrics(run.run.metrics)[1]
    assert evaluations[-1]["eval_loss"] == evaluations[0]["eval_loss"] != evaluations[1]["eval_loss"]
    # what is written is what was evaluated last
    fresh = build_parts(tiny_recipe(corpus), tmp_path / "fresh", alone())
    fresh.model.load_state_dict({name: evaluated_weight(saved, name) for name in weights})
    assert fresh.evaluate(fresh.model)["eval_loss"] == pytest.approx(evaluations[-1]["eval_loss"], rel=1e-6)


def test_patience_that_ended_a_run_is_known_to_all_when_it_is_resumed(corpus: Path, tmp_path: Path) -> None:
    recipe = served(corpus, evaluation={"every": 2, "patience": 2, "min_improvement": 9.0})
    records, _ = ServedRun(recipe, tmp_path, 2).train()
    again = ServedRun(recipe, tmp_path, 2)
    assert again.train(resume=True)[0] == records
    assert [worker.parts.progress.step for worker in again.started] == [6, 6]


def test_averages_and_a_metric_of_its_own_leave_the_weights_that_a_run_begins_with(corpus: Path, tmp_path: Path) -> None:
    plain, _ = run_training(alone(), tiny_recipe(corpus), tmp_path / "plain")
    evaluation = {"every": 10, "patience": 9, "metric": "eval_bpb"}
    records, _ = ServedRun(served(corpus, evaluation=evaluation, regular={"ema": 0.9}), tmp_path / "run", 1).train()
    assert losses(records) == pytest.approx(losses(plain), rel=1e-5)


def test_workers_go_on_in_the_order_in_which_a_run_began(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "parallel": {"sync": "server"},
        "train": {"precision": "bf16"},
    }  # rows are padded, and grouped
    run = RunDirectory(tmp_path / "run")
    gather = partial(finetuning, run=run)
    first = labelled_recipe(*labelled, **merged(changes, {"train": {"steps": 3, "global_batch": 8}}))
    ServedRun(first, run.root, 2, gather).train()
    second = labelled_recipe(*labelled, **merged(changes, {"train": {"steps": 12, "global_batch": 12}}))
    ServedRun(second, run.root, 2, gather).train(resume=True)
    found = audit(read_ledger(run.ledger))
    assert (found.consumed, found.faults) == (3 * 8 + 9 * 12, [])


def test_without_a_common_step_the_main_worker_s_patience_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    evaluation = {"every": 2, "patience": 2, "min_improvement": 9.0}
    run = ServedRun(served(corpus, "asynchronous", train={"steps": 10_000}, evaluation=evaluation), tmp_path / "run", 2)
    records, weights = run.train()
    assert len(records) == 6
    saved = Saved.open(run.run.checkpoints / "step-00000002")
    assert all(torch.equal(saved.read("model", name), value) for name, value in weights.items())


def test_a_worker_that_finds_other_texts_is_refused(corpus: Path, labelled: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = labelled_recipe(*labelled, parallel={"sync": "server"})
    gather = partial(finetuning, run=RunDirectory(tmp_path))
    run = ServedRun(recipe, tmp_path, 2, gather)
    others = labelled_recipe(labelled[0], write_texts(tmp_path / "texts.tsv", 60), parallel={"sync": "server"})
    seat = Seat(1, 2, lambda *_: dict, [], run.portions, run.identity)
    with pytest.raises(InputError, match="finds other examples than the main worker"):
        Worker(gathered(others, gather), run.run, seat)
