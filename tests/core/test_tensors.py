"""Tensors on disk are whole or absent, and never a pickle."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoal.core.errors import InputError, ShoalError
from shoal.core.tensors import read_tensors, write_tensors
from tests.core.limits import largest_file


def test_tensors_come_back_bitwise_with_shape_and_type(tmp_path: Path) -> None:
    tensors = {
        "turned": torch.randn(3, 4).T,
        "half": torch.randn(5).bfloat16(),
        "whole": torch.arange(6).view(2, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "new" / "a.safetensors", tensors)
    read = read_tensors(tmp_path / "new" / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_a_write_that_fails_leaves_the_old_tensors_whole_and_nothing_beside_them(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.ones(3)})
    with (
        largest_file(1000),
        pytest.raises(ShoalError, match=r"a\.safetensors: could not be written.*; make room there, .* a run by --resume"),
    ):
        write_tensors(file, {"a": torch.ones(100_000)})
    assert torch.equal(read_tensors(file)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_over_a_folder_fails_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ShoalError, match="could not be written"):
        write_tensors(tmp_path / "a", {"a": torch.ones(3)})
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="the last byte is missing"),
        pytest.param(lambda content: content[:20], id="most is missing"),
        pytest.param(lambda content: b"", id="all is missing"),
        pytest.param(lambda content: content + b"x", id="a byte too many"),
        pytest.param(lambda content: b"\xff" * 8 + content[8:], id="an absurd header length"),
        pytest.param(lambda content: content[:8] + b"[" + content[9:], id="a header that is no JSON"),
        pytest.param(lambda content: b"PK\x03\x04" + content, id="an archive, as torch.save writes"),
    ],
)
def test_damaged_tensors_are_told_with_their_path(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"a": torch.ones(30)})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"a\.safetensors: not a whole safetensors file"):
        read_tensors(file)


def test_tensors_that_are_missing_or_a_folder_are_told_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.safetensors: no such file"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_tensors(tmp_path)
