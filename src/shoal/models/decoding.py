"""How prompts go on, several at once: by the likeliest token each time (greedy), by beam search, or by tokens drawn among
the likeliest.

Beam search keeps the `beams` likeliest beginnings of each text, and compares those that have ended by their logarithmic
probability over a penalty that grows with their length, ((k + length) / (k + 1))^α with k = 5 (Wu et al. 2016,
arXiv:1609.08144, eq. 14); k = 0 is the length^α of `transformers`. A text is done when `beams` of its beginnings have ended
and the best of the others, were it to end now, would be no better than the worst of them.

Prompts of different lengths share a batch: each row of the cache has a length of its own, and texts that are done leave the
batch between tokens. So each text gets what it gets alone.

Shape suffixes: T texts that go on, R rows (a beam of a text each), V vocabulary, D dim.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shoal.models.cache import Cache, make_cache
from shoal.models.reach import Reach
from shoal.models.transformer import Transformer


@dataclass(frozen=True)
class Decoding:
    """`end`: the token that ends a text, or several; `most`: tokens that are written, at most, the end included.

    `beams`: 1 for greedy. `length_penalty`: α; more of it favours longer texts, 0 is the bare probability; `offset`: k.
    `vocabulary`: tokens to choose from, where a model's was rounded up.
    """

    end: int | Collection[int]
    most: int
    beams: int = 1
    length_penalty: float = 1.0
    offset: int = 5
    vocabulary: int | None = None

    def ends(self, token: int) -> bool:
        """Whether a text is over with this token."""
        return token == self.end if isinstance(self.end, int) else token in self.end

    def score(self, log_probability: float, length: int) -> float:
        """What a text of so many tokens is worth."""
        return log_probability / ((self.offset + length) / (self.offset + 1)) ** self.length_penalty


LIKELIEST = 10
"""Among so many tokens one is drawn (Edunov et al. 2018, arXiv:1808.09381)."""


@torch.no_grad()
def decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    how: Decoding,
    prefix: bool = False,
    random: Sequence[torch.Generator] | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the end; as far as the context reaches, or `most`.

    `prefix`: prompts see themselves both ways. `random`: of each prompt, by which its tokens are drawn; beams are then left
    aside. `ValueError` for an empty prompt, or one that is longer than the context.
    """
    lengths = [len(prompt) for prompt in prompts]
    context = model.config.context
    if not lengths:
        return []
    if wrong := [length for length in lengths if not 1 <= length <= context]:
        raise ValueError(f"a prompt of {wrong[0]} tokens: from 1 to the model's context of {context} can be read")
    # the last token is written, and not read
    limits = [min(how.most, context + 1 - length) for length in lengths]
    capacity = max(length + limit - 1 for length, limit in zip(lengths, limits, strict=True))
    cache, logits_RV = _read(model, prompts, capacity, how, prefix)
    if random is not None or how.beams == 1:
        return _one_by_one(model, cache, logits_RV, limits, how, random)
    return _search(model, cache, logits_RV, limits, how)


def draw(logits_RV: Tensor, random: Sequence[torch.Generator]) -> Tensor:
    """A token for each row [rows], by its own generator: the largest of the likeliest's logits and noise (Gumbel 1954)."""
    best_RK, token_RK = logits_RV.float().cpu().topk(min(LIKELIEST, logits_RV.shape[1]))
    even_RK = torch.stack([torch.rand(best_RK.shape[1], generator=its) for its in random])
    drawn_R = (best_RK - (-even_RK.log()).log()).argmax(-1, keepdim=True)
    return token_RK.gather(1, drawn_R)[:, 0]


def cache_bytes(model: Transformer) -> int:
    """Memory that a token of a row takes."""
    config = model.config
    return 2 * config.layers * config.kv_heads * config.head_dim * model.head_weight.element_size()


def _read(
    model: Transformer, prompts: Sequence[Sequence[int]], capacity: int, how: Decoding, prefix: bool
) -> tuple[Cache, Tensor]:
    """A cache that holds the prompts, and the logits of what follows each [texts, vocabulary]."""
    config, device = model.config, model.head_weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    reach = Reach.of_prefix(lengths.to(device), padded.shape[1]) if prefix else None
    cache = make_cache(config.layers, len(prompts), config.kv_heads, capacity, config.head_dim, model.head_weight)
    hidden = model(padded.to(device), cache, reach)
    cache.lengths = lengths
    return cache, _logits(model, hidden[torch.arange(len(prompts)), lengths - 1], how)


