"""Embeddings, labels and entities: what the model itself makes of each text, whatever it is asked together with."""

import base64

import numpy as np
import openai
import pytest
import torch

from shoal.data.examples.texts import Framed, frame_texts
from shoal.serve.http.limits import Limits
from tests.serve.http.servers import Server, classifier, serving

TEXTS = ["the shoal swims", "every fish reads a part of the sea until all know the whole of it", "one mind"]


def test_embeddings_are_the_mean_of_what_is_made_of_each_token(embeddings: Server) -> None:
    client = openai.OpenAI(base_url=f"{embeddings.url}/v1", api_key="none", max_retries=0)
    reply = client.embeddings.create(model="tiny", input=TEXTS)  # base64 on the wire
    embedder = embeddings.served.embedder
    assert embedder is not None
    read = 0
    for text, told in zip(TEXTS, reply.data, strict=True):
        tokens, _ = frame_texts(embedder.tokenizer, [text], 96, Framed())
        read += len(tokens)
        with torch.no_grad():
            mean = embedder.model(torch.tensor(tokens)[None])[0].mean(0)
        np.testing.assert_allclose(told.embedding, (mean / mean.norm()).numpy(), atol=1e-5)
    assert [told.index for told in reply.data] == [0, 1, 2]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == read


def test_embeddings_come_as_numbers_or_base64_of_texts_or_tokens(embeddings: Server) -> None:
    embedder = embeddings.served.embedder
    assert embedder is not None
    tokens = embedder.tokenizer.encode(TEXTS[0]).tolist()
    numbers = embeddings.post("/v1/embeddings", input=TEXTS[0], dimensions=16).json()["data"][0]["embedding"]
    packed = embeddings.post("/v1/embeddings", input=[tokens], encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), numbers, rtol=1e-6)
    assert len(numbers) == 16
    assert np.linalg.norm(numbers) == pytest.approx(1, abs=1e-6)


def test_many_texts_come_back_in_their_order(embeddings: Server) -> None:
    texts = [f"{'fish ' * (number % 7 + 1)}{'sea ' * (number % 3)}" for number in range(70)]
    together = embeddings.post("/v1/embeddings", input=texts).json()["data"]
    for number in (0, 40, 69):
        [alone] = embeddings.post("/v1/embeddings", input=texts[number]).json()["data"]
        np.testing.assert_allclose(together[number]["embedding"], alone["embedding"], atol=1e-5)


def test_a_classifier_tells_the_probability_of_every_label(classes: Server) -> None:
    [model] = classes.client.get("/v1/models").json()["data"]
    assert (model["kind"], model["labels"]) == ("classify", ["bad", "fair", "good"])
    reply = classes.post("/v1/classify", input=TEXTS).json()
    for number, told in enumerate(reply["data"]):
        assert told["index"] == number
        assert list(told["scores"]) == ["bad", "fair", "good"]
        assert sum(told["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert told["label"] == max(told["scores"], key=told["scores"].__getitem__)
        assert told["labels"] == [told["label"]] and told["truncated"] is False
    assert reply["usage"]["prompt_tokens"] > 0


def test_a_pair_of_texts_is_read_as_one(classes: Server) -> None:
    labeller = classes.served.labeller
    assert labeller is not None
    pair = classes.post("/v1/classify", input=TEXTS[0], input_b=TEXTS[2]).json()["data"][0]["scores"]
    texts = [labeller.read(TEXTS[0], TEXTS[2])]
    expected = labeller.classify(texts, labeller.outputs(texts[0].pieces))[0].probabilities
    assert pair == pytest.approx(expected, abs=1e-5)
    assert pair != classes.post("/v1/classify", input=TEXTS[0]).json()["data"][0]["scores"]
    wrong = classes.post("/v1/classify", input=TEXTS, input_b=TEXTS[:2])
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "input_b")


def test_a_text_that_is_cut_says_so(classes: Server) -> None:
    reply = classes.post("/v1/classify", input=["fish " * 200, "fish"]).json()["data"]
    assert [told["truncated"] for told in reply] == [True, False]


def test_of_several_labels_all_are_told_that_a_text_has() -> None:
    with serving(classifier(several=True)) as server:
        for told in server.post("/v1/classify", input=TEXTS).json()["data"]:
            assert told["labels"] == [label for label, score in told["scores"].items() if score >= 0.5]
            best = max(told["scores"], key=told["scores"].__getitem__)
            assert told["label"] == (best if told["labels"] else None)


def test_a_fine_tuned_encoder_gives_embeddings_too(classes: Server, tags: Server) -> None:
    for server in (classes, tags):
        [told] = server.post("/v1/embeddings", input="fish").json()["data"]
        assert np.linalg.norm(told["embedding"]) == pytest.approx(1, abs=1e-6)


def test_entities_are_parts_of_the_text(tags: Server) -> None:
    [model] = tags.client.get("/v1/models").json()["data"]
    assert (model["kind"], model["labels"]) == ("tag", ["LOC", "PER"])
    texts = [*TEXTS, "fish " * 150]  # longer than the model reads, and divided
    reply = tags.post("/v1/tag", input=texts).json()["data"]
    found = 0
    for text, told in zip(texts, reply, strict=True):
        end = 0
        for entity in told["entities"]:
            assert entity["text"] == text[entity["start"] : entity["end"]] != ""
            assert entity["start"] >= end and entity["type"] in ("LOC", "PER") and 0 < entity["score"] <= 1
            end = entity["end"]
            found += 1
    assert found


def test_a_model_is_asked_for_what_it_is_for(chat: Server, embeddings: Server, classes: Server, tags: Server) -> None:
    said = [{"role": "user", "content": "fish"}]
    asked = [
        (chat, "/v1/embeddings", {"input": "a"}, "embeddings are told by encoders"),
        (chat, "/v1/classify", {"input": "a"}, "not fine-tuned for the task 'classify'"),
        (embeddings, "/v1/completions", {"prompt": "a"}, "ask it by /v1/embeddings"),
        (classes, "/v1/tag", {"input": "a"}, "served for: classify"),
        (tags, "/v1/chat/completions", {"messages": said}, "ask it by /v1/tag"),
    ]
    for server, path, body, message in asked:
        refused = server.post(path, **body)
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]


def test_an_input_that_can_not_be_read_is_named(embeddings: Server, classes: Server, tags: Server) -> None:
    long = "fish " * 100
    asked = [
        (embeddings, "/v1/embeddings", ["fish", long], r"input[1]: the text has 102 tokens, the model's context is 96"),
        (embeddings, "/v1/embeddings", [[1, 10**6]], "input[0]: tokens are numbers from 0 to"),
        (embeddings, "/v1/embeddings", [], "input: 0 texts; accepted are 1 to"),
        (embeddings, "/v1/embeddings", "   ", "input[0]: the text is empty"),
        (classes, "/v1/classify", ["fish", "  "], "input[1]: the text is empty"),
        (tags, "/v1/tag", "  ", "input[0]: the text is empty"),
    ]
    for server, path, given, message in asked:
        refused = server.post(path, input=given)
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]


def test_limits_are_for_encoders_too() -> None:
    with serving(classifier(), Limits(prompt=8, texts=2)) as server:
        for path in ("/v1/classify", "/v1/embeddings"):
            assert server.post(path, input=["fish", "sea"]).status_code == 200
            assert "accepted are up to 8" in server.post(path, input="fish " * 20).json()["error"]["message"]
            assert "3 texts; accepted are 1 to 2" in server.post(path, input=["fish"] * 3).json()["error"]["message"]
