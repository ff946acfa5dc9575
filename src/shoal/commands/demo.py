"""The main job, end to end, in minutes: Python's own source to a trained, talking model, over two ranks.

    shoal demo

Reads the standard library, trains a tokenizer on it, writes token shards, pre-trains a small GPT over 2 ranks, evaluates it
on files it has not seen, and shows what it writes. Nothing is downloaded. Every step is a command that you can type.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from shoal.core.errors import Interrupted, ShoalError
from shoal.core.files import read_json
from shoal.core.recipe_file import read_recipe

RECIPE = Path("gpt-demo")


@dataclass(frozen=True)
class Arguments:
    """Options of `shoal demo`."""

    workers: int = 2
    """Ranks to train with."""
    json: bool = False
    """Print one JSON object, and nothing else, on stdout."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Arguments, overrides: list[str]) -> dict[str, Any]:
    """Prepare, then pre-train and evaluate; returns both results."""
    began = time.perf_counter()
    recipe = read_recipe(RECIPE)
    console = Console(stderr=True, highlight=False)
    prepared = _step(console, arguments, "prepare", str(RECIPE))
    trained = _step(console, arguments, "pretrain", str(RECIPE), "--workers", str(arguments.workers), "--overwrite")
    seconds = time.perf_counter() - began
    if not arguments.json:
        corpus = read_json(Path(recipe.corpus_directory) / "manifest.json")["splits"]
        console.print(_summary(trained, corpus, seconds))
    return {"prepare": prepared, "pretrain": trained, "seconds": seconds}


def _step(console: Console, arguments: Arguments, *words: str) -> dict[str, Any]:
    """Run one verb as a person would type it; its progress goes to the terminal, its result comes back."""
    console.print(f"\n[bold cyan]$ shoal {' '.join(words)}[/bold cyan]")
    command = [sys.executable, "-m", "shoal", *words, "--json", *(["--debug"] if arguments.debug else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        process.wait()  # it has had the same Ctrl-C, and saves what it has
        raise Interrupted("") from None
    if process.returncode:
        error = ShoalError("")  # the verb has said what is wrong
        error.exit_code = process.returncode
        raise error
    return json.loads(output)


def _summary(trained: dict[str, Any], corpus: dict[str, Any], seconds: float) -> Panel:
    folder = Path(trained["run"])
    text = Text()
    text.append("A language model was made from nothing but this machine's Python source.\n\n", style="bold")
    text.append(
        f"read       {corpus['train']['bytes'] / 1e6:.1f} MB of text, {corpus['train']['documents']:,} files, "
        f"{corpus['train']['tokens'] / 1e6:.1f}M tokens\n"
        f"trained    {trained['parameters'] / 1e6:.1f}M parameters on {trained['tokens'] / 1e6:.2f}M tokens, "
        f"{trained['world_size']} ranks sharing every step\n"
        f"speed      {trained['tokens_per_second_median']:,.0f} tokens/s, {trained['mfu_median']:.0%} of this machine's "
        f"matrix peak ({trained['matrix_peak_flops'] / 1e9:,.0f} GFLOP/s)\n"
        f"held out   {corpus['held_out']['documents']:,} files it never saw: loss {trained['eval_loss']:.3f}, "
        f"{trained['eval_bpb']:.3f} bits per byte\n"
        "           (8 bits is knowing nothing; gzip needs about 2)\n"
        f"time       {seconds:.0f} s in all\n"
    )
    for sample in trained["samples"]:
        text.append(f"\n{sample['prompt']}", style="bold green")
        text.append(f"{sample['text'].rstrip()}\n")
    text.append(
        f"\nmodel      {folder / 'model'}   (Hugging Face layout)\n"
        f"report     {folder / 'report.html'}   (open it in a browser)\n"
        f"metrics    {folder / 'metrics.jsonl'}, {folder / 'tensorboard'}\n"
        f'try        shoal generate {folder} --prompt "import "\n'
    )
    return Panel(text, title="shoal demo", border_style="cyan", expand=False)
