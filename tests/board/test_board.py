"""All runs together: found where they are, and told in no more than is new."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shoal.board import board as boards
from shoal.board.board import POINTS, Board, Cursor
from shoal.core.errors import InputError
from tests.board.runs import Records, evaluation, step, text_of, write_run


def append(folder: Path, records: Records) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text_of(records))


def cursor_of(news: dict[str, Any]) -> Cursor:
    """What a page that has taken these news in would send."""
    rows = [(news[kind]["per_row"], news[kind]["records"]) for kind in ("training", "evaluations")]
    return Cursor(news["generation"], rows[0], rows[1])


def told(board: Board, cursor: Cursor | None = None) -> dict[str, Any]:
    """The news of a board's only run, when all is read."""
    (id,) = board.runs
    while (answer := board.news({id: cursor}))["reading"]:
        pass
    return answer["news"][id]


def bytes_read(board: Board) -> int:
    return sum(run.tail.bytes_read for run in board.runs.values())


def test_runs_are_found_in_folders_and_folders_of_folders_but_not_in_a_runs_own(tmp_path: Path) -> None:
    for name in ("one", "group/two", "group/deep/three", ".hidden/four"):
        write_run(tmp_path / "runs" / name, [step(1)])
    (tmp_path / "runs/empty").mkdir()
    write_run(tmp_path / "runs/one/checkpoints/inside", [step(1)])
    board = Board([tmp_path / "runs", tmp_path / "runs/one"])
    assert sorted(run.name for run in board.runs.values()) == ["group/deep/three", "group/two", "one"]


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Board([tmp_path / "nothing"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        Board([tmp_path / "file"])


def test_runs_that_begin_later_appear_and_those_that_are_removed_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "SECONDS_BETWEEN_SEARCHES", 0.0)
    monkeypatch.setattr(boards, "SHARE_OF_SEARCHING", 1e9)
    board = Board([tmp_path])
    assert board.news({})["runs"] == []
    folder = write_run(tmp_path / "run", [step(1)])
    assert [run["name"] for run in board.news({})["runs"]] == ["run"]
    (folder / "metrics.jsonl").unlink()
    assert board.news({})["runs"] == []


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step(1)])
    (folder / "recipe.yaml").unlink()
    os.mkfifo(folder / "recipe.yaml")
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "other" / "metrics.jsonl")
    (run,) = Board([tmp_path]).news({})["runs"]
    assert run["faults"] == ["recipe.yaml can't be read: it is no plain file"]


def test_more_runs_than_can_be_shown_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "MOST_RUNS", 2)
    for number in range(4):
        write_run(tmp_path / f"run {number}", [step(1)])
    answer = Board([tmp_path]).news({})
    assert len(answer["runs"]) == 2
    assert answer["told"] == ["there are more than 2 runs; these are the first"]


def test_only_what_is_new_is_told_and_it_makes_up_the_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step(number) for number in range(1, 31)])
    board = Board([tmp_path])
    first = told(board)
    append(folder, [step(31), evaluation(31), step(32)])
    second = told(board, cursor_of(first))
    assert second["training"]["first"] == 30
    assert second["training"]["keys"]["step"]["mean"] == [31, 32]
    assert second["evaluations"]["keys"]["eval_loss"]["mean"] == [pytest.approx(1.5 + 1 / 31, rel=1e-5)]
    third = told(board, cursor_of(second))
    assert (third["training"]["keys"], third["evaluations"]["keys"]) == ({}, {})
    whole = told(board)["training"]["keys"]["loss"]["mean"]
    assert whole == first["training"]["keys"]["loss"]["mean"] + second["training"]["keys"]["loss"]["mean"]


def test_a_run_that_was_started_again_is_told_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [step(number) for number in range(1, 31)])
    board = Board([tmp_path])
    cursor = cursor_of(told(board))
    (folder / "metrics.jsonl").write_text(text_of([step(1), step(2)]))
    news = told(board, cursor)
    assert news["generation"] == 1
    assert (news["training"]["first"], news["training"]["keys"]["step"]["mean"]) == (0, [1, 2])


def test_a_long_past_costs_a_new_line_nothing(tmp_path: Path) -> None:
    """Bytes read, and rows told, for one more line: the same after 20 lines and after 20,000."""
    costs = []
    for lines in (20, 20_000):
        folder = write_run(tmp_path / f"{lines}", [step(number) for number in range(1, lines + 1)])
        board = Board([folder])
        news = told(board)
        assert len(news["training"]["keys"]["step"]["mean"]) <= POINTS
        before = bytes_read(board)
        append(folder, [step(30_001)])
        more = told(board, cursor_of(news))
        assert len(more["training"]["keys"]["step"]["mean"]) == 1
        costs.append(bytes_read(board) - before)
    assert costs[0] == costs[1] < 1000


