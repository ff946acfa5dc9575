"""From YAML and `--section.key value` to a `Recipe`, or one message that says what is wrong, where, and what is right.

The file's tree and the command line's are merged before anything is checked, so both get the same messages; each leaf
remembers where it was written.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from shoal.core.errors import RecipeError
from shoal.core.files import write_text
from shoal.core.recipe import Recipe

Where = dict[tuple[str, ...], str]

LONGEST_SHOWN = 80
"""Characters of a wrong value that a message repeats."""

RECIPES = Path(str(files("shoal"))) / "recipes"
"""The recipes that come with Shoal; `gpt-demo` alone names one of them."""


Defaults = Callable[[dict[str, Any]], dict[str, Any]]


def read_recipe(path: Path | None, overrides: Sequence[str] = (), defaults: Defaults | None = None) -> Recipe:
    """The recipe in `path` (None: all defaults) with `--section.key value` overrides; raises `RecipeError`.

    `defaults`: a verb's own, for what neither says, which may depend on what they say.
    """
    tree, where = _read_yaml(path) if path else ({}, {})
    for key, text in _pairs(overrides):
        parts = tuple(key.split("."))
        node = tree
        for depth, part in enumerate(parts[:-1], 1):
            if part not in node or node[part] is None:
                node[part] = {}
                where[parts[:depth]] = f"--{key}"
            if not isinstance(node[part], dict):
                raise RecipeError(f"--{key}: '{part}' is a value, not a section")
            node = node[part]
        node[parts[-1]] = _parse_value(key, text)
        where[parts] = f"--{key}"
    return build_recipe(merged(defaults(tree), tree) if defaults else tree, where)


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A tree with what another one lacks; null there counts as said."""
    both = {key: merged(under[key], over[key]) for key in under.keys() & over.keys() if _are_trees(under[key], over[key])}
    return under | over | both


def _are_trees(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def build_recipe(tree: dict[str, Any], where: Where | None = None) -> Recipe:
    """Check a tree of plain values against the schema; raises `RecipeError` that names every fault."""
    adapter = TypeAdapter(Recipe)
    try:
        return adapter.validate_python(_widen(tree, Recipe))
    except ValidationError as error:
        faults = [_describe(fault, where or {}) for fault in error.errors(include_url=False)]
        raise RecipeError("\n".join(dict.fromkeys(faults))) from None


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values."""
    return dataclasses.asdict(cast(Any, recipe))


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write every key with its resolved value."""
    text = yaml.dump(recipe_tree(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_text(path, "# Every key as the run used it; enough to repeat the run.\n" + text)


@cache
def recipe_keys() -> tuple[tuple[str, str, Any, str], ...]:
    """(dotted key, accepted values, default, meaning) of every leaf, in the schema's order."""
    return tuple(_leaves(Recipe, ()))


def _find(path: Path) -> Path:
    own = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.exists() or not own.exists() or path.parent.name not in ("", "recipes"):
        return path
    return own


def _read_yaml(path: Path) -> tuple[dict[str, Any], Where]:
    try:
        path = _find(path)
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)
        where: Where = {}
        _mark_lines(root, (), str(path), where)
    except FileNotFoundError:
        others = [*path.parent.glob("*.yaml"), *RECIPES.glob("*.yaml")]
        near = difflib.get_close_matches(path.stem, [other.stem for other in others], 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(p.stem for p in others))}"
        raise RecipeError(f"{path}: no such recipe{hint}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; a recipe is a YAML file") from None
    except OSError as error:
        raise RecipeError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text; a recipe is a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply, or a part of itself; a recipe has sections and keys") from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections (data, model, train, …), this is a {_kind(tree)}")
    return tree, where


class _Loader(yaml.SafeLoader):
    """Safe YAML in which dates are text, keys are text, and a key given twice is refused."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError):  # what `!!int x` raises in PyYAML
            raise yaml.MarkedYAMLError(problem=f"'{node.value}' is not {node.tag}", problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or section"
                raise yaml.MarkedYAMLError(problem=f"{shown} as a key: keys are text", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"'{key_node.value}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Safe YAML that brings every character back: what is not printable is escaped, in quotes."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"')
)


def _mark_lines(node: yaml.Node | None, path: tuple[str, ...], file: str, where: Where) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            where[here] = f"{file}:{key.start_mark.line + 1}"
            _mark_lines(value, here, file, where)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"'{word}': not understood; options are written --section.key VALUE")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise RecipeError(f"--{key}: needs a value")
            value = rest.pop(0)
        yield key.replace("-", "_"), value


def _parse_value(key: str, text: str) -> Any:
    """YAML, but a key that holds text takes the words as they stand: a prompt may have a colon or a #."""
    accepted = next((accepted for known, accepted, *_ in recipe_keys() if known == key), "")
    if accepted.startswith("text") or (accepted == "a list of texts" and not text.startswith("[")):
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return text


