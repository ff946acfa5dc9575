"""Hugging Face `datasets`: a folder of Python files to token ids on disk, by `Dataset.map` in two processes.

Timed from reading the files to the last Arrow file written, as its users would do it: batched, the text dropped.
"""

import argparse
import json
import resource
import time
from pathlib import Path

from datasets import Dataset, disable_caching, disable_progress_bars
from transformers import PreTrainedTokenizerFast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Python files, one document each")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the Arrow files")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    disable_caching()
    disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(options.tokenizer))
    options.output.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    texts = [path.read_text(encoding="utf-8") for path in sorted(options.folder.rglob("*.py"))]
    tokenized = Dataset.from_dict({"text": texts}).map(
        lambda rows: {"input_ids": tokenizer(rows["text"], return_attention_mask=False)["input_ids"]},
        batched=True,
        num_proc=options.processes,
        remove_columns=["text"],
        cache_file_name=str(options.output / "tokens.arrow"),
    )
    seconds = time.perf_counter() - started

    result = {
        "peer": "datasets",
        "seconds": seconds,
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": sum(len(row) for batch in tokenized.iter(1000) for row in batch["input_ids"]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
