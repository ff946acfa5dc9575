"""PowerSGD: sums of matrices as products of two thin ones (Vogels et al. 2019, arXiv:1905.13727).

With Q [n, r] common to the ranks, the sum over them of M [m, n] is approached by P Qᵀ: one step of power iteration, P = ΣMQ
made orthonormal, then Q = ΣMᵀP, which is where the next sum begins (warm start). Both sums are of plain numbers, so they
travel by all-reduce: all P of a buffer in one message, together with what is no matrix, all Q in a second one; r (m + n)
numbers instead of m n. Every rank keeps M − P(MᵀP)ᵀ of its own M, which together are what the sum lacks.

P and Q lie transposed, [r, m] and [r, n]: at rank 4 the products with M then take a sixth of the time.

It is no `Codec`, as it must know the matrices, and what it sends is summed on the way; callers use it like a `CodedSum`.
All ranks compute the products themselves, from the same numbers: to the same bits on processors of one kind, with as many
threads each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.core.seeds import generator
from shoal.parallel.feedback import Place
from shoal.parallel.mesh import Axis
from shoal.parallel.wire import Stages, Wire


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns] in the buffer, and where P [rank, rows] and Q [rank, columns] lie in the messages."""

    name: str
    rows: int
    columns: int
    rank: int
    offset: int
    p: int
    q: int

    def of(self, flat: Tensor) -> Tensor:
        """The matrix, a view of a buffer."""
        return flat[self.offset : self.offset + self.rows * self.columns].view(self.rows, self.columns)

    def left(self, message: Tensor) -> Tensor:
        """P, a view of the first message."""
        return message[self.p : self.p + self.rank * self.rows].view(self.rank, self.rows)

    def right(self, message: Tensor) -> Tensor:
        """Q, a view of the second message."""
        return message[self.q : self.q + self.rank * self.columns].view(self.rank, self.columns)


