"""The page in a browser, as a person sees it."""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.board.runs import evaluation, step, text_of, write_run
from tests.chromium import chromium

pytest.importorskip("fastapi", reason="the board needs the extra `serve`")
pytest.importorskip("playwright", reason="a browser is driven by playwright")

import uvicorn
from playwright.sync_api import Browser, Page, expect

from shoal.board.app import make_app
from shoal.board.board import Board
from shoal.board.run import run_id

EVIL = "<img src=x onerror=document.title='run'>"
SCRIPT = "<script>document.title='run'</script>"

COLOR = "swatch => getComputedStyle(swatch).backgroundColor.match(/[0-9]+/g).map(Number)"
PIXELS = """(canvas, [red, green, blue]) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let at = 0; at < data.length; at += 4) found += data[at] === red && data[at + 1] === green && data[at + 2] === blue;
  return found;
}"""
"""How many points of a picture have a color."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A long run that has finished, one that was stopped, and one that runs; their texts are wicked."""
    records = [step(number, loss=1 + number % 7 / 10, ranks={"sync_seconds": [0.02, 0.03]}) for number in range(1, 3001)]
    result = {"steps": 3000, "eval_loss": 1.5, "samples": [{"prompt": SCRIPT, "text": EVIL}]}
    done = write_run(tmp_path / "done <b>bold", [*records, evaluation(3000)], result=result)
    (done / "predictions.jsonl").write_text(text_of([{"text": EVIL, "prediction": {"label": "0", "true": "1"}}]))
    (done / "report.html").write_text("<p>a report <script>document.title='run'</script>")
    recipe: dict[str, Any] = {"train": {"steps": 500}, "optimizer": {"learning_rate": 0.5}}
    stopped = write_run(tmp_path / "stopped", [step(number) for number in range(1, 41)], recipe=recipe, saved=40)
    for path in (stopped / "metrics.jsonl", done / "metrics.jsonl"):
        os.utime(path, (1e9, 1e9))
    write_run(tmp_path / "live", [*(step(number) for number in range(1, 21)), evaluation(20, eval_accuracy=0.5)])
    return tmp_path


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(Board([runs])), log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page; afterwards, nothing was asked of anybody else, and nothing went wrong in it."""
    faults: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_page(hash: str = "", **settings: Any) -> Page:
        contexts.append(browser.new_context(**({"viewport": {"width": 1300, "height": 900}} | settings)))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + hash)
        expect(page.locator("#status")).to_contain_text("live")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(address)] == []


def row(page: Page, name: str) -> Any:
    return page.locator("#runs tbody tr", has=page.locator(".run-name", has_text=name))


def chart(page: Page, title: str) -> Any:
    return page.locator("figure", has=page.get_by_role("heading", name=title, exact=True))


def test_the_page_shows_runs_and_their_curves_and_runs_no_script_of_theirs(opened: Open) -> None:
    page = opened()
    expect(row(page, "live").locator(".badge")).to_have_text("running")
    expect(row(page, "stopped").locator(".badge")).to_have_text("stopped")
    expect(row(page, "done").locator(".badge")).to_have_text("finished")
    expect(row(page, "live").get_by_role("checkbox")).to_be_checked()
    row(page, "done").get_by_role("checkbox").check()
    expect(page.locator(".sample")).to_have_text(SCRIPT + EVIL)
    expect(chart(page, "Loss (nats a token)")).to_be_visible()
    expect(chart(page, "Waiting for ranks, by rank (ms a step)")).to_be_visible()
    picture = chart(page, "Loss (nats a token)").get_by_role("img")
    expect(picture).to_have_attribute("aria-label", re.compile("2 runs"))
    red, green, blue = page.locator("#legend .swatch").last.evaluate(COLOR)
    assert picture.evaluate(PIXELS, [red, green, blue]) > 20
    assert page.title() == "Runs · Shoal"
    assert page.locator("main img, main script").count() == 0


@pytest.mark.thorough
def test_new_lines_appear_by_themselves(opened: Open, runs: Path) -> None:
    page = opened()
    expect(row(page, "live").locator("td.step")).to_contain_text("20")
    with (runs / "live" / "metrics.jsonl").open("a") as file:
        file.write(text_of([step(21), evaluation(21, eval_loss=0.25)]) + '{"step": 22')
    expect(row(page, "live").locator("td.step")).to_contain_text("21")
    expect(row(page, "live").locator("td.best")).to_contain_text("0.25")
    write_run(runs / "later", [step(1)])
    expect(row(page, "later")).to_be_visible(timeout=10_000)
    expect(row(page, "later").get_by_role("checkbox")).to_be_checked()


@pytest.mark.thorough
def test_lines_that_cannot_be_read_and_recipes_are_told(opened: Open, runs: Path) -> None:
    (runs / "live" / "recipe.yaml").write_text("a: [1")
    with (runs / "live" / "metrics.jsonl").open("a") as file:
        file.write("not json\n")
    page = opened()
    expect(page.locator("#notices")).to_contain_text("live: recipe.yaml can't be read")
    expect(page.locator("#notices")).to_contain_text("live: 1 line of its metrics could not be read")


@pytest.mark.thorough
def test_numbers_beyond_all_measure_do_not_stop_the_page(opened: Open, runs: Path) -> None:
    (runs / "live" / "metrics.jsonl").write_text(text_of([step(1, step_seconds=1e300)]))
    page = opened(f"#runs={run_id(runs / 'live')}&over=seconds")
    expect(chart(page, "Gradient norm")).to_be_visible()
    page.get_by_role("button", name="None", exact=True).click()
    expect(row(page, "live").get_by_role("checkbox")).not_to_be_checked()


@pytest.mark.thorough
def test_keys_read_values_and_look_closer(opened: Open) -> None:
    page = opened()
    loss = chart(page, "Loss (nats a token)")
    expect(loss.get_by_role("img")).to_have_attribute("aria-label", re.compile("1 run"))
    loss.get_by_role("img").focus()
    page.keyboard.press("Home")
    expect(loss.locator(".spoken")).to_contain_text("step 1: live training 2")
    page.keyboard.press("ArrowRight")
    expect(loss.locator(".spoken")).to_contain_text("step 2:")
    page.keyboard.press("End")
    expect(loss.locator(".spoken")).to_contain_text("live held out 1.55")
    page.keyboard.press("+")
    expect(page.get_by_role("button", name="Whole run")).to_be_visible()
    page.keyboard.press("l")
    expect(loss.get_by_role("button", name="log")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="Whole run")).to_be_hidden()


@pytest.mark.thorough
def test_the_mouse_reads_values_and_a_drag_looks_at_every_record_of_a_long_run(opened: Open) -> None:
    page = opened()
    row(page, "done").get_by_role("checkbox").check()
    row(page, "live").get_by_role("checkbox").uncheck()
    page.locator("#smoothing").fill("0")
    loss = chart(page, "Loss (nats a token)")
    expect(loss).to_be_visible()
    expect(loss.get_by_role("img")).to_have_attribute("aria-label", re.compile("1 run"))
    box = loss.get_by_role("img").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + 50)
    expect(loss.locator(".readout")).to_contain_text(re.compile(r"\(.* – .*\)"))  # a row of several records has a range
    with page.expect_response(re.compile("/api/part")) as answered:
        page.mouse.down()
        page.mouse.move(middle + 60, box["y"] + 50, steps=3)
        page.mouse.up()
    assert answered.value.json()["training"]["per_row"] == 1
    page.mouse.move(middle + 5, box["y"] + 60)
    expect(loss.locator(".readout")).to_contain_text("training")
    expect(loss.locator(".readout")).not_to_contain_text("–")
    loss.get_by_role("img").dblclick()
    expect(page.get_by_role("button", name="Whole run")).to_be_hidden()


@pytest.mark.thorough
def test_runs_are_hidden_found_sorted_and_kept_in_the_address(opened: Open) -> None:
    page = opened()
    row(page, "stopped").get_by_role("checkbox").check()
    chip = page.locator("#legend").get_by_role("button", name="stopped")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "false")
    page.locator("#axis").select_option("tokens")
    page.get_by_role("searchbox").fill("STOP")
    expect(page.locator("#runs tbody tr:visible")).to_have_count(1)
    page.get_by_role("searchbox").fill("")
    page.get_by_role("columnheader", name="step").get_by_role("button").click()
    expect(page.locator("#runs tbody tr").first).to_contain_text("done")
    expect(page.get_by_role("columnheader", name="step")).to_have_attribute("aria-sort", "descending")
    again = opened("#" + page.url.partition("#")[2])
    expect(again.locator("#runs tr.chosen")).to_have_count(2)
    assert again.locator("#axis").input_value() == "tokens"


@pytest.mark.thorough
def test_compared_runs_tell_what_they_differ_in_and_how_to_go_on(opened: Open, runs: Path) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    row(page, "stopped").get_by_role("checkbox").check()
    section = page.locator("#details section", has=page.get_by_role("heading", name="Recipes differ in"))
    expect(section.locator("tr:visible", has_text="train.steps")).to_have_text("train.steps100500")
    expect(section.get_by_text("2 keys that only some have")).to_be_visible()
    words = f"shoal pretrain {runs / 'stopped' / 'recipe.yaml'} --resume --runs {runs}"
    expect(page.locator(".command code")).to_have_text(words)
    page.locator(".command button").click()
    expect(page.locator(".command button")).to_have_text("copied")
    assert page.evaluate("navigator.clipboard.readText()") == words


@pytest.mark.thorough
def test_a_report_opens_where_its_scripts_do_not_run(opened: Open, address: str, browser: Browser) -> None:
    page = opened()
    row(page, "done").get_by_role("checkbox").check()
    link = page.get_by_role("link", name="its report").get_attribute("href")
    report = browser.new_page()
    report.goto(address + str(link).lstrip("/"))
    expect(report.locator("p")).to_contain_text("a report")
    assert report.title() == ""
    report.close()


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_it_fits_a_phone_and_both_themes(opened: Open, scheme: str) -> None:
    page = opened(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    row(page, "done").get_by_role("checkbox").check()
    expect(page.locator(".sample")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Dark or light").click()
    assert page.evaluate(ground) != before


@pytest.mark.thorough
def test_a_board_that_ended_is_told(browser: Browser, runs: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        config = uvicorn.Config(make_app(Board([runs])), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        expect(page.locator("#status")).to_contain_text("live")
        server.should_exit = True
        thread.join()
    expect(page.locator("#status")).to_contain_text("no answer", timeout=10_000)
    page.close()
