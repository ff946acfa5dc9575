"""Chat and completions: what OpenAI's own client gets, whole and streamed."""

import json

import httpx
import openai
import pytest

from shoal.data.chat_template import Turn
from shoal.serve.generation import generate
from shoal.serve.http.limits import Limits
from shoal.serve.sampling import Sampling
from tests.serve.http.servers import Server, chat_model, chat_template, language, serving

PROMPT = "the shoal swims with one"
SAID = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def client(chat: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{chat.url}/v1", api_key="none", max_retries=0)


def greedy(prompt: str, tokens: int) -> str:
    return "".join(generate(language(), prompt, tokens, Sampling(0)))


def test_the_model_is_listed_with_what_it_is_for(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert model.model_extra == {"kind": "chat", "context": 96, "max_tokens": 96, "labels": None}
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no model 'huge' here; the one that is served is 'tiny'"):
        client.models.retrieve("huge")


def test_a_completion_is_what_the_model_generates(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert made.choices[0].text == greedy(PROMPT, 12)
    assert made.usage is not None
    read = len(chat_template().tokenizer.encode(PROMPT))
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (read, 12, read + 12)
    assert made.choices[0].finish_reason == "length"
    assert client.completions.create(model="tiny", prompt=PROMPT, temperature=0).usage.completion_tokens == 16  # type: ignore[union-attr]


def test_a_prompt_may_be_tokens_and_prompts_several(client: openai.OpenAI) -> None:
    tokens = chat_template().tokenizer.encode(PROMPT).tolist()
    ids = client.completions.create(model="tiny", prompt=tokens, max_tokens=6, temperature=0)
    assert ids.choices[0].text == greedy(PROMPT, 6)
    several = client.completions.create(model="tiny", prompt=[PROMPT, "a fish"], n=2, max_tokens=6, temperature=0, echo=True)
    expected = [f"{prompt}{greedy(prompt, 6)}" for prompt in (PROMPT, PROMPT, "a fish", "a fish")]
    assert [choice.text for choice in several.choices] == expected
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def test_an_empty_prompt_begins_a_text(client: openai.OpenAI) -> None:
    assert client.completions.create(model="tiny", prompt="", max_tokens=6, temperature=0).choices[0].text == greedy("", 6)


def test_a_reply_follows_the_chat_template(client: openai.OpenAI) -> None:
    turns = [Turn("system", "be brief"), Turn("user", PROMPT)]
    prompt = chat_template().prompt(turns, "").tolist()
    assert chat_template().tokenizer.decode(prompt) == chat_template().text(turns, "", ready=True)
    reply = client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "be brief"}, *SAID], temperature=0, max_completion_tokens=9  # type: ignore[list-item]
    )  # fmt: skip
    assert reply.usage is not None and reply.usage.prompt_tokens == len(prompt)
    same = client.completions.create(model="tiny", prompt=prompt, max_tokens=9, temperature=0)
    assert reply.choices[0].message.content == same.choices[0].text
    assert reply.choices[0].message.role == "assistant"


def test_a_stream_tells_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=SAID, seed=3, max_tokens=20, n=2)  # type: ignore[call-overload]
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=SAID, seed=3, max_tokens=20, n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = ["", ""]
    ends: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len(chunks) > 6  # of each answer its role, some text and its end; text that comes quickly comes together


def test_what_comes_faster_than_anyone_reads_is_told_together(base: Server) -> None:
    events = []
    with serving(chat_model(), Limits(event_seconds=60)) as patient:
        for server in (base, patient):
            wanted = {"prompt": PROMPT, "temperature": 0, "max_tokens": 60, "logprobs": 0}
            reply = server.post("/v1/completions", stream=True, **wanted)
            told = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n")[:-2]]
            choices = [event["choices"][0] for event in told]
            assert "".join(choice["text"] for choice in choices) == greedy(PROMPT, 60)
            assert sum(len(choice["logprobs"]["tokens"]) for choice in choices) == 60
            events.append(len(choices))
    assert events[0] <= 60
    assert events[1] <= 2  # the first at once, and the end without waiting


