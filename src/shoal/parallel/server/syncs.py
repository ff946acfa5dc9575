"""How workers meet at the servers, as the loop sees it.

`MeetAtServers` is plain synchronous training by other means: gradients are summed over all living workers, and one step is
taken for all. `PassByServers` is for workers that don't wait for each other (up to a bound): each one's gradients are
applied as they come, so it computes on parameters that others have changed meanwhile.

The optimizer is on the servers. The loop's `optimizer.step(share)` therefore only says that the step is wanted
(`ServedOptimizer`), and it is sent in `after_step`, with the pull.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.core.errors import RankError
from shoal.parallel.mesh import Mesh
from shoal.parallel.server.client import Client
from shoal.parallel.server.clock import News
from shoal.parallel.server.shard import Bytes
from shoal.parallel.shards import Shards
from shoal.parallel.sync import Sync


class ServedOptimizer:
    """The servers' optimizer, as a worker sees it; its state is gathered on the main rank alone."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.share: float | None = None
        self.loaded: dict[str, Tensor] | None = {}
        """State that the servers don't have: what they are to begin with, or, after training, the best checkpoint's."""

    def step(self, share: float) -> None:
        """The step that ends now is to be taken."""
        self.share = share

    def take_share(self) -> float | None:
        """What `step` was told since it was asked last."""
        share, self.share = self.share, None
        return share

    def seed(self, step: int) -> None:
        """Give the servers what they begin with: the model's parameters, and the state that was loaded."""
        self.client.seed(step, self.loaded or {})
        self.loaded = None

    def state_dict(self) -> dict[str, Tensor]:
        """The state on all servers, and the model gets the parameters of the same moment; or what was loaded."""
        if self.loaded is not None:
            return self.loaded
        return self.client.collect() if self.client.wire.world.is_main else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Keep it."""
        self.loaded = state


class MeetAtServers(Sync):
    """Synchronous: one sum of all living workers' gradients, one step of the servers' optimizer, one pull.

    With lossless gradients, N workers do what summing among ranks does, to the rounding of sums of N numbers.
    """

    def __init__(self, client: Client, optimizer: ServedOptimizer, mesh: Mesh, samples: int) -> None:
        self.client, self.optimizer, self.mesh, self.wire = client, optimizer, mesh, client.wire
        self.samples = samples
        self.step = 0
        self.tell: Callable[[str], None] = lambda note: None
        self._factor = 1.0
        self._ranks: list[int] = []
        self._kept: dict[str, Tensor] = {}

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Every worker has all of the model."""
        self.shards = self.client.shards = shards

    def begin_backward(self, last: bool) -> None:
        """Gradients travel when all are there."""

    def before_step(self) -> None:
        """Push."""
        payloads = self.client.encode()
        self._pushes = self.client.start_push("push", payloads, (self.client.rank, self.step), ())

    def sum_totals(self, totals: Tensor) -> Tensor:
        """Meet; from here on all agree on who takes part in this step."""
        self.client.finish(self._pushes)
        met, notes = self.client.ask("meet", self.step, totals.sum(0).tolist(), self.samples)
        for note in notes:
            self.tell(note)
        self._ranks = sorted(met)
        return torch.tensor([met[rank] for rank in self._ranks], dtype=torch.float64, device=totals.device).sum(0)

    def grad_norm(self) -> Tensor:
        """Of the sum, as the servers have it."""
        norms = self.client.finish(self.client.start("add_up", self.step, self._ranks))
        return torch.tensor(sum(norms), dtype=torch.float64).sqrt()

    def scale_grads(self, factor: float) -> None:
        """For the servers to do."""
        self._factor = factor

    def after_step(self) -> None:
        """The servers step, unless it is skipped, and the parameters come back."""
        share = self.optimizer.take_share()
        stepped = [] if share is None else self.client.start("step", self.step, self._factor, share)
        pulled = self.client.start("pull")  # done after the step, as each server keeps the order
        self.client.finish(stepped)
        self.client.take(self.client.finish(pulled))
        self.step += 1
        _clear(self.shards)

    def from_main(self, purpose: str, value: Any) -> Any:
        """By the clock, after a step."""
        return self.client.ask("gather", self.step - 1, purpose, value).get(0)

    def state_dict(self) -> dict[str, Tensor]:
        """On the main rank, what every worker's codec has dropped, by `parameter name/feedback-rank`."""
        mine = {name: value.numpy() for name, value in self.client.kept().items()} if self.client.feedback else {}
        if not mine:
            return {}
        everyone = self.client.ask("gather", self.step - 1, "feedback", mine)
        if not self.wire.world.is_main:
            return {}
        return {
            f"{name}/feedback-{rank}": torch.from_numpy(np.array(value))
            for rank, kept in everyone.items()
            for name, value in kept.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Keep it, to be given to each worker when it joins."""
        self._kept = state

    def kept_by_rank(self, ranks: int) -> dict[int, dict[str, Tensor]]:
        """What was loaded, divided among so many; where there are fewer than there were, some take that of several."""
        by_rank: dict[int, dict[str, Tensor]] = {}
        for key, value in self._kept.items():
            name, _, kind = key.rpartition("/")
            if kind.startswith("feedback-"):
                mine = by_rank.setdefault(int(kind.removeprefix("feedback-")) % ranks, {})
                mine[name] = mine[name] + value if name in mine else value
        return by_rank


class PassByServers(Sync):
    """Stale-synchronous and asynchronous: a push is applied at once, as one of the N that make a step.

    A worker clips by the norm of its own gradients: there is no sum to clip. What the codec drops is not part of a
    checkpoint here: no run of this kind goes on bitwise anyway.
    """

    def __init__(self, client: Client, optimizer: ServedOptimizer, mesh: Mesh, bounded: bool) -> None:
        self.client, self.optimizer, self.mesh, self.wire = client, optimizer, mesh, client.wire
        self.bounded = bounded
        self.news = News(None, 0.0, 0, 0.0, False)
        self.tell: Callable[[str], None] = lambda note: None
        self._payloads: list[Bytes] = []
        self._tokens = 0
        self._as_many = 1.0
        self._factor = 1.0

    def attach(self, model: nn.Module, shards: Shards) -> None:
        """Every worker has all of the model."""
        self.shards = self.client.shards = shards

    def begin_backward(self, last: bool) -> None:
        """Gradients travel when all are there."""

    def before_step(self) -> None:
        """Encode; whether it is sent, the loop decides by the loss and the norm."""
        self._payloads = self.client.encode()

    def sum_totals(self, totals: Tensor) -> Tensor:
        """This worker's loss, for as many tokens as all have used since it was told last."""
        total = totals.sum(0)
        self._tokens = int(total[2])
        self._as_many = 1 + self.news.others / max(1, self._tokens)
        if total[3]:
            self.client.finish([self.client.clock("stop")])
        total[:3] *= self._as_many
        total[3] += float(self.news.stop)
        total[4] = self.news.seconds
        total[5:] = 0
        self._stopping = bool(total[3])
        return total

    def grad_norm(self) -> Tensor:
        """Of this worker's gradients, for as many tokens as `sum_totals` tells."""
        own = self.client.squared_norm(self._payloads)
        return torch.tensor(own, dtype=torch.float64).sqrt() * self._as_many

    def scale_grads(self, factor: float) -> None:
        """For the servers to do."""
        self._factor = factor * self._as_many

    def after_step(self) -> None:
        """Push, wait where the bound says so, and pull."""
        share = self.optimizer.take_share()
        pushed = [] if share is None else self.client.start_push("apply", self._payloads, (), (self._factor, share))
        if self.bounded:
            self.client.finish(pushed)  # what is not there yet must not count as done
            pushed = []
            self.news = self.client.ask("advance", self._tokens)
            vectors = self.client.finish(self.client.start("pull"))
        else:
            pulled, told = self.client.start("pull"), self.client.clock("advance", self.client.rank, self._tokens)
            *vectors, self.news = self.client.finish([*pulled, told])
        self.client.finish(pushed)
        self.client.take(vectors)
        for note in self.news.notes:
            self.tell(note)
        _clear(self.shards)
        if self._stopping:
            self.settle()

    def from_main(self, purpose: str, value: Any) -> Any:
        """The main rank's own; the others are at other steps, and need not know."""
        return value if self.wire.world.is_main else None

    def settle(self) -> None:
        """Nobody needs to wait for this worker; the main one waits for all, and has what they have made.

        Where it has had enough before the budget's end, that ends for all.
        """
        if not self.wire.world.is_main:
            self.client.ask("leave")
            return
        if self.news.piece is not None:
            self.client.ask("end")
        self.client.ask("wait_for_others")
        self.client.pull()

    @property
    def piece(self) -> int:
        """The first sample to be read next."""
        if self.news.piece is None:
            raise RankError("the run's samples are all read")
        return self.news.piece


def _clear(shards: Shards) -> None:
    for shard in shards.values():
        shard.value.grad = None
