"""How answers end before their time: clients that leave, a full queue, time-outs, failures, and the server's own end."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from shoal.serve.http.limits import Limits
from shoal.serve.request import Engine
from tests.serve.http.servers import Server, chat_model, classifier, serving

PATH = "/v1/completions"
CONTEXT = 6000
LONG: dict[str, Any] = {"prompt": "the shoal", "max_tokens": CONTEXT, "temperature": 0}
"""A text that takes many seconds: greedily, the model goes round in circles."""


def engine_of(server: Server) -> Engine:
    assert server.served.writer is not None
    return server.served.writer.engine


def wait_until_idle(server: Server) -> None:
    """Ask for something else until no text holds a slot, or waits for one; the test's own time-out bounds it."""
    engine = engine_of(server)
    while engine.running or engine.waiting:
        assert server.client.get("/health").status_code == 200


def written(server: Server) -> float:
    """Tokens that were told in all answers."""
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("shoal_written_tokens_total"))


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """A server with one slot, and one place to wait."""
    with serving(chat_model(slots=1, queue=1, context=CONTEXT), Limits(queue=1)) as server:
        yield server


def begin(server: Server, **body: Any) -> socket.socket:
    """A request that is sent, whose answer nobody reads yet."""
    address = httpx.URL(server.url)
    connection = socket.create_connection((address.host, address.port or 0), timeout=60)
    content = json.dumps({"model": "tiny", **LONG, **body}).encode()
    connection.sendall(head(PATH, content) + content)
    return connection


def head(path: str, content: bytes) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(content)}")
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def test_a_client_that_leaves_a_stream_frees_its_slot(narrow: Server) -> None:
    before = written(narrow)
    for _ in range(3):
        with closing(begin(narrow, stream=True)) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        wait_until_idle(narrow)
    assert narrow.post(PATH, prompt="a fish", max_tokens=3).status_code == 200
    assert written(narrow) - before < CONTEXT


def test_a_client_that_leaves_before_its_answer_frees_its_slot(narrow: Server) -> None:
    before = written(narrow)
    with closing(begin(narrow)):
        while not engine_of(narrow).running:
            assert narrow.client.get("/health").status_code == 200
    wait_until_idle(narrow)
    assert written(narrow) - before < CONTEXT
    assert 'status="499"' in narrow.client.get("/metrics").text


def test_a_client_that_leaves_the_queue_makes_room(narrow: Server) -> None:
    engine = engine_of(narrow)
    with closing(begin(narrow, stream=True)) as running:
        running.recv(100)
        with closing(begin(narrow)):
            while not engine.waiting:
                assert narrow.client.get("/health").status_code == 200
        while engine.waiting:
            assert narrow.client.get("/health").status_code == 200
        assert engine.running == 1
    wait_until_idle(narrow)


def test_who_finds_the_queue_full_is_told_to_come_again(narrow: Server) -> None:
    with closing(begin(narrow, stream=True, n=2)) as connection:  # one is written, one waits
        connection.recv(100)
        for stream in (False, True):
            reply = narrow.post(PATH, **LONG, stream=stream)
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
            assert reply.json()["error"]["type"] == "rate_limit_error"
            assert reply.headers["retry-after"] == "1"
    wait_until_idle(narrow)


