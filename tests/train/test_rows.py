"""Rows in training: a document's loss doesn't depend on its neighbours; packed, grouped and mixed runs go on exactly."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.core import native, recipe
from shoal.core.errors import CorpusError, InputError, Interrupted, RecipeError
from shoal.core.native.attention import attention, packed_attention
from shoal.core.recipe import Recipe
from shoal.data.audit import audit
from shoal.data.ledger import read_ledger
from shoal.data.packing import PackedRows
from shoal.data.pieces import CutDocuments
from shoal.data.plan import open_corpora, plan_training
from shoal.data.prepare import prepare
from shoal.data.rows import Rows, StreamRows
from shoal.data.sequences import Framing, Sequences
from shoal.data.shards import Corpus
from shoal.models.config import TransformerConfig
from shoal.models.loss import IGNORED, linear_cross_entropy
from shoal.models.reach import Reach
from shoal.models.transformer import Attention, Transformer
from shoal.tasks import Causal
from shoal.train.loop import train
from tests.conftest import fixed_text
from tests.models.shapes import BERT, GPT2, MODERNBERT, QWEN3, random_model
from tests.ranks import alone, run_ranks
from tests.train.runs import build_parts, run_training, tiny_recipe
from tests.train.served import ServedRun

CONTEXT = 64


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two corpora of lines, each a document of some tens of characters, and of one tokenizer."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "tokenizer").mkdir()
    lines = fixed_text(900).splitlines()
    for name, part in (("first", lines[:600]), ("second", lines[600:])):
        source = folder / f"{name}.jsonl"
        source.write_text("".join(f'{{"text": "{line}"}}\n' for line in part))
        path = "" if name == "first" else str(folder / "first" / "tokenizer.json")
        data = recipe.Data(sources=[str(source)], held_out=0.1)
        prepare(data, recipe.Tokenizer(kind="char", path=path), folder / name, workers=1)
    return folder / "first", folder / "second"


def packed(corpus: Path, framing: Framing) -> Rows:
    opened = Corpus.open(corpus)
    return PackedRows(CutDocuments.of(opened.split("train"), opened.end_of_text, CONTEXT, framing))


def stream_with_borders(corpus: Path, framing: Framing) -> Rows:
    opened = Corpus.open(corpus)
    return StreamRows(opened.split("train"), CONTEXT, opened.end_of_text)


def loss_of(model: Transformer, rows: Sequences) -> Tensor:
    """The task's own loss for a decoder; for an encoder, of guessing each token from what it sees."""
    if model.config.causal:
        task = Causal()
        return task.loss(model, task.batch(rows, torch.device("cpu")))[0]
    tokens = torch.from_numpy(rows.tokens)
    assert rows.documents is not None
    hidden = model(tokens.clamp(min=0), reach=Reach.of_documents(torch.from_numpy(rows.documents), causal=False))
    targets = torch.from_numpy(rows.following).where(torch.from_numpy(rows.following) >= 0, IGNORED)
    return linear_cross_entropy(
        model.before_head(hidden).flatten(0, 1), model.head_weight, targets.flatten(), model.loss_kernel, model.head_bias
    )


def loss_and_gradients(model: Transformer, rows: Sequences) -> list[Tensor]:
    model.zero_grad()
    loss = loss_of(model, rows)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def only(rows: Sequences, document: np.ndarray, others: np.random.Generator | None, vocabulary: int) -> Sequences:
    """The same row, with targets in one document alone, and what stands in the others drawn anew."""
    tokens = rows.tokens.copy()
    elsewhere = ~document & (tokens >= 0)
    if others is not None:
        tokens[elsewhere] = others.integers(0, vocabulary, elsewhere.sum())
    following = rows.following if (rows.following >= 0).any() else rows.tokens
    return dataclasses.replace(rows, tokens=tokens, following=np.where(document, following, -1))


