"""Which device a command computes on."""

import pytest
import torch

from shoal.core.device import find_device
from shoal.core.errors import InputError


def test_the_processor_can_always_be_asked_for() -> None:
    assert find_device("cpu") == torch.device("cpu")


def test_a_gpu_is_taken_where_there_is_one() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="--device is 'cuda', but torch finds no GPU"):
        find_device("cuda")
