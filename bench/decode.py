"""Decoding speed: Shoal's runner in fp32, int8 and int4 next to `transformers.generate` and llama.cpp, on the same weights.

Everyone goes on with the same prompts by the likeliest token, in a process of its own, on two threads; speeds are those of
the median step after the warm-up. The shapes are random weights, whose speed is that of learnt ones; `--model` measures a
model of yours, and with `--text` what fewer bits do to its loss.

    python bench/decode.py
    python bench/decode.py --model runs/demo/model --text data/demo/held_out-00000.bin --gguf demo.gguf
    python bench/decode.py --model .bench/decode/gpt2-small --gguf gpt2-fp32.gguf gpt2-q8_0.gguf
"""

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from report import ROOT, SCRATCH, Result, Rounds, median, peer_command, publish, run_json, shown, take_turns
from shoal.core.model_directory import write_model_directory
from shoal.data.special_tokens import END_OF_TEXT
from shoal.data.tokenizer import TextTokenizer, byte_level
from shoal.data.tokenizer import make_config as tokenizer_config
from shoal.models import hugging_face
from shoal.models.presets import make_config
from shoal.models.transformer import Transformer

SHAPES = {"gpt2-small": {}, "llama-small": {}, "qwen3-tiny": {"layers": 4, "dim": 256, "heads": 4, "vocabulary": 4096}}
"""Presets and what is changed of them: twice 125M parameters, which come from memory, and 4M, which caches hold."""
WEIGHTS = ("fp32", "int8", "int4")
COLUMNS = ["", "tokens/s", "of transformers", "of our fp32", "prompt tokens/s", "same text", "loss", "memory"]
PEER = "transformers.generate, fp32"


def made_up_tokenizer(vocabulary: int) -> TextTokenizer:
    """As many tokens as a model has: bytes, pairs of them, and the end; GGUF wants a text for each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(alphabet, alphabet), vocabulary - len(alphabet) - 1))
    tokens = [END_OF_TEXT, *alphabet, *map("".join, pairs)]
    library = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, pairs))
    library.pre_tokenizer, library.decoder = byte_level("gpt2"), decoders.ByteLevel()
    library.add_special_tokens([END_OF_TEXT])
    return TextTokenizer(library, END_OF_TEXT, tokenizer_config(END_OF_TEXT, [END_OF_TEXT]))


def write_shape(name: str) -> Path:
    """A folder with random weights of that shape."""
    directory = SCRATCH / "decode" / name
    if not directory.exists():
        config = make_config(name, **SHAPES[name])
        model = Transformer(config).materialise().initialise(torch.Generator().manual_seed(1))
        directory.parent.mkdir(parents=True, exist_ok=True)
        tokenizer, weights = made_up_tokenizer(config.vocabulary), hugging_face.weights_to_hugging_face(model)
        settings = hugging_face.config_to_hugging_face(config, tokenizer.end_of_text)
        write_model_directory(directory, settings, weights, tokenizer.write, "# Random\n")
    return directory


def write_prompts(model: Path, length: int) -> Path:
    """Eight prompts of random tokens of the model's."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    tokens = torch.randint(1, vocabulary, (8, length), generator=torch.Generator().manual_seed(2))
    file = SCRATCH / "decode" / f"prompts-{vocabulary}-{length}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tokens.tolist()))
    return file


def contenders(
    model: Path, prompts: Path, batch: int, tokens: int, gguf: tuple[Path, ...], text: Path | None
) -> dict[str, Callable[[int], Result]]:
    """Everyone who can go on with a model's texts."""
    asked = ("--prompts", prompts, "--batch", batch, "--tokens", tokens)
    commands = {
        f"shoal, {weights}": [
            *(sys.executable, str(ROOT / "bench" / "decode_shoal.py"), "--model", str(model), *map(str, asked)),
            *("--weights", weights, *(("--text", str(text)) if text else ())),
        ]
        for weights in WEIGHTS
    }
    commands[PEER] = peer_command("transformers_generate.py", "--model", model, *asked)
    commands["transformers.generate, compiled"] = peer_command(
        "transformers_generate.py", "--model", model, *asked, "--compile"
    )
    for file in gguf:
        commands[f"llama.cpp, {file.stem}"] = peer_command("llama_cpp_decode.py", "--gguf", file, *asked)
    return {f"{name}, batch {batch}": partial(_measure, command, batch) for name, command in commands.items()}