def _step(model: Transformer, cache: Cache, tokens: Sequence[int], how: Decoding) -> Tensor:
    """The logits of what follows one more token of each row [rows, vocabulary]."""
    pending = torch.tensor(tokens, device=model.head_weight.device)[:, None]
    return _logits(model, model(pending, cache)[:, 0], how)


def _logits(model: Transformer, hidden_RD: Tensor, how: Decoding) -> Tensor:
    return model.project(hidden_RD)[:, : how.vocabulary].float()


def _one_by_one(
    model: Transformer,
    cache: Cache,
    logits_RV: Tensor,
    limits: list[int],
    how: Decoding,
    random: Sequence[torch.Generator] | None,
) -> list[list[int]]:
    """Texts of which each token is chosen for good."""
    said: list[list[int]] = [[] for _ in limits]
    going = list(range(len(limits)))  # which text each row of the cache is
    while going:
        best = logits_RV.argmax(-1) if random is None else draw(logits_RV, [random[text] for text in going])
        chosen = best.tolist()
        left = []
        for row, (text, token) in enumerate(zip(going, chosen, strict=True)):
            if not how.ends(token):
                said[text].append(token)
                if len(said[text]) < limits[text]:
                    left.append(row)
        if left:
            cache.keep(torch.tensor(left))
            logits_RV = _step(model, cache, [chosen[row] for row in left], how)
        going = [going[row] for row in left]
    return said


@dataclass
class Beginnings:
    """A text's beginnings that go on, best first, each with its logarithmic probability; and those that have ended."""

    limit: int
    open: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])
    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def go_on(self, candidates: Sequence[tuple[float, int, int]], how: Decoding) -> list[int]:
        """Take in the likeliest (log probability, beginning, token), best first, twice as many as beams.

        Returns which beginnings go on, by their numbers before; none: the text is done.
        """
        going: list[tuple[float, list[int]]] = []
        parents = []
        for rank, (log_probability, beginning, token) in enumerate(candidates):
            said = [*self.open[beginning][1], token]
            if how.ends(token) or len(said) == self.limit:
                # the others are there so that, of each beam, one goes on
                if rank < how.beams:
                    self.ended.append((how.score(log_probability, len(said)), said[:-1] if how.ends(token) else said))
            elif len(going) < how.beams:
                going.append((log_probability, said))
                parents.append(beginning)
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[: how.beams]
        self.open = going
        if going and len(self.ended) == how.beams:
            log_probability, said = going[0]
            if how.score(log_probability, len(said)) <= self.ended[-1][0]:
                return []
        return parents


def _search(model: Transformer, cache: Cache, logits_RV: Tensor, limits: list[int], how: Decoding) -> list[list[int]]:
    if logits_RV.shape[1] < 2 * how.beams:
        raise ValueError(f"{how.beams} beams need a vocabulary of {2 * how.beams} tokens at least")
    texts = [Beginnings(limit) for limit in limits]
    going = texts
    scores_R = torch.zeros(len(texts), device=logits_RV.device)
    while going:
        each = len(scores_R) // len(going)  # beams; at first, a prompt's one beginning
        vocabulary = logits_RV.shape[1]
        total_TN = (scores_R[:, None] + logits_RV.log_softmax(-1)).view(len(going), each * vocabulary)
        best_TC, place_TC = total_TN.topk(2 * how.beams)
        rows: list[int] = []
        left = []
        for number, (text, best, place) in enumerate(zip(going, best_TC.tolist(), place_TC.tolist(), strict=True)):
            candidates = [(value, *divmod(at, vocabulary)) for value, at in zip(best, place, strict=True)]
            if parents := text.go_on(candidates, how):
                rows += [number * each + parent for parent in parents]
                left.append(text)
        going = left
        if going:
            cache.keep(torch.tensor(rows))
            beams = [beam for text in going for beam in text.open]
            scores_R = torch.tensor([score for score, _ in beams], device=logits_RV.device)
            logits_RV = _step(model, cache, [said[-1] for _, said in beams], how)
    return [text.ended[0][1] for text in texts]
