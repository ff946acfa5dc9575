"""On a GPU: the same losses, gradients, trainings and logits as anywhere."""

from pathlib import Path

import pytest
import torch

from shoal.models.loss import Softening, chunked, fused_chunk, linear_cross_entropy, softened
from shoal.parallel.world import World
from shoal.serve.runner import TorchRunner
from shoal.train import parity
from tests.models.shapes import FAMILIES, random_model
from tests.models.test_loss import make
from tests.models.test_softening import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("soft", [Softening(), Softening(0.1, 1e-2)], ids=["plain", "softened"])
@pytest.mark.parametrize("rows", [512, 700], ids=["whole chunks", "a rest"])
def test_the_compiled_loss_is_that_of_the_float64_formula_to_bf16s_rounding(
    monkeypatch: pytest.MonkeyPatch, soft: Softening, rows: int
) -> None:
    monkeypatch.setattr("shoal.models.loss.COMPILED_CHUNK_BYTES", 4 * 1000 * 256)
    inputs = make(rows=rows, vocabulary=1000, dim=64, ignored=0.2)
    kernel = chunked(torch.compile(fused_chunk))
    hidden, weight, targets = (tensor.detach().to(GPU) for tensor in inputs)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, targets, softened(soft, kernel) if soft else kernel)
    found = [total.detach(), *torch.autograd.grad(total, [hidden, weight])]
    for mine, right in zip(found, reference(*inputs, soft), strict=True):
        assert (mine.cpu().double() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize("case", [case for case in parity.CASES if case.ranks == 1], ids=lambda case: case.name)
def test_training_there_is_training_in_fp64(case: parity.Case, tmp_path: Path) -> None:
    trace = parity.trace(World(device=GPU), case, tmp_path)
    assert trace is not None
    assert parity.Difference.between(trace, parity.reference(optimizer=case.optimizer)).fine


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_runners_logits_are_the_same_there(family: str, half: bool) -> None:
    config, text = FAMILIES[family], [3, 1, 4, 1, 5, 9, 2, 6]
    here, there = TorchRunner(random_model(config), 3, 16), TorchRunner(random_model(config).to(GPU), 3, 16, half=half)
    for runner in (here, there):
        runner.read(0, text[:5], 0)
        runner.read(2, text[:5], 0)
    for _ in range(2):
        found, expected = there.step([0, 2], [7, 1]), here.step([0, 2], [7, 1])
        assert found.device.type == "cpu"
        assert (found - expected).norm() < (0.02 if half else 1e-4) * expected.norm()
