"""What models write under a schema, an expression or a grammar is of it, however little the models know."""

import json
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.data.tokenizer import build_char, train_bpe
from shoal.serve.generation import LanguageModel
from shoal.serve.request import Constraint, Request
from shoal.serve.sampling import Sampling
from tests.models.shapes import GPT2, QWEN3, random_model
from tests.serve.written import joined, scheduler_of, write_all

pytest.importorskip("llguidance")
validator = pytest.importorskip("jsonschema_rs")

TOKENIZERS = {
    "bpe": train_bpe(['the fish, {"name": "shoal", "size": 12}, naïve 日本語\n'] * 3, 290),
    "char": build_char('abcdefghijklmnopqrstuvwxyz 0123456789.,:-+"{}[]\\naïve日本語'),
}
LANGUAGES = {
    (name, family): LanguageModel(
        random_model(replace(config, vocabulary=tokenizer.vocabulary + 5, context=256, tied=False), scale=0.15), tokenizer
    )
    for name, tokenizer in TOKENIZERS.items()
    for family, config in (("gpt2", GPT2), ("qwen3", QWEN3))
}
SHORT = {"type": "string", "maxLength": 6}
SCHEMAS: list[Any] = [
    {"enum": ["yes", "no", 3, None]},
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {
        "type": "object",
        "properties": {"name": SHORT, "size": {"type": "integer", "minimum": 0, "maximum": 99}, "of": {"enum": ["a", "b"]}},
        "required": ["name", "size"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"a": SHORT}, "additionalProperties": False}]},
    {
        "$ref": "#/$defs/pair",
        "$defs": {"pair": {"type": "array", "prefixItems": [SHORT, SHORT], "items": False, "minItems": 2}},
    },
]


def write(
    language: LanguageModel, constraint: Constraint, seed: int, sampling: Sampling, tokens: int = 120
) -> tuple[str, str]:
    request = Request((language.tokenizer.end_of_text,), tokens, sampling, seed, constraint=constraint)
    [pieces] = write_all(scheduler_of(language), [request])
    return joined(pieces), str(pieces[-1].finish)


samplings = st.builds(
    Sampling, st.sampled_from([0.0, 1.0, 3.0]), top_p=st.sampled_from([1.0, 0.9]), min_p=st.sampled_from([0, 0.1])
)
languages = st.sampled_from(sorted(LANGUAGES)).map(LANGUAGES.__getitem__)


@settings(deadline=None, max_examples=25)
@given(language=languages, schema=st.sampled_from(SCHEMAS), seed=st.integers(0, 99), sampling=samplings)
def test_json_is_of_its_schema(language: LanguageModel, schema: Any, seed: int, sampling: Sampling) -> None:
    text, finish = write(language, Constraint("json_schema", schema), seed, sampling)
    assert finish == "stop", text
    validator.validate(schema, json.loads(text))


@settings(deadline=None, max_examples=12)
@given(
    language=languages, pattern=st.sampled_from([r"[a-f]{2,8}", r"(ab|cd)+e", r"[0-9]{3}-[0-9]{2}", r"日本?語"]),
    seed=st.integers(0, 99), sampling=samplings,
)  # fmt: skip
def test_a_text_is_of_its_regular_expression(language: LanguageModel, pattern: str, seed: int, sampling: Sampling) -> None:
    text, finish = write(language, Constraint("regex", pattern), seed, sampling, 60)
    if finish == "stop":
        assert re.fullmatch(pattern, text)
    else:  # a repetition without an end
        assert re.fullmatch(r"(ab|cd)+(a|c)?", text)


@settings(deadline=None, max_examples=8)
@given(language=languages, seed=st.integers(0, 99), sampling=samplings)
def test_a_text_is_of_its_grammar(language: LanguageModel, seed: int, sampling: Sampling) -> None:
    grammar = 'start: sum\nsum: NUMBER | NUMBER "+" sum\nNUMBER: /[0-9]{1,3}/'
    text, finish = write(language, Constraint("grammar", grammar), seed, sampling, 60)
    assert re.fullmatch(r"\d{1,3}(\+\d{1,3})*" if finish == "stop" else r"[\d+]*", text)


def test_company_is_not_bound_by_anothers_schema() -> None:
    language = LANGUAGES["bpe", "gpt2"]
    free = Request((1, 2, 3), 20, Sampling(1.0))
    bound = Request((1, 2, 3), 20, Sampling(1.0), constraint=Constraint("regex", "[ab]{9}"))
    [alone] = write_all(scheduler_of(language), [free])
    together, other = write_all(scheduler_of(language), [free, bound])
    assert joined(together) == joined(alone)
    assert re.fullmatch("[ab]{9}", joined(other))


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (Constraint("json_schema", {"type": "objct"}), "the JSON schema can't be followed: Invalid type: objct"),
        (
            Constraint("json_schema", {"not": {"type": "null"}}),
            r"the JSON schema can't be followed: Unimplemented keys: \[\"not",
        ),
        (Constraint("json_schema", {"type": "integer", "minimum": 2, "maximum": 1}), "Unsatisfiable schema"),
        (Constraint("json_schema", [1]), "a JSON schema is an object, not list"),
        (Constraint("json_schema", {"enum": [object()]}), "the JSON schema can't be followed: Object of type object"),
        (Constraint("json_schema", {"$ref": "https://example.org/schema"}), "the JSON schema can't be followed: Resource"),
        (Constraint("regex", "[ab"), r"the regular expression can't be followed: .*unclosed character class"),
        (Constraint("regex", 3), "a regular expression is a text, not int"),
        (Constraint("grammar", "start: fish"), 'the grammar can\'t be followed: .*unknown name: "fish"'),
        (Constraint("grammar", ""), "the grammar can't be followed: "),
    ],
)
def test_what_can_not_be_followed_is_told(constraint: Constraint, expected: str) -> None:
    with pytest.raises(InputError, match=f"(?s){expected}"):
        scheduler_of(LANGUAGES["bpe", "gpt2"]).prepare(Request((1,), 5, constraint=constraint), print)


def test_what_the_vocabulary_can_not_spell_is_told_at_once_or_where_it_comes() -> None:
    language = LANGUAGES["char", "gpt2"]
    with pytest.raises(InputError, match="the regular expression can't be followed: no token of the vocabulary spells"):
        scheduler_of(language).prepare(Request((1,), 5, constraint=Constraint("regex", "Z")), print)
    text, finish = write(language, Constraint("regex", "[ab]{2}(Z|ÄÖ)"), 1, Sampling(0))
    assert finish == "failed"
    assert re.fullmatch("[ab]{1,2}the text can't go on as it was asked for: no token of the vocabulary spells.*", text)


def test_without_the_library_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InputError, match=r"this needs llguidance: pip install 'shoal\[serve\]'"):
        scheduler_of(LANGUAGES["bpe", "gpt2"]).prepare(Request((1,), 5, constraint=Constraint("regex", "a")), print)
