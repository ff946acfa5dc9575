"""The parameter server without its engine: who holds what, who lives, who waits for whom, who reads what."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim

from shoal.core.errors import RankError, RecipeError
from shoal.parallel.codecs.plain import Plain
from shoal.parallel.server.clock import Clock, DroppedError, Pace, Standing
from shoal.parallel.server.partition import divide_parameters
from shoal.parallel.server.shard import ParameterServer
from shoal.parallel.shards import Shards

SIZES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 50), min_size=4, max_size=9)


class Hand:
    """A clock's time, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def begun(pace: Pace, now: Callable[[], float] = time.monotonic, standing: Standing | None = None) -> Clock:
    clock = Clock(pace, now)
    clock.seed(standing or Standing(), {})
    return clock


class Waiting:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.result: Any = None
        self.thread = threading.Thread(target=self._run, args=(call, arguments), daemon=True)
        self.thread.start()

    def _run(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self.result = call(*arguments)
        except RankError as error:
            self.result = error

    def is_held(self) -> bool:
        """Whether it still waits, after a moment."""
        self.thread.join(0.1)
        return self.thread.is_alive()

    def get(self) -> Any:
        self.thread.join(5)
        assert not self.thread.is_alive()
        return self.result


@settings(max_examples=50, deadline=None)
@given(sizes=SIZES, servers=st.integers(1, 4), whole=st.booleans(), multiple=st.sampled_from([1, 8]))
def test_every_element_has_one_server_and_portions_are_balanced(
    sizes: dict[str, int], servers: int, whole: bool, multiple: int
) -> None:
    portions = divide_parameters(sizes, servers, whole, multiple)
    held = {name: np.zeros(size, dtype=int) for name, size in sizes.items()}
    loads = []
    for portion in portions:
        place = 0
        for piece in portion.pieces:
            held[piece.name][piece.start : piece.end] += 1
            assert piece.place == place
            place += piece.end - piece.start
            assert not whole or (piece.start, piece.end) == (0, sizes[piece.name])
        loads.append(place)
        assert portion.length % multiple == 0
        assert 0 <= portion.length - place < multiple
    assert all((counts == 1).all() for counts in held.values())
    assert max(loads) - min(loads) <= (max(sizes.values()) if whole else 1)


def test_more_servers_than_there_is_to_hold_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"parallel\.server\.shards' is 3"):
        divide_parameters({"a": 10, "b": 1}, 3, whole=True)


def test_a_run_that_was_ended_gives_out_no_more_pieces() -> None:
    clock = begun(Pace(2, bound=None, piece=4, end=40))
    assert clock.join(1)[1].piece is not None
    clock.end(0)
    news = clock.advance(1, 4)
    assert (news.piece, news.stop) == (None, False)


def test_workers_meet_and_all_see_who_came() -> None:
    clock = begun(Pace(2))
    first = Waiting(clock.meet, 0, 0, [1.0, 16.0, 16.0], 8)
    assert first.is_held()
    assert clock.meet(1, 0, [2.0, 16.0, 16.0], 8) == ({0: [1.0, 16.0, 16.0], 1: [2.0, 16.0, 16.0]}, ())
    assert first.get()[0] == {0: [1.0, 16.0, 16.0], 1: [2.0, 16.0, 16.0]}
    assert clock.now_standing().__dict__ | {"seconds": 0} == Standing(step=1, position=8, tokens=32).__dict__


def test_the_dead_drop_out_when_their_lease_ends_and_it_is_told_once() -> None:
    hand = Hand()
    clock = begun(Pace(2, lease=5, patience=5), hand)
    hand.seconds = 4
    clock.renew(0)
    waiting = Waiting(clock.meet, 0, 0, [0.0, 1.0, 1.0], 8)
    assert waiting.is_held()
    hand.seconds = 6
    with clock.condition:
        clock.condition.notify_all()
    met, notes = waiting.get()
    assert list(met) == [0]
    assert notes == ("rank 1 gave no sign for 5 s; the others go on without it, until it comes back",)
    assert clock.meet(0, 1, [0.0, 1.0, 1.0], 8)[1] == ()


def test_who_comes_back_learns_that_it_was_dropped_and_joins_at_the_common_step() -> None:
    hand = Hand()
    clock = begun(Pace(2, lease=5, patience=5), hand)
    hand.seconds = 4
    clock.renew(0)
    hand.seconds = 6
    clock.meet(0, 0, [0.0, 16.0, 16.0], 8)
    with pytest.raises(DroppedError):
        clock.meet(1, 0, [0.0, 16.0, 16.0], 8)
    standing, _, _ = clock.join(1)
    assert (standing.step, standing.position, standing.tokens) == (1, 8, 16)
    waiting = Waiting(clock.meet, 0, 1, [0.0, 16.0, 16.0], 8)
    assert waiting.is_held()  # it counts again
    clock.meet(1, 1, [0.0, 16.0, 16.0], 8)
    assert sorted(waiting.get()[0]) == [0, 1]


