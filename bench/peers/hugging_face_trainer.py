"""Hugging Face: `GPT2LMHeadModel` under `transformers.Trainer`, with every setting that makes it fast on a CPU.

Attention is PyTorch's fused one, the optimizer its fused AdamW, and GELU's tanh form the fused `gelu_pytorch_tanh`: the
same mathematics as GPT-2's default `gelu_new`, which is spelt out in Python and much slower. Examples go in as the
library wants them, labels equal to inputs: it shifts them itself, so a window has one target fewer than elsewhere.
"""

import sys
import tempfile

import torch
from harness import BETAS, GRADIENT_CLIP, WEIGHT_DECAY, Clock, Settings, print_result, read_windows
from torch import Tensor

# Transformers imports DeepSpeed wherever it is installed, and its start-up time does not belong in this measurement.
sys.modules["deepspeed"] = None
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Windows(torch.utils.data.Dataset):
    def __init__(self, settings: Settings) -> None:
        self.windows = read_windows(settings)[:, :-1]
        self.labels = self.windows.clone()
        self.labels[:, 0] = -100  # nothing predicts it, yet the trainer would count it in the loss's denominator

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[index], "labels": self.labels[index]}


class Observer(TrainerCallback):
    """Ticks the clock at every step and keeps the losses that the trainer logs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock = Clock()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.clock.tick()

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def build_model(settings: Settings) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.context,
        n_embd=settings.dim,
        n_layer=settings.layers,
        n_head=settings.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config)


def build_arguments(settings: Settings, directory: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=directory,
        use_cpu=settings.device == "cpu",
        bf16=settings.precision == "bf16",
        per_device_train_batch_size=settings.batch,
        max_steps=settings.steps,
        train_sampling_strategy="sequential",  # what is read is shuffled already
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=GRADIENT_CLIP,
        torch_compile=settings.compile,
        dataloader_pin_memory=settings.device != "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main() -> None:
    settings = Settings.from_command_line(__doc__, ("cpu", "cuda"))
    model = build_model(settings)
    observer = Observer()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(model, build_arguments(settings, directory), train_dataset=Windows(settings))
        trainer.add_callback(observer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    name = "trainer compiled" if settings.compile else "trainer"
    print_result(name, settings, observer.clock, observer.losses, model.num_parameters())


if __name__ == "__main__":
    main()
