"""Dialogues to text and tokens, by the Jinja program that comes with a chat model's tokenizer: its chat template.

The text, and the tokens, are those that `transformers`' `apply_chat_template` makes of the same turns. Templates come with
models from anywhere, so they run in Jinja's sandbox. What a turn says is always text: where it spells a special token,
ordinary tokens come of it, so nobody can end a turn, or begin another one, by writing so.

Which tokens are the assistant's is never guessed. A template may say it, by `{% generation %}`. Otherwise the dialogue is
laid out turn by turn: an assistant's turn is what the text up to it, ready for a reply, lacks of the text with it. That
holds only where each text begins the next. Some templates write a turn otherwise once more follows, as Qwen3's, which leaves
out what was thought before; then each of the assistant's turns is found in a text of its own, which ends with it, and in
which earlier turns stand as the model will see them. A template whose text ready for a reply doesn't begin the text with the
reply is refused.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from shoal.core.errors import InputError
from shoal.data.tokenizer import TextTokenizer, token_text, with_special

DEFAULT = (
    "{% for message in messages %}"
    "{{ '<|' ~ message.role ~ '|>' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content ~ '<|end|>' }}{% endgeneration %}"
    "{% else %}"
    "{{ message.content ~ '<|end|>' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Shoal's own, for a model that has none."""

DEFAULT_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
"""The special tokens that it writes."""

LEARNT, LEARNT_END, SPELLED, SPELLED_END = MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"
"""Around what the assistant says, and around special tokens that turns spell: Unicode's noncharacters, which no text has."""

SHOWN = 30
"""Characters of a text that a message shows."""

NEVER = "(?!)"
UNMARKED = dict.fromkeys(map(ord, MARKS))

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    content: str