def test_what_was_gathered_before_a_worker_came_is_not_its_affair() -> None:
    clock = begun(Pace(2, patience=0.01, lease=60))
    clock.join(0)
    time.sleep(0.02)
    clock.meet(0, 0, [0.0, 1.0, 1.0], 8)
    clock.join(1)
    assert clock.gather(0, 0, "ledger", "mine") == {0: "mine"}


@pytest.mark.parametrize("bound", [0, 2])
def test_a_worker_is_never_further_ahead_of_the_slowest_than_the_bound(bound: int) -> None:
    clock = begun(Pace(2, bound=bound, piece=1, end=100))
    clock.join(0)
    clock.join(1)
    for _ in range(bound):
        clock.advance(0, 1)
    ahead = Waiting(clock.advance, 0, 1)
    assert ahead.is_held()
    clock.advance(1, 1)
    assert ahead.get().others == 1
    held = Waiting(clock.advance, 0, 1)
    assert held.is_held()
    clock.leave(1)  # and for who is done, or dead, nobody waits
    held.get()


def test_without_a_bound_nobody_waits_and_pieces_end_with_the_budget() -> None:
    clock = begun(Pace(2, piece=4, end=20))
    pieces = [clock.join(0)[1].piece, clock.join(1)[1].piece]
    told = [clock.advance(0, 64) for _ in range(4)]
    assert pieces + [news.piece for news in told] == [0, 4, 8, 12, 16, None]
    assert [news.done for news in told] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert clock.advance(1, 64).others == 4 * 64
    assert clock.now_standing().tokens == 5 * 64


def test_the_piece_of_a_dead_worker_is_given_to_another_and_kept_by_a_checkpoint() -> None:
    hand = Hand()
    clock = begun(Pace(2, lease=5, patience=5, piece=4, end=16), hand)
    clock.join(0)
    clock.join(1)
    assert clock.now_standing().unread == (0, 4)
    hand.seconds = 4
    clock.renew(0)
    hand.seconds = 6
    assert clock.advance(0, 1).piece == 4
    again = begun(Pace(1, piece=4, end=16), standing=clock.now_standing())
    assert [again.join(0)[1].piece, *(again.advance(0, 1).piece for _ in range(3))] == [4, 8, 12, None]


def test_at_the_end_only_those_that_came_are_waited_for() -> None:
    clock = begun(Pace(3, piece=1, end=2))
    clock.join(0)
    clock.join(1)
    waiting = Waiting(clock.wait_for_others, 0)
    assert waiting.is_held()
    clock.leave(1)
    waiting.get()


def test_a_failing_worker_ends_the_waiting_of_all_with_its_message() -> None:
    clock = begun(Pace(2))
    waiting = Waiting(clock.meet, 0, 0, [0.0, 1.0, 1.0], 8)
    clock.fail(1, "no such corpus", 2)
    error = waiting.get()
    assert (str(error), error.exit_code) == ("rank 1: no such corpus", 2)


class Descent:
    """Gradient descent without state."""

    def __init__(self, shards: Shards) -> None:
        self.inner = optim.SGD([shard.value for shard in shards.values()], lr=1.0)

    def step(self, share: float) -> None:
        self.inner.step()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass


def test_a_server_sums_what_was_pushed_and_steps_once_however_often_it_is_asked() -> None:
    (portion,) = divide_parameters({"weight": 4, "bias": 2}, 1, whole=True, multiple=8)
    shapes = {"weight": torch.Size([2, 2]), "bias": torch.Size([2])}
    server = ParameterServer(portion, shapes, Plain(), Descent)
    server.seed(0, np.arange(8, dtype=np.float32), {})
    ones = np.array([1, 1, 1, 1, 1, 1, 0, 0], dtype=np.float32)
    for rank in range(3):
        server.push(rank, 0, (ones * (rank + 1)).view(np.uint8))
    assert server.add_up(0, [0, 2]) == server.add_up(0, [0, 2]) == pytest.approx(6 * 4.0**2)
    for _ in range(2):
        server.step(0, 0.5, 1.0)
    assert server.pull().tolist() == [-2, -1, 0, 1, 2, 3, 6, 7]
    server.apply(ones.view(np.uint8), 1.0, 1.0)
    assert server.pull()[:6].tolist() == [-3, -2, -1, 0, 1, 2]
