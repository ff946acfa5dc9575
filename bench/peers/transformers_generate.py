"""`transformers.generate`, greedy, in fp32 with its key-value cache: what most people's first program does.

`--compile` gives it a static cache and compiles the step, which it leaves out on CPUs unless told so.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CompileConfig, LogitsProcessor, LogitsProcessorList


class Clock(LogitsProcessor):
    """Looks at the clock when the logits of a step are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        return scores


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", type=Path, required=True)
parser.add_argument("--prompts", type=Path, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--tokens", type=int, required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--compile", action="store_true")
settings = parser.parse_args()

torch.set_num_threads(settings.threads)
model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32).eval()
prompts = torch.tensor(json.loads(settings.prompts.read_text())[: settings.batch])
options: dict[str, object] = {"do_sample": False, "max_new_tokens": settings.tokens, "min_new_tokens": settings.tokens}
if settings.compile:
    compiling = CompileConfig(fullgraph=False, mode="default")
    compiling._compile_all_devices = True
    options |= {"cache_implementation": "static", "compile_config": compiling}
model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
mask = torch.ones_like(prompts)
with torch.inference_mode():
    if settings.compile:
        model.generate(prompts, attention_mask=mask, **options)
    clock = Clock()
    started = time.perf_counter()
    texts = model.generate(prompts, attention_mask=mask, logits_processor=LogitsProcessorList([clock]), **options)
result = {
    "step_seconds": [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)],
    "read_tokens_per_second": prompts.numel() / (clock.times[0] - started),
    "written": texts[:, prompts.shape[1] :].tolist(),
    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}
print(json.dumps(result), flush=True)