def by_itself(rows: Sequences, document: np.ndarray) -> Sequences:
    """The document as a row of its own."""
    following = rows.following if (rows.following >= 0).any() else rows.tokens
    tokens, after = rows.tokens[document][None], following[document][None]
    return Sequences(tokens, after, rows.keys[:1], np.zeros(tokens.shape, dtype=np.int32))


@pytest.mark.parametrize("cut", [packed, stream_with_borders])
@pytest.mark.parametrize("kernel", ["native", "torch"])
@pytest.mark.parametrize("config", [GPT2, QWEN3, BERT, MODERNBERT], ids=["gpt2", "qwen3", "bert", "modernbert"])
def test_a_document_s_loss_and_gradient_do_not_depend_on_its_neighbours(
    documents: tuple[Path, Path], config: TransformerConfig, kernel: str, cut: Any
) -> None:
    if kernel == "native" and not native.available():
        pytest.skip("no C++ compiler")
    vocabulary = Corpus.open(documents[0]).vocabulary
    config = dataclasses.replace(config, context=CONTEXT, vocabulary=vocabulary, head_dim=8)
    model = random_model(config).to(torch.float32 if kernel == "native" else torch.float64)
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel, module.packed_kernel = (attention, packed_attention) if kernel == "native" else (None, None)
    framing = Framing("shifted") if config.causal else Framing("whole", 1, 2)
    rows = cut(documents[0], framing)
    read = next(row for row in map(rows.read, np.arange(rows.samples)[:, None], itertools.repeat(np.zeros(1, np.uint64)))
                if row.documents is not None and row.documents.max() >= 2)  # fmt: skip
    assert read.documents is not None
    random = np.random.default_rng(3)
    for number in np.unique(read.documents[read.documents >= 0]).tolist()[:2]:
        document = read.documents == number
        plain = loss_and_gradients(model, only(read, document, None, vocabulary))
        assert plain[0] > 0
        for other in (only(read, document, random, vocabulary), by_itself(read, document)):
            for expected, got in zip(plain, loss_and_gradients(model, other), strict=True):
                bound = 1e-5 if kernel == "native" else 1e-6  # of the loss, which is summed in fp32
                assert (got - expected).norm() <= bound * expected.norm()


def test_without_borders_it_depends_on_them(documents: tuple[Path, Path]) -> None:
    corpus = Corpus.open(documents[0])
    model = random_model(dataclasses.replace(GPT2, context=CONTEXT, vocabulary=corpus.vocabulary)).float()
    read = stream_with_borders(documents[0], Framing()).read(np.arange(1), np.zeros(1, np.uint64))
    assert read.documents is not None
    document = read.documents == 1
    changed = only(read, document, np.random.default_rng(3), corpus.vocabulary)
    plain = only(read, document, None, corpus.vocabulary)
    with_borders, without = (
        [loss_of(model, dataclasses.replace(rows, documents=kept)) for rows in (plain, changed)]
        for kept in (read.documents, None)
    )
    torch.testing.assert_close(*with_borders)
    assert abs(without[0] - without[1]) > 1e-3


KINDS: dict[str, dict[str, Any]] = {
    "packed": {"rows": "packed"},
    "grouped": {"rows": "grouped"},
    "borders": {"borders": True},
    "mixture": {"rows": "packed", "weights": [[0, 0.7, 0.3], [0.5, 1, 3]]},
}


def recipe_of(documents: tuple[Path, Path], kind: str, **sections: Any) -> Recipe:
    data: dict[str, Any] = {"directory": str(documents[0]), **KINDS[kind]}
    if kind == "mixture":
        data |= {"mixture": [str(folder) for folder in documents]}
    train = {"global_batch": 12, "micro_batch": 5, "steps": 10, **sections.pop("train", {})}
    return tiny_recipe(documents[0], data=data, model={"context": CONTEXT, "layers": 1}, train=train, **sections)


