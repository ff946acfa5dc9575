"""A decoder as `lm-eval` asks one: how likely is this continuation, how likely this text, how do you go on.

Requests are read longest first, so that those of a batch are about as long as each other and what doesn't fit into memory
fails at once. Texts are padded at their end, which no earlier token sees; only the places of a continuation go through the
projection onto the vocabulary.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from shoal.core.errors import InputError
from shoal.models.decoding import Decoding, decode
from shoal.models.loss import rows_at_once
from shoal.models.transformer import Transformer
from shoal.serve.generation import LanguageModel

Scored = tuple[Any, list[int], list[int]]
"""(the request's texts, tokens before, tokens that are scored), as `TemplateLM` hands it on."""

DRAWN = ("do_sample", "num_beams")
KNOWN = {"until", "max_gen_toks", "temperature", "top_p", "top_k", *DRAWN}

PART = 32
"""Tokens that are written before stop strings are looked for; texts that go on are then read again."""

MOST = 256
"""Tokens that are written where a task doesn't say, as in `lm-eval`'s own models."""


class HarnessModel(TemplateLM):
    """A language model with a batch's size. `InputError` for a model that sees both ways."""

    def __init__(self, language: LanguageModel, batch: int) -> None:
        super().__init__()
        if not language.model.config.causal or language.model.config.head:
            raise InputError("--harness asks how a text goes on, which this model doesn't tell: give a decoder")
        self.language, self.batch = language, batch

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.language.tokenizer.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a beginning begins after."""
        return self.language.tokenizer.special("begin")

    @property
    def tokenizer_name(self) -> str:
        """For caches that are kept by it; Shoal keeps none."""
        return "shoal"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, without special ones."""
        tokens: list[int] = self.language.tokenizer.encode(string).tolist()
        return tokens

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The logarithmic probability of each whole text, in windows of the model's context."""
        context = self.language.model.config.context
        windows: list[Scored] = []
        owners = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, context, 1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        model = self.language.model
        context, device = model.config.context, model.head_weight.device
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for batch in self._batches([len(before) + len(scored) for _, before, scored in requests]):
            # what a tokenizer makes one token of, together with the text before, leaves nothing to score
            if not (numbers := [number for number in batch if requests[number][2]]):
                continue
            rows = [(before + scored)[-context - 1 :] for _, before, scored in (requests[number] for number in numbers)]
            counts = [min(len(requests[number][2]), len(row) - 1) for number, row in zip(numbers, rows, strict=True)]
            tokens = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.int64)
            for place, row in zip(tokens, rows, strict=True):
                place[: len(row) - 1] = torch.tensor(row[:-1])
            hidden_BTD = model(tokens.to(device))
            places = [slice(len(row) - 1 - count, len(row) - 1) for row, count in zip(rows, counts, strict=True)]
            hidden_ND = torch.cat([hidden[place] for hidden, place in zip(hidden_BTD, places, strict=True)])
            targets = torch.tensor([token for row, count in zip(rows, counts, strict=True) for token in row[-count:]])
            told_N, likeliest_N = _told(model, hidden_ND, targets.to(device))
            for number, told, likeliest in zip(numbers, told_N.split(counts), likeliest_N.split(counts), strict=True):
                found[number] = float(told.sum()), bool(likeliest.all())
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """How each text goes on, by the likeliest token each time, up to a stop string or the end."""
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(number)
        said = [""] * len(requests)
        for how, numbers in alike.items():
            texts = self._go_on([requests[number].args[0] for number in numbers], json.loads(how))
            for number, text in zip(numbers, texts, strict=True):
                said[number] = text
        return said

    def _go_on(self, prompts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(asked, MOST)
        if unknown := sorted(settings.keys() - KNOWN) + [
            name for name in DRAWN if settings.get(name, 0) not in (False, 0, 1)
        ]:
            raise InputError(
                f"a task asks for '{unknown[0]}' in its generation_kwargs; Shoal writes by the likeliest token here"
            )
        if settings.get("do_sample"):
            raise InputError("a task asks for texts that are drawn (do_sample); Shoal writes by the likeliest token here")
        most, stops = settings["max_gen_toks"], [stop for stop in settings["until"] if stop]
        context = self.language.model.config.context
        room = context - most
        if room < 1:
            raise InputError(f"a task asks for {most} tokens, and the model's context is {context}")
        encoded = [self.tok_encode(prompt)[-room:] or [self.prefix_token_id] for prompt in prompts]
        texts = [""] * len(prompts)
        for numbers in self._batches(list(map(len, encoded))):
            for number, text in zip(
                numbers, self._written([encoded[number] for number in numbers], most, stops), strict=True
            ):
                texts[number] = text
        return texts

    def _written(self, prompts: Sequence[list[int]], most: int, stops: Sequence[str]) -> list[str]:
        """What follows each prompt, before the first stop string."""
        tokenizer, model = self.language.tokenizer, self.language.model
        said: list[list[int]] = [[] for _ in prompts]
        texts = [""] * len(prompts)
        going = list(range(len(prompts)))
        while going:
            part = min(PART, most - len(said[going[0]]))
            how = Decoding(tokenizer.end_of_text, part, vocabulary=tokenizer.vocabulary)
            left = []
            written = decode(model, [prompts[number] + said[number] for number in going], how)
            for number, tokens in zip(going, written, strict=True):
                said[number] += tokens
                text = str(tokenizer.library.decode(said[number], skip_special_tokens=True))
                end = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
                texts[number] = text[:end]
                if end is None and len(tokens) == part and len(said[number]) < most:
                    left.append(number)
            going = left
        return texts

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of requests, the longest first."""
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        for start in range(0, len(order), self.batch):
            yield order[start : start + self.batch]


def _told(model: Transformer, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(logarithmic probability of each target, whether it is the likeliest token), never with all logits at once."""
    rows = rows_at_once(model.head_weight)
    told, likeliest = [], []
    for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True):
        logits = model.project(hidden).float()
        told.append(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].double())
        likeliest.append(logits.argmax(-1) == targets)
    return torch.cat(told), torch.cat(likeliest)
