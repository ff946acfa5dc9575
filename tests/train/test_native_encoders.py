"""Encoders on the native kernels: loss and every gradient of padded rows are those of plain float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shoal.core.machine import cpp_compiler
from shoal.core.native import matrices
from shoal.data.sequences import Sequences
from shoal.models.config import TransformerConfig
from shoal.models.presets import PRESETS
from shoal.models.transformer import Transformer
from shoal.train.model_setup import use_native_kernels
from tests.train.encoders import Hiding

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")

SMALL = {"vocabulary": 90, "context": 80, "layers": 2, "dim": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "hidden": 48}
SHAPES = {
    "bert": replace(PRESETS["bert-mini"], **SMALL),
    "modernbert": replace(PRESETS["modernbert-base"], **SMALL, window=9, global_every=2),
    "encoder": replace(PRESETS["encoder-tiny"], **SMALL),
}


def sequences(config: TransformerConfig) -> Sequences:
    random = np.random.default_rng(1)
    windows = random.integers(0, config.vocabulary, (4, config.context + 1))
    windows[np.arange(config.context + 1) >= np.array([81, 50, 3, 70])[:, None]] = -1
    return Sequences.of_windows(windows)


def with_gradients(model: Transformer) -> dict[str, torch.Tensor]:
    """The loss, and each parameter's gradient."""
    task = Hiding()
    loss, _ = task.loss(model, task.batch(sequences(model.config), torch.device("cpu")))
    loss.backward()
    return {"loss": loss.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_an_encoder_on_the_native_kernels_equals_float64(config: TransformerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "LEAST_WORK", 0)
    monkeypatch.setattr(matrices, "serves", lambda: True)
    model = Transformer(config).materialise().initialise(torch.Generator().manual_seed(1), std=0.2)
    precise = Transformer(config).materialise().double()
    precise.load_state_dict(model.state_dict())
    use_native_kernels(model, "fp32", 1 << 20)
    assert model.loss_kernel is not None and model.transform is not None and model.transform.dense.kernel is not None
    found, expected = with_gradients(model), with_gradients(precise)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name
        )
