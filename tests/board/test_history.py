"""A past of any length in bounded room: no peak is lost, means are true, and rows stay the same rows."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.board.history import MOST_KEYS, History, Rows, per_row_of

values = st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=200)
capacities = st.sampled_from([4, 8, 16])


def history_of(numbers: list[float | None], capacity: int) -> History:
    history = History(capacity)
    for place, number in enumerate(numbers):
        history.add(10 * place, {"step": place + 1} | ({} if number is None else {"loss": number}))
    return history


@given(values, capacities, st.integers(1, 16))
def test_rows_keep_the_lowest_the_highest_and_the_mean_of_their_records(
    numbers: list[float | None], capacity: int, most: int
) -> None:
    history = history_of(numbers, capacity)
    rows = history.rows(per_row_of(len(numbers), most))
    assert rows.records == len(numbers)
    if not any(number is not None for number in numbers):
        return
    low, high, mean = rows.columns["loss"]
    assert len(low) == -(-len(numbers) // rows.per_row) <= max(most, capacity)
    for place in range(len(low)):
        part = [number for number in numbers[place * rows.per_row : (place + 1) * rows.per_row] if number is not None]
        if part:
            assert (low[place], high[place]) == (min(part), max(part))
            assert math.isclose(mean[place], math.fsum(part) / len(part), rel_tol=1e-9, abs_tol=1e-6)
        else:
            assert math.isnan(mean[place])


@given(values, capacities)
def test_buckets_are_never_more_than_there_is_room_for(numbers: list[float | None], capacity: int) -> None:
    history = history_of(numbers, capacity)
    assert len(history.offsets) <= capacity
    assert history.offsets == [10 * history.width * place for place in range(len(history.offsets))]


@given(values, capacities, st.integers(0, 200))
def test_later_rows_are_the_end_of_all_rows(numbers: list[float | None], capacity: int, first: int) -> None:
    history = history_of(numbers, capacity)
    whole = history.rows(2)
    first = min(first, history.count // whole.per_row)
    for key, columns in history.rows(2, first).columns.items():
        for part, column in zip(columns, whole.columns[key], strict=True):
            np.testing.assert_array_equal(part, column[first:])


def test_records_of_an_axis_are_found_in_their_buckets() -> None:
    history = history_of([1.0] * 100, capacity=16)
    assert history.width == 8
    first, last = history.between("step", 40, 50)
    assert first * history.width < 40 - 1 < 50 <= last * history.width
    assert history.between("nothing", 0, 1) == (0, 0)


def test_keys_without_end_take_no_room_without_end() -> None:
    history = History(4)
    for number in range(1000):
        history.add(number, {f"key {number}-{other}": 1.0 for other in range(3)})
    assert len(history.rows(1).columns) == MOST_KEYS


def test_what_is_no_number_in_json_is_null() -> None:
    column = np.array([1.23456789, math.nan, math.inf])
    told = Rows(0, 2, 6, {"step": (column,) * 3, "loss": (column,) * 3}).tree(("step",))
    assert told["keys"]["step"] == {"mean": [1.23456789, None, None]}
    assert told["keys"]["loss"] == {name: [1.23457, None, None] for name in ("mean", "low", "high")}
