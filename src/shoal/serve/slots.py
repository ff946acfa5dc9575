"""Which slots are free, and of which tokens each holds keys and values: what was computed for one text may serve another.

A slot keeps what it holds until it is given to another text. A prompt that begins as what some slot holds, busy or free, is
read from where they differ.
"""

from collections.abc import Sequence

from torch import Tensor

from shoal.serve.runner import Runner


class Slots:
    """A runner's slots; all that is computed goes through here."""

    def __init__(self, runner: Runner, reuse: bool = True) -> None:
        """`reuse`: whether texts that begin alike have the same keys and values there."""
        self._runner, self._reuse = runner, reuse
        self.capacity = runner.capacity
        self._held: list[list[int]] = [[] for _ in range(runner.slots)]
        self._free = [*range(runner.slots)]
        """Longest not used first."""

    @property
    def free(self) -> int:
        """Slots that no text has."""
        return len(self._free)

    def take(self, prompt: Sequence[int]) -> tuple[int, int]:
        """(a free slot, how many of the prompt's first tokens it holds); the last is left to be read, for its logits.

        What a free slot holds is overtaken where the prompt has most of it; else it is copied, to where nothing was of use
        for longest.
        """
        best, length = self._best(prompt)
        if best is not None and best in self._free and 2 * length >= len(self._held[best]):
            slot = best
        else:
            slot = self._free[0]
            if best is not None and best != slot and length:
                self._held[slot] = []  # should copying fail half-way
                self._runner.copy(best, slot, length)
                self._held[slot] = self._held[best][:length]
        self._free.remove(slot)
        del self._held[slot][length:]
        return slot, length

    def known(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens some slot holds."""
        return self._best(prompt)[1]

    def _best(self, prompt: Sequence[int]) -> tuple[int | None, int]:
        shared = {slot: alike(held, prompt[:-1]) for slot, held in enumerate(self._held) if held and self._reuse}
        best = max(shared, key=lambda slot: (shared[slot], slot in self._free), default=None)
        return best, 0 if best is None else shared[best]

    def give_back(self, slots: Sequence[int]) -> None:
        """Let other texts have them, and what they hold."""
        self._free += slots

    def held(self, slot: int) -> int:
        """How many tokens it holds."""
        return len(self._held[slot])

    def forget(self, slot: int) -> None:
        """What it holds is of no use any more."""
        self._held[slot].clear()

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Go on with some tokens each; the logits [len(slots), vocabulary] of what follows them."""
        parts = [(slot, its, len(self._held[slot])) for slot, its in zip(slots, tokens, strict=True)]
        logits_RV = self._runner.read_together(parts)
        for slot, its, _ in parts:
            self._held[slot] += its
        return logits_RV

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Go on with a token each; the logits [len(slots), vocabulary] of what follows."""
        logits_RV = self._runner.step(slots, tokens)
        for slot, token in zip(slots, tokens, strict=True):
            self._held[slot].append(token)
        return logits_RV

    def branch(self, slots: Sequence[int], parents: Sequence[int]) -> list[int]:
        """Let each next beginning of a text have a slot that holds its parent's, whose number among `slots` is given.

        Returns all slots of the text again, those of the beginnings first. Only who is not the first child is copied.
        """
        spare = [slot for number, slot in enumerate(slots) if number not in parents]
        order: list[int] = []
        for parent in (slots[number] for number in parents):
            slot = parent
            if parent in order:
                slot = spare.pop()
                self._runner.copy(parent, slot, len(self._held[parent]))
                self._held[slot] = [*self._held[parent]]
            order.append(slot)
        return order + spare


def alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
