"""The page of encoders: labels with their probabilities, entities marked in the text, how alike two texts are."""

from typing import Any

import pytest

from tests.serve.http.servers import classifier, encoder, serving, tagger
from tests.serve.page.pages import open_tab

pytestmark = pytest.mark.thorough

TEXT = "the <b>shoal</b> 🐟 swims with one mind"


def test_labels_are_shown_with_their_probabilities_the_likeliest_first(browser: Any) -> None:
    with serving(classifier()) as server, open_tab(browser, server.url) as tab:
        told = server.post("/v1/classify", input=TEXT).json()["data"][0]
        tab.say(TEXT)
        tab.page.wait_for_selector(".bars")
        labels = tab.page.locator(".bars .label").all_inner_texts()
        assert labels == sorted(told["scores"], key=told["scores"].get, reverse=True)
        assert labels[0] == told["label"] == tab.page.inner_text(".bars .first .label")
        shares = [float(share.strip("%<")) for share in tab.page.locator(".bars .share").all_inner_texts()]
        assert shares == pytest.approx([100 * told["scores"][label] for label in labels], abs=0.6)
        assert "One of: bad, fair, good." in tab.page.inner_text(".bench")


def test_of_several_labels_all_that_a_text_has_stand_out(browser: Any) -> None:
    with serving(classifier(several=True)) as server, open_tab(browser, server.url) as tab:
        none = {"index": 0, "label": None, "labels": [], "scores": {"bad": 0.2, "good": 0.1}, "truncated": False}
        several = none | {"label": "bad", "labels": ["bad", "good"], "scores": {"bad": 0.9, "good": 0.8, "fair": 0.1}}
        answers: list[Any] = []
        tab.page.route("**/v1/classify", lambda route: route.fulfill(json={"data": answers[-1:]}))
        for told, said in ((none, "No label."), (several, "bad, 90%; good, 80%")):
            answers.append(told)
            tab.say(TEXT)
            tab.page.wait_for_selector(f"#said:text-is('{said}')", state="attached")
            tab.page.wait_for_selector('.result[aria-busy="false"]')
            assert tab.page.locator(".bars .first .label").all_inner_texts() == told["labels"]


def test_entities_are_marked_where_they_are(browser: Any) -> None:
    with serving(tagger()) as server, open_tab(browser, server.url) as tab:
        texts = [TEXT, "🐟 the sea, the sea", "every fish reads a part"]
        found = {text: server.post("/v1/tag", input=text).json()["data"][0]["entities"] for text in texts}
        assert any(found.values()), "a random model finds something in one of them"
        for text, entities in found.items():
            tab.say(text)
            tab.page.wait_for_selector('.result[aria-busy="false"]')
            marks = tab.page.locator("mark")
            assert marks.all_text_contents() == [entity["text"] + entity["type"] for entity in entities]
            kept = tab.page.evaluate(
                """() => {
                    const copy = document.querySelector(".marked").cloneNode(true);
                    copy.querySelectorAll(".type").forEach((type) => type.remove());
                    return copy.textContent;
                }"""
            )
            assert kept == text


def test_two_texts_are_compared(browser: Any) -> None:
    with serving(encoder()) as server, open_tab(browser, server.url) as tab:
        tab.page.fill("#other", TEXT)
        tab.say(TEXT)
        tab.page.wait_for_selector(".bars")
        assert tab.page.inner_text(".share") == "1.000"
        tab.page.fill("#other", "the sea")
        tab.page.click("button:text('Compare')")
        tab.page.wait_for_selector(".share:not(:text('1.000'))")
        assert -1 <= float(tab.page.inner_text(".share").replace("−", "-")) < 1


def test_what_is_wrong_with_a_text_is_told(browser: Any) -> None:
    with serving(classifier()) as server, open_tab(browser, server.url) as tab:
        tab.page.route("**/v1/classify", lambda route: route.abort())
        tab.say(TEXT)
        tab.page.wait_for_selector(".result .problem")
        assert "can't be reached" in tab.page.inner_text(".result")
