"""What can't be served is told in one shape, names the field, and leaves the server as it was."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from shoal.serve.http.limits import Limits
from shoal.serve.http.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from tests.serve.http.servers import Server, chat_model, serving

SAID = [{"role": "user", "content": "a fish"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}

BAD: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {}, "messages", "required"),
    (CHAT, {"messages": []}, "messages", "at least 1"),
    (CHAT, {"messages": "hello"}, "messages", "valid list"),
    (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role", "'system', 'developer', 'user' or"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid string"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "'text'"),
    (CHAT, {"messages": SAID, "temperature": -1}, "temperature", "greater than or equal to 0"),
    (CHAT, {"messages": SAID, "temperature": "hot"}, "temperature", "valid number"),
    (CHAT, {"messages": SAID, "top_p": 0}, "top_p", "greater than 0"),
    (CHAT, {"messages": SAID, "max_tokens": -5}, "max_tokens", "greater than or equal to 1"),
    (CHAT, {"messages": SAID, "max_tokens": 5.5}, "max_tokens", "integer"),
    (CHAT, {"messages": SAID, "max_tokens": True}, "max_tokens", "integer"),
    (CHAT, {"messages": SAID, "n": 0}, "n", "greater than or equal to 1"),
    (CHAT, {"messages": SAID, "n": 100}, "n", "more than 12 texts"),
    (CHAT, {"messages": SAID, "stop": [""]}, "stop[0]", "at least 1 character"),
    (CHAT, {"messages": SAID, "seed": 2**80}, "seed", "less than"),
    (CHAT, {"messages": SAID, "top_logprobs": 3}, "top_logprobs", "logprobs: true"),
    (CHAT, {"messages": SAID, "logprobs": True, "top_logprobs": 99}, "top_logprobs", "less than or equal to 20"),
    (CHAT, {"messages": SAID, "stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    (CHAT, {"messages": SAID, "frequency_penalty": 0.5}, "frequency_penalty", "less than or equal to 0"),
    (CHAT, {"messages": SAID, "tools": [{"type": "function"}]}, "tools", "at most 0"),
    (CHAT, {"messages": SAID, "temprature": 1}, "temprature", "not permitted"),
    (CHAT, {"messages": SAID, "response_format": {"type": "xml"}}, "response_format", "json_schema"),
    (CHAT, {"messages": [*SAID, {"role": "user", "content": "a fish " * 100}]}, "", "accepted are up to 96"),
    (COMPLETIONS, {"prompt": "a", "model": "gpt-4"}, "model", "no model 'gpt-4' here"),
    (COMPLETIONS, {"prompt": []}, "prompt", "no prompts"),
    (COMPLETIONS, {"prompt": [5, 10**9]}, "prompt", "tokens are numbers from 0"),
    (COMPLETIONS, {"prompt": [5, "a"]}, "prompt", ""),
    (COMPLETIONS, {"prompt": None}, "prompt", ""),
    (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of", "the value of n"),
    (COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 1}, "logprobs", "echoed"),
    (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix", "at most 0"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**6}, "max_tokens", "more than the 96"),
    (COMPLETIONS, {"prompt": "a", "stop": "x" * 2000}, "", "stop string of 2000 characters"),
]


@pytest.mark.parametrize(("path", "body", "param", "message"), BAD)
def test_a_wrong_field_is_named(chat: Server, path: str, body: dict[str, Any], param: str, message: str) -> None:
    reply = chat.post(path, **body)
    error = reply.json()["error"]
    assert reply.status_code == (404 if "gpt-4" in str(body) else 400)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param)
    assert message in error["message"]


BODIES = [
    (b"", "the body"),
    (b"{", "not JSON"),
    (b'"tiny"', "dict"),
    (b'{"model": "tiny", "prompt": "\xff\xfe"}', "not JSON"),
    (b'{"model": "tiny", "prompt": "\\ud800"}', "not JSON"),
    (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "temperature: Input should be a finite number"),
    (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', "temperature: Input should be a finite number"),
    (b"[" * 5000, "not JSON"),
    (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", ""),
]


@pytest.mark.parametrize(("body", "message"), BODIES)
def test_what_is_no_json_is_told(chat: Server, body: bytes, message: str) -> None:
    reply = chat.client.post(COMPLETIONS, content=body, headers=JSON)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_other_kinds_of_body_paths_and_methods_are_told(chat: Server) -> None:
    form = chat.client.post(COMPLETIONS, data={"model": "tiny", "prompt": "a"})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")
    missing = chat.client.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    method = chat.client.get(COMPLETIONS)
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert "not for GET, but for POST" in method.json()["error"]["message"]


SCHEMAS: list[Any] = [
    {"type": "fish"},
    {"type": "string", "pattern": "(["},
    {"$ref": "#/nowhere"},
    {"minimum": 1e999},
    {"enum": []},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_that_can_not_be_followed_is_told(chat: Server, schema: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": schema}, **schema}}}
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "response_format": %s}'
    text = json.dumps(form).replace("Infinity", "1e999").encode()
    reply = chat.client.post(CHAT, content=body % text, headers=JSON)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_schema_is_bounded_and_one_that_leads_nowhere_is_told(chat: Server) -> None:
    def form(fields: int) -> dict[str, Any]:
        schema = {"type": "object", "properties": {f"k{number}": {"type": "string"} for number in range(fields)}}
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    assert chat.post(COMPLETIONS, prompt="a", response_format=form(100)).status_code == 200
    too_wide = chat.post(COMPLETIONS, prompt="a", max_tokens=9, response_format=form(900), temperature=0)
    assert (too_wide.status_code, too_wide.json()["error"]["code"]) == (400, "response_format_failed")
    too_long = chat.post(COMPLETIONS, prompt="a", response_format=form(5000)).json()["error"]
    assert too_long["param"] == "response_format.json_schema.json_schema.schema"
    assert "longer than 32768 characters" in too_long["message"]


def test_limits_are_told() -> None:
    with serving(chat_model(slots=1, queue=1), Limits(prompt=10, tokens=5, queue=1)) as server:
        assert server.client.get("/v1/models/tiny").json()["max_tokens"] == 5
        assert server.post(COMPLETIONS, prompt="a fish", max_tokens=5).status_code == 200
        assert server.post(COMPLETIONS, prompt="a fish").json()["usage"]["completion_tokens"] <= 5
        assert server.post(CHAT, messages=SAID).json()["usage"]["completion_tokens"] <= 5
        long = server.post(COMPLETIONS, prompt="a fish " * 10).json()["error"]
        assert long["code"] == "context_length_exceeded" and "accepted are up to 10" in long["message"]
        assert "more than the 5" in server.post(COMPLETIONS, prompt="a", max_tokens=6).json()["error"]["message"]
        assert "more than 2 texts" in server.post(COMPLETIONS, prompt="a", n=3).json()["error"]["message"]


def test_a_reply_ends_where_the_context_does(chat: Server) -> None:
    reply = chat.post(COMPLETIONS, prompt="the fish " * 20, max_tokens=96, temperature=0).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] <= 97


def test_much_that_is_wrong_is_told_as_fast_as_little() -> None:
    for kind, field, wrong in (
        (CompletionRequest, "prompt", 0.5),
        (ChatRequest, "messages", 1),
        (EmbeddingRequest, "input", [""]),
    ):
        with pytest.raises(ValidationError) as told:
            kind.model_validate({"model": "tiny", field: [wrong] * 1000})
        assert told.value.error_count() < 10
    with pytest.raises(ValidationError) as told:
        CompletionRequest.model_validate({"model": "tiny", "prompt": "a", **{f"field{number}": 1 for number in range(1000)}})
    assert told.value.error_count() == 1


def test_after_all_that_the_server_goes_on(chat: Server) -> None:
    assert chat.post(COMPLETIONS, prompt="a fish", max_tokens=3).status_code == 200
    assert chat.client.get("/health").json() == {"status": "ok", "model": "tiny"}