def weights_and_losses(
    world: Any, recipes: dict[str, Recipe], folder: Path
) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    results = {}
    for name, one in recipes.items():
        records, weights = run_training(world, one, folder / name)
        results[name] = ([record["loss"] for record in records], weights)
    return results


def test_two_ranks_train_as_one_and_their_ledgers_are_whole(documents: tuple[Path, Path], tmp_path: Path) -> None:
    recipes = {kind: recipe_of(documents, kind) for kind in KINDS}
    one = weights_and_losses(alone(), recipes, tmp_path / "1")
    two = run_ranks(2, weights_and_losses, recipes, tmp_path / "2")[0]
    for kind in KINDS:
        assert two[kind][0] == pytest.approx(one[kind][0], rel=1e-5), kind
        for folder in ("1", "2"):
            found = audit(read_ledger(tmp_path / folder / kind / "ledger.json"))
            assert (found.faults, found.consumed) == ([], 10 * 12), kind


def go_on(world: Any, recipes: dict[str, Recipe], folder: Path, stop_at: int) -> dict[str, dict[str, Tensor]]:
    weights = {}
    for kind, one in recipes.items():
        parts = build_parts(one, folder / kind, world, resume=(folder / kind / "checkpoints").exists())
        progress = parts.progress
        try:
            train(dataclasses.replace(parts, stop_requested=lambda progress=progress: progress.step + 1 >= stop_at))
        except Interrupted:
            pass
        finally:
            parts.telemetry.close()
        weights[kind] = {name: value.detach().clone() for name, value in parts.model.state_dict().items()}
    return weights


def test_a_stopped_run_goes_on_bitwise_and_at_another_world_size_over_the_same_samples(
    documents: tuple[Path, Path], tmp_path: Path
) -> None:
    recipes = {kind: recipe_of(documents, kind) for kind in KINDS}
    straight = go_on(alone(), recipes, tmp_path / "straight", 99)
    go_on(alone(), recipes, tmp_path / "stopped", 4)
    stopped = go_on(alone(), recipes, tmp_path / "stopped", 99)
    run_ranks(2, go_on, recipes, tmp_path / "moved", 3)
    moved = go_on(alone(), recipes, tmp_path / "moved", 99)
    for kind in KINDS:
        found = audit(read_ledger(tmp_path / "moved" / kind / "ledger.json"))
        assert (found.faults, found.consumed, len(found.sound)) == ([], 10 * 12, 2), kind
        for name, value in straight[kind].items():
            assert torch.equal(stopped[kind][name], value), f"{kind}: {name}"
            torch.testing.assert_close(moved[kind][name], value, rtol=1e-3, atol=2e-4)


def test_exact_mode_gives_grouped_and_mixed_runs_the_same_bits_on_two_ranks(
    documents: tuple[Path, Path], tmp_path: Path
) -> None:
    exact = {"parallel": {"exact": True, "virtual_shards": 4}, "train": {"micro_batch": 3, "steps": 5}}
    recipes = {kind: recipe_of(documents, kind, **exact) for kind in ("grouped", "mixture")}
    one = weights_and_losses(alone(), recipes, tmp_path / "1")
    two = run_ranks(2, weights_and_losses, recipes, tmp_path / "2")[0]
    for kind in recipes:
        assert one[kind][0] == two[kind][0]
        for name, value in one[kind][1].items():
            assert torch.equal(two[kind][1][name], value), f"{kind}: {name}"


def test_workers_at_servers_read_what_ranks_read(documents: tuple[Path, Path], tmp_path: Path) -> None:
    for kind in ("grouped", "mixture"):
        plain, _ = run_training(alone(), recipe_of(documents, kind), tmp_path / kind / "plain")
        served = recipe_of(documents, kind, parallel={"sync": "server", "server": {"lease": 60.0}})
        records, _ = ServedRun(served, tmp_path / kind / "served", 2).train()
        assert [record["tokens"] for record in records] == [record["tokens"] for record in plain]
        assert [record["loss"] for record in records] == pytest.approx([record["loss"] for record in plain], rel=1e-5)


