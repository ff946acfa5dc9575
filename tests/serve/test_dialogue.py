"""What was said, and as much of it as a model can read."""

import pytest

from shoal.core.errors import InputError
from shoal.data.chat_template import ChatTemplate
from shoal.data.tokenizer import TextTokenizer, build_char
from shoal.serve.dialogue import Continuation, Dialogue
from tests.conftest import fixed_text

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def letters() -> TextTokenizer:
    return build_char(fixed_text(20) + "0123456789")


@pytest.fixture(scope="module")
def template(letters: TextTokenizer) -> ChatTemplate:
    """Shoal's own: two tokens around what each turn says."""
    return ChatTemplate.of(letters)


def exchanges(dialogue: Dialogue, count: int) -> None:
    for number in range(count):
        dialogue.say(f"sea {number}")
        dialogue.tell(f"fish {number}")


def read(template: ChatTemplate, prompt: list[int]) -> str:
    return template.tokenizer.decode(prompt)


def test_a_model_reads_all_that_was_said_as_its_template_lays_it_out(template: ChatTemplate) -> None:
    dialogue = Dialogue(template, 200, "swim")
    exchanges(dialogue, 1)
    dialogue.say("the sea")
    expected = "<|system|>swim<|end|><|user|>sea 0<|end|><|assistant|>fish 0<|end|><|user|>the sea<|end|><|assistant|>"
    assert read(template, dialogue.prompt(10)) == expected
    assert not dialogue.cut


def test_the_oldest_exchanges_are_left_out_whole_and_the_system_prompt_stays(template: ChatTemplate) -> None:
    dialogue = Dialogue(template, 64, "swim")
    exchanges(dialogue, 5)
    dialogue.say("all")
    prompt = dialogue.prompt(12)
    assert dialogue.cut
    assert len(prompt) <= 64 - 12
    text = read(template, prompt)
    assert text == "<|system|>swim<|end|><|user|>sea 4<|end|><|assistant|>fish 4<|end|><|user|>all<|end|><|assistant|>"
    assert len(dialogue.row()["messages"]) == 12, "what is left out is still part of the conversation"


def test_an_answer_that_may_be_longer_than_the_context_gets_a_quarter_of_it(template: ChatTemplate) -> None:
    dialogue = Dialogue(template, 64)
    exchanges(dialogue, 5)
    dialogue.say("all")
    assert 36 - 17 < len(dialogue.prompt(10_000)) <= 36


def test_prompts_begin_alike_as_long_as_they_can(template: ChatTemplate) -> None:
    """What is left out is more than must be, so that a server that knows the last prompt has little to read."""
    dialogue, prompts = Dialogue(template, 128), []
    for number in range(12):
        dialogue.say(f"sea {number}")
        prompt = dialogue.prompt(32)
        assert len(prompt) <= 128 - 32
        prompts.append(read(template, prompt))
        dialogue.tell(f"fish {number}")
    anew = [number for number in range(1, 12) if not prompts[number].startswith(prompts[number - 1])]
    assert len(anew) == 3


def test_a_last_message_that_does_not_fit_is_told(template: ChatTemplate) -> None:
    dialogue = Dialogue(template, 20)
    dialogue.say("0123456789" * 2)
    with pytest.raises(InputError, match=r"the message has 23 tokens .* the model reads 20"):
        dialogue.prompt(4)


@pytest.mark.parametrize("message", ["", "  \n "])
def test_nothing_has_no_answer(template: ChatTemplate, message: str) -> None:
    with pytest.raises(InputError, match="empty message"):
        Dialogue(template, 20).say(message)


def test_a_template_without_system_prompts_is_told_when_one_is_set(letters: TextTokenizer) -> None:
    dialogue = Dialogue(ChatTemplate(NO_SYSTEM, letters, "theirs"), 20)
    with pytest.raises(InputError, match="the system prompt: theirs refuses it: no system"):
        dialogue.set_system("swim")
    assert dialogue.row() == {"messages": []}


def test_what_was_not_answered_can_be_taken_back_and_all_be_forgotten(template: ChatTemplate) -> None:
    dialogue = Dialogue(template, 200, "swim")
    exchanges(dialogue, 1)
    dialogue.say("the sea")
    dialogue.take_back()
    assert [message["content"] for message in dialogue.row()["messages"]] == ["swim", "sea 0", "fish 0"]
    dialogue.reset()
    assert dialogue.row() == {"messages": [{"role": "system", "content": "swim"}]}


def test_what_is_asked_anew_is_read_although_all_before_was_left_out(template: ChatTemplate) -> None:
    dialogue = Dialogue(template, 64)
    exchanges(dialogue, 5)
    dialogue.say("0123456789" * 4)
    dialogue.prompt(12)  # it alone
    for _ in range(2):  # the message, and the answer before it
        dialogue.take_back()
    assert read(template, dialogue.prompt(12)) == "<|user|>sea 4<|end|><|assistant|>"


def test_a_text_goes_on_on_a_new_line_where_the_user_writes(letters: TextTokenizer) -> None:
    text = Continuation(letters, 100)
    text.say("the sea")
    text.tell(" is one")
    text.say("fish")
    text.tell("\n")
    text.say("swim")
    assert text.row() == {"text": "the sea is one\nfish\nswim"}
    assert letters.decode(text.prompt(20)) == text.text
    assert not text.cut


def test_nothing_lets_a_begun_text_go_on_as_it_stands(letters: TextTokenizer) -> None:
    text = Continuation(letters, 100)
    with pytest.raises(InputError, match="empty text"):
        text.say("")
    text.say("the")
    text.tell(" sea")
    text.say("")
    assert text.text == "the sea"
    text.take_back()
    assert text.text == "the sea"


def test_of_a_text_that_is_too_long_its_end_is_read(letters: TextTokenizer) -> None:
    text = Continuation(letters, 40)
    text.say("0123456789" * 5)
    assert letters.decode(text.prompt(10)) == ("0123456789" * 5)[-22:]
    assert text.cut
    text.tell("01234567")
    assert letters.decode(text.prompt(10)) == ("0123456789" * 5)[-22:] + "01234567", "it begins where it did"
    text.reset()
    text.say("0123456789")
    assert letters.decode(text.prompt(10)) == "0123456789"
    assert not text.cut