def test_a_stream_is_events_of_one_line_each(chat: Server) -> None:
    reply = chat.post("/v1/completions", prompt=PROMPT, max_tokens=4, stream=True, temperature=0)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, last, end = reply.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(event["choices"][0]["text"] for event in told) == greedy(PROMPT, 4)
    assert all("usage" not in event for event in told)
    assert len({event["id"] for event in told}) == 1


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    texts = [
        client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, seed=seed).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    unseeded = [client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30).choices[0].text for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_a_text_ends_before_a_stop_string(client: openai.OpenAI) -> None:
    text = greedy(PROMPT, 12)
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0, stop=[text[4:7], "never"])
    assert made.choices[0].text == text[: text.index(text[4:7])]
    assert made.choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, logprobs=2)
    told = made.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset or []) == 5
    reply = client.chat.completions.create(
        model="tiny", messages=SAID, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3  # type: ignore[arg-type]
    )  # fmt: skip
    content = reply.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    for token in content:
        best = token.top_logprobs
        assert len(best) == 3 and token.logprob == best[0].logprob >= best[1].logprob >= best[2].logprob
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    alone = client.chat.completions.create(model="tiny", messages=SAID, max_tokens=2, logprobs=True)  # type: ignore[arg-type]
    assert alone.choices[0].logprobs.content[0].top_logprobs == []  # type: ignore[union-attr, index]


def test_a_reply_has_the_form_that_is_asked_for(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"fish": {"type": "boolean"}},
        "required": ["fish"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "fish", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(model="tiny", messages=SAID, max_tokens=60, seed=1, response_format=form)  # type: ignore[call-overload]
    assert json.loads(reply.choices[0].message.content) in ({"fish": True}, {"fish": False})
    assert reply.choices[0].finish_reason == "stop"
    some = client.chat.completions.create(  # type: ignore[call-overload]
        model="tiny", messages=SAID, max_tokens=8, seed=1, response_format={"type": "json_object"}
    )
    assert some.choices[0].message.content.lstrip().startswith("{")


def test_what_was_read_before_is_not_read_again(client: openai.OpenAI) -> None:
    prompt = "every fish reads a part of the sea until all know the whole"
    for _ in range(2):
        usage = client.completions.create(model="tiny", prompt=prompt, max_tokens=1).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens


def test_content_may_be_parts_and_null_is_nothing(chat: Server) -> None:
    parts = [{"type": "text", "text": PROMPT[:9]}, {"type": "text", "text": PROMPT[9:]}]
    wanted = {"temperature": 0, "max_tokens": 8}
    nothing = dict.fromkeys(("seed", "stop", "n", "top_p", "tools", "logit_bias", "frequency_penalty", "user", "stream"))
    split = chat.post("/v1/chat/completions", messages=[{"role": "user", "content": parts}], **wanted, **nothing)
    joined = chat.post("/v1/chat/completions", messages=SAID, **wanted)
    assert split.json()["choices"] == joined.json()["choices"]


def test_a_base_model_completes_and_does_not_chat(base: Server) -> None:
    assert base.client.get("/v1/models").json()["data"][0]["kind"] == "completion"
    assert base.post("/v1/completions", prompt=PROMPT, temperature=0, max_tokens=4).json()["choices"][0]["text"] == greedy(
        PROMPT, 4
    )
    refused = base.post("/v1/chat/completions", messages=SAID)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_chat_template"


def figures(server: Server) -> dict[str, float]:
    """Lines of /metrics."""
    lines = server.client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_what_is_done_is_counted(chat: Server) -> None:
    before = figures(chat)
    reply: httpx.Response = chat.post("/v1/completions", prompt=PROMPT, max_tokens=7, ignored=1)
    assert reply.status_code == 400
    usage = chat.post("/v1/completions", prompt=PROMPT, max_tokens=7).json()["usage"]
    after = figures(chat)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('shoal_requests_total{path="/v1/completions",status="200"}') == 1
    assert grown('shoal_requests_total{path="/v1/completions",status="400"}') == 1
    assert grown("shoal_written_tokens_total") == usage["completion_tokens"]
    assert grown("shoal_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("shoal_first_token_seconds_count") == 1
    assert (after["shoal_slots"], after["shoal_running"], after["shoal_waiting"]) == (4, 0, 0)
