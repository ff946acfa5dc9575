"""What a browser, or anybody else on this machine, is answered."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.board.runs import evaluation, step, write_run

pytest.importorskip("fastapi", reason="the board needs the extra `serve`")

from starlette.testclient import TestClient

from shoal.board.app import HEADERS, PAGE, make_app
from shoal.board.board import Board

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    one = write_run(
        folder / "one",
        [*(step(number) for number in range(1, 11)), evaluation(10)],
        result={"steps": 10, "note": "\ud800" + EVIL},
    )
    (one / "report.html").write_text("<p>a report")
    write_run(folder / "two", [step(1)])
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[TestClient]:
    with TestClient(make_app(Board([runs])), base_url="http://127.0.0.1:8321") as client:
        yield client


def ids(client: TestClient) -> dict[str, str]:
    return {run["name"]: run["id"] for run in client.post("/api/news", json={}).json()["runs"]}


@pytest.mark.parametrize("path", ["/", "/board.js", "/board.css", "/api/plots", "/nothing"])
def test_every_answer_forbids_what_comes_from_elsewhere(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert HEADERS.items() <= {name.title(): value for name, value in answer.headers.items()}.items() | {
        (name, answer.headers[name]) for name in HEADERS
    }
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, path
        assert "innerHTML" not in text and "style=" not in text, path


def test_news_are_told(client: TestClient) -> None:
    one = ids(client)["one"]
    answer = client.post("/api/news", json={one: None}).json()
    assert [run["name"] for run in answer["runs"]] == ["one", "two"]
    rows = answer["news"][one]["training"]
    assert rows["keys"]["step"]["mean"] == list(range(1, 11))
    known = {"generation": 0, "training": [rows["per_row"], rows["records"]], "evaluations": [1, 1]}
    assert client.post("/api/news", json={one: known, "gone": None}).json()["news"][one]["training"]["keys"] == {}


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "[]",
        '{"x": 1}',
        '{"x": {"generation": -1, "training": [1, 0], "evaluations": [1, 0]}}',
        '{"x": {"generation": 0, "training": [0, 0], "evaluations": [1, 0]}}',
        '{"x": {"generation": 0, "training": [1], "evaluations": [1, 0]}}',
        json.dumps({str(number): None for number in range(500)}),
    ],
)
def test_a_wrong_question_is_refused(client: TestClient, body: str) -> None:
    assert client.post("/api/news", content=body, headers={"Content-Type": "application/json"}).status_code == 422


def test_a_cursor_from_another_world_is_answered_with_the_rows_there_are(client: TestClient) -> None:
    one = ids(client)["one"]
    ahead = {"generation": 0, "training": [1, 10**9], "evaluations": [2**40, 5]}
    rows = client.post("/api/news", json={one: ahead}).json()["news"][one]
    assert rows["training"]["first"] <= 10
    assert rows["evaluations"]["keys"]["step"]["mean"] == [10]


@pytest.mark.parametrize(
    "query", ["axis=loss&start=0&end=1", "axis=step&start=nan&end=1", "axis=step&start=0", "axis=step&start=x&end=1"]
)
def test_a_part_that_cannot_be_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/api/part?run={ids(client)['one']}&{query}").status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/api/run?run=x",
        "/api/part?run=x&axis=step&start=0&end=1",
        "/report/x",
        "/report/..%2f..%2fetc%2fpasswd",
        "/..%2fapp.py",
        "/../app.py",
    ],
)
def test_what_is_not_there_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_texts_that_are_no_unicode_travel(client: TestClient) -> None:
    answer = client.get(f"/api/run?run={ids(client)['one']}")
    assert answer.status_code == 200
    assert json.loads(answer.content)["result"]["note"] == "\ud800" + EVIL


def test_numbers_beyond_all_measure_leave_the_others_their_answer(tmp_path: Path) -> None:
    huge = [step(number, tokens=1e308, step_seconds=1e308, tokens_per_second=1e308) for number in range(1, 5)]
    write_run(tmp_path / "huge", huge, recipe={"train": {"steps": 1e-310, "tokens": 1e-310, "minutes": 1e-310}})
    write_run(tmp_path / "usual", [step(1)])
    with TestClient(make_app(Board([tmp_path])), base_url="http://127.0.0.1:8321") as client:
        first = client.post("/api/news", json={}).json()["runs"][0]
        assert client.post("/api/news", json={first["id"]: None}).status_code == 200
        assert client.get(f"/api/part?run={first['id']}&axis=seconds&start=0&end=1e309").status_code == 422
        assert client.get(f"/api/part?run={first['id']}&axis=seconds&start=0&end=1e308").status_code == 200
    assert (first["done"], first["seconds_left"], first["tokens_per_second"]) == (None, None, None)


def test_a_report_is_shown_in_a_sandbox_and_a_run_without_one_says_why(client: TestClient) -> None:
    report = client.get(f"/report/{ids(client)['one']}")
    assert report.text == "<p>a report"
    assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    missing = client.get(f"/report/{ids(client)['two']}")
    assert missing.status_code == 404
    assert "when it has finished" in missing.json()["detail"]


def test_another_name_of_this_machine_gets_nothing(client: TestClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "localhost:8321"}).status_code == 200


def test_the_page_is_for_reading_alone(client: TestClient) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        assert client.request(method, "/api/news").status_code == 405
