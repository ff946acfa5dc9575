"""llama.cpp through llama-cpp-python's low-level interface: greedy, several texts in one batch, on a GGUF file.

Each text is a sequence of its own in one context; a step is one `llama_decode` and the likeliest token of each row.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import llama_cpp
import numpy as np

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--gguf", type=Path, required=True)
parser.add_argument("--prompts", type=Path, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--tokens", type=int, required=True)
parser.add_argument("--threads", type=int, default=2)
settings = parser.parse_args()


class Texts:
    """Sequences in a context, and the batch that hands tokens to it."""

    def __init__(self, path: Path, count: int, length: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        model_options = llama_cpp.llama_model_default_params()
        model_options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp can't read it")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = count * length, 512, 512, count
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, count)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """Take (token, text, place, whether to tell what follows)s in; the likeliest token after each that is told."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for row, (token, text, place, told) in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = token, place, told
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, text
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        rows = [row for row, (*_, told) in enumerate(tokens) if told]
        pointers = [llama_cpp.llama_get_logits_ith(self.context, row) for row in rows]
        return [int(np.ctypeslib.as_array(pointer, (self.vocabulary,)).argmax()) for pointer in pointers]


prompts = json.loads(settings.prompts.read_text())[: settings.batch]
length = max(map(len, prompts)) + settings.tokens
texts = Texts(settings.gguf, settings.batch, length, settings.threads)
started = time.perf_counter()
written = []
for number, prompt in enumerate(prompts):
    read = [(token, number, place, place == len(prompt) - 1) for place, token in enumerate(prompt)]
    written.append(texts.decode(read))
read_seconds = time.perf_counter() - started
seconds = []
for step in range(settings.tokens - 1):
    before = time.perf_counter()
    inputs = [(text[-1], number, len(prompts[number]) + step, True) for number, text in enumerate(written)]
    for text, token in zip(written, texts.decode(inputs), strict=True):
        text.append(token)
    seconds.append(time.perf_counter() - before)
result = {
    "step_seconds": seconds,
    "read_tokens_per_second": sum(map(len, prompts)) / read_seconds,
    "written": written,
    "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}
print(json.dumps(result), flush=True)
