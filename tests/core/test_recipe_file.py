"""Recipes: what is right is read, and what is wrong is one message with its place and what would be right."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shoal.core import recipe as schema
from shoal.core.errors import RecipeError
from shoal.core.recipe import Recipe
from shoal.core.recipe_file import RECIPES, build_recipe, read_recipe, recipe_keys, recipe_tree, write_recipe

Read = Callable[[str], Recipe]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read YAML as `r.yaml` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str) -> Recipe:
        Path("r.yaml").write_text(text, encoding="utf-8")
        return read_recipe(Path("r.yaml"))

    return from_text


def message(read: Callable[[], Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        read()
    return str(caught.value)


def value(recipe: Recipe, key: str) -> Any:
    found: Any = recipe_tree(recipe)
    for part in key.split("."):
        found = found[part]
    return found


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "null", "---\n", "train:\noptimizer: {lookahead: }\n"])
def test_an_empty_recipe_is_all_defaults(read: Read, text: str) -> None:
    assert read(text) == Recipe() == read_recipe(None)


# The same value by the file and by the command line.
ACCEPTED = [
    ("train.tokens", "1e6", 1_000_000),
    ("train.tokens", "1_000", 1000),
    ("train.tokens", "2.5e3", 2500),
    ("train.steps", "5.0", 5),
    ("train.micro_batch", "+5", 5),
    ("optimizer.learning_rate", "6e-4", 6e-4),
    ("optimizer.learning_rate", "6.0e-4", 6e-4),
    ("optimizer.learning_rate", ".001", 0.001),
    ("optimizer.learning_rate", "1", 1.0),
    ("schedule.warmup", "100", 100.0),
    ("optimizer.lookahead.every", "5", 5),
    ("train.compile", "on", "on"),
    ("train.compile", "off", "off"),
    ("train.compile", "auto", "auto"),
    ("model.tied", "on", True),
    ("model.tied", "no", False),
    ("model.tied", "true", True),
    ("model.layers", "null", None),
    ("model.activation", "relu2", "relu2"),
    ("name", "a-1_b.c", "a-1_b.c"),
    ("name", "2024-01-01", "2024-01-01"),
    ("data.sources", "notes", ["notes"]),
    ("data.sources", "[notes, more]", ["notes", "more"]),
    ("seed", "123456789012345678901234567890", 123456789012345678901234567890),
]


@pytest.mark.parametrize(("key", "text", "expected"), ACCEPTED)
def test_a_value_is_read_as_people_write_it(read: Read, key: str, text: str, expected: Any) -> None:
    nested = text
    for part in reversed(key.split(".")):
        nested = f"{{{part}: {nested}}}"
    for recipe in (read(nested), read_recipe(None, [f"--{key}", text]), read_recipe(None, [f"--{key}={text}"])):
        assert value(recipe, key) == expected
        assert type(value(recipe, key)) is type(expected)


@pytest.mark.parametrize(
    "text", ["", "5", "on", "null", "a: b", "# x", "x #y", "don't", "@x", "*x", "a, b", "2024-01-01", "日本"]
)
def test_text_on_the_command_line_is_taken_as_it_stands(text: str) -> None:
    assert read_recipe(None, ["--data.directory", text]).data.directory == text
    assert read_recipe(None, [f"--samples.prompts={text}"]).samples.prompts == [text]


def test_the_command_line_goes_before_the_file_and_its_last_word_before_the_first(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("seed: 1\ntrain:\n  steps: 1\n  clip: 2\nmodel:\n")
    words = ["--train.steps", "2", "--optimizer.learning-rate=1", "--train.steps", "3", "--model.layers", "4"]
    recipe = read_recipe(file, words)
    assert (recipe.seed, recipe.train.steps, recipe.train.clip, recipe.model.layers) == (1, 3, 2.0, 4)
    assert recipe.optimizer.learning_rate == 1.0


# What is wrong, where it stands (line, or the flag), and what the message says beside that.
WRONG_KEYS = [
    ("trian.steps", 1, "'trian' is not a recipe key; the nearest is 'train'; keys and sections: name, seed, task, data"),
    ("train.stepz", 2, "is not a recipe key; the nearest is 'train.steps'; 'train' has: steps, tokens, minutes"),
    ("train.learning_rate", 2, "is not a recipe key; the nearest is 'optimizer.learning_rate'; 'train' has: steps"),
    ("steps", 1, "is not a recipe key; the nearest is 'train.steps'; keys and sections: name"),
    ("kind", 1, "is not a recipe key; the nearest is 'tokenizer.kind'"),
    ("tokens", 1, "is not a recipe key; the nearest is 'train.tokens'"),
    ("optimizer.lookahead.evry", 3, "the nearest is 'optimizer.lookahead.every'; 'optimizer.lookahead' has: every, pull"),
    ("xyzzy", 1, "is not a recipe key; keys and sections: name"),
    ("train", 1, "is a section: give its keys; 'train' has: steps, tokens"),
    ("optimizer.lookahead", 2, "is a section: give its keys; 'optimizer.lookahead' has: every, pull"),
    ("train.steps.x", 2, "'train.steps' is {'x': 5}, a section; accepted: a whole number from 0"),
    ("dataclass_x", 1, "'dataclass_x' is not a recipe key"),
]


@pytest.mark.parametrize(("key", "line", "expected"), WRONG_KEYS)
def test_a_wrong_key_is_told_with_its_place_and_the_nearest_right_one(
    read: Read, key: str, line: int, expected: str
) -> None:
    parts = key.split(".")
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts))[:-1] + " 5\n"
    told = message(lambda: read(text))
    assert told.startswith(f"r.yaml:{line}: '")
    assert expected in told
    assert "\n" not in told
    by_flag = message(lambda: read_recipe(None, [f"--{key}", "5"]))
    assert by_flag.startswith(f"--{key}")
    assert expected.removeprefix(f"'{key}' ") in by_flag
    assert "\n" not in by_flag


WRONG_VALUES = [
    ("train.steps", "1.5", "1.5, a number; accepted: a whole number from 0"),
    ("train.steps", "-1", "-1, a whole number; accepted: a whole number from 0"),
    ("train.steps", "yes", "True, a yes/no; accepted: a whole number from 0"),
    ("train.steps", "null", "None, a null; accepted: a whole number from 0"),
    ("train.steps", "five", "'five', a text; accepted: a whole number from 0"),
    ("train.steps", "[1]", "[1], a list; accepted: a whole number from 0"),
    ("train.steps", "{a: 1}", "{'a': 1}, a section; accepted: a whole number from 0"),
    ("train.steps", ".inf", "inf, a number; accepted: a whole number from 0"),
    ("train.steps", "1e400", "inf, a number; accepted: a whole number from 0"),
    ("train.global_batch", "0", "0, a whole number; accepted: a whole number above 0"),
    ("model.layers", "0", "0, a whole number; accepted: a whole number above 0 or null"),
    ("optimizer.learning_rate", ".nan", "nan, a number; accepted: a number above 0"),
    ("optimizer.learning_rate", "0", "0.0, a number; accepted: a number above 0"),
    ("optimizer.learning_rate", ".inf", "inf, a number; accepted: a number above 0"),
    ("optimizer.beta1", "1", "1.0, a number; accepted: a number from 0 below 1"),
    ("schedule.final", "2", "2.0, a number; accepted: a number from 0 to 1"),
    ("train.clip", "true", "True, a yes/no; accepted: a number from 0"),
    ("train.compile", "maybe", "'maybe', a text; accepted: auto, on, off"),
    ("train.compile", "1", "1, a whole number; accepted: auto, on, off"),
    ("train.precision", "fp16", "'fp16', a text; accepted: fp32, bf16"),
    ("model.activation", "rellu", "'rellu', a text; accepted: gelu, gelu_erf, silu, relu2 or null"),
    ("model.tied", "1", "1, a whole number; accepted: true or false or null"),
    ("name", "../x", "'../x', a text; accepted: text of the form ^[A-Za-z0-9]"),
    ("name", "ünï", "'ünï', a text; accepted: text of the form"),
    ("data.sources", "[1]", "1, a whole number; accepted: a list of texts"),
    ("seed", "-3", "-3, a whole number; accepted: a whole number from 0"),
]


@pytest.mark.parametrize(("key", "text", "expected"), WRONG_VALUES)
def test_a_wrong_value_is_told_with_its_place_and_what_is_accepted(read: Read, key: str, text: str, expected: str) -> None:
    parts = key.split(".")
    nested = "".join(f"\n{'  ' * depth}{part}:" for depth, part in enumerate(parts)) + f" {text}\n"
    told = message(lambda: read(nested))
    assert told.startswith(f"r.yaml:{1 + len(parts)}: '{key}")
    assert told.count("r.yaml") == 1
    assert expected in told
    by_flag = message(lambda: read_recipe(None, [f"--{key}", text]))
    assert by_flag.startswith(f"--{key}")
    assert expected in by_flag


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("data.sources", "{a: 1}", "{'a': 1}, a section; accepted: a list of texts"),
        ("data.sources", "", "None, a null; accepted: a list of texts"),
        ("data.text_field", "5", "5, a whole number; accepted: text"),
        ("name", "on", "True, a yes/no; accepted: text of the form"),
    ],
)
def test_text_in_a_file_must_be_text(read: Read, key: str, text: str, expected: str) -> None:
    section, _, leaf = key.rpartition(".")
    told = message(lambda: read(f"{section}:\n  {leaf}: {text}\n" if section else f"{leaf}: {text}\n"))
    assert told.startswith(f"r.yaml:{2 if section else 1}: '{key}' is {expected}")


def test_all_faults_are_told_at_once_each_with_its_line(read: Read) -> None:
    told = message(lambda: read("schedule:\n  warmup: -1\n  final: 2\n  kind: x\nseed: a\nnoise: 1\n"))
    assert sorted(line.partition(" ")[0] for line in told.splitlines()) == [f"r.yaml:{line}:" for line in range(2, 7)]


def test_a_long_value_is_shown_by_its_beginning(read: Read) -> None:
    told = message(lambda: read(f"train:\n  steps: [{', '.join(map(str, range(500)))}]\n"))
    assert "[0, 1, 2" in told
    assert len(told) < 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "r.yaml:2: not valid YAML: 'seed' is given twice"),
        ("train:\n  steps: 1\n  steps: 1\n", "r.yaml:3: not valid YAML: 'steps' is given twice"),
        ("seed: 1\na: [\n", "r.yaml:3: not valid YAML: "),
        ("seed: 1\n\tx: 1\n", "r.yaml:2: not valid YAML: "),
        ("a: b: c\n", "r.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("---\nseed: 1\n---\nseed: 2\n", "r.yaml:3: not valid YAML: but found another document"),
        ("seed: 1\na: !!python/object:os.system x\n", "r.yaml:2: not valid YAML: could not determine a constructor"),
        ("seed: !!int x\n", "r.yaml:1: not valid YAML: 'x' is not tag:yaml.org,2002:int"),
        ("seed: !!timestamp x\n", "r.yaml:1: not valid YAML: 'x' is not tag"),
        ("seed: 1\n2: 2\n", "r.yaml:2: not valid YAML: 2 as a key: keys are text"),
        ("true: 2\n", "r.yaml:1: not valid YAML: true as a key: keys are text"),
        ("[a]: 2\n", "r.yaml:1: not valid YAML: a list or section as a key: keys are text"),
        ("a: *nowhere\n", "r.yaml:1: not valid YAML: found undefined alias"),
        ("seed: '\0'\n", "r.yaml: not valid YAML: unacceptable character"),
        ("- seed: 1\n", "r.yaml: a recipe is a mapping of sections (data, model, train, …), this is a list"),
        ("5\n", "r.yaml: a recipe is a mapping of sections (data, model, train, …), this is a whole number"),
        ("words\n", "r.yaml: a recipe is a mapping of sections (data, model, train, …), this is a text"),
        ("&a {train: *a}\n", "r.yaml: nested too deeply, or a part of itself"),
        ("a: " + "[" * 1500, "r.yaml: nested too deeply"),
        ("train.steps: 5\n", "r.yaml:1: 'train.steps' is not a recipe key; it stands under its section"),
    ],
)
def test_what_is_no_recipe_is_told_with_its_line(read: Read, text: str, expected: str) -> None:
    told = message(lambda: read(text))
    assert told.startswith(expected)
    assert "\n" not in told


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed: \x80"])
def test_a_recipe_that_is_not_utf_8_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    assert "r.yaml: not UTF-8 text" in message(lambda: read_recipe(tmp_path / "r.yaml"))


def test_a_recipe_that_is_not_there_is_told_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("seed: 2\n")
    Path("folder").mkdir()
    assert message(lambda: read_recipe(Path("mime.yaml"))) == "mime.yaml: no such recipe; did you mean mine?"
    assert message(lambda: read_recipe(Path("gpt-dmo"))) == "gpt-dmo: no such recipe; did you mean gpt-demo?"
    unlike = message(lambda: read_recipe(Path("xyz")))
    assert unlike.startswith("xyz: no such recipe; there are: ")
    assert {"gpt-demo", "mine"} < set(unlike.partition("there are: ")[2].split(", "))
    assert message(lambda: read_recipe(Path("folder"))) == "folder: is a folder; a recipe is a YAML file"
    assert "can't be read: Not a directory" in message(lambda: read_recipe(Path("mine.yaml/x.yaml")))
    assert "can't be read: File name too long" in message(lambda: read_recipe(Path("x" * 300)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--train.steps"], "--train.steps: needs a value"),
        (["steps"], "'steps': not understood; options are written --section.key VALUE"),
        (["-s", "5"], "'-s': not understood"),
        (["--seed", "3", "--seed.x", "3"], "--seed.x: 'seed' is a value, not a section"),
        (["--", "x"], "-- is not a recipe key"),
        (["--..a", "5"], "--..a: '' is not a recipe key"),
        (["--train..steps", "5"], "--train..steps: 'train.' is not a recipe key"),
    ],
)
def test_words_that_are_no_keys_are_told(words: list[str], expected: str) -> None:
    assert message(lambda: read_recipe(None, words)).startswith(expected)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_recipe_that_comes_with_shoal_loads_by_its_name_and_comes_back_from_a_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(file)
    for name in (file.stem, file.name, f"recipes/{file.name}"):
        assert read_recipe(Path(name)) == recipe
    write_recipe(Path("recipe.yaml"), recipe)
    assert read_recipe(Path("recipe.yaml")) == recipe


def test_a_recipe_in_the_folder_goes_before_shoal_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt-demo.yaml").write_text("seed: 77\n")
    assert read_recipe(Path("gpt-demo.yaml")).seed == 77


def test_every_key_has_a_meaning_a_default_and_what_is_accepted() -> None:
    keys = {key: (accepted, default, meaning) for key, accepted, default, meaning in recipe_keys()}
    tree = recipe_tree(Recipe())
    for key, (accepted, default, meaning) in keys.items():
        assert value(Recipe(), key) == default
        assert meaning, key
        assert accepted not in ("", "a value"), key
    assert sum(len(section) if isinstance(section, dict) else 1 for section in tree.values()) <= len(keys) + 1


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
positive = st.floats(0, 1e300, exclude_min=True)
recipes = st.builds(
    Recipe,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,9}\Z"),
    seed=st.integers(0, 2**70),
    data=st.builds(schema.Data, sources=st.lists(texts, max_size=3), directory=texts, held_out=st.floats(0.01, 0.99)),
    model=st.builds(
        schema.Model, init_from=texts, layers=st.none() | st.integers(1, 10), tied=st.none() | st.booleans(),
        activation=st.sampled_from([None, "gelu", "relu2"]), rope_theta=st.none() | positive,
    ),
    train=st.builds(schema.Train, compile=st.sampled_from(["on", "off", "auto"]), minutes=positive),
    optimizer=st.builds(schema.Optimizer, learning_rate=positive, epsilon=positive),
    samples=st.builds(schema.Samples, prompts=st.lists(texts, max_size=3)),
)  # fmt: skip


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipes)
@example(
    build_recipe({"samples": {"prompts": ["on", "1e5", "1_000", "null", "2024-01-01", "~", "=", "<<", "a: b #c", " "]}})
)
@example(build_recipe({"samples": {"prompts": ["def f():\n", "\x85", "\u2028", "\r\n", "\t", "\x00", "\ufeff"]}}))
@example(build_recipe({"name": "1e5", "model": {"rope_theta": 5e-324}}))
def test_a_written_recipe_is_read_back_equal(tmp_path: Path, recipe: Recipe) -> None:
    write_recipe(tmp_path / "recipe.yaml", recipe)
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert build_recipe(recipe_tree(recipe)) == recipe


sections = [field.name for field in dataclasses.fields(schema.Recipe)]  # type: ignore[arg-type]
leaves = sorted({part for key, *_ in recipe_keys() for part in key.split(".")})
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates() | st.sampled_from(["on", "1e3"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | scalars, inner, max_size=3)
)
nearly_recipes = st.dictionaries(
    st.sampled_from(sections) | texts,
    scalars | st.dictionaries(st.sampled_from(leaves) | texts, values, max_size=3),
    max_size=3,
).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
fragments = st.lists(
    st.sampled_from(
        [*sections, *leaves, ": ", "\n", "  ", "- ", "[", "]", "{", "}", "&a ", "*a", "!!int ", "<<", "? ", "'", "#"]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nearly_recipes | values.map(lambda tree: yaml.safe_dump(tree)) | fragments | texts)
def test_any_text_gives_a_recipe_or_a_recipe_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        recipe = read_recipe(file)
    except RecipeError as error:
        assert str(error).startswith(str(file))
    else:
        assert isinstance(recipe, Recipe)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([key for key, *_ in recipe_keys()] + sections) | texts, fragments | texts | scalars.map(str))
def test_any_words_give_a_recipe_or_a_recipe_error(key: str, text: str) -> None:
    try:
        recipe = read_recipe(None, [f"--{key}", text])
    except RecipeError as error:
        assert str(error)
    else:
        assert isinstance(recipe, Recipe)


@given(st.floats(1e-9, 1e9))
def test_a_number_means_the_same_by_every_way_to_write_it(number: float) -> None:
    for text in (repr(number), f"{number:e}", f"{number:.20g}"):
        read = read_recipe(None, ["--train.minutes", text]).train.minutes
        assert math.isclose(read, number, rel_tol=1e-5)
