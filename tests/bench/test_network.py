"""`shoal bench network`: rows are kept as they come, and what is too slow to measure is computed and says so."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from shoal.bench.methods import METHODS, QUICK, to_the_end
from shoal.bench.network import IDEAL, Plan, check_cost_model, measure, table
from shoal.bench.picture import draw
from shoal.bench.places import Here, run_ranks
from shoal.bench.raw import Raw, Row
from shoal.core.errors import ShoalError
from shoal.core.recipe_file import build_recipe, read_recipe

PARAMETERS = 1_000_000


def speed(megabits: float, method: str, seconds: float, sent: float = 0.0, hosts: int = 2) -> Row:
    row: dict[str, Any] = {"kind": "speed", "hosts": hosts, "megabits": megabits, "method": method, "how": "namespaces"}
    numbers = {"step_seconds": seconds, "wire_bytes": sent, "parameters": PARAMETERS, "tokens_per_second": 1 / seconds}
    return row | numbers | {"bits_per_parameter": 8 * sent / PARAMETERS, "blocked_seconds": 0.0, "steps": 4}


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    kept = Raw(tmp_path / "raw.json")
    for row in (speed(0, IDEAL, 1.0), speed(0, "fp32", 1.1, 4e6), speed(1, IDEAL, 1.0)):
        kept.add(row)
    return kept


def plan(**changes: Any) -> Plan:
    recipe = build_recipe({"model": {"dim": 64}, "tokenizer": {"vocabulary": 1000}})
    return Plan(Path("none.yaml"), recipe, [], hosts=(2,), links=(0.0, 1.0), methods=("fp32",), **changes)


def test_every_method_is_a_recipe() -> None:
    for keys in METHODS.values():
        for whole in (keys, to_the_end(keys, 1000)):
            read_recipe(None, [word for key, value in whole.items() for word in (f"--{key}", str(value))])
    assert set(QUICK) <= set(METHODS)


def test_a_bench_goes_on_from_what_was_kept(raw: Raw) -> None:
    again = Raw(raw.path)
    assert again.rows == raw.rows
    assert again.share(again.rows[1]) == pytest.approx(1 / 1.1)
    assert again.share(again.rows[0]) is None


def test_a_row_is_held_against_the_ideals_next_to_it(tmp_path: Path) -> None:
    kept = Raw(tmp_path / "raw.json")
    kept.add(speed(9, "lone", 1.0))
    assert kept.share(kept.rows[0]) is None
    for method, seconds in ((IDEAL, 1.0), ("a", 2.0), (IDEAL, 3.0), ("b", 2.0), ("peer", 2.0), (IDEAL, 5.0), ("c", 2.0)):
        kept.add(speed(1, method, seconds) | ({"ideal_step_seconds": 1.5} if method == "peer" else {}))
        kept.add(speed(2, IDEAL, 100.0))  # another link's
    shares = {row["method"]: kept.share(row) for row in kept.rows if row["megabits"] == 1}
    assert shares == {"a": 1.0, "b": 2.0, "c": 2.5, "peer": 0.75, IDEAL: None}


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows take no time: in what order they come is what is looked at."""
    monkeypatch.setattr("shoal.bench.network.reason_against", lambda: None)
    monkeypatch.setattr("shoal.bench.network.places", lambda *_: nullcontext([]))
    monkeypatch.setattr("shoal.bench.network._row", lambda *given: speed(given[2], given[3], 1.0) | (given[5] or {}))


def measured(raw: Raw, *methods: str, megabits: float = 0.0) -> list[str]:
    """The rows that a bench of these adds."""
    before = len(raw.rows)
    wanted = replace(plan(longest=60.0), links=(megabits,), methods=methods)
    assert measure(wanted, raw, lambda _: None) == []
    return [row["method"] for row in raw.rows[before:]]


@pytest.mark.usefixtures("at_once")
def test_the_ideal_is_measured_first_after_every_few_rows_and_last(tmp_path: Path) -> None:
    kept, four = Raw(tmp_path / "raw.json"), ("fp32", "bf16", "int8", "int4")
    assert measured(kept, *four, "topk", "topk") == [IDEAL, *four, IDEAL, "topk", IDEAL]
    assert measured(kept, *four, "topk") == []


@pytest.mark.usefixtures("at_once")
def test_a_later_sitting_has_ideals_of_its_own(raw: Raw) -> None:
    for row in raw.rows:
        row["began"] = "the day before"
    assert measured(raw, "fp32", "bf16") == [IDEAL, "bf16", IDEAL]
    raw.rows[3]["step_seconds"], raw.rows[5]["step_seconds"] = 3.0, 5.0
    assert [raw.share(row) for row in raw.rows if row["method"] in ("fp32", "bf16")] == [pytest.approx(1 / 1.1), 4.0]


