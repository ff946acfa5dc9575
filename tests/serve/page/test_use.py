"""The page in everybody's hands: with a keyboard or a screen reader, on a phone, by day and by night."""

from typing import Any

import pytest

from tests.serve.http.servers import Server, base_model, classifier, encoder, serving, tagger
from tests.serve.page.conftest import Open
from tests.serve.page.pages import Tab, events, open_tab

pytestmark = pytest.mark.thorough

CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const parse = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([red, green, blue]) => {
        const [r, g, b] = [red, green, blue].map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let one = element; one; one = one.parentElement) {
            const colour = parse(getComputedStyle(one).backgroundColor);
            if (colour[3] === 255) return colour;
        }
        return [255, 255, 255];
    };
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility({ opacityProperty: true }) || element.closest(".unseen, .skip")) continue;
        const [one, other] = [light(parse(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        const ratio = (one + 0.05) / (other + 0.05);
        if (ratio < 4.5) found[element.outerHTML.slice(0, 80)] = ratio;
    }
    return found;
}"""
"""Elements whose text has less contrast than WCAG 2.2, 1.4.3, asks for."""

NAMELESS = """() => [...document.querySelectorAll("button, input, textarea, a")]
    .filter((element) => element.checkVisibility())
    .filter((element) => !(element.ariaLabel || element.innerText?.trim() || [...(element.labels ?? [])].length))
    .map((element) => element.outerHTML)"""

MARKDOWN = (
    "# Shoal\n\n`code` and [a link](https://x.example)\n\n> quote\n\n```py\nx = 1\n```\n\n| a | b |\n| - | - |\n| 1 | 2 |"
)


def fill(tab: Tab) -> None:
    """Let the page show what a chat may have: Markdown, and an error."""
    body = events(MARKDOWN)
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    tab.ask("show it")
    tab.page.unroute("**/v1/chat/completions")
    tab.page.route("**/v1/chat/completions", lambda route: route.abort())
    tab.ask("and again")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(open_chat: Open, scheme: str) -> None:
    with open_chat(color_scheme=scheme) as tab:
        fill(tab)
        tab.page.click("#options-button")
        assert tab.page.evaluate(CONTRAST) == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_encoders_tell_can_be_read(browser: Any, scheme: str) -> None:
    for made in (classifier, tagger, encoder):
        with serving(made()) as server, open_tab(browser, server.url, color_scheme=scheme) as tab:
            if made is encoder:
                tab.page.fill("#other", "the sea")
            tab.say("the shoal swims with one mind")
            tab.page.wait_for_selector(".result:visible")
            assert tab.page.evaluate(CONTRAST) == {}
            assert tab.page.evaluate(NAMELESS) == []


def test_everything_that_can_be_used_has_a_name(open_chat: Open) -> None:
    with open_chat() as tab:
        fill(tab)
        tab.page.click("#options-button")
        assert tab.page.evaluate(NAMELESS) == []


def test_a_screen_reader_is_told_that_an_answer_is_written_and_then_all_of_it(open_chat: Open) -> None:
    with open_chat() as tab:
        tab.page.evaluate(
            """() => {
                window.said = [];
                const status = document.querySelector("[aria-live=polite]");
                new MutationObserver(() => window.said.push(status.textContent)).observe(status, { childList: true });
            }"""
        )
        body = events("one ", "mind")
        tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
        tab.ask("show it")
        assert tab.page.evaluate("window.said") == ["The model is writing.", "one mind"]


def test_the_keyboard_reaches_everything_in_order_and_leaves_the_settings(open_chat: Open) -> None:
    with open_chat() as tab:
        tab.page.focus(".skip")
        reached = []
        for _ in range(4):
            tab.page.keyboard.press("Tab")
            reached.append(tab.page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached == ["new", "options-button", "theme", "input"]
        tab.page.focus("#options-button")
        tab.page.keyboard.press("Enter")
        assert tab.page.evaluate("document.activeElement.id") == "option-system"
        tab.page.keyboard.press("Escape")
        assert tab.page.is_hidden("#options")
        assert tab.page.evaluate("document.activeElement.id") == "options-button"


def test_colours_follow_the_system_until_they_are_chosen(open_chat: Open) -> None:
    def background(tab: Tab) -> int:
        return int(tab.page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0])

    with open_chat(color_scheme="dark") as tab:
        assert background(tab) < 60
        assert tab.page.get_attribute("#theme", "aria-pressed") == "true"
        tab.page.emulate_media(color_scheme="light")
        assert background(tab) > 200
        tab.page.click("#theme")
        assert background(tab) < 60
        tab.page.reload()
        assert background(tab) < 60
        assert tab.page.get_attribute("#theme", "aria-pressed") == "true"


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(open_chat: Open, width: int) -> None:
    with open_chat(viewport={"width": width, "height": 700}) as tab:
        fill(tab)
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert tab.page.evaluate(overflow) == 0
        assert tab.page.evaluate(
            "document.querySelector('.scroll').scrollWidth <= document.querySelector('.scroll').clientWidth"
        )
        tab.page.click("#options-button")
        assert tab.page.evaluate(overflow) == 0
        assert tab.page.locator("#options").bounding_box()["width"] <= width


def test_a_reader_who_has_scrolled_back_is_left_there_until_asked(open_chat: Open, chat: Server) -> None:
    with open_chat(viewport={"width": 320, "height": 320}) as tab:
        tab.page.click("#options-button")
        tab.page.fill("#option-max_tokens", "3000")
        tab.page.click("#options-close")
        tab.say("the sea")
        length = tab.longer_than(400)
        tab.page.evaluate("document.querySelector('.scroll').scrollTop = 0")
        tab.longer_than(length + 100)
        assert tab.page.evaluate("document.querySelector('.scroll').scrollTop") == 0
        tab.page.click("text=Latest")
        tab.page.click(".stop")
        tab.page.wait_for_selector(".latest", state="hidden")
        assert tab.page.evaluate("document.querySelector('.scroll').scrollTop") > 0


def test_a_page_without_its_server_says_so(browser: Any) -> None:
    with serving(base_model()) as server:
        page = browser.new_context().new_page()
        page.route("**/v1/models", lambda route: route.abort())
        page.goto(server.url)
        page.wait_for_selector("#problem:visible")
        assert "can't be reached" in page.inner_text("#problem")
        page.unroute("**/v1/models")
        page.click("text=Try again")
        page.wait_for_selector("#input")
        page.context.close()
