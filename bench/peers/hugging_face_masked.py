"""Hugging Face: `BertForMaskedLM` under `transformers.Trainer` with `DataCollatorForLanguageModeling`, made fast.

Documents are cut into pieces of the context at most, which the collator pads to the longest of a batch; or, `--packed`,
joined and cut into full rows, as the library's own `run_mlm.py` does. The collator draws 15% of the tokens, 80/10/10.
Tokens/s count real tokens: a step's, over its time; the median after the warm-up.
"""

import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import SEED, Settings
from hugging_face_trainer import Observer, build_arguments

sys.modules["deepspeed"] = None  # as in hugging_face_trainer.py: its start-up time does not belong here
from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
)


class Rows(torch.utils.data.Dataset):
    """Token ids of pieces of documents, in a seeded random order."""

    def __init__(self, settings: Settings) -> None:
        needed = settings.steps * settings.batch
        manifest = json.loads((settings.corpus / "manifest.json").read_text())
        end, files = manifest["end_of_text"], sorted(settings.corpus.glob("train-*.bin"))
        limit = 4 * needed * settings.context  # documents that are shorter than the context fill less
        tokens = np.concatenate([np.fromfile(path, dtype=manifest["dtype"]) for path in files])[:limit].astype(np.int64)
        if settings.packed:
            pieces = list(tokens[: len(tokens) // settings.context * settings.context].reshape(-1, settings.context))
        else:
            documents = np.split(tokens, np.flatnonzero(tokens == end) + 1)
            pieces = [
                document[start : start + settings.context]
                for document in documents
                for start in range(0, len(document), settings.context)
            ]
        if len(pieces) < needed:
            raise SystemExit(f"{settings.corpus}: {len(pieces):,} rows, too few for {settings.steps} steps")
        order = np.random.default_rng(SEED).permutation(len(pieces))[:needed]
        self.pieces = [pieces[index] for index in order]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.pieces[index].tolist()}


def build_model(settings: Settings) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=settings.vocabulary,
        max_position_embeddings=settings.context,
        hidden_size=settings.dim,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.dim,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    return BertForMaskedLM(config)


def main() -> None:
    settings = Settings.from_command_line(__doc__)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(Path(settings.corpus) / "tokenizer.json"), mask_token="<|mask|>", pad_token="<|endoftext|>"
    )
    rows, model, observer = Rows(settings), build_model(settings), Observer()
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(model, build_arguments(settings, directory), train_dataset=rows, data_collator=collator)
        trainer.add_callback(observer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = observer.clock.step_seconds
    real = [
        sum(map(len, rows.pieces[step * settings.batch : (step + 1) * settings.batch])) for step in range(settings.steps)
    ]
    speeds = [tokens / took for tokens, took in zip(real, seconds, strict=True)]
    longest = [max(map(len, rows.pieces[at : at + settings.batch])) for at in range(0, len(rows), settings.batch)]
    result = {
        "peer": f"trainer, {'packed' if settings.packed else 'padded'}{', compiled' if settings.compile else ''}",
        "tokens_per_second": statistics.median(speeds[settings.warmup :]),
        "real_share": sum(real) / (settings.batch * sum(longest)),
        "step_seconds": seconds,
        "first_step_seconds": observer.clock.first_step_seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": [observer.losses[0], observer.losses[-1]],
        "threads": settings.threads,
        "parameters": model.num_parameters(),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