def _widen(tree: Any, schema: Any) -> Any:
    """Accept what people write for numbers: 6e-4 (a string in YAML 1.1), 1 for a float, "1e6" for a whole number."""
    if not (dataclasses.is_dataclass(schema) and isinstance(tree, dict)):
        return tree
    types = {leaf.name: leaf.type for leaf in dataclasses.fields(schema)}
    widened = {}
    for key, value in tree.items():
        kind = types.get(key)
        name = str(kind)
        if dataclasses.is_dataclass(kind):
            value = {} if value is None else _widen(value, kind)
        elif isinstance(value, str) and ("int" in name or "float" in name):
            value = _number(value)
        if isinstance(value, float) and "int" in name and value.is_integer():
            value = int(value)
        elif isinstance(value, int) and not isinstance(value, bool) and "float" in name:
            value = float(value)
        elif isinstance(value, str) and "list[str]" in name:
            value = [value]
        elif isinstance(value, bool) and "Literal" in name:
            value = "on" if value else "off"  # YAML reads a bare on/off as a boolean
        widened[key] = value
    return widened


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _describe(fault: Any, where: Where) -> str:
    parts = tuple(str(part) for part in fault["loc"])
    known = [key for key, *_ in recipe_keys()]
    location: str | None = None
    for length in range(len(parts), 0, -1):
        location = where.get(parts[:length])
        if location:
            break
    key = ".".join(parts)
    name = f"--{key}" if location == f"--{key}" else f"'{key}'"
    place = f"{location}: " if location and location != name else ""
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = _nearest(key, known)
        hint = "; it stands under its section" if near == key else f"; the nearest is '{near}'" if near else ""
        return f"{place}{name} is not a recipe key{hint}{_siblings(parts, known)}"
    while key and key not in known and "." in key:  # the union's branch or a list's index comes last in a location
        key = key.rpartition(".")[0]
    if key not in known:
        return f"{place}{name} is a section: give its keys" + _siblings((*parts, ""), known)
    accepted = next((accepted for known_key, accepted, *_ in recipe_keys() if known_key == key), "")
    shown = repr(fault["input"])
    shown = shown if len(shown) <= LONGEST_SHOWN else f"{shown[:LONGEST_SHOWN]}…"
    return f"{place}{name} is {shown}, a {_kind(fault['input'])}; accepted: {accepted}"


def _nearest(key: str, known: list[str]) -> str | None:
    sections = [] if "." in key else sorted({name.partition(".")[0] for name in known if "." in name})
    near = difflib.get_close_matches(key, [*known, *sections], 1, 0.6)
    if near:
        return near[0]
    leaf = key.rpartition(".")[2]
    by_leaf = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = difflib.get_close_matches(leaf, list(by_leaf), 1, 0.7)
    return by_leaf[close[0]] if close else None


def _siblings(parts: tuple[str, ...], known: list[str]) -> str:
    prefix = ".".join(parts[:-1]) + "." if len(parts) > 1 else ""
    names = dict.fromkeys(key[len(prefix) :].partition(".")[0] for key in known if key.startswith(prefix))
    if not names:
        return ""
    return f"; {repr(prefix[:-1]) + ' has' if prefix else 'keys and sections'}: {', '.join(names)}"


def _kind(value: Any) -> str:
    names = {
        str: "text", int: "whole number", float: "number", bool: "yes/no", list: "list", dict: "section", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _leaves(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str, Any, str]]:
    fields = schema.__pydantic_fields__
    for leaf in dataclasses.fields(schema):
        here = (*path, leaf.name)
        if dataclasses.is_dataclass(leaf.type):
            yield from _leaves(leaf.type, here)
            continue
        info = fields[leaf.name]
        default = info.get_default(call_default_factory=True)
        accepted = _accepted(TypeAdapter(cast(Any, leaf.type)).json_schema())
        yield ".".join(here), accepted, default, " ".join((info.description or "").split())


def _accepted(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_accepted(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
            "array": f"a list of {_plural(schema.get('items', {}))}",
            "object": f"a mapping to {_plural(schema.get('additionalProperties', {}))}",
            "null": "null"}.get(schema.get("type", ""), "a value")  # fmt: skip
    words = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    pattern = [f"of the form {schema['pattern']}"] if "pattern" in schema else []
    return " ".join([kind, *bounds, *pattern])


def _plural(items: dict[str, Any]) -> str:
    """What the items of a list, or of a mapping, are called; of several kinds, the first."""
    items = items.get("anyOf", [items])[0]
    if items.get("type") == "array":
        return f"lists of {_plural(items.get('items', {}))}"
    return {"string": "texts", "number": "numbers", "integer": "whole numbers"}.get(items.get("type", ""), "values")
