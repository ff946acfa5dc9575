"""How much of a model is fine-tuned: less of it is the same training of less, on however many ranks."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from shoal.core import recipe as schema
from shoal.core.errors import RecipeError, ShoalError
from shoal.core.model_directory import read_adapter_directory, read_model_directory
from shoal.core.run_directory import RunDirectory
from shoal.models import hugging_face
from shoal.models.hugging_face.adapters import Adapter, merged
from shoal.models.transformer import Transformer
from shoal.parallel.shards import Shard, whole_shards
from shoal.parallel.world import World
from shoal.train import features
from shoal.train.checkpoint import Saved
from shoal.train.finetune import finetuning
from shoal.train.optimizers import build_optimizer
from shoal.train.run import trained_weights
from shoal.train.tuning import freeze, rate_multiples
from tests.ranks import alone, run_ranks
from tests.train.classifiers import finetune_recipe, write_base
from tests.train.labelled import SHAPE, finetune, labelled_recipe, losses_in, write_encoder, write_texts
from tests.train.test_tag_and_answer import write_data

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zero1": {"shard": "zero1"},
    "zero2": {"shard": "zero2"},
    "zero3": {"shard": "zero3"},
    "int8": {"codec": {"kind": "int8"}},
    "local": {"sync": "local", "local": {"every": 2}},
}
LORA = {"what": "lora", "lora": {"rank": 3, "targets": ["query", "value", "out", "down"]}}
TOP = {"what": "top", "top": 1}
KINDS = {"cached": {"what": "frozen"}, "forwarded": {"what": "frozen", "cache": False}, "top": TOP, "lora": LORA}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.tsv", 120)


@pytest.fixture(scope="module")
def encoder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "model", corpus)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("shoal.train.setup.matrix_peak", lambda *_: 1.0)


@contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """As `own_cache`, on a rank."""
    with (
        mock.patch("shoal.train.setup.matrix_peak", lambda *_: 1.0),
        mock.patch("shoal.train.features.cache_folder", lambda: folder),
    ):
        yield


def run_ways(world: World, encoder: Path, data: Path, folder: Path) -> None:
    """All ways of meeting, all kinds of tuning."""
    with at_home(folder):
        for name, parallel in WAYS.items():
            for kind, tuning in KINDS.items():
                finetune(world, labelled_recipe(encoder, data, parallel=parallel, tuning=tuning), folder / name / kind)
    apart = replace(world, local_rank=0, local_size=1)  # as if each rank were alone on its machine
    with at_home(folder / f"home-{world.rank}"):
        finetuning(labelled_recipe(encoder, data, tuning=KINDS["cached"]), apart, RunDirectory(folder))


@pytest.fixture(scope="module")
def ways(encoder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs on two ranks are, and those of one rank."""
    folder = tmp_path_factory.mktemp("ways")
    run_ranks(2, run_ways, encoder, data, folder)
    with at_home(folder):
        for kind, tuning in KINDS.items():
            finetune(alone(), labelled_recipe(encoder, data, tuning=tuning), folder / "alone" / kind)
    return folder


@pytest.mark.parametrize("name", ["alone", *WAYS])
def test_a_cached_trunk_is_one_that_is_computed_each_time(ways: Path, name: str) -> None:
    assert losses_in(ways / name / "cached") == pytest.approx(losses_in(ways / name / "forwarded"), abs=1e-6)


@pytest.mark.parametrize("kind", ["cached", "top", "lora"])
@pytest.mark.parametrize("name", ["plain", "zero1", "zero2", "zero3", "int8"])
def test_ranks_that_train_a_part_of_a_model_do_as_one_does(ways: Path, name: str, kind: str) -> None:
    near = 1e-2 if name == "int8" else 1e-5
    assert losses_in(ways / name / kind) == pytest.approx(losses_in(ways / "alone" / kind), rel=near)