class ChatTemplate:
    """A template, and the tokenizer that it writes for, which may have got special tokens for it."""

    def __init__(self, source: str, tokenizer: TextTokenizer, name: str) -> None:
        """`name`: of the template, in messages. `InputError` for one that can't lay out a dialogue."""
        self.source, self.name = source, name
        self.tokenizer = TextTokenizer(tokenizer.library, tokenizer.end, {**tokenizer.config, "chat_template": source})
        named = {key: token_text(value) for key, value in tokenizer.config.items() if key.endswith("_token")}
        self.tokens = {key: value for key, value in named.items() if isinstance(value, str)}
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, longest_first)) or NEVER)
        try:
            self.program = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{name}: line {error.lineno}: not a chat template in Jinja: {error.message}") from None
        text, ((begin, end),) = self._laid_out([Turn("user", "a"), Turn("assistant", "b")], name)
        written = self.special.findall(text[begin:end])
        self.ends = {tokenizer.special_tokens[token] for token in written} | {tokenizer.end_of_text}
        """Tokens at which a reply is over."""

    @classmethod
    def of(cls, tokenizer: TextTokenizer, path: str = "") -> "ChatTemplate":
        """The template in a file, or the tokenizer's own, or, where it has none, Shoal's, whose tokens it then gets."""
        if path:
            try:
                return cls(Path(path).read_text(encoding="utf-8"), tokenizer, path)
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: no chat template can be read there: {error}") from None
        own = tokenizer.config.get("chat_template")
        if isinstance(own, list):  # several by name
            named = {one.get("name"): one.get("template") for one in own if isinstance(one, Mapping)}
            own = named.get("default")
        if isinstance(own, str):
            return cls(own, tokenizer, "the model's chat template")
        return cls(DEFAULT, with_special(tokenizer, DEFAULT_TOKENS), "Shoal's chat template")

    @property
    def end(self) -> int:
        """The token that ends a turn of the assistant's; the end-of-text where the template has none."""
        return min(self.ends - {self.tokenizer.end_of_text}, default=self.tokenizer.end_of_text)

    def text(self, turns: Sequence[Turn], where: str, ready: bool = False) -> str:
        """The dialogue as text; `ready`: for a reply. `InputError` where the template refuses it."""
        return self._marked(turns, where, ready).translate(UNMARKED)

    def prompt(self, turns: Sequence[Turn], where: str) -> NDArray[np.int64]:
        """The dialogue as tokens, ready for a reply. `InputError` where the template or the tokenizer refuses it."""
        try:
            return self._encode(_spans(self._marked(turns, where, ready=True))[0])[0]
        except InputError as error:
            raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None

    def rewrites(self, turns: Sequence[Turn], where: str) -> bool:
        """Whether one of the assistant's turns is written otherwise, or not marked, once more follows."""
        spans = _spans(marked := self._marked(turns, where))[1]
        if spans:
            return len(spans) != len(_places(turns))
        whole = marked.translate(UNMARKED)
        return not all(whole.startswith(self.text(turns[: place + 1], where)) for place in _places(turns))

    def encode(self, turns: Sequence[Turn], where: str, last: bool = False) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(tokens, which of the assistant's turns each belongs to, from 0; -1: none of them).

        `last`: only the tokens of the assistant's last turn, with which the dialogue ends, are looked for. A token that only
        begins before the assistant does is not the assistant's.
        """
        text, spans = self._laid_out(turns, where, last)
        try:
            ids, starts = self._encode(text)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        owner = np.full(len(ids), -1, dtype=np.int64)
        for number, (begin, end) in enumerate(spans, len(_places(turns)) - len(spans)):
            owner[(starts >= begin) & (starts < end)] = number
        return ids, owner

    def _laid_out(self, turns: Sequence[Turn], where: str, last: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, in which spelled special tokens are marked, and from where to where, no mark counted, each of the
        assistant's turns goes, or the `last` one.
        """
        marked = self._marked(turns, where)
        text, spans = _spans(marked)
        if spans and last:
            return text, spans[-1:]
        if spans and len(spans) != len(_places(turns)):
            raise InputError(
                f"{where}: {self.name} marks {len(spans)} parts by {{% generation %}}, not each assistant's turn once"
            )
        places = _places(turns)[-1:] if last else _places(turns)
        return text, spans or [self._span_by_prefix(turns, place, text.translate(UNMARKED), where) for place in places]

    def _encode(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(tokens, where in the text each begins), of a text in which spelled special tokens are marked."""
        ids: list[NDArray[np.int64]] = []
        starts: list[NDArray[np.int64]] = []
        place = 0
        for number, part in enumerate(re.split(f"{SPELLED}(.*?){SPELLED_END}", text)):
            if number % 2:
                ids.append(self.tokenizer.encode(part))
                starts.append(np.full(len(ids[-1]), place, dtype=np.int64))
            elif part:
                encoding = self._library(part)
                ids.append(np.array(encoding.ids, dtype=np.int64))
                starts.append(np.array([place + begin for begin, _ in encoding.offsets], dtype=np.int64))
            place += len(part)
        return np.concatenate(ids), np.concatenate(starts)

    def _library(self, text: str) -> Any:
        """What the library makes of a text, special tokens included."""
        try:
            # as a batch: other threads go on meanwhile
            return self.tokenizer.library.encode_batch([text], add_special_tokens=False)[0]
        except Exception as error:  # it raises bare exceptions; a character that is in no vocabulary is named by ours
            for part in self.special.split(text):
                self.tokenizer.encode(part)
            raise InputError(f"the tokenizer can't take it: {error}") from None

    def _span_by_prefix(self, turns: Sequence[Turn], place: int, whole: str, where: str) -> tuple[int, int]:
        """From where to where the turn at `place` goes in the whole text."""
        before, after = self.text(turns[:place], where, ready=True), self.text(turns[: place + 1], where)
        if after.startswith(before) and whole.startswith(after):
            return len(before), len(after)
        one, other = (before, after) if whole.startswith(after) else (after, whole)
        differ = (number for number, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
        same = next(differ, min(len(one), len(other)))
        told = [repr(text[same : same + SHOWN])[1:-1] or "its end" for text in (one, other)]
        when = "once it replies" if one is before else "once more follows"
        raise InputError(
            f"{where}: {self.name} writes '{told[0]}' up to turn {place + 1} and '{told[1]}' in its place {when}, so what "
            "the assistant says can't be found; give one that doesn't, or that marks it by {% generation %}: "
            "--chat.template FILE"
        )

    def _marked(self, turns: Sequence[Turn], where: str, ready: bool = False) -> str:
        messages = [{"role": turn.role, "content": self._spelled(turn.content, where)} for turn in turns]
        try:
            return self.program.render(messages=messages, add_generation_prompt=ready, tools=None, **self.tokens)
        except jinja2.TemplateError as error:
            raise InputError(f"{where}: {self.name} refuses it: {error.message}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:  # of the program
            raise InputError(f"{where}: {self.name} fails at it: {error}") from None

    def _spelled(self, content: str, where: str) -> str:
        """What a turn says, with marks around what looks like a special token."""
        if any(mark in content for mark in MARKS):
            raise InputError(f"{where}: holds one of the characters U+FDD0 to U+FDD3, which no text has")
        return self.special.sub(lambda found: f"{SPELLED}{found[0]}{SPELLED_END}", content)


def _places(turns: Sequence[Turn]) -> list[int]:
    """Where the assistant's turns stand."""
    return [place for place, turn in enumerate(turns) if turn.role == "assistant"]


def _spans(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of what is learnt, and where that begins and ends, no mark counted."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    place = begin = 0
    for part in re.split(f"([{LEARNT}{LEARNT_END}])", marked):
        if part == LEARNT:
            begin = place
        elif part == LEARNT_END:
            spans.append((begin, place))
        else:
            parts.append(part)
            place += len(part.translate(UNMARKED))
    return "".join(parts), spans


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's content, between marks, with variables of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark, end = (nodes.Output([nodes.TemplateData(text)]) for text in (LEARNT, LEARNT_END))
        return nodes.Scope([mark, *body, end]).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates may count on: as `transformers` has it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **more: Any) -> str:
    """Jinja's own would write <, > and & for a web page."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **more)
