"""A model as tensors alone: the same outputs, whatever stands around a text, for any batch and length."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from shoal.export.check import check
from shoal.export.onnx import write_onnx
from shoal.export.program import Program, write_program
from shoal.models.reach import Reach
from tests.export.subjects import SHAPES, subject


def padded(shape: str) -> tuple[Program, dict[str, Tensor]]:
    """A program, and three rows of which two are padded, one of them before its text."""
    program = Program(subject(shape).model)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]])
    tokens = torch.randint(1, 300, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    kinds = torch.tensor([0, 0, 0, 1, 1, 1]) * mask
    given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": kinds}
    return program, {name: given[name] for name in program.inputs}


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("gpt2", "llama", "qwen3")])
def test_a_text_gets_what_it_gets_by_itself_wherever_padding_stands(shape: str) -> None:
    program, inputs = padded(shape)
    with torch.no_grad():
        together = program(**inputs)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            alone = program(**{name: value[row : row + 1, mask] for name, value in inputs.items()})
            for outputs, output in zip(together, alone, strict=True):
                mine = outputs[row, mask] if outputs.shape[:2] == inputs["input_ids"].shape else outputs[row]
                torch.testing.assert_close(mine, output[0])


@pytest.mark.parametrize("shape", ["classifier", "by the mean", "by attention", "by the last"])
def test_scores_of_texts_are_those_that_the_model_gives_to_pieces(shape: str) -> None:
    program, inputs = padded(shape)
    mask, kinds = inputs["attention_mask"], inputs.get("token_type_ids")
    model = program.model
    reach = Reach.of_mask(mask)
    starts = torch.arange(3) * 6 + mask.argmax(1)
    with torch.no_grad():
        hidden = model(inputs["input_ids"], reach=Reach(reach.low) if model.config.causal else reach, segments_BT=kinds)
        expected = model.score_texts(hidden, starts, mask.sum(1))
        (found,) = program(**inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", ["gpt2", "qwen3"])
def test_a_decoder_takes_tokens_alone(shape: str) -> None:
    program, inputs = padded(shape)
    assert list(inputs) == ["input_ids"]
    tokens = inputs["input_ids"]
    with torch.no_grad():
        (found,) = program(tokens)
        torch.testing.assert_close(found, program.model.project(program.model(tokens)))


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_loads_the_program_and_computes_the_same(shape: str, tmp_path: Path) -> None:
    model = subject(shape)
    write_program(tmp_path / "model.pt2", Program(model.model))
    found = check("torch", tmp_path / "model.pt2", model)
    assert found is not None
    assert found.difference == 0
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, length in ((1, 1), (5, 24)):
        program = Program(model.model)
        inputs = [torch.ones(batch, length, dtype=torch.int64) for _ in program.inputs]
        for output, expected in zip(loaded(*inputs), program(*inputs), strict=True):
            torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [("classifier", {"layers": 1}), *(pytest.param(shape, {}, marks=pytest.mark.thorough) for shape in SHAPES)],
)
def test_onnxruntime_computes_the_same_for_any_batch_and_length(shape: str, changes: dict[str, int], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, model = tmp_path / "onnx", subject(shape, **changes)
    program = Program(model.model)
    write_onnx(folder, model, program)
    found = check("onnx", folder, model)
    assert found is not None
    assert found.difference < 1e-4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [given.name for given in session.get_inputs()] == program.inputs
    for batch, length in ((1, 1), (5, 24)):  # other shapes than it was exported with
        inputs = {name: torch.ones(batch, length, dtype=torch.int64) for name in program.inputs}
        told = session.run(program.outputs, {name: value.numpy() for name, value in inputs.items()})
        for output, expected in zip(told, program(**inputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(output), expected.detach(), rtol=0, atol=1e-4)
    assert (folder / "tokenizer.json").exists()
