"""What a task's examples are, as far as choosing a model needs it."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from shoal.core.recipe import Recipe
from shoal.data.cleaning.draft import Draft
from shoal.data.cleaning.language import open_language
from shoal.data.examples.example import Example
from shoal.data.examples.splits import read_splits
from shoal.data.tokenizer import TextTokenizer
from shoal.plan.choice import Facts
from shoal.tasks import LABELLED

LOOKED_AT = 300
"""Examples, evenly spread, whose language and tokens are looked at."""

BYTES_A_TOKEN = 4.5
"""Of text in Latin script, with the vocabularies of common models."""

WITHOUT_SPACES = ("zh", "ja", "th", "ko")
"""Languages in which about every character is a token."""


def read_facts(recipe: Recipe, tokenizer: TextTokenizer | None) -> Facts:
    """Of the recipe's training examples; tokens by a tokenizer, or guessed without. `InputError` as reading them raises."""
    examples = read_splits(recipe.examples, LABELLED[recipe.task].roles).train
    chosen = examples[:: max(1, len(examples) // LOOKED_AT)]
    texts = ["\n".join(_texts(example.values)) for example in chosen]
    language = _language(texts)
    lengths = [_tokens(text, language, tokenizer) for text in texts]
    labels = Counter(str(label) for example in examples if (label := _label(example)) is not None)
    return Facts(len(examples), language, sum(lengths) / len(lengths), max(lengths), dict(labels))


def _texts(value: Any) -> Iterator[str]:
    """All text inside an example, however it is nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        yield " ".join(part for part in value if isinstance(part, str)) or ""
        for part in value:
            if not isinstance(part, str):
                yield from _texts(part)


def _label(example: Example) -> Any:
    label = example.values.get("label")
    return None if isinstance(label, list | dict) else label


def _language(texts: list[str]) -> str:
    judge = open_language([], 0.0)
    found = (judge(Draft(text, "")) for text in texts if text.strip())
    counted = Counter(one.language for one in found if isinstance(one, Draft))
    return counted.most_common(1)[0][0] if counted else "en"


def _tokens(text: str, language: str, tokenizer: TextTokenizer | None) -> int:
    if tokenizer is not None:
        return len(tokenizer.encode(text)) + 2
    return 2 + round(len(text) if language in WITHOUT_SPACES else len(text.encode()) / BYTES_A_TOKEN)
