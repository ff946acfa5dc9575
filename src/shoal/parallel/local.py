"""Local updates: ranks step apart, and meet every so many steps (DiLoCo, Douillard et al. 2023, arXiv:2311.08105).

At a meeting each copy of the model sends how far it has come from the common weights, Δ = common − own (a pseudo-gradient).
Its mean over all copies is a gradient for the outer optimizer, which moves the common weights, and every copy goes on from
there. With `sgd` at a learning rate of 1 that is the mean of the copies' weights: local SGD (Stich 2019, arXiv:1805.09767);
with `after`, post-local SGD (Lin et al. 2020, arXiv:1808.07217).

The model meets in fragments, each every `every` steps but at different times, and ranks may go on while one travels
(Streaming DiLoCo, Douillard et al. 2025, arXiv:2501.18512). What has changed on a rank meanwhile is kept: its weights become
the new common ones plus the way it has gone since it sent. With `mix` above 0 they become, as in that paper,
mix × own + (1 − mix) × common instead.

What travels may be encoded, with error feedback (SparseLoCo, Sarfi et al. 2025, arXiv:2508.15706). The mean is over all
copies, not over those that sent a value: what a copy leaves out counts as zero, and is in its feedback.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.core import recipe
from shoal.core.errors import RecipeError
from shoal.parallel.coded_sum import Sums
from shoal.parallel.mesh import Axis, Mesh
from shoal.parallel.shards import Shards
from shoal.parallel.sync import Sync
from shoal.parallel.wire import Wire


@dataclass
class Flight:
    """A fragment under way: its sum over the copies arrives in `values`; `sent` are the weights that left."""

    fragment: int
    departure: int
    arrival: int
    values: Tensor
    sent: Tensor
    work: Any = None


def check_fragments(settings: recipe.Local) -> None:
    """`RecipeError` where two would have to travel at a time."""
    if settings.fragments * max(1, settings.overlap) > settings.every:
        raise RecipeError(
            f"parallel.local: one fragment travels at a time, so 'fragments' × 'overlap' ({settings.fragments} × "
            f"{settings.overlap}) and 'fragments' can't be more than 'every' ({settings.every})"
        )


class Local(Sync):
    """`inner` divides and syncs within a copy of the model; copies (the mesh's replicate axis) meet every so many steps.

    `sums`: how pseudo-gradients are summed over the copies, in fp32 unless given; `feedback`: whether what it drops returns;
    `closing`: how they are summed at the very end, when nothing that is dropped comes back.
    """

    def __init__(
        self,
        wire: Wire,
        mesh: Mesh,
        inner: Sync,
        settings: recipe.Local,
        sums: Sums | None = None,
        feedback: bool = True,
        closing: Sums | None = None,
    ) -> None:
        check_fragments(settings)
        self.wire, self.mesh, self.inner, self.settings = wire, mesh, inner, settings
        self.sums, self.feedback, self.closing = sums, feedback, closing
        self.steps = 0

    @property
    def apart(self) -> Axis:
        """The copies."""
        return self.mesh.replicate

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Let the inner strategy divide the model, and remember the weights that all copies share."""
        self.inner.attach(model, shards)
        self.shards = self.inner.shards
        self.flat = Flat(self.shards)
        multiple = math.lcm(*(sums.multiple for sums in (self.sums, self.closing) if sums))
        each = -(-self.flat.length // (self.settings.fragments * multiple)) * multiple
        self.length = each * self.settings.fragments  # the last is padded
        self.pieces = [(start, start + each) for start in range(0, self.length, each)]
        self.common = self._read(0, self.length)
        with_momentum = self.settings.outer == "nesterov" and self.settings.momentum > 0
        self.momentum = torch.zeros_like(self.common) if with_momentum else None
        self.dropped = torch.zeros_like(self.common) if self.sums and self.feedback else None
        self.meetings = [0] * self.settings.fragments
        self.flight: Flight | None = None
        self._message: tuple[Tensor, Any] | None = None

    def begin_backward(self, last: bool) -> None:
        """A forward and backward pass follow."""
        self.inner.begin_backward(last)

    def before_step(self) -> None:
        """Gradients are this copy's; as long as ranks have not parted, those of all."""
        self.inner.before_step()
        if self.steps < self.settings.after:
            gradients = [shard.value.grad for shard in self.shards.values() if shard.value.grad is not None]
            for work in [self.wire.start_sum(gradient, self.apart) for gradient in gradients]:
                self.wire.finish(work)

    def sum_totals(self, totals: Tensor) -> Tensor:
        """Loss and targets as if all copies had this one's; where ranks meet, the rest as it was at the meeting before.

        Nobody waits for that: else who is ahead would wait at every meeting, though fragments have steps to arrive in.
        """
        mine = self.inner.sum_totals(totals)
        if self.steps < self.settings.after:
            return self.wire.sum(mine, self.apart)
        found = mine.clone()
        found[:3] *= self.apart.size
        found[3:5] = 0  # what only all together can decide
        if self._departing(self.steps + 1):
            if self._message is not None:
                found[3:] = self._arrived_message()[3:]
            self._message = mine, self.wire.start_sum(mine, self.apart)
        return found

    def grad_norm(self) -> Tensor:
        """As if all copies had this one's gradients: so scaled are its totals, too."""
        return self.inner.grad_norm() * self._scale

    def scale_grads(self, factor: float) -> None:
        """Multiply the gradients."""
        self.inner.scale_grads(factor * self._scale)

    def after_step(self) -> None:
        """Take in the fragment that is due, and send the next."""
        self.steps += 1
        if self.steps > self.settings.after:
            self._land()
            for fragment in self._departing(self.steps):
                self.flight = self._begin(fragment, self.steps + self.settings.overlap)
                self._land()
        elif self.steps == self.settings.after:
            self.common = self._read(0, self.length)
        self.inner.after_step()  # where a copy is divided, its ranks tell each other what has become of their parts

    def settle(self) -> None:
        """All copies end with the mean of their weights; the outer optimizer would go on in its old direction."""
        self._arrived_message()
        if self.flight is not None:
            self.flight.arrival = self.steps
            self._land()
        if self.steps <= self.settings.after:
            return
        for start, end in self.pieces:
            values = self.common[start:end] - self._read(start, end)
            if self.dropped is not None:  # what has not got through yet
                values += self.dropped[start:end]
                self.dropped[start:end] = 0
            self.wire.finish(self.closing.start(values, None) if self.closing else self.wire.start_sum(values, self.apart))
            self.common[start:end].sub_(values, alpha=1 / self.apart.size)
        with self.changing_weights():
            self._write(0, self.common)

    @contextmanager
    def common_weights(self) -> Iterator[None]:
        """Inside, the model has the common weights, as of the last meetings."""
        if self.steps <= self.settings.after:
            yield
            return
        own = self._read(0, self.length)
        with self.changing_weights():
            self._write(0, self.common)
        try:
            yield
        finally:
            with self.changing_weights():
                self._write(0, own)

    def state_dict(self) -> dict[str, Tensor]:
        """Common weights, outer momentum, what is under way, and how far it has come."""
        parted = self.steps > self.settings.after
        state = {
            **self.flat.by_name(self.common if parted else self._read(0, self.length), "common"),
            **(self.flat.by_name(self.momentum, "momentum") if self.momentum is not None else {}),
            "local/steps": torch.tensor(self.steps),
            "local/meetings": torch.tensor(self.meetings),
        }
        if self.flight is not None:
            self.wire.finish(self.flight.work)
            self.flight.work = None
            whole = torch.zeros_like(self.common)
            start, end = self.pieces[self.flight.fragment]
            whole[start:end] = self.flight.values
            state |= self.flat.by_name(whole, "arriving")
            state["local/flight"] = torch.tensor([self.flight.fragment, self.flight.departure, self.flight.arrival])
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from there; from a run whose ranks did not step apart, from its weights."""
        self.flight = self._message = None
        if "local/steps" not in state:
            self.common = self._read(0, self.length)
            return
        self.steps = int(state["local/steps"])
        self.flat.from_names(state, "common", self.common)
        if self.momentum is not None:
            self.flat.from_names(state, "momentum", self.momentum)
        meetings = state["local/meetings"].tolist()
        self.meetings = meetings if len(meetings) == len(self.pieces) else [max(meetings)] * len(self.pieces)
        if "local/flight" in state and len(meetings) == len(self.pieces):
            fragment, departure, arrival = state["local/flight"].tolist()
            whole = torch.zeros_like(self.common)
            self.flat.from_names(state, "arriving", whole)
            start, end = self.pieces[fragment]
            self.flight = Flight(fragment, departure, arrival, whole[start:end].clone(), torch.empty(0))

    def own_state(self) -> dict[str, Tensor]:
        """What the codec has dropped of this copy, and the weights that it sent of a fragment under way."""
        state = self.flat.by_name(self.dropped, "dropped") if self.dropped is not None else {}
        if self.flight is not None:
            whole = torch.zeros_like(self.common)
            start, end = self.pieces[self.flight.fragment]
            whole[start:end] = self.flight.sent
            state |= self.flat.by_name(whole, "sent")
        return state

    def load_own_state(self, states: list[Mapping[str, Tensor]]) -> None:
        """Feedback of several copies adds up: it all belongs to the one sum."""
        whole = torch.empty_like(self.common)
        if self.dropped is not None:
            self.dropped.zero_()
            for state in states:
                if self.flat.from_names(state, "dropped", whole):
                    self.dropped += whole
        if self.flight is not None:
            start, end = self.pieces[self.flight.fragment]
            known = len(states) == 1 and self.flat.from_names(states[0], "sent", whole)
            self.flight.sent = (whole if known else self._read(0, self.length))[start:end].clone()

    @property
    def _scale(self) -> int:
        return 1 if self.steps < self.settings.after else self.apart.size

    def _arrived_message(self) -> Tensor:
        """The sums of the totals that were sent at the last meeting."""
        totals, work = self._message or (torch.empty(0), None)
        self._message = None
        self.wire.finish(work)
        return totals

    def _departing(self, step: int) -> list[int]:
        """The fragments that leave after `step`; the last one at multiples of `every`."""
        every, count = self.settings.every, self.settings.fragments
        since = step - self.settings.after
        return [fragment for fragment in range(count) if (since - (fragment + 1) * every // count) % every == 0]

    def _begin(self, fragment: int, arrival: int) -> Flight:
        start, end = self.pieces[fragment]
        sent = self._read(start, end)
        values = self.common[start:end] - sent
        flight = Flight(fragment, self.steps, arrival, values, sent)
        if self.sums is None:
            flight.work = self.wire.start_sum(values, self.apart)
        else:
            dropped = self.dropped[start:end] if self.dropped is not None else None
            flight.work = self.sums.start(values, dropped)
        return flight

    @torch.no_grad()
    def _land(self) -> None:
        """The outer step of the fragment that is due, if one is, and what it does to this copy's weights."""
        flight = self.flight
        if flight is None or flight.arrival > self.steps:
            return
        self.flight = None
        self.wire.finish(flight.work)
        start, end = self.pieces[flight.fragment]
        common = self.common[start:end]
        if _is_finite(flight.values):
            momentum = None if self.momentum is None else self.momentum[start:end]
            self._outer_step(flight.fragment, common, momentum, flight.values.div_(self.apart.size))
        if self.settings.mix:
            own = self._read(start, end).lerp_(common, 1 - self.settings.mix)
        elif flight.arrival == flight.departure:
            own = common
        else:
            own = self._read(start, end).add_(flight.sent.neg_().add_(common))
        # a copy that has lost itself takes the common weights
        self._write(start, own if _is_finite(own) else common)

    def _outer_step(self, fragment: int, common: Tensor, momentum: Tensor | None, gradient: Tensor) -> None:
        rate = self.settings.learning_rate
        self.meetings[fragment] += 1
        if momentum is None:
            common.sub_(gradient, alpha=rate)
            return
        warm = min(1.0, self.meetings[fragment] / self.settings.warmup) if self.settings.warmup else 1.0
        share = self.settings.momentum * warm
        momentum.mul_(share).add_(gradient)
        common.sub_(gradient, alpha=rate).sub_(momentum, alpha=rate * share)

    def whole_weights(self) -> AbstractContextManager[None]:
        """Of this copy."""
        return self.inner.whole_weights()

    def changing_weights(self) -> AbstractContextManager[None]:
        """The ranks that divide this copy may have to gather them."""
        return self.inner.changing_weights()

    def _read(self, start: int, end: int) -> Tensor:
        return self.flat.read(self.shards, start, end)

    def _write(self, start: int, values: Tensor) -> None:
        self.flat.write(self.shards, start, values)


def _is_finite(values: Tensor) -> bool:
    """Whether all are, in one pass: a sum of weights or of their differences is far from fp32's end."""
    return bool(values.sum().isfinite())


class Flat:
    """All of a rank's parameters in a row, in fp32, and zeros beyond."""

    def __init__(self, shards: Shards) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self.shapes = {name: shard.value.shape for name, shard in shards.items()}
        position = 0
        for name, shard in shards.items():
            self.places[name] = position, position + shard.value.numel()
            position += shard.value.numel()
        self.length = position
        self.device = next(iter(shards.values())).value.device

    @torch.no_grad()
    def read(self, shards: Shards, start: int, end: int) -> Tensor:
        """A copy of the values [start, end)."""
        result = torch.zeros(end - start, device=self.device)
        for name, low, high, first in self._overlaps(start, end):
            result[low - start : high - start] = shards[name].value.detach().flatten()[low - first : high - first]
        return result

    @torch.no_grad()
    def write(self, shards: Shards, start: int, values: Tensor) -> None:
        """Put the values from `start` on back."""
        for name, low, high, first in self._overlaps(start, start + len(values)):
            shards[name].value.view(-1)[low - first : high - first] = values[low - start : high - start]

    def by_name(self, flat: Tensor, kind: str) -> dict[str, Tensor]:
        """Views of a flat tensor by `parameter name/kind`."""
        return {f"{name}/{kind}": flat[low:high].view(self.shapes[name]) for name, (low, high) in self.places.items()}

    def from_names(self, state: Mapping[str, Tensor], kind: str, flat: Tensor) -> bool:
        """Fill a flat tensor from what `by_name` gave; False, and zeros, where the state has none of that kind."""
        flat.zero_()
        found = False
        for name, (low, high) in self.places.items():
            value = state.get(f"{name}/{kind}")
            if value is not None and value.numel() == high - low:
                flat[low:high] = value.flatten()
                found = True
        return found

    def _overlaps(self, start: int, end: int) -> Iterator[tuple[str, int, int, int]]:
        """(name, first and last position in the row, where the parameter begins) of all that lies in [start, end)."""
        for name, (first, last) in self.places.items():
            low, high = max(first, start), min(last, end)
            if low < high:
                yield name, low, high, first
