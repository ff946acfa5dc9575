"""Servers that tests share, as none changes them."""

from collections.abc import Iterator

import pytest

from shoal.serve.http.limits import Limits
from tests.serve.http.servers import Server, base_model, chat_model, classifier, encoder, serving, tagger


@pytest.fixture(scope="package")
def chat() -> Iterator[Server]:
    """Of a model that chats."""
    with serving(chat_model(), Limits(queue=8, event_seconds=0)) as server:
        yield server


@pytest.fixture(scope="package")
def base() -> Iterator[Server]:
    """Of one that only goes on with texts."""
    with serving(base_model()) as server:
        yield server


@pytest.fixture(scope="package")
def embeddings() -> Iterator[Server]:
    """Of an encoder."""
    with serving(encoder()) as server:
        yield server


@pytest.fixture(scope="package")
def classes() -> Iterator[Server]:
    """Of a classifier."""
    with serving(classifier()) as server:
        yield server


@pytest.fixture(scope="package")
def tags() -> Iterator[Server]:
    """Of a tagger."""
    with serving(tagger()) as server:
        yield server
