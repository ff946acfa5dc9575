"""Lines of metrics, of which some are none."""

import json

import pytest

from shoal.board.records import LONGEST_NAME, MOST_RANKS, parse
from tests.board.runs import evaluation, step


def test_a_step_and_an_evaluation_are_told_apart() -> None:
    trained, evaluated = (parse(json.dumps(record).encode()) for record in (step(3), evaluation(4)))
    assert trained and evaluated
    assert (trained.step, trained.is_evaluation, trained.values["loss"]) == (3, False, 1 + 1 / 3)
    assert (evaluated.step, evaluated.is_evaluation, evaluated.values["eval_loss"]) == (4, True, 1.75)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"null", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"loss": 1}', b'{"step": ' + b"9" * 5000 + b"}"),
        *(b'{"step": %s}' % wrong for wrong in (b'"1"', b"true", b"-1", b"1e3", b"99999999999999999999")),
    ],
)
def test_what_is_no_record_is_none(line: bytes) -> None:
    assert parse(line) is None


def test_what_is_no_finite_number_is_left_out_and_a_loss_that_is_none_is_told() -> None:
    record = parse(
        b'{"step": 1, "loss": NaN, "lr": Infinity, "mfu": "x", "flag": true, "huge": 99999999999999999999, "grad_norm": 2}'
    )
    assert record is not None
    assert record.diverged
    assert record.values == {"step": 1.0, "grad_norm": 2.0}


def test_figures_of_ranks_have_a_name_each_and_slow_ones_are_told() -> None:
    many = {"sync_seconds": list(range(MOST_RANKS + 5)), "wire_bytes": "x", "long" * LONGEST_NAME: [1]}
    record = parse(json.dumps(step(1, ranks=many, stragglers=["rank 1 was slow", 5])).encode())
    assert record is not None
    assert [key for key in record.values if "/" in key] == [f"ranks/sync_seconds/{rank}" for rank in range(MOST_RANKS)]
    assert record.told == ("rank 1 was slow",)


@pytest.mark.parametrize("wrong", [{"ranks/sync_seconds/4000000000": 1.0}, {"ranks": {"sync_seconds/x": [1.0]}}])
def test_no_other_names_are_taken_for_those_of_ranks(wrong: dict[str, object]) -> None:
    record = parse(json.dumps(step(1, **wrong)).encode())
    assert record is not None
    assert record.values.keys() == parse(json.dumps(step(1)).encode()).values.keys()  # type: ignore[union-attr]