def test_a_mixture_is_evaluated_corpus_by_corpus_and_together(documents: tuple[Path, Path], tmp_path: Path) -> None:
    parts = build_parts(recipe_of(documents, "mixture", evaluation={"final_sequences": 0}), tmp_path / "both", alone())
    both = parts.evaluate(parts.model)
    counts, losses = [], []
    for number, folder in enumerate(documents):
        single = recipe_of((folder, folder), "packed", evaluation={"final_sequences": 0})
        other = build_parts(single, tmp_path / str(number), alone())
        result = other.evaluate(parts.model)
        assert both[f"eval_loss/{folder.name}"] == pytest.approx(result["eval_loss"], rel=1e-6)
        assert result["eval_targets"] == Corpus.open(folder).split("held_out").tokens
        counts.append(result["eval_targets"])
        losses.append(result["eval_loss"])
        other.telemetry.close()
    parts.telemetry.close()
    assert both["eval_targets"] == sum(counts)
    assert both["eval_loss"] == pytest.approx(float(np.average(losses, weights=counts)), rel=1e-6)


def plan_of(one: Recipe) -> Any:
    return plan_training(one, open_corpora(one), CONTEXT, Framing(), lambda sizes, tokens: one.train.steps or None)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"weights": [[0, 1]]}, r"'data.weights' has a line of 2 numbers.*it takes 3"),
        ({"weights": [[0.5, 1, 1]]}, "the first begins at 0"),
        ({"weights": [[-0.5, 1, 1]]}, "a stage that begins at -0.5: a share of the run, or a step, from 0 on"),
        ({"weights": [[0, 1, 1], [float("inf"), 1, 2]]}, "begins at inf: a share"),
        ({"weights": [[0, 1, 1]], "mixture": []}, "those of a mixture: name its corpora"),
        ({"weights": [[0, 1, 1], [9, 1, 2], [0.25, 2, 1]]}, "each later than the one before"),
        ({"weights": [[0, 0, 0]]}, "one is above it"),
        ({"rows": "grouped"}, "'data.rows' grouped is for one corpus"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_told(documents: tuple[Path, Path], data: dict[str, Any], told: str) -> None:
    one = recipe_of(documents, "mixture")
    with pytest.raises(RecipeError, match=told):
        plan_of(tiny_recipe(documents[0], data={"mixture": list(map(str, documents)), "rows": "packed", **data},
                            train={"steps": one.train.steps}))  # fmt: skip


def test_shares_of_a_run_that_ends_by_the_clock_are_refused(documents: tuple[Path, Path]) -> None:
    one = recipe_of(documents, "mixture", train={"steps": 0, "minutes": 1.0})
    with pytest.raises(RecipeError, match="only the clock knows"):
        plan_of(one)


def test_corpora_of_another_tokenizer_or_of_one_name_do_not_mix(documents: tuple[Path, Path], corpus: Path) -> None:
    data = {"mixture": [str(documents[0]), str(corpus)]}
    with pytest.raises(CorpusError, match="another tokenizer"):
        open_corpora(tiny_recipe(documents[0], data=data))
    with pytest.raises(InputError, match="two corpora of one name"):
        open_corpora(tiny_recipe(documents[0], data={"mixture": [str(documents[0])] * 2}))


def test_rows_of_another_kind_are_not_gone_on_with(documents: tuple[Path, Path], tmp_path: Path) -> None:
    parts = build_parts(recipe_of(documents, "packed"), tmp_path, alone())
    state = parts.batches.state_dict()
    parts.telemetry.close()
    other = build_parts(recipe_of(documents, "grouped"), tmp_path / "other", alone())
    other.telemetry.close()
    with pytest.raises(CorpusError, match="kind of rows"):
        other.batches.load_state_dict(state)
