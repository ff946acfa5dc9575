"""Real servers of tiny models, each in a thread of its own on a free port."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import httpx

from shoal.core.recipe_file import build_recipe
from shoal.data.chat_template import ChatTemplate
from shoal.data.examples.texts import framing_tokenizer
from shoal.serve.embedding import Embedder
from shoal.serve.engine import make_engine
from shoal.serve.generation import LanguageModel
from shoal.serve.http.app import build_app
from shoal.serve.http.limits import Limits
from shoal.serve.http.served import Served, Writer
from shoal.serve.http.server import bind, make_server
from shoal.serve.labelling import Labeller
from shoal.tasks import LABELLED
from tests.models.shapes import BERT, GPT2, random_model
from tests.tasks.labelled import wordpiece
from tests.tasks.texts import tokenizer

CONTEXT = 96


@dataclass(frozen=True)
class Server:
    """`post` and `client` ask it; `stop` is what SIGTERM does."""

    served: Served
    url: str
    client: httpx.Client
    stop: Callable[[], None]

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Send a body as JSON, for this model unless it says otherwise."""
        return self.client.post(path, json={"model": self.served.name, **body})


@contextmanager
def serving(served: Served, limits: Limits | None = None, key: str = "") -> Iterator[Server]:
    """A server of the model, until it has ended; so has its engine."""
    limits = limits or Limits()
    ready = threading.Event()

    def stop() -> None:
        server.should_exit = True

    with bind("127.0.0.1", 0) as socket:
        server = make_server(build_app(served, limits, key), limits, ready.set)
        thread = threading.Thread(target=server.run, args=([socket],))
        thread.start()
        try:
            assert ready.wait(60)
            url = f"http://127.0.0.1:{socket.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60) as client:
                yield Server(served, url, client, stop)
        finally:
            stop()
            thread.join(60)
        assert not thread.is_alive()


@cache
def chat_template() -> ChatTemplate:
    """Shoal's own, for a tokenizer of byte-level BPE."""
    return ChatTemplate.of(tokenizer())


def language(context: int = CONTEXT) -> LanguageModel:
    """A random decoder, which ends a text at a turn's end as much as at a text's."""
    template = chat_template()
    config = replace(GPT2, vocabulary=template.tokenizer.vocabulary, context=context)
    return LanguageModel(random_model(config), template.tokenizer, frozenset(template.ends))


def chat_model(slots: int = 4, queue: int = 8, context: int = CONTEXT, damaged: bool = False) -> Served:
    """A decoder with a chat template, and its engine; `damaged`: of weights that are no numbers."""
    model, template = language(context), chat_template()
    if damaged:
        model.model.head_weight.data.fill_(float("nan"))
    engine = make_engine(model, slots, context, queue)
    writer = Writer(engine, model.tokenizer, slots, context, lambda text: model.tokenizer.encode(text).tolist(), template)
    return Served("tiny", "chat", context, 1, writer=writer)


def base_model() -> Served:
    """The same without a template."""
    served = chat_model()
    assert served.writer is not None
    return replace(served, kind="completion", writer=replace(served.writer, template=None))


def encoder() -> Served:
    """A random BERT that tells embeddings."""
    model = random_model(replace(BERT, vocabulary=wordpiece().vocabulary, context=CONTEXT))
    embedder = Embedder(model, framing_tokenizer(wordpiece(), False))
    return Served("tiny", "embeddings", CONTEXT, 1, embedder=embedder)


def labeller(task: str, **settings: Any) -> Served:
    """A random BERT that classifies, or tags."""
    words = framing_tokenizer(wordpiece(), False)
    recipe = build_recipe({"task": task, task: settings})
    built = LABELLED[task](recipe, words, CONTEXT, [])
    config = replace(
        BERT, vocabulary=words.vocabulary, context=CONTEXT, transform=False, head_bias=False, pooler=task == "classify",
        head=built.head.kind, outputs=built.head.outputs,
    )  # fmt: skip
    model = random_model(config)
    served = Labeller(model, built)
    kind: Any = task
    return Served("tiny", kind, CONTEXT, 1, served.labels, embedder=Embedder(model, words), labeller=served)


def classifier(several: bool = False) -> Served:
    """Of three labels."""
    return labeller("classify", labels=["bad", "fair", "good"], several=several)


def tagger() -> Served:
    """Of two types of entities."""
    return labeller("tag", types=["LOC", "PER"])
