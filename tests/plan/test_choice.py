"""Which model is advised: by the number of examples, the machine, the time, the language; and what the command tells."""

import json
from collections import Counter
from pathlib import Path

import pytest

from shoal.plan.choice import ENCODERS, Facts, Known, advise, option
from tests.cli.conftest import Shoal, shoal

__all__ = ["shoal"]  # a fixture

GFLOPS = 100e9


def facts(examples: int, language: str = "en", labels: int = 2, longest: int = 60) -> Facts:
    counted = Counter({str(number): examples // labels for number in range(labels)})
    return Facts(examples, language, 25.0, longest, dict(counted))


@pytest.mark.parametrize(("examples", "what"), [(60, "frozen"), (400, "lora"), (6000, "all")])
def test_the_more_examples_the_more_is_trained(examples: int, what: str) -> None:
    found = advise("classify", facts(examples), ENCODERS, 100 * GFLOPS, 32e9, 3600, 3.0)
    assert found.taken is not None
    assert (found.taken.what, found.taken.model) == (what, "google-bert/bert-base-uncased")


def test_where_the_time_is_short_a_smaller_model_is_taken_and_then_less_of_it() -> None:
    def taken(seconds: float) -> tuple[str, str]:
        found = advise("classify", facts(6000), ENCODERS, GFLOPS, 32e9, seconds, 3.0).taken
        assert found is not None
        return found.model.rpartition("/")[2], found.what

    assert taken(100_000) == ("bert-base-uncased", "all")
    assert taken(900) == ("all-MiniLM-L6-v2", "all")
    assert taken(600) == ("all-MiniLM-L6-v2", "lora")
    assert advise("classify", facts(6000), ENCODERS, GFLOPS, 32e9, 1, 3.0).taken is None


def test_time_is_operations_over_the_reached_peak() -> None:
    model = Known("m", ("en",), 2e6, 1e6, 2, 8)
    seconds = option(model, "all", facts(1000), 1e9, 1e12, 1e9, epochs=3.0).seconds
    attention = 2 * 2 * 8 * 25.0 / 6
    assert seconds == pytest.approx(6 * 3 * (1e6 + attention) * 25_000 / (0.4 * 1e9))


@pytest.mark.parametrize(("language", "model"), [("zh", "bert-base-chinese"), ("fi", "xlm-roberta-base")])
def test_the_model_knows_the_language(language: str, model: str) -> None:
    found = advise("classify", facts(6000, language), ENCODERS, 100 * GFLOPS, 32e9, 3600, 3.0)
    assert found.taken is not None and found.taken.model.endswith(model)


def test_uneven_labels_and_long_texts_are_told() -> None:
    uneven = Facts(1000, "en", 25.0, 900, {"a": 950, "b": 50})
    told = " ".join(advise("classify", uneven, ENCODERS, GFLOPS, 32e9, 36000, 3.0).reasons)
    assert "right in 95%" in told and "900 tokens" in told


def test_the_command_looks_at_the_examples(shoal: Shoal, tmp_path: Path) -> None:
    lines = [{"text": f"The film number {number} was {word}, we all thought.", "label": word}
             for number in range(40) for word in ("good", "bad")]  # fmt: skip
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = shoal("plan", "--task", "classify", "--data", "e.jsonl", "--json")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.out)
    assert found["examples"]["language"] == "en"
    assert set(found["examples"]["labels"]) == {"good", "bad"}
    assert found["taken"]["what"] == "frozen"
    assert shoal("plan", "--task", "classify").code == 2