class PowerSGD:
    """Sums of one flat fp32 buffer [n] over an axis, in the background.

    `places` say which tensors lie in it; those of more than two dimensions are matrices [first, rest]. One whose thin ones
    would not be smaller travels plain, like vectors and whatever is no tensor: at full rank that is everything. The axis
    needs a channel of its own (`own_channel`). `back`: another one for the Q, which then travel while the next P do. The
    first Q are drawn from `seed`, which must be the same on all ranks.
    """

    multiple = 1

    def __init__(
        self,
        wire: Wire,
        axis: Axis,
        places: Sequence[Place],
        rank: int,
        decay: float = 1.0,
        seed: int = 0,
        back: Axis | None = None,
    ) -> None:
        self.wire, self.axis, self.decay = wire, axis, decay
        self.back, self.pausing = back or axis, back is not None
        self.matrices, self.p_length, self.q_length = lay_out(places, rank)
        self.warm: dict[str, Tensor] = {}
        for matrix in self.matrices:
            drawn = torch.randn(matrix.rank, matrix.columns, generator=generator(seed, f"powersgd/{matrix.name}"))
            self.warm[matrix.name] = orthonormal(drawn).to(wire.world.device)

    def wire_bytes(self, length: int) -> int:
        """What a rank sends for a buffer of `length` numbers."""
        plain = length - sum(matrix.rows * matrix.columns for matrix in self.matrices)
        messages = (self.p_length + plain, self.q_length)
        return sum(2 * 4 * numbers * (self.axis.size - 1) // self.axis.size for numbers in messages)

    def start(self, values: Tensor, dropped: Tensor | None) -> Any:
        """Begin to replace `values` by their sum over the ranks; pass the result to `wire.finish`.

        `dropped` [n] is this rank's feedback, brought up to date; zeros at the beginning, None to forget what is left out.
        Where it or a sum is not finite, it stays as it was, and so does the warm start. Ranks must start sums in the same
        order.
        """
        if self.axis.size == 1:
            return None
        return self.wire.in_stages(self.sum(values, dropped))

    def state_dict(self) -> dict[str, Tensor]:
        """The Q where the next sum begins, by matrix: [rank, columns], the same on all ranks."""
        return dict(self.warm)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up `state_dict`; a matrix that it lacks, or has at another rank, begins anew."""
        for name, kept in self.warm.items():
            if name in state and state[name].shape == kept.shape:
                kept.copy_(state[name])

    def sum(self, values: Tensor, dropped: Tensor | None) -> Stages:
        """The stages of what `start` begins; `wire.in_stages` runs them."""
        if dropped is not None:
            values.add_(dropped, alpha=self.decay)
        gaps = gaps_between(self.matrices, len(values))
        first = values.new_empty(self.p_length + sum(map(len, gaps)))
        second = values.new_empty(self.q_length)
        for matrix in self.matrices:
            torch.mm(self.warm[matrix.name], matrix.of(values).T, out=matrix.left(first))
        plain = first[self.p_length :].split([len(gap) for gap in gaps])
        for gap, sent in zip(gaps, plain, strict=True):
            sent.copy_(values[gap.start : gap.stop])
            if dropped is not None:
                dropped[gap.start : gap.stop].masked_fill_(sent.isfinite(), 0)  # all of it gets through
        yield from self._all_reduce(first, self.axis)
        for gap, summed in zip(gaps, plain, strict=True):
            values[gap.start : gap.stop] = summed
        for matrix in self.matrices:
            left, right = matrix.left(first), matrix.right(second)
            left.copy_(orthonormal(left))
            torch.mm(left, matrix.of(values), out=right)
            if dropped is not None:
                error, kept = torch.addmm(matrix.of(values), left.T, right, alpha=-1), matrix.of(dropped)
                # an M that is not finite makes its Q so, which is quicker to look through
                torch.where(right.isfinite().all(), error, kept, out=kept)
        yield from self._all_reduce(second, self.back)
        for matrix in self.matrices:
            left, right, warm = matrix.left(first), matrix.right(second), self.warm[matrix.name]
            torch.mm(left.T, right, out=matrix.of(values))
            useful = right.isfinite().all() & right.any()  # nothing is learnt from zeros
            warm.copy_(torch.where(useful, orthonormal(right), warm))

    def _all_reduce(self, message: Tensor, axis: Axis) -> Stages:
        if len(message):
            arriving = self.wire.start_sum(message, axis)
            if self.pausing:
                yield
            self.wire.wait(arriving)


def lay_out(places: Sequence[Place], rank: int) -> tuple[list[Matrix], int, int]:
    """The matrices that are worth it, in the order of the buffer, and the numbers that all P and all Q have."""
    matrices: list[Matrix] = []
    p = q = 0
    for place in sorted(places, key=lambda place: place.offset):
        rows = place.shape[0] if place.shape else 1
        columns = torch.Size(place.shape[1:]).numel()
        if rank * (rows + columns) >= rows * columns:
            continue
        matrices.append(Matrix(place.name, rows, columns, rank, place.offset, p, q))
        p, q = p + rows * rank, q + columns * rank
    return matrices, p, q


def gaps_between(matrices: Sequence[Matrix], length: int) -> list[range]:
    """What of a buffer of `length` numbers is in none of the matrices."""
    begins = [matrix.offset for matrix in matrices]
    ends = [matrix.offset + matrix.rows * matrix.columns for matrix in matrices]
    gaps = [range(end, begin) for end, begin in zip([0, *ends], [*begins, length], strict=True)]
    return [gap for gap in gaps if gap]


def orthonormal(thin: Tensor) -> Tensor:
    """Orthonormal rows that span those of `thin` [r, n]; of numbers that are not finite, numbers that are not either."""
    finite = thin.isfinite().all()
    return torch.where(finite, torch.linalg.qr(torch.where(finite, thin, 0.0).T).Q.T, torch.nan)
