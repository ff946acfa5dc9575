"""Dialogues: what is none, and what a short context leaves of a long one."""

from typing import Any

import numpy as np
import pytest

from shoal.core.errors import InputError
from shoal.data.chat_template import ChatTemplate, Turn
from shoal.data.examples.dialogues import read_answers, read_dialogues, read_turns
from shoal.data.examples.texts import Framed
from shoal.data.tokenizer import build_char

TEMPLATE = ChatTemplate.of(build_char("abcdefgh <>|"))
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def test_both_ways_of_writing_turns_are_read() -> None:
    told = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read_turns(told, "f:1") == [Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b")]
    assert read_turns([USER, ASSISTANT], "f:1") == [Turn("user", "a"), Turn("assistant", "b")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", "f:1: a dialogue is a list of turns"),
        ([], "f:1: a dialogue is a list of turns"),
        ([USER, "b"], "f:1: turn 2 is 'b'"),
        ([USER, USER, ASSISTANT], "f:1: turn 2 is out of order, the user's and not the assistant's"),
        ([ASSISTANT, USER], "f:1: turn 1 is out of order"),
        ([USER, {"role": "system", "content": "s"}], "f:1: turn 2 is out of order, the system's"),
        ([{"role": "tool", "content": "x"}], "f:1: turn 1 has the role 'tool'; the roles are: system, user, assistant"),
        ([{"content": "x"}], "f:1: turn 1 has the role missing"),
        ([USER, {"role": "assistant", "content": " \n"}], "f:1: turn 2 is empty"),
        ([USER, {"role": "assistant"}], "f:1: turn 2 has missing for its content"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "f:1: turn 2 has .* which must be text"),
        ([USER], "f:1: the assistant has no turn"),
    ],
)
def test_what_is_no_dialogue_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_turns(value, "f:1")


def dialogue(*contents: str) -> list[Turn]:
    """The system's turn, and others in turn."""
    return [Turn("system", contents[0])] + [
        Turn(("user", "assistant")[number % 2], content) for number, content in enumerate(contents[1:])
    ]


def read(turns: list[Turn], length: int, framed: Framed) -> str:
    (reading,) = read_dialogues(TEMPLATE, [turns], length, framed, "f:1")
    return TEMPLATE.tokenizer.decode(reading.tokens)


def test_a_long_dialogue_loses_whole_exchanges_at_its_beginning_and_never_the_systems_turn() -> None:
    framed = Framed()
    turns = dialogue("h", "aaaa", "bbbb", "cccc", "dddd", "ee")
    whole = "<|system|>h<|end|><|user|>aaaa<|end|><|assistant|>bbbb<|end|><|user|>cccc<|end|><|assistant|>dddd<|end|>"
    assert read(turns, 26, framed) == whole and framed.cut == 0  # 27 tokens, of which the last is only told
    shorter = whole.replace("<|user|>aaaa<|end|><|assistant|>bbbb<|end|>", "")
    assert read(turns, 25, framed) == shorter and (framed.cut, framed.count) == (1, 2)
    # where one exchange is too long by itself, the question loses its beginning, and then the answer its end
    turns = dialogue("h", "cccccccc", "d")
    assert read(turns, 13, framed) == "<|system|>h<|end|><|user|>cccccc<|end|><|assistant|>d<|end|>" and framed.cut == 2
    turns = dialogue("h", "cccccccc", "dddd")
    assert read(turns, 12, framed) == shorter.replace("cccc", "cccccc").removesuffix("ddd<|end|>") and framed.cut == 3
    with pytest.raises(InputError, match=r"f:1: 22 tokens, of which the model reads 12.*shorten what is before"):
        read(dialogue("hhhhhhhhhh", "cccc", "dd"), 12, framed)


def test_answers_to_one_prompt_lose_the_same_of_it() -> None:
    tokenizer, framed = TEMPLATE.tokenizer, Framed()
    shown = [
        tokenizer.decode(reading.tokens) for reading in read_answers(tokenizer, "abcdefgh", ["bb", "cccc"], 9, framed, "f:1")
    ]
    assert shown == ["<|endoftext|>efghbb<|endoftext|>", "<|endoftext|>efghcccc<|endoftext|>"] and framed.cut == 1
    (reading,) = read_answers(tokenizer, "ab", ["c"], 9, framed, "f:1")
    piece = reading.piece()
    assert piece.targets is not None
    assert tokenizer.decode(piece.tokens) == "<|endoftext|>abc" and tokenizer.decode(piece.targets[2:]) == "c<|endoftext|>"
    assert np.array_equal(piece.targets[:2], [-100, -100]) and framed.cut == 1
    with pytest.raises(InputError, match="f:1: the character 'é'"):
        read_answers(tokenizer, "ab", ["é"], 9, framed, "f:1")