@pytest.mark.usefixtures("at_once")
def test_what_is_not_held_against_an_ideal_asks_for_none(raw: Raw) -> None:
    assert measured(raw, "torch DDP") == ["torch DDP"]  # it has its own
    assert measured(raw, "fp32", megabits=1.0) == ["fp32"]
    assert raw.rows[-1]["how"] == "computed"
    assert raw.share(raw.rows[-1]) == pytest.approx(1.0 / raw.rows[-1]["step_seconds"])


def test_a_row_that_takes_too_long_is_computed_and_says_so(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.bench.network.reason_against", lambda: "none are made here")
    told: list[str] = []
    assert measure(plan(steps=4, longest=60.0), raw, told.append) == []
    row = raw.find({"megabits": 1, "method": "fp32"})
    assert row is not None and row["how"] == "computed"
    assert row["step_seconds"] == pytest.approx(33, rel=0.1)  # 4 MB at 1 Mbit/s, with headers
    assert "computed" in told[-1]
    assert table(raw).row_count == 2


def test_servers_on_a_link_that_is_too_slow_are_left_out(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.bench.network.reason_against", lambda: None)
    monkeypatch.setattr("shoal.bench.network.places", lambda *_: nullcontext([]))
    raw.add(speed(10, "server", 4.0, 8e6))
    told: list[str] = []
    slow = replace(plan(steps=4, longest=60.0), links=(1.0,), methods=("server",))
    assert measure(slow, raw, told.append) == []
    assert raw.find({"megabits": 1, "method": "server"}) is None
    assert "left out, it would take 5 minutes" in told[-1]  # 8 steps of 40 s
    assert [row["method"] for row in check_cost_model(plan(), raw)] == []


def test_who_cannot_be_slowed_down_is_left_out_where_no_hosts_are(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.bench.network.reason_against", lambda: "none are made here")
    told: list[str] = []
    assert measure(replace(plan(), links=(1.0,), methods=("server", "torch DDP")), raw, told.append) == []
    assert len(raw.rows) == 3
    raw.add(speed(0, "torch DDP", 1.1, 4e6))  # by which a row can be computed
    assert measure(replace(plan(longest=60.0), links=(1.0,), methods=("torch DDP",)), raw, lambda _: None) == []
    assert [row["how"] for row in raw.rows if row["method"] == "torch DDP"] == ["namespaces", "computed"]
    assert [line.partition(": left out, ")[0] for line in told[1:]] == [
        "2 hosts, 1 Mbit/s, server",
        "2 hosts, 1 Mbit/s, torch DDP",
    ]


def test_measured_rows_stand_beside_what_the_model_says(raw: Raw) -> None:
    raw.add(speed(1, "fp32", 35.0, 4e6))
    (row,) = check_cost_model(plan(), raw)
    assert row["computed_over_measured"] == pytest.approx(0.97, abs=0.05)


@pytest.mark.parametrize("hosts", [2, 4], ids=["with a link", "without any"])
def test_losses_are_drawn_against_time_and_bytes(raw: Raw, tmp_path: Path, hosts: int) -> None:
    raw.add(speed(1, "fp32", 35.0, 4e6))
    loss = {"kind": "loss", "hosts": hosts, "method": "fp32", "seed": 1, "steps": 10, "wire_bytes": 9}
    raw.add(loss | {"curve": [[5, 3.0], [10, 2.0]]})
    draw(raw, hosts, tmp_path / "drawn.png")
    raw.add(speed(10, "never trained", 1.0, hosts=hosts))  # no panel is drawn for it
    draw(raw, hosts, tmp_path / "again.png")
    assert imread(tmp_path / "drawn.png").shape == imread(tmp_path / "again.png").shape


def test_the_rank_that_failed_is_named_with_its_words() -> None:
    words = ["-c", "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('no such thing')\ntime.sleep(60)"]
    with pytest.raises(ShoalError, match="rank 1 ended with exit code 1:\nno such thing"):
        run_ranks([Here(), Here()], lambda rank: words)


def test_ranks_print_what_they_found() -> None:
    words = ["-c", "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"]
    assert run_ranks([Here(), Here()], lambda rank: words) == ["0 2\n", "1 2\n"]
    assert run_ranks([Here(), Here()], lambda rank: words, alone=True) == ["0 1\n", "0 1\n"]