def test_a_question_reads_so_much_and_small_runs_do_not_wait_for_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "AT_ONCE", 1 << 20)
    large = write_run(tmp_path / "a-large", [step(number) for number in range(1, 15_001)])
    write_run(tmp_path / "z-small", [step(1)])
    assert (large / "metrics.jsonl").stat().st_size > 3 << 20
    board = Board([tmp_path])
    answers = [board.news({})]
    while answers[-1]["reading"]:
        before = bytes_read(board)
        answers.append(board.news({}))
        assert bytes_read(board) - before <= 2 << 20
    assert len(answers) > 2
    assert {run["name"]: run["step"] for run in answers[1]["runs"]}["z-small"] == 1
    assert {run["name"]: run["step"] for run in answers[-1]["runs"]} == {"a-large": 15_000, "z-small": 1}
    assert [run["read"] for run in answers[-1]["runs"]] == [1, 1]


def test_a_part_is_told_to_the_record_and_no_peak_is_lost(tmp_path: Path) -> None:
    records = [step(number, loss=1.0) for number in range(1, 12_001)]
    records[7_777] = step(7_778, loss=99.0)
    folder = write_run(tmp_path / "run", records)
    board = Board([folder])
    (id,) = board.runs
    coarse = told(board)["training"]
    assert coarse["per_row"] > 1
    assert max(coarse["keys"]["loss"]["high"]) == 99
    part = board.part(id, "step", 7_700, 7_800)["training"]
    assert part["per_row"] == 1
    steps = part["keys"]["step"]["mean"]
    assert steps[0] < 7_700 and steps[-1] > 7_800
    assert steps == list(range(int(steps[0]), int(steps[-1]) + 1))
    assert steps[part["keys"]["loss"]["mean"].index(99)] == 7_778
    seconds = dict(zip(steps, part["keys"]["seconds"]["mean"], strict=True))
    assert seconds[7_778] == pytest.approx(777.8)
    by_time = board.part(id, "seconds", 770.0, 780.0)["training"]
    assert 7_778 in by_time["keys"]["step"]["mean"]


def test_a_part_that_is_too_long_to_be_read_again_is_told_by_its_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "MOST_DETAIL", 1000)
    board = Board([write_run(tmp_path / "run", [step(number) for number in range(1, 9001)])])
    (id,) = board.runs
    told(board)
    part = board.part(id, "step", 4000, 4200)["training"]
    assert part["per_row"] == 4
    assert part["keys"]["step"]["mean"][0] < 4000 and part["keys"]["step"]["mean"][-1] > 4200


@pytest.mark.parametrize("ends", [(-5.0, -1.0), (1e300, 1e308), (50.0, 3.0)])
def test_a_part_where_nothing_is_is_no_error(tmp_path: Path, ends: tuple[float, float]) -> None:
    board = Board([write_run(tmp_path / "run", [step(number) for number in range(1, 40)])])
    (id,) = board.runs
    told(board)
    assert "training" in board.part(id, "step", *ends)


def test_what_stands_beside_a_runs_metrics_is_told(tmp_path: Path) -> None:
    result = {
        "steps": 1,
        "eval_loss": 1.5,
        "samples": [{"prompt": "<b>", "text": "x"}],
        "machine": {"cores": 2},
        "reformed": ["a rank was lost"],
    }
    folder = write_run(tmp_path / "run", [step(1, stragglers=["rank 1 was slow"])], result=result, saved=1)
    predictions = [{"text": "long " * 5000, "prediction": {"label": "0", "true": "1"}}] * 60
    (folder / "predictions.jsonl").write_text(text_of(predictions))
    (folder / "report.html").touch()
    board = Board([folder])
    board.news({})
    (id,) = board.runs
    described = board.describe(id)
    assert described["recipe"]["train.steps"] == 100
    assert described["result"] == {"steps": 1, "eval_loss": 1.5, "machine.cores": 2, "reformed": '["a rank was lost"]'}
    assert described["samples"] == [{"prompt": "<b>", "text": "x"}]
    assert len(described["predictions"]) == 50
    assert described["predictions"][0]["prediction.label"] == "0"
    assert len(described["predictions"][0]["text"]) == 4000
    assert described["told"] == ["a rank was lost"]
    assert described["slow"] == ["step 1: rank 1 was slow"]
    assert described["report"]
    assert len(json.dumps(described)) < 500_000


def test_a_folder_whose_name_is_no_text_has_an_id_that_is(tmp_path: Path) -> None:
    try:
        write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")), [step(1)])
    except OSError:
        pytest.skip("this file system takes no such names")
    board = Board([tmp_path])
    (run,) = board.news({})["runs"]
    assert run["id"].isascii()
    assert json.dumps(run).encode("ascii")


@pytest.mark.thorough
def test_twice_the_lines_take_no_more_room(tmp_path: Path) -> None:
    import tracemalloc

    def peak_of(lines: int) -> int:
        folder = tmp_path / f"{lines}"
        folder.mkdir()
        with (folder / "metrics.jsonl").open("w") as file:
            for number in range(1, lines + 1):
                file.write(f'{{"step": {number}, "tokens": {number}, "loss": 1.5, "step_seconds": 0.1}}\n')
        tracemalloc.start()
        news = told(Board([folder]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(news["training"]["keys"]["step"]["mean"]) <= POINTS
        return peak

    assert peak_of(120_000) < 1.05 * peak_of(60_000)
