"""Requests made by chance from the server's own description: whatever they hold, no answer is a fault of the server's."""

from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.serve.http.servers import base_model, chat_model, classifier, encoder, serving, tagger

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis, which `make test-thorough` installs, is missing")

MODELS: dict[str, Any] = {
    "chat": chat_model, "completion": base_model, "embeddings": encoder, "classify": classifier, "tag": tagger
}  # fmt: skip

CHECKS = [
    getattr(schemathesis.checks, name)
    for name in ("not_a_server_error", "content_type_conformance", "response_schema_conformance")
]


def fuzz(kind: str, examples: int) -> set[int]:
    """So many requests of each operation; returns the statuses."""
    statuses: set[int] = set()
    with ExitStack() as stack:
        server = stack.enter_context(serving(MODELS[kind]()))
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        for operation in [result.ok() for result in schema.get_all_operations()]:
            modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

            @settings(
                max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=st.one_of(modes))
            def ask(case: "schemathesis.Case") -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "tiny"  # another name is told at once, and nothing else looked at
                answer = case.call()
                statuses.add(answer.status_code)
                case.validate_response(answer, checks=CHECKS)
                if answer.status_code >= 400:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

            ask()
        assert server.client.get("/health").status_code == 200
    return statuses


@pytest.mark.thorough
@pytest.mark.parametrize("kind", MODELS)
def test_no_answer_is_a_fault(kind: str) -> None:
    assert {200, 400} <= fuzz(kind, 100)
