"""The page of a model that writes, used as a person does: answers stream, stop, and are asked for anew."""

import json
from typing import Any

import pytest

from shoal.serve.http.limits import Limits
from tests.serve.http.servers import Server, base_model, chat_model, serving
from tests.serve.page.conftest import Open
from tests.serve.page.pages import Tab, events, open_tab

ROUTE = "**/v1/chat/completions"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def shorten(tab: Tab, tokens: int, **options: Any) -> None:
    """Set how long answers are, and more."""
    tab.page.click("#options-button")
    for name, value in {"max_tokens": tokens, **options}.items():
        tab.page.fill(f"#option-{name}", str(value))
    tab.page.click("#options-close")


def test_a_message_is_answered_and_its_script_is_text(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 40)
        answer = tab.ask(SCRIPT)
        assert tab.turns == [SCRIPT, answer]
        assert answer.strip()
        assert "40 tokens · " in tab.page.inner_text(".assistant .note")


@pytest.mark.thorough
def test_an_answer_streams_and_stops_where_it_is_told_to(open_chat: Open, chat: Server) -> None:
    with open_chat() as tab:
        shorten(tab, 4000)
        tab.say("the sea")
        tab.longer_than(tab.longer_than(20))
        tab.page.click(".stop")
        tab.finished()
        assert len(tab.answer) > 20
        assert tab.page.inner_text(".assistant .note").endswith("stopped")
        assert chat.served.writer is not None
        for _ in range(1000):  # the server hears of it by its connection
            if not chat.served.writer.engine.running:
                break
            chat.client.get("/health")
        assert chat.served.writer.engine.running == 0


@pytest.mark.thorough
def test_escape_stops_and_what_was_written_stays(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 4000)
        tab.say("the sea")
        tab.longer_than(20)
        tab.page.keyboard.press("Escape")
        tab.finished()
        assert len(tab.answer) > 20
        assert tab.page.evaluate("document.activeElement.id") == "input"


@pytest.mark.thorough
def test_an_answer_without_words_is_told(open_chat: Open) -> None:
    with open_chat() as tab:
        end = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        tab.page.route(ROUTE, lambda route: route.fulfill(content_type="text/event-stream", body=end))
        tab.ask("the sea")
        assert tab.page.inner_text(".assistant .hint") == "The model had nothing to say."
        assert tab.page.locator(".assistant .note").count() == 0, "nobody waited for a first token"


@pytest.mark.thorough
def test_retry_writes_the_last_answer_anew(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 30)
        first = tab.ask("the sea")
        tab.page.click("text=Retry")
        tab.finished()
        assert tab.answer != first
        assert len(tab.turns) == 2
        assert [turn["content"] for turn in tab.sent()["messages"]] == ["the sea"]


@pytest.mark.thorough
def test_a_seed_gives_the_same_answer_again(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 30, seed=7)
        first = tab.ask("the sea")
        tab.page.click("text=Retry")
        tab.finished()
        assert tab.answer == first


@pytest.mark.thorough
def test_an_earlier_message_is_changed_and_what_followed_is_gone(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 10)
        first = tab.ask("the sea")
        tab.ask("the fish")
        tab.ask("the whole")
        tab.page.locator(".turn.user").nth(1).hover()
        tab.page.locator("text=Edit").nth(1).click()
        editor = tab.page.locator(".editor textarea")
        assert editor.input_value() == "the fish"
        editor.fill("one mind")
        editor.press("Enter")
        tab.finished()
        assert tab.turns == ["the sea", first, "one mind", tab.answer]
        said = [(turn["role"], turn["content"]) for turn in tab.sent()["messages"]]
        assert said[0] == ("user", "the sea")
        assert said[2:] == [("user", "one mind")]


@pytest.mark.thorough
def test_leaving_the_editor_changes_nothing(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 10)
        tab.ask("the sea")
        before = tab.turns
        tab.page.locator(".turn.user").hover()
        tab.page.click("text=Edit")
        tab.page.fill(".editor textarea", "other")
        tab.page.keyboard.press("Escape")
        assert tab.turns == before
        tab.page.locator(".turn.user").hover()
        tab.page.click("text=Edit")
        tab.page.click("text=Cancel")
        assert tab.turns == before


@pytest.mark.thorough
def test_html_that_a_model_writes_is_text(open_chat: Open) -> None:
    """The server's own model, held to one text by a schema."""
    wanted = {"type": "json_schema", "json_schema": {"name": "text", "schema": {"const": SCRIPT}}}

    def constrain(route: Any) -> None:
        route.continue_(post_data=json.dumps({**json.loads(route.request.post_data), "response_format": wanted}))

    with open_chat() as tab:
        tab.page.route(ROUTE, constrain)
        assert tab.ask("say it") == f'"{SCRIPT}"'
        assert tab.page.locator(".assistant img, .assistant script").count() == 0


@pytest.mark.thorough
def test_settings_are_sent_and_kept(open_chat: Open) -> None:
    with open_chat() as tab:
        tab.page.click("#options-button")
        tab.page.fill("#option-system", "swim")
        tab.page.locator("#option-temperature").fill("0.25")
        tab.page.locator("#option-top_p").fill("0.5")
        tab.page.locator("#option-min_p").fill("0.1")
        tab.page.locator("#option-repetition_penalty").fill("1.5")
        tab.page.fill("#option-top_k", "40")
        tab.page.fill("#option-max_tokens", "5")
        tab.page.fill("#option-seed", "3")
        assert tab.page.inner_text("label[for=option-temperature] + output") == "0.25"
        wanted = {
            "temperature": 0.25, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.5, "top_k": 40, "max_tokens": 5,
            "seed": 3,
        }  # fmt: skip
        tab.page.reload()
        tab.ask("the sea")
        sent = tab.sent()
        assert {name: sent[name] for name in wanted} == wanted
        assert sent["messages"][0] == {"role": "system", "content": "swim"}