def pushed(world: World, encoder: Path, data: Path, folder: Path, length: float = 0.5) -> None:
    """Fine-tunings whose texts are pushed; a frozen trunk can't be looked up then."""
    with at_home(folder):
        for name, tuning in {"all": {"what": "all"}, **KINDS}.items():
            recipe = labelled_recipe(encoder, data, tuning=tuning, regular={"adversarial": length})
            finetune(world, recipe, folder / name)


def test_texts_are_pushed_alike_on_any_number_of_ranks(encoder: Path, data: Path, tmp_path: Path) -> None:
    pushed(alone(), encoder, data, tmp_path / "alone")
    pushed(alone(), encoder, data, tmp_path / "not pushed", length=0.0)
    run_ranks(2, pushed, encoder, data, tmp_path / "ranks")
    for name in ("all", *KINDS):
        one, ranks, without = (losses_in(tmp_path / where / name) for where in ("alone", "ranks", "not pushed"))
        assert one == pytest.approx(ranks, rel=1e-4)
        assert one[0] == pytest.approx(without[0]) and one[-1] != pytest.approx(without[-1], rel=1e-4)


@pytest.mark.parametrize("pooling", ["attention", "first"])
def test_every_way_of_pooling_reads_what_was_cached(encoder: Path, data: Path, tmp_path: Path, pooling: str) -> None:
    for cache in (True, False):
        tuning = {"what": "frozen", "cache": cache, "pooling": pooling, "dropout": 0.1}
        finetune(alone(), labelled_recipe(encoder, data, tuning=tuning), tmp_path / str(cache))
    assert losses_in(tmp_path / "True") == pytest.approx(losses_in(tmp_path / "False"), abs=1e-6)


