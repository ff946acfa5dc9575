"""What can't be tuned, or isn't an adapter, is told in a line that says what to do."""

import json
from pathlib import Path

import pytest

from shoal.core.files import write_json
from tests.cli.conftest import Shoal
from tests.train.labelled import write_encoder, write_texts


@pytest.fixture(scope="module")
def encoder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "model", corpus)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("--tuning.what top --tuning.top 9", "'tuning.top' is 9, and the model has 3 blocks"),
        ("--tuning.what frozen --model.dropout 0.2", "'model.dropout' is 0.2, and by 'tuning.what' frozen nothing is"),
        ("--tuning.what lora --tuning.lora.targets [gate]", "'tuning.lora': the model's MLP has no gate"),
        ("--tuning.what lora --parallel.tensor 2", "take parallel.shard zero3"),
        ("--model.adapter nowhere", "nowhere: not an adapter's folder, it has no adapter_config.json"),
        ("--model.adapter pickled", "other formats (adapter_model.bin) are pickles"),
    ],
)
def test_what_can_t_be_tuned_is_told(shoal: Shoal, encoder: Path, tmp_path: Path, keys: str, message: str) -> None:
    write_texts(tmp_path / "texts.tsv", 40)
    write_json(tmp_path / "pickled" / "adapter_config.json", {"peft_type": "LORA"})
    words = ["finetune", "--task", "classify", "--model", encoder, "--data", "texts.tsv", "--train.steps", "1"]
    outcome = shoal(*words, "--train.compile", "off", *keys.split())
    assert outcome.code == 2 and message in outcome.error
    assert not Path("runs/run/model").exists()


@pytest.mark.parametrize("keys", ["--tuning.what lora", "--tuning.what frozen", "--model.adapter somewhere"])
def test_random_weights_are_not_left_as_they_are(shoal: Shoal, keys: str) -> None:
    words = ["finetune", "--task", "translate", "--model.preset", "llama-tiny", "--data", "a.en", *keys.split()]
    assert f"'{keys.split()[0].removeprefix('--')}' is for a model that has learnt something" in shoal(*words).error


def test_an_adapter_stands_for_its_model_and_says_so_where_that_is_not_there(
    shoal: Shoal, encoder: Path, tmp_path: Path
) -> None:
    write_texts(tmp_path / "texts.tsv", 40)
    words = ["finetune", "--task", "classify", "--data", "texts.tsv", "--train.steps", "2", "--train.compile", "off"]
    lora = ["--tuning.what", "lora", "--optimizer.learning_rate", "0.01", "--json"]
    first = json.loads(shoal(*words, "--model", encoder, *lora, "--name", "first").out)
    assert first["parameters_trained"] < 0.2 * first["parameters"]
    adapter = Path("runs/first/adapter")
    going_on = json.loads(shoal(*words, "--model", adapter, *lora, "--name", "second").out)
    assert going_on["parameters_trained"] == first["parameters_trained"]
    merged = json.loads(shoal(*words, "--model", adapter, "--name", "third", "--json").out)
    assert merged["parameters_trained"] == merged["parameters"] == first["parameters"]
    evaluated = json.loads(shoal("evaluate", "runs/first", "--json").out)
    assert evaluated["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-4)
    config = json.loads((adapter / "adapter_config.json").read_text())
    write_json(adapter / "adapter_config.json", config | {"base_model_name_or_path": "somebody/bert"})
    error = shoal(*words, "--model", adapter, "--name", "fourth").error
    assert "an adapter, of the model 'somebody/bert', which is no folder here" in error and "--model.adapter" in error
