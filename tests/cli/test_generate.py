"""`shoal generate`: text out, or one line that says what is wrong with the model or the options."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.data.tokenizer import build_char
from tests.cli.conftest import Shoal
from tests.cli.test_cli import python_m_shoal


def test_the_prompt_and_its_continuation_are_printed(shoal: Shoal, model: Path) -> None:
    words = ["generate", model, "--prompt", "the shoal", "--tokens", 12]
    plain, structured = shoal(*words), shoal(*words, "--json")
    result = json.loads(structured.out)
    assert structured.out.count("\n") == 1
    assert (plain.code, structured.code, plain.err, structured.err) == (0, 0, "", "")
    assert plain.out == f"the shoal{result['text']}\n"
    assert result == {"model": str(model), "prompt": "the shoal", "text": result["text"], "seed": 0}
    assert 0 < len(result["text"]) <= 12


def test_the_model_of_a_run_is_found_in_its_folder(shoal: Shoal, model: Path) -> None:
    shutil.copytree(model, "run/model")
    assert shoal("generate", "run", "--tokens", 5).out == shoal("generate", "run/model/", "--tokens", 5).out


@pytest.mark.parametrize("seed", ["7", "-1", "99999999999999999999999"])
def test_the_same_seed_gives_the_same_text(shoal: Shoal, model: Path, seed: str) -> None:
    first, second = (shoal("generate", model, "--seed", seed, "--tokens", 20) for _ in range(2))
    assert first.code == 0
    assert first == second
    assert first.out != shoal("generate", model, "--seed", "8", "--tokens", 20).out


def test_stop_strings_end_the_text_and_never_show(shoal: Shoal, model: Path) -> None:
    text = json.loads(shoal("generate", model, "--tokens", 30, "--json").out)["text"]
    stop = text[3:6]
    result = json.loads(shoal("generate", model, "--tokens", 30, "--json", "--stop", stop, "xyz").out)
    assert result["text"] == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tokens", "0"], "--tokens is 0; accepted: a whole number above 0"),
        (["--tokens", "-3"], "--tokens is -3; accepted: a whole number above 0"),
        (["--temperature", "nan"], "temperature is nan; accepted: 0 or more"),
        (["--temperature", "-0.5"], "temperature is -0.5; accepted: 0 or more"),
        (["--temperature", "inf"], "temperature is inf; accepted: 0 or more"),
        (["--top-p", "0"], "top-p is 0.0; accepted: above 0, up to 1"),
        (["--top-p", "nan"], "top-p is nan; accepted: above 0, up to 1"),
        (["--top-k", "-1"], "top-k is -1; accepted: 0 or more"),
        (["--min-p", "1.5"], "min-p is 1.5; accepted: from 0 to 1"),
        (["--repetition-penalty", "0"], "repetition penalty is 0.0; accepted: above 0"),
        (["--weights", "int8"], "weights in int8 are computed with by Shoal's own library alone"),
        (["--beams", "0"], "--beams is 0; accepted: a whole number above 0"),
        (["--beams", "999"], "999 beams are asked for; accepted: from 1 to "),
        (["--beams", "2", "--repetition-penalty", "1.2"], "a beam search takes the likeliest text and draws nothing"),
        (["--beams", "2", "--temperature", "1.5"], "a beam search takes the likeliest text and draws nothing"),
        (["--json-schema", "nowhere.json"], "nowhere.json: no such file"),
        (["--regex", "a", "--json-schema", "nowhere.json"], "--json-schema and --regex are both given"),
        (["--stop", ""], "--stop is given an empty text, which every text has at its start"),
        (["--prompt", "ZZZ"], "the character 'Z' (U+005A) is not in the character vocabulary"),
        (["--prompt", "日本"], "the character '日' (U+65E5) is not in the character vocabulary"),
        (["--prompt", "\udcff"], "the prompt is not UTF-8 text: "),
    ],
)
def test_what_can_not_be_is_told_before_anything_is_printed(
    shoal: Shoal, model: Path, words: list[str], expected: str
) -> None:
    outcome = shoal("generate", model, *words)
    assert outcome.code == 2
    assert outcome.error.startswith(expected)


def test_the_likeliest_text_is_searched_for(shoal: Shoal, model: Path) -> None:
    words = ["generate", model, "--prompt", "the shoal", "--tokens", 8]
    searched = [shoal(*words, "--beams", 4, "--seed", seed).out for seed in (1, 2)]
    assert searched[0] == searched[1] != shoal(*words, "--seed", 1).out


def test_a_text_is_of_a_schema_or_an_expression(shoal: Shoal, model: Path) -> None:
    pytest.importorskip("llguidance")
    Path("schema.json").write_text('{"enum": [true, false]}')
    assert shoal("generate", model, "--json-schema", "schema.json").out in ("true\n", "false\n")
    assert shoal("generate", model, "--regex", "(sea|fish)es").out in ("seaes\n", "fishes\n")
    assert shoal("generate", model, "--regex", "(ab").error.startswith("the regular expression can't be followed")


@pytest.mark.parametrize("temperature", ["0", "1e-320", "1e30"])
def test_extreme_temperatures_work(shoal: Shoal, model: Path, temperature: str) -> None:
    assert shoal("generate", model, "--temperature", temperature, "--tokens", 5).code == 0


Damage = Callable[[Path], object]


def cut(name: str, keep: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def put(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def make_folder(name: str) -> Damage:
    def replace_by_folder(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return replace_by_folder


def configure(key: str, value: object) -> Damage:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {key: value}))

    return change


DAMAGES = {
    "cut weights": (cut("model.safetensors", -100), "m/model.safetensors: not a whole safetensors file"),
    "empty weights": (cut("model.safetensors", 0), "m/model.safetensors: not a whole safetensors file"),
    "weights a folder": (make_folder("model.safetensors"), "m/model.safetensors: not a whole safetensors file"),
    "no weights": (drop("model.safetensors"), "m: has no model.safetensors"),
    "cut config": (cut("config.json", 20), "m/config.json: not valid JSON"),
    "config a list": (put("config.json", "[]"), "m/config.json: not a JSON object"),
    "config a folder": (make_folder("config.json"), "m/config.json: can't be read: Is a directory"),
    "no config": (drop("config.json"), "m: not a model folder, it has no config.json"),
    "another model": (configure("model_type", "t5"), "m: model type 't5' is not supported"),
    "a width in words": (configure("n_embd", "16"), "m: config.json: 'n_embd' is '16', not a whole number above 0"),
    "another width": (configure("n_embd", 32), "m: 'transformer.wte.weight' has the shape"),
    "more layers": (configure("n_layer", 3), "m: the weights have no 'transformer.h.2.ln_1.weight'"),
    "fewer layers": (configure("n_layer", 1), "m: the weights have 'transformer.h.1."),
    "a huge context": (configure("n_positions", 10**12), "m: 'transformer.wpe.weight' has the shape"),
    "no tokenizer": (drop("tokenizer.json"), "m: no tokenizer.json there"),
    "a damaged tokenizer": (cut("tokenizer.json", 50), "m/tokenizer.json: not a tokenizer.json"),
    "another tokenizer": (build_char(map(chr, range(300))).write, "m: its tokenizer has 301 tokens, its model only"),
    "an index of nothing": (put("model.safetensors.index.json", "{}"), "m/model.safetensors.index.json: has no"),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_told_in_one_line(shoal: Shoal, model: Path, damage: Damage, expected: str) -> None:
    shutil.copytree(model, "m")
    damage(Path("m"))
    outcome = shoal("generate", "m", "--tokens", 3)
    assert outcome.code == 2
    assert outcome.error.startswith(expected)


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_what_is_no_model_folder_is_told(shoal: Shoal, verb: str) -> None:
    Path("file.txt").write_text("words")
    Path("empty").mkdir()
    for path in ("nowhere", "file.txt"):
        outcome = shoal(verb, path)
        assert (outcome.code, outcome.error) == (2, f"{path}: no such model folder")
    for path in ("empty", "."):
        outcome = shoal(verb, path)
        assert (outcome.code, outcome.error) == (2, f"{path}: not a model folder, it has no config.json")


def test_a_prompt_from_stdin_and_json_make_one_object_on_stdout(model: Path) -> None:
    done = python_m_shoal(
        ["generate", str(model), "--prompt", "-", "--tokens", "5", "--json"], input=b"the sea", stdout=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["prompt"] == "the sea"


def test_a_prompt_from_stdin_that_is_not_utf_8_is_told(model: Path) -> None:
    done = python_m_shoal(["generate", str(model), "--prompt", "-"], input=b"\xff\xfe", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"shoal: error: the prompt is not UTF-8 text: ")