def _measure(command: list[str], batch: int, round_number: int) -> Result:
    result = run_json(command, OMP_NUM_THREADS="2", TOKENIZERS_PARALLELISM="false")
    seconds = result["step_seconds"]
    return result | {"tokens_per_second": batch / statistics.median(seconds[len(seconds) // 4 :])}


def summary_row(name: str, rounds: Rounds) -> list[str]:
    """A line of the table; a contender's batch is the end of its name."""
    results, batch = rounds[name], name.rpartition(", ")[2]
    speed = median(results, "tokens_per_second")
    peer, own = (
        median(rounds.get(f"{other}, {batch}", []), "tokens_per_second") for other in (PEER, f"shoal, {WEIGHTS[0]}")
    )
    reference = rounds.get(f"{PEER}, {batch}")
    return [
        name,
        shown(speed),
        shown(speed / peer, "{:.2f} ×"),
        shown(speed / own, "{:.2f} ×"),
        shown(median(results, "read_tokens_per_second")),
        shown(agreement(results[0], reference[0]) if reference else float("nan"), "{:.0%}"),
        shown(median(results, "loss"), "{:.4f}"),
        shown(median(results, "peak_memory_bytes") / 1e6, "{:,.0f} MB"),
    ]


def agreement(result: Result, reference: Mapping[str, list[list[int]]]) -> float:
    """Share of the tokens before a text first differs from the reference's."""
    same = total = 0
    for text, other in zip(result["written"], reference["written"], strict=True):
        differing = [place for place, (one, two) in enumerate(zip(text, other, strict=True)) if one != two]
        same, total = same + min(differing, default=len(text)), total + len(text)
    return same / total


def main(
    rounds: int = 3,
    tokens: int = 64,
    prompt: int = 64,
    shape: tuple[str, ...] = tuple(SHAPES),
    model: Path | None = None,
    text: Path | None = None,
    gguf: tuple[Path, ...] = (),
    batches: tuple[int, ...] = (1, 8),
    only: tuple[str, ...] = (),
) -> None:
    """Measure decoding speed and write bench/results/decode-NAME.json and .md for each model.

    Args:
        rounds: How often everyone is measured.
        tokens: How many are written; a quarter of them is warm-up.
        prompt: Tokens that each text begins with.
        shape: Random models to measure, where no model is given.
        model: A model's folder to measure instead.
        text: A shard of token ids of the model's, to tell the loss on.
        gguf: The same model, exported, for llama.cpp; several formats of it may be given.
        batches: How many texts are written at once.
        only: Beginnings of the names of contenders to measure; none: all of them.
    """
    for folder in [model] if model else map(write_shape, shape):
        prompts = write_prompts(folder, prompt)
        everyone: dict[str, Callable[[int], Result]] = {}
        for batch in batches:
            everyone |= contenders(folder, prompts, batch, tokens, gguf, text)
        chosen = {name: measure for name, measure in everyone.items() if not only or name.startswith(only)}
        results = take_turns(chosen, rounds)
        rows = [summary_row(name, results) for name in results]
        name = folder.parent.name if folder.name == "model" else folder.name
        notes = [
            f"Medians over {rounds} rounds of the median step of {tokens} after prompts of {prompt} tokens, on 2 threads.",
            "Same text: tokens before the first that differs from what transformers.generate wrote.",
        ]
        publish(f"decode-{name}", f"Decoding, {name}", COLUMNS, rows, notes, results, "decode")


if __name__ == "__main__":
    tyro.cli(main)