def test_a_stream_that_waits_for_its_turn_says_that_it_is_alive() -> None:
    model, limits = chat_model(slots=1, context=CONTEXT), Limits(quiet_seconds=1e-3)
    with serving(model, limits) as server, closing(begin(server)) as first:
        while not engine_of(server).running:
            assert server.client.get("/health").status_code == 200
        body = {"model": "tiny", "prompt": "the shoal", "max_tokens": 4, "stream": True}
        with server.client.stream("POST", PATH, json=body) as reply:
            lines = (line for line in reply.iter_lines() if line)
            assert next(lines) == ": alive"
            first.close()  # which frees the slot
            told = [line for line in lines if line != ": alive"]
    assert told[-1] == "data: [DONE]"
    assert json.loads(told[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with serving(chat_model(slots=1, context=CONTEXT), Limits(seconds=0.2)) as server:
        reply = server.post(PATH, **LONG)
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")
        assert reply.headers["x-should-retry"] == "false" and "retry-after" not in reply.headers
        wait_until_idle(server)
        stream = server.post(PATH, **LONG, stream=True)
        assert stream.status_code == 200
        *events, last, end = stream.text.split("\n\n")
        assert "not finished in the time" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert events and end == ""
        wait_until_idle(server)


def test_a_model_that_computes_nonsense_is_told() -> None:
    with serving(chat_model(damaged=True)) as server:
        reply = server.post(PATH, prompt="a fish")
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
        assert "weights are damaged" in reply.json()["error"]["message"]
        stream = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}], stream=True)
        assert "weights are damaged" in stream.text.split("\n\n")[-2]
        assert server.client.get("/health").status_code == 200


def test_a_server_that_is_stopped_finishes_what_it_began() -> None:
    with serving(chat_model(slots=1)) as server:
        wanted = {"prompt": "the shoal", "max_tokens": 80, "temperature": 0, "n": 3}  # two of them wait
        whole = server.post(PATH, **wanted).json()
        with server.client.stream("POST", PATH, json={"model": "tiny", **wanted, "stream": True}) as reply:
            texts = ["", "", ""]
            for line in reply.iter_lines():
                server.stop()
                if line.startswith("data: {"):
                    [choice] = json.loads(line.removeprefix("data: "))["choices"]
                    texts[choice["index"]] += choice["text"]
            assert line == "" and texts == [choice["text"] for choice in whole["choices"]]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_a_server_does_not_wait_for_ever_for_answers_to_end() -> None:
    model, limits = chat_model(slots=1, context=CONTEXT), Limits(grace_seconds=0.2)
    body = {"model": "tiny", **LONG, "stream": True}
    with (
        serving(model, limits) as server,
        pytest.raises(httpx.RemoteProtocolError),
        server.client.stream("POST", PATH, json=body) as reply,
    ):
        for _ in reply.iter_lines():
            server.stop()
    assert engine_of(server).running == engine_of(server).waiting == 0


def test_who_waits_for_a_whole_answer_is_told_that_the_server_stops() -> None:
    with serving(chat_model(slots=1, context=CONTEXT), Limits(grace_seconds=0.2)) as server, closing(begin(server)) as asked:
        while not engine_of(server).running:
            assert server.client.get("/health").status_code == 200
        server.stop()
        answer = asked.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"


@pytest.mark.thorough
def test_a_client_that_does_not_read_is_not_waited_for() -> None:
    with serving(chat_model(slots=4, context=CONTEXT), Limits(stalled_seconds=0.5)) as server:
        address = httpx.URL(server.url)
        with closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((address.host, address.port))
            content = json.dumps({"model": "tiny", **LONG, "n": 4, "logprobs": 20, "stream": True}).encode()
            connection.sendall(head(PATH, content) + content)
            while not engine_of(server).running:
                assert server.client.get("/health").status_code == 200
            wait_until_idle(server)
        assert written(server) < 4 * CONTEXT


@pytest.mark.thorough
def test_an_encoder_goes_on_after_clients_that_left() -> None:
    with serving(classifier(), Limits(queue=2)) as server:
        address = httpx.URL(server.url)
        content = json.dumps({"model": "tiny", "input": ["the shoal swims " * 20] * 256}).encode()
        statuses = set()
        for _ in range(30):
            with closing(socket.create_connection((address.host, address.port or 0))) as connection:
                connection.sendall(head("/v1/classify", content) + content)
            statuses.add(server.post("/v1/classify", input="a fish").status_code)
        assert statuses <= {200, 429}
        while server.post("/v1/classify", input="a fish").status_code != 200:
            pass
