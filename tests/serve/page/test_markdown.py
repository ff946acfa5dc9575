"""What a model writes as Markdown, as the page shows it: nodes and text, never HTML of the model's."""

from typing import Any

import pytest

from tests.serve.page.conftest import Open
from tests.serve.page.pages import Tab, events

pytestmark = pytest.mark.thorough

LINK = '<a href="{0}" rel="noopener noreferrer" target="_blank">{1}</a>'
CASES = {
    "paragraphs": ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    "html": ("<b>x</b> & <script>y</script>", "<p>&lt;b&gt;x&lt;/b&gt; &amp; &lt;script&gt;y&lt;/script&gt;</p>"),
    "marks": ("**a** *b* _c_ ~~d~~ `e`", "<p><strong>a</strong> <em>b</em> <em>c</em> <del>d</del> <code>e</code></p>"),
    "marks within marks": ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    "no marks": ("2 * 3 * 4, snake_case_name, **open", "<p>2 * 3 * 4, snake_case_name, **open</p>"),
    "code is not marked": ("`a *b* <i>`", "<p><code>a *b* &lt;i&gt;</code></p>"),
    "two backticks": ("``a ` b``", "<p><code>a ` b</code></p>"),
    "escapes": (r"\*a\* \<b>", "<p>*a* &lt;b&gt;</p>"),
    "headings": ("# a\n## b ##\ntext", "<h3>a</h3><h4>b</h4><p>text</p>"),
    "rule": ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    "quote": ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    "lists": ("- a\n  1. b\n  2. c\n- d", "<ul><li>a<ol><li>b</li><li>c</li></ol></li><li>d</li></ul>"),
    "a list that begins at 3": ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    "an item of paragraphs": ("- a\n\n  b\n- c", "<ul><li><p>a</p><p>b</p></li><li>c</li></ul>"),
    "a link": ("[a *b*](https://x.example/y)", f"<p>{LINK.format('https://x.example/y', 'a <em>b</em>')}</p>"),
    "a bare link": ("see https://x.example/y.", f"<p>see {LINK.format('https://x.example/y', 'https://x.example/y')}.</p>"),
    "mail": ("<mailto:a@x.example>", f"<p>{LINK.format('mailto:a@x.example', 'mailto:a@x.example')}</p>"),
    "a link with script": ("[a](javascript:alert`1`)", "<p><span>a</span></p>"),
    "a link with data": ("[a](data:text/html,x)", "<p><span>a</span></p>"),
    "a link to this server": ("[a](/metrics)", "<p><span>a</span></p>"),
    "a picture is a link": ("![a](https://x.example/p.png)", f"<p>{LINK.format('https://x.example/p.png', 'a')}</p>"),
}


@pytest.fixture
def tab(open_chat: Open) -> Any:
    with open_chat() as opened:
        yield opened


SHOW = """async (texts) => {
    const { show } = await import("/markdown.js");
    const parent = document.createElement("div");
    texts.forEach((text) => show(parent, text));
    return parent.innerHTML;
}"""


def test_markdown_becomes_these_nodes(tab: Tab) -> None:
    shown = {name: tab.page.evaluate(SHOW, [text]) for name, (text, _) in CASES.items()}
    assert shown == {name: expected for name, (_, expected) in CASES.items()}


def test_text_that_grows_shows_what_it_would_at_once(tab: Tab) -> None:
    whole = (
        "\n\n".join(text for text, _ in CASES.values()) + "\n\n```py\nx = 1\n```\n\n| a | b |\n| - | -: |\n| 1 | 2 |\n\nend"
    )
    beginnings = [whole[:length] for length in range(1, len(whole) + 1)]
    assert tab.page.evaluate(SHOW, beginnings) == tab.page.evaluate(SHOW, [whole])


def test_code_and_tables_stand_in_boxes_of_their_own(tab: Tab) -> None:
    text = "```python\nif x < 1:\n    pass\n```\n\n| a | b |\n| :-- | --: |\n| `1` | 2 |\n\n```\nunfinished"
    tab.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=events(text))
    )
    tab.ask("show")
    assert tab.page.locator("pre code").all_text_contents() == ["if x < 1:\n    pass", "unfinished"]
    assert tab.page.locator(".code-head span").all_inner_texts() == ["python", "code"]
    assert tab.page.locator("td").all_inner_texts() == ["1", "2"]
    assert "right" in tab.page.locator("td").last.get_attribute("class")


def test_code_is_copied_as_it_is(tab: Tab) -> None:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    body = events("x\n\n```\na  <b>\n```\n")
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    tab.ask("show")
    tab.page.click(".code .copy")
    tab.page.wait_for_selector(".code .copy:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "a  <b>"
    tab.page.click(".assistant .foot button:text('Copy')")
    tab.page.wait_for_selector(".assistant .foot button:text('Copied')")
    assert tab.page.evaluate("navigator.clipboard.readText()") == "x\n\n```\na  <b>\n```\n"


@pytest.mark.parametrize("text", ["*a " * 20_000, "[" * 50_000, "`" * 50_001, "> " * 20_000, "**_" * 20_000, "- \n" * 5_000])
def test_no_text_takes_long(tab: Tab, text: str) -> None:
    """Playwright would give up after its time."""
    assert tab.page.evaluate(SHOW, [text])
