"""Optimizers behind one small protocol, and how a recipe chooses among them.

The learning rate arrives with every step as a share of the peak, so that a schedule knows nothing of groups. State is a
flat dictionary of tensors by parameter name: it goes to disk without pickle and can be cut up by ranks.
"""

from typing import Protocol

from torch import Tensor, nn

from shoal.core import recipe
from shoal.train.optimizers.adamw import AdamW
from shoal.train.optimizers.lookahead import Lookahead
from shoal.train.optimizers.muon import Muon


class Optimizer(Protocol):
    """Changes parameters in place from their `.grad`."""

    def step(self, share: float) -> None:
        """One step at `share` of every peak learning rate."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All state, by `parameter name/kind`."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what `state_dict` gave."""
        ...


class Together:
    """Several optimizers that each have some of the parameters."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts

    def step(self, share: float) -> None:
        """Step all parts."""
        for part in self.parts:
            part.step(share)

    def state_dict(self) -> dict[str, Tensor]:
        """The parts' states; parameter names keep them apart."""
        return {name: value for part in self.parts for name, value in part.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Each part takes what is its own."""
        for part in self.parts:
            part.load_state_dict(state)


def build_optimizer(model: nn.Module, settings: recipe.Optimizer) -> Optimizer:
    """The recipe's optimizer over all trainable parameters."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer: Optimizer
    if settings.kind == "muon":
        matrices = {name: value for name, value in named.items() if value.dim() == 2 and name.startswith("blocks.")}
        rest = {name: value for name, value in named.items() if name not in matrices}
        optimizer = Together([Muon(matrices, settings), AdamW(rest, settings)])
    else:
        optimizer = AdamW(named, settings)
    return Lookahead(optimizer, named, settings.lookahead) if settings.lookahead.every else optimizer
