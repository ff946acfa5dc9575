"""Who comes in, with how much, and how slowly: keys, names, sizes, and clients that take their time."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import httpx
import openai
import pytest

from shoal.core.errors import InputError
from shoal.serve.http.limits import Limits
from shoal.serve.http.server import bind
from tests.serve.http.servers import Server, chat_model, encoder, serving

KEY = "sk-shoal-1"
COMPLETIONS = "/v1/completions"
PROMPT = {"model": "tiny", "prompt": "a fish", "max_tokens": 2}


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server with a key."""
    with serving(chat_model(), key=KEY) as server:
        yield server


def test_a_key_is_asked_for(locked: Server) -> None:
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            reply = locked.client.get(path, headers=given)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
    assert locked.client.post(COMPLETIONS, json=PROMPT).status_code == 401
    right = {"Authorization": f"Bearer {KEY}"}
    assert locked.client.get("/v1/models", headers=right).status_code == 200
    assert locked.client.post(COMPLETIONS, json=PROMPT, headers=right).status_code == 200
    strange = locked.client.get("/v1/models", headers=[(b"Authorization", b"Bearer \xff\xfe")])
    assert strange.status_code == 401


def test_openais_client_brings_the_key(locked: Server) -> None:
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="x", max_retries=0) as client, pytest.raises(
        openai.AuthenticationError, match="a wrong API key"
    ):  # fmt: skip
        client.models.list()


def test_what_tells_nothing_needs_no_key(locked: Server) -> None:
    for path in ("/health", "/docs", "/openapi.json"):
        assert locked.client.get(path).status_code == 200


def test_without_a_key_only_names_of_this_machine_are_answered(chat: Server, locked: Server) -> None:
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:1", "127.0.0.2:8000"):
        assert chat.client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("rebound.example:8000", "127.0.0.1.example", "192.0.2.1", "[", ""):
        reply = chat.client.get("/health", headers={"Host": host})
        assert (reply.status_code, reply.json()["error"]["type"]) == (403, "invalid_request_error")
    assert locked.client.get("/health", headers={"Host": "served.example"}).status_code == 200


def test_no_other_site_may_ask(chat: Server) -> None:
    preflight = chat.client.options(
        COMPLETIONS, headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_documentation_needs_nothing_from_elsewhere(chat: Server) -> None:
    page = chat.client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script" not in page.text and "http://" not in page.text and "https://" not in page.text
    assert "/v1/chat/completions" in page.text and "temperature" in page.text
    paths = chat.client.get("/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/embeddings", "/v1/classify", "/v1/tag", "/health", "/metrics"} < set(paths)


def test_a_name_with_a_slash_is_found() -> None:
    with serving(replace(encoder(), name="shoal/bert")) as server, openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0
    ) as client:  # fmt: skip
        assert client.models.retrieve("shoal/bert").id == "shoal/bert"


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """A server with little patience."""
    limits = Limits(body=2000, requests=1, head_seconds=0.3, body_seconds=0.3)
    with serving(encoder(), limits) as server:
        yield server


def connect(server: Server) -> socket.socket:
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port or 0), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """What is sent until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_body_that_is_too_long_is_not_read(small: Server) -> None:
    reply = small.post("/v1/embeddings", input="a" * 3000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_long")
    with closing(connect(small)) as connection:  # it says so beforehand, and sends nothing
        connection.sendall(HEAD + b"Content-Length: 100000000000\r\n\r\n")
        assert error_of(everything(connection))[0] == 413
    with closing(connect(small)) as connection:  # it doesn't say so
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"7d0\r\n" + b"a" * 2000 + b"\r\n1\r\na\r\n")
        assert error_of(everything(connection))[0] == 413


def test_a_body_that_does_not_come_is_not_waited_for(small: Server) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(HEAD + b'Content-Length: 50\r\n\r\n{"model"')
        assert error_of(everything(connection)) == (408, "the body was not there after 0.3 s")


def test_who_has_no_key_holds_nothing_open(small: Server) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 50\r\n\r\n")
        assert error_of(everything(connection))[0] == 405  # not 408, after waiting for a body


@pytest.mark.parametrize("sent", [b"", b"POST /v1/embeddings HTTP/1.1\r\nHost: loc"])
def test_headers_that_do_not_come_are_not_waited_for(small: Server, sent: bytes) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(sent)
        assert everything(connection) == b""


def test_headers_of_the_next_request_are_not_waited_for(small: Server) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        answer = everything(connection)
        assert answer.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize("sent", [b"HELO shoal\r\n\r\n", b"GET / HTTP/1.1\r\nHost: " + b"a" * 50_000])
def test_what_is_no_http_is_told(small: Server, sent: bytes) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(sent)
        assert error_of(everything(connection))[0] == 400


def test_more_requests_than_may_be_open_are_told_to_come_again(small: Server) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(HEAD + b"Content-Length: 30\r\n")  # headers that go on
        connection.sendall(b"\r\n")  # the request is open, and its body on its way
        for _ in range(1000):
            reply = small.post("/v1/embeddings", input="a fish")
            if reply.status_code == 503:
                break
        assert reply.json()["error"]["code"] == "overloaded"
        assert reply.headers["retry-after"] == "1"
        assert small.client.get("/health").status_code == 200
        assert 'shoal_requests_total{path="/v1/embeddings",status="503"}' in small.client.get("/metrics").text


def test_a_port_that_is_taken_is_told(small: Server) -> None:
    port = httpx.URL(small.url).port
    assert port is not None
    with pytest.raises(InputError, match=rf"can't listen on 127.0.0.1, port {port}: .*in use; choose another by"):
        bind("127.0.0.1", port)
    with bind("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use"):  # that nobody is answered on yet
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match=r"can't listen on 203\.0\.113\.7"):
        bind("203.0.113.7", 0)
    with pytest.raises(InputError, match=r"can't listen on two\.\.dots, port 1"):
        bind("two..dots", 1)


def test_limits_that_can_not_be_are_told() -> None:
    with pytest.raises(InputError, match="'body' is 0; accepted: 1 or more"):
        Limits(body=0)
    with pytest.raises(InputError, match="'seconds' is nan"):
        Limits(seconds=float("nan"))
