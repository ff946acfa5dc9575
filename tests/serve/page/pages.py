"""Tabs on the page of a real server, which keep what goes wrong in them, and a model that never ends by itself."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shoal.serve.engine import make_engine
from shoal.serve.generation import LanguageModel
from shoal.serve.http.served import Served, Writer
from tests.serve.http.servers import chat_template
from tests.serve.languages import talkative

PATIENCE = 30_000
"""Milliseconds in which what a page does must be done, on a machine that is busy."""


@dataclass
class Tab:
    """A page; `page` is Playwright's."""

    page: Any
    asked: list[tuple[str, Any]] = field(default_factory=list)
    """(path, body) of what the page has sent."""
    wrong: list[str] = field(default_factory=list)
    """Dialogs that a script opened, errors of ours, and what the page's policy forbade."""

    def say(self, text: str) -> None:
        """Send a message."""
        self.page.fill("#input", text)
        self.page.press("#input", "Enter")

    def finished(self) -> None:
        """Wait until nothing is being written."""
        self.page.wait_for_selector(".send:visible")

    def ask(self, text: str) -> str:
        """Send a message, and wait for the whole answer."""
        self.say(text)
        self.finished()
        return self.answer

    def longer_than(self, length: int) -> int:
        """Wait until the last answer has more characters, runs of spaces counted once; returns how many."""
        last = self.page.locator(".assistant .text").last
        last.filter(has_text=re.compile(rf"[\s\S]{{{length + 1}}}")).wait_for()
        return len(" ".join(last.text_content().split()))

    @property
    def answer(self) -> str:
        """The last answer, as it is shown."""
        return str(self.page.locator(".assistant .text").last.inner_text())

    @property
    def turns(self) -> list[str]:
        """What is shown of each turn."""
        return [str(text) for text in self.page.locator(".turn .text").all_inner_texts()]

    def sent(self, path: str = "/v1/chat/completions") -> Any:
        """The last body that was sent there."""
        return [body for to, body in self.asked if to == path][-1]


@contextmanager
def open_tab(browser: Any, url: str, **context: Any) -> Iterator[Tab]:
    """A tab with nothing stored, on the server's page; what went wrong in it fails the test at its end."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(PATIENCE)
    tab = Tab(page)

    def note(request: Any) -> None:
        if not request.url.startswith(url):
            tab.wrong.append(f"asked {request.url}, which is elsewhere")
        if request.method == "POST":
            tab.asked.append((request.url.removeprefix(url), json.loads(request.post_data)))

    def dismiss(dialog: Any) -> None:
        tab.wrong.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    page.on("request", note)
    page.on("dialog", dismiss)
    page.on("pageerror", lambda error: tab.wrong.append(f"an error: {error}"))
    page.on("console", lambda told: tab.wrong.append(told.text) if "Content Security Policy" in told.text else None)
    page.goto(url)
    page.wait_for_selector("#input, dialog[open], #problem:visible")
    try:
        yield tab
        assert tab.wrong == []
    finally:
        page.context.close()


def talkative_chat(context: int = 4096) -> Served:
    """A chat model whose answers are as long as they may be."""
    template = chat_template()
    tokenizer = template.tokenizer
    language = LanguageModel(talkative(tokenizer, context), tokenizer, frozenset(template.ends))
    engine = make_engine(language, 2, context, 4)
    writer = Writer(engine, tokenizer, 2, context, lambda text: tokenizer.encode(text).tolist(), template)
    return Served("talkative", "chat", context, 1, writer=writer)


def events(*pieces: str) -> str:
    """A streamed answer, to be given in a server's place."""
    told = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in told) + "data: [DONE]\n\n"