@pytest.mark.parametrize("task", ["tag", "answer"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_tasks_that_score_tokens_read_what_was_cached(tmp_path: Path, task: str, family: str) -> None:
    base, data = write_base(tmp_path / "base", family), write_data(tmp_path)[task]
    for cache in (True, False):
        recipe = finetune_recipe(
            base,
            data,
            task=task,
            tuning={"what": "frozen", "cache": cache},
            examples={"length": 16},
            evaluation={"every": 2},
        )
        finetune(alone(), recipe, tmp_path / str(cache))
    assert losses_in(tmp_path / "True") == pytest.approx(losses_in(tmp_path / "False"), abs=1e-6)


def test_machines_exchange_what_the_others_lack(ways: Path) -> None:
    first, second = sorted(ways.glob("home-*/features/*"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert (torch.from_file(str(first), size=first.stat().st_size // 4).view(-1, 32) != 0).any(1).all()


def test_features_are_found_again_and_the_oldest_make_room(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "features"

    def told(tuning: dict[str, Any]) -> str:
        recipe = labelled_recipe(encoder, data, tuning={"what": "frozen", **tuning})
        return " ".join(finetuning(recipe, alone(), RunDirectory(tmp_path)).notes)

    assert "computed" in told({}) and "found in" in told({"dropout": 0.5})
    (mean,) = kept.iterdir()
    assert "computed" in told({"pooling": "last"})
    assert "found in" in told({})
    monkeypatch.setattr(features, "KEPT_BYTES", 2 * mean.stat().st_size)
    assert "computed" in told({"pooling": "first"})  # the last token's were not used for longest
    assert "found in" in told({}) and len([*kept.iterdir()]) == 2
    monkeypatch.setattr(features, "KEPT_BYTES", 100)
    assert "computed in every epoch" in told({})
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "file")
    monkeypatch.setattr(features, "KEPT_BYTES", 1 << 30)
    with pytest.raises(ShoalError, match=r"no room for what the frozen trunk gives.*--tuning.cache false"):
        told({})


@pytest.mark.parametrize("kind", ["cached", "lora"])
def test_a_run_that_was_stopped_goes_on_with_its_cache_or_without(
    encoder: Path, data: Path, tmp_path: Path, kind: str
) -> None:
    settings: dict[str, Any] = {"checkpoint": {"every": 3, "keep": 5}, "tuning": KINDS[kind]}
    finetune(alone(), labelled_recipe(encoder, data, **settings), tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(RunDirectory(tmp_path / "resumed").checkpoints / "step-00000006")
    again = labelled_recipe(encoder, data, **settings | {"tuning": {"cache": False, **KINDS[kind]}})
    finetune(alone(), again, tmp_path / "resumed", resume=True)
    near = 1e-6 if kind == "cached" else 0.0
    assert losses_in(tmp_path / "resumed") == pytest.approx(losses_in(tmp_path / "straight"), abs=near, rel=0.0)


def test_the_last_block_learns_as_with_transformers_and_nothing_is_kept_below(
    encoder: Path, data: Path, tmp_path: Path
) -> None:
    tuning = {**TOP, "pooling": "first"}
    recipe = labelled_recipe(encoder, data, tuning=tuning, optimizer={"epsilon": 1e-4})
    material = finetuning(recipe, alone(), RunDirectory(tmp_path / "run"))
    model, plan, task = material.model, material.plan, material.task
    material.write_model(tmp_path / "begin", model.state_dict(), RESULT)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "begin")
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("layer.2.", "pooler", "classifier")))
    learnt = {name: shard for name, shard in whole_shards(model).items() if shard.value.requires_grad}
    ours = build_optimizer(learnt, recipe.optimizer)
    groups = [
        {"params": [p for p in theirs.parameters() if p.requires_grad and (p.dim() == 2) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, recipe.optimizer.weight_decay), (False, 0.0))
    ]
    other = torch.optim.AdamW(groups, lr=recipe.optimizer.learning_rate, betas=(0.9, 0.999), eps=1e-4)
    reached: list[bool] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: reached.append(output.requires_grad))
    theirs.eval()
    for step in range(3):
        numbers = torch.arange(step * 8, step * 8 + 8).numpy()
        batch = task.batch(plan.rows.read(numbers, numbers.astype("uint64")), torch.device("cpu"))
        loss, count = task.loss(model, batch)
        (loss / count).backward()
        ours.step(1.0)
        total = torch.zeros(())
        for start, length, label in zip(*pieces_of(batch), strict=True):
            tokens = batch.tokens.flatten()[start : start + length][None]
            total = total + torch.nn.functional.cross_entropy(theirs(input_ids=tokens).logits, label[None])
        (total / 8).backward()
        other.step()
        for optimized in (model, theirs):
            optimized.zero_grad()
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert reached == [False, False, True] * 3
    found = hugging_face.weights_to_hugging_face(model)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert {key.rpartition("/")[0] for key in ours.state_dict()} == learnt.keys()


def pieces_of(batch: Any) -> tuple[list[int], list[int], Tensor]:
    return batch.pieces.starts.tolist(), batch.pieces.lengths.tolist(), batch.pieces.values["label"]


RESULT: dict[str, Any] = {"best": None, "parameters": 1, "eval_loss": 0.0, "steps": 1, "epochs": 1.0, "seconds": 1.0}


def test_changes_are_all_that_is_saved_and_are_written_as_an_adapter_and_folded(
    encoder: Path, data: Path, tmp_path: Path
) -> None:
    recipe = labelled_recipe(encoder, data, tuning=LORA, checkpoint={"every": 3, "keep": 5})
    parts, material = finetune(alone(), recipe, tmp_path / "run")
    saved = Saved.open(parts.checkpoints.at(6))
    assert saved.wholes["model"] and all(".lora." in name or name.startswith("task_head.") for name in saved.wholes["model"])
    assert parts.parameters == sum(whole.shape.numel() for whole in saved.wholes["model"].values()) < material.parameters / 4
    run = RunDirectory(tmp_path / "run")
    material.write_model(run.model, trained_weights(parts), RESULT)
    folded = hugging_face.build(*read_model_directory(run.model)).eval()
    beside = hugging_face.build(
        *merged(*read_model_directory(encoder), Adapter.parse(*read_adapter_directory(run.adapter)))
    ).eval()
    tokens = torch.arange(20)[None]
    expected = parts.model.eval()(tokens)
    torch.testing.assert_close(folded(tokens), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beside(tokens), expected, rtol=1e-5, atol=1e-5)
    again = labelled_recipe(encoder, data, tuning=LORA, model={"adapter": str(run.adapter)}, train={"steps": 1})
    _, going_on = finetune(alone(), again, tmp_path / "again")
    first, last = losses_in(tmp_path / "again")[0], losses_in(tmp_path / "run")[0]
    assert first < last - 0.05 and going_on.parameters == material.parameters


def test_layers_learn_at_their_own_rates_as_in_a_torch_optimizer_with_groups() -> None:
    tuning = schema.Tuning(layer_decay=0.5, head_rate=10.0)
    model = Transformer(replace(SHAPE, vocabulary=9, head="sequence", outputs=2, norm_first=True))
    every = rate_multiples(model, dict(model.named_parameters()), tuning)
    expected = {"embedding.weight": 0.125, "blocks.0.attention.qkv.weight": 0.25, "blocks.2.mlp.up.bias": 1.0}
    expected |= {"norm.weight": 1.0, "pooler.weight": 10.0, "task_head.score.weight": 10.0}
    assert {name: every[name] for name in expected} == expected
    names, multiples = list(expected), expected
    mine = {name: torch.nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3)) for name in names}
    theirs = {name: torch.nn.Parameter(value.detach().clone()) for name, value in mine.items()}
    settings = schema.Optimizer(learning_rate=0.01, weight_decay=0.3, beta2=0.999)
    optimizer = build_optimizer(shards_of(mine), settings, multiples=multiples)
    groups = [{"params": [value], "lr": 0.01 * multiples[name]} for name, value in theirs.items()]
    other = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    for _ in range(4):
        for name in names:
            mine[name].grad = mine[name].detach().sin()
            theirs[name].grad = theirs[name].detach().sin()
        optimizer.step(1.0)
        other.step()
    for name in names:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_muon_s_layers_learn_at_their_own_rates() -> None:
    settings = schema.Optimizer(kind="muon", muon_learning_rate=0.1, muon_weight_decay=0.2)
    start, gradient = torch.linspace(-1, 1, 12).view(4, 3), torch.linspace(2, -1, 12).view(4, 3).square()
    ways = {"together": {"blocks.0.w": 0.25, "blocks.1.w": 1.0}, "slow": {"blocks.0.w": 0.25}, "fast": {"blocks.1.w": 1.0}}
    found = {}
    for way, multiples in ways.items():
        rate = 0.1 * multiples["blocks.0.w"] if way == "slow" else 0.1
        its = settings if way != "slow" else schema.Optimizer(kind="muon", muon_learning_rate=rate, muon_weight_decay=0.2)
        named = {name: torch.nn.Parameter(start.clone()) for name in multiples}
        optimizer = build_optimizer(shards_of(named), its, multiples=multiples if way == "together" else {})
        for _ in range(3):
            for parameter in named.values():
                parameter.grad = gradient * parameter.detach()
            optimizer.step(1.0)
        found[way] = named
    torch.testing.assert_close(found["together"]["blocks.0.w"], found["slow"]["blocks.0.w"])
    torch.testing.assert_close(found["together"]["blocks.1.w"], found["fast"]["blocks.1.w"])


def shards_of(named: dict[str, torch.nn.Parameter]) -> Any:
    return {name: Shard(value, value.shape) for name, value in named.items()}


def test_a_head_that_is_not_there_can_t_be_all_that_learns(encoder: Path) -> None:
    model: Transformer = hugging_face.build(*read_model_directory(encoder))
    model.pooler = None
    with pytest.raises(RecipeError, match="trains the head alone, and this task has none"):
        freeze(model, schema.Tuning(what="frozen"))


def test_a_quiet_run_shows_no_progress_of_its_trunk(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        assert list(features._told([[0], [1]], 2, shown)) == [[0], [1]]
        assert ("what the frozen trunk gives of 2 texts" in capsys.readouterr().err) == shown
