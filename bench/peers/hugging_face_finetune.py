"""Hugging Face: BERT fine-tuned under `transformers.Trainer` on labelled texts or tagged words, made fast on a CPU.

Batches are padded to their longest text, drawn at random or (`--grouped`) from texts of about one length. All of the
examples are read as often as said; every epoch ends with accuracy, or entity F1, on the held-out ones. Tokens/s count real
tokens: those of all steps after the warm-up, over their time.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.modules["deepspeed"] = None  # as in hugging_face_trainer.py: its start-up time does not belong here
from harness import process_seconds  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Watch(TrainerCallback):
    """The time of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.first = self.first or process_seconds()
        self.seconds.append(time.perf_counter() - self.began)


class Texts(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


def read_lines(path: Path) -> list[tuple[str, str]]:
    return [tuple(line.split("\t")) for line in path.read_text(encoding="utf-8").splitlines()]


def classified(path: Path, tokenizer: AutoTokenizer, labels: list[str], length: int) -> Texts:
    lines = read_lines(path)
    found = tokenizer([text for text, _ in lines], truncation=True, max_length=length)["input_ids"]
    return Texts([{"input_ids": ids, "label": labels.index(label)} for ids, (_, label) in zip(found, lines, strict=True)])


def tagged(path: Path, tokenizer: AutoTokenizer, labels: list[str], length: int) -> Texts:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        found = tokenizer(example["tokens"], is_split_into_words=True, truncation=True, max_length=length)
        words = found.word_ids()
        first = [word is not None and word != before for word, before in zip(words, [None, *words[:-1]], strict=True)]
        targets = [labels.index(example["tags"][word]) if new else -100 for word, new in zip(words, first, strict=True)]
        rows.append({"input_ids": found["input_ids"], "labels": targets})
    return Texts(rows)


def entity_f1(labels: list[str], true: np.ndarray, logits: np.ndarray) -> float:
    from seqeval.metrics import f1_score

    found = logits.argmax(-1)
    named = [
        [[labels[tag] for tag in row[kept]] for row, kept in zip(source, true != -100, strict=True)]
        for source in (true, found)
    ]
    return float(f1_score(*named))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, kind in (("model", Path), ("train", Path), ("held-out", Path)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name, value in (
        ("epochs", 1.0),
        ("rate", 5e-5),
        ("batch", 32),
        ("length", 128),
        ("threads", 2),
        ("seed", 1),
        ("steps", 0),
    ):
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--grouped", action="store_true")
    parser.add_argument("--compile", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tags = settings.train.suffix == ".jsonl"
    if tags:
        rows = [json.loads(line) for line in settings.train.read_text(encoding="utf-8").splitlines()]
        labels = sorted({tag for row in rows for tag in row["tags"]})
    else:
        labels = sorted({label for _, label in read_lines(settings.train)})
    read = tagged if tags else classified
    train, held_out = (read(path, tokenizer, labels, settings.length) for path in (settings.train, settings.held_out))
    kind = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    torch.manual_seed(settings.seed)
    model = kind.from_pretrained(settings.model, num_labels=len(labels), attn_implementation="sdpa")
    watch = Watch()
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            use_cpu=True,
            seed=settings.seed,
            per_device_train_batch_size=settings.batch,
            per_device_eval_batch_size=settings.batch,
            num_train_epochs=settings.epochs,
            max_steps=settings.steps or -1,
            train_sampling_strategy="group_by_length" if settings.grouped else "random",
            learning_rate=settings.rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            optim="adamw_torch_fused",
            weight_decay=0.01,
            max_grad_norm=1.0,
            torch_compile=settings.compile,
            dataloader_pin_memory=False,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        collator = (DataCollatorForTokenClassification if tags else DataCollatorWithPadding)(tokenizer)
        trainer = Trainer(model, arguments, train_dataset=train, data_collator=collator)
        trainer.add_callback(watch)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # what was read, in the order of the trainer's own sampler, is the whole of the examples: their mean will do
        mean = sum(len(row["input_ids"]) for row in train.rows) / len(train)
        found = trainer.predict(held_out)
    true, logits = found.label_ids, found.predictions
    score = entity_f1(labels, true, logits) if tags else float((logits.argmax(-1) == true).mean())
    counted = watch.seconds[settings.warmup :]
    result = {
        "score": score,
        "tokens_per_second": mean * settings.batch * len(counted) / sum(counted),
        "train_seconds": sum(watch.seconds),
        "first_step_seconds": watch.first,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "steps": len(watch.seconds),
        "parameters": model.num_parameters(),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