@pytest.mark.thorough
def test_a_reload_loses_nothing_and_new_begins_anew(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 10)
        tab.ask("the sea")
        before = tab.turns
        tab.page.reload()
        tab.page.wait_for_selector(".turn")
        assert tab.turns == before
        tab.page.click("#new")
        assert tab.turns == []
        assert tab.page.is_visible(".welcome")


@pytest.mark.thorough
def test_shift_enter_is_a_new_line_and_nothing_is_not_sent(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 5)
        tab.page.press("#input", "Enter")
        assert tab.asked == []
        tab.page.keyboard.type("the")
        tab.page.keyboard.press("Shift+Enter")
        tab.page.keyboard.type("sea")
        tab.page.keyboard.press("Enter")
        tab.finished()
        assert tab.sent()["messages"] == [{"role": "user", "content": "the\nsea"}]


@pytest.mark.thorough
def test_a_conversation_longer_than_the_context_goes_on_without_its_beginning(browser: Any) -> None:
    with serving(chat_model(context=96)) as server, open_tab(browser, server.url) as tab:
        shorten(tab, 20)
        for number in range(12):
            tab.ask(f"{number} the shoal swims with one mind")
        assert tab.page.locator(".turn .problem").count() == 0
        assert len(tab.turns) == 24
        assert "left out" in tab.page.locator(".note").last.inner_text()
        sent = tab.sent()["messages"]
        assert sent[0]["role"] == "user"
        assert sent[-1]["content"].startswith("11 ")


@pytest.mark.thorough
def test_a_message_longer_than_the_context_is_told_and_the_page_goes_on(browser: Any) -> None:
    with serving(chat_model(context=96)) as server, open_tab(browser, server.url) as tab:
        tab.ask("the sea " * 200)
        assert "tokens; accepted are up to 9" in tab.page.inner_text(".turn .problem")
        tab.ask("the sea")
        assert tab.page.locator(".turn .problem").count() == 1


@pytest.mark.thorough
def test_no_more_is_asked_for_than_may_be(browser: Any) -> None:
    with serving(chat_model(), Limits(tokens=5)) as server, open_tab(browser, server.url) as tab:
        tab.ask("the sea")
        assert tab.sent()["max_tokens"] == 5
        assert tab.page.locator(".turn .problem").count() == 0


@pytest.mark.thorough
def test_a_key_is_asked_for_where_the_server_wants_one(browser: Any) -> None:
    with serving(chat_model(), key="right") as server, open_tab(browser, server.url) as tab:
        tab.page.fill("#key-input", "wrong")
        tab.page.press("#key-input", "Enter")
        tab.page.wait_for_selector("#key-wrong:visible")
        tab.page.fill("#key-input", "right")
        tab.page.click("text=Use it")
        tab.page.wait_for_selector("#input")
        assert tab.ask("the sea") is not None
        assert tab.page.locator(".turn .problem").count() == 0


@pytest.mark.thorough
def test_leaving_the_key_out_is_told(browser: Any) -> None:
    with serving(chat_model(), key="right") as server, open_tab(browser, server.url) as tab:
        tab.page.keyboard.press("Escape")
        tab.page.wait_for_selector("#problem:visible")
        assert "wants an API key" in tab.page.inner_text("#problem")


@pytest.mark.thorough
def test_what_goes_wrong_is_told_and_can_be_tried_again(open_chat: Open) -> None:
    with open_chat() as tab:
        shorten(tab, 5)
        busy = {"error": {"message": "as many texts wait as may", "type": "overloaded", "code": None}}
        tab.page.route(ROUTE, lambda route: route.fulfill(status=429, headers={"Retry-After": "3"}, json=busy))
        tab.ask("the sea")
        assert tab.page.inner_text(".turn .problem") == "as many texts wait as may. Try again in 3 s."
        tab.page.unroute(ROUTE)
        tab.page.route(ROUTE, lambda route: route.abort())
        tab.page.click("text=Retry")
        tab.finished()
        assert "can't be reached" in tab.page.inner_text(".turn .problem")
        tab.page.unroute(ROUTE)
        cut = events("the be", "ginning").removesuffix("data: [DONE]\n\n")
        tab.page.route(ROUTE, lambda route: route.fulfill(content_type="text/event-stream", body=cut))
        tab.page.click("text=Retry")
        tab.finished()
        assert tab.answer == "the beginning"
        assert "broke off" in tab.page.inner_text(".turn .problem")
        tab.page.unroute(ROUTE)
        tab.page.click("text=Retry")
        tab.finished()
        assert tab.page.locator(".turn .problem").count() == 0
        assert len(tab.turns) == 2


@pytest.mark.thorough
def test_a_base_model_goes_on_with_one_text_on_which_both_write(browser: Any) -> None:
    with serving(base_model()) as server, open_tab(browser, server.url) as tab:
        shorten(tab, 6)
        first = tab.ask("the sea")
        second = tab.ask("fish")
        tab.page.press("#input", "Enter")
        tab.finished()
        prompts = [body["prompt"] for path, body in tab.asked if path == "/v1/completions"]
        assert prompts[0] == "the sea"
        assert len(prompts) == 3
        assert prompts[1].startswith("the sea") and prompts[1].endswith("\nfish")
        assert prompts[2].startswith(prompts[1])
        assert first is not None and second is not None
        assert "does not answer" in tab.page.locator(".welcome p").text_content()
