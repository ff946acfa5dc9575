"""Several texts at once, which join and leave between tokens (continuous batching, Yu et al. 2022, Orca).

A step reads some of the prompts that have come, a bounded number of tokens, and goes on with each text whose prompt has been
read by one token, all in one pass of the model. Who waits is served in the order of coming; a text that needs several slots
lets nobody pass. What fails, fails for the text alone that it belongs to.

No thread and no clock here: whoever calls `step` again and again gets all texts.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from shoal.core.errors import InputError, ShoalError
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.beams import Beams
from shoal.serve.constraints import Constraints
from shoal.serve.request import Piece, Request
from shoal.serve.runner import Runner
from shoal.serve.sampling import Sampling, draw, likeliest
from shoal.serve.slots import Slots, alike
from shoal.serve.text import Text

CHUNK = 128
"""Tokens of prompts that are read in a step, by default: with more, running texts wait longer for their next token; with
fewer, a matrix product has too little to do."""
WORTH_WAITING = 16
"""Tokens that a prompt shares with one before it, so that it is read after that and not together with it."""
MOST_ALTERNATIVES = 20
LONGEST_STOP = 1000
"""Characters of a stop string."""


@contextmanager
def undivided() -> Iterator[None]:
    """Inside, PyTorch's operations use one thread.

    So few numbers take microseconds; divided, they wait for a second thread, for a whole time slice of the system's where
    its core is just then another's: the server's own, or a client's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Scheduler:
    """Texts over a runner's slots.

    `ends`: tokens that end a text; `chunk`: tokens of prompts that a step reads at most (None: no bound); `endless`: a text
    that fills its slot forgets its older half and goes on, instead of ending; `both_ways`: prompts see themselves so, and so
    are read in one, and what is computed of one says nothing of another that begins alike.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: TextTokenizer,
        ends: Collection[int],
        chunk: int | None = CHUNK,
        endless: bool = False,
        both_ways: bool = False,
    ) -> None:
        self._slots = Slots(runner, reuse=not both_ways)
        self._number_of_slots = runner.slots
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._vocabulary = tokenizer.vocabulary
        self._constraints = Constraints(tokenizer, self._ends)
        self._chunk, self._endless = None if both_ways else chunk, endless
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._running or self._waiting)

    @property
    def running(self) -> int:
        """Texts that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Texts that wait for one."""
        return len(self._waiting)

    def ready_constraints(self) -> None:
        """Do now what the first constraint would wait for, and let others wait for."""
        self._constraints.make_ready()

    def prepare(self, request: Request, tell: Callable[[Piece], None]) -> Text:
        """A text that can be added, from any thread; `InputError` for what can't be served."""
        self._check(request)
        guide = None if request.constraint is None else self._constraints.guide(request.constraint)
        text = Text(request, tell, self._tokenizer, self._ends, guide)
        if request.beams > 1:
            limit = min(request.tokens, self._slots.capacity + 1 - len(request.prompt))
            text.beams = Beams(request.beams, limit, request.length_penalty, self._ends)
        return text

    def add(self, text: Text) -> None:
        """Let a text wait for its turn."""
        self._waiting.append(text)

    def cancel(self, text: Text) -> None:
        """End a text at once; its slots are free. Nothing, where it has ended."""
        if text.finish is None:
            if text in self._waiting:
                self._waiting.remove(text)
            text.break_off("cancelled")
            self._let_go()

    def cancel_all(self) -> None:
        """End all texts at once."""
        for text in (*self._waiting, *self._running):
            self.cancel(text)

    def fail_all(self, error: Exception) -> None:
        """End all texts that have a slot; those that wait may fare better."""
        for text in self._running:
            if text.finish is None:
                self._fail(text, error)
        self._let_go()

    def step(self) -> None:
        """Go on with each text that has been read by a token, then read some of the prompts."""
        ready = sorted((text for text in self._running if not text.reading), key=lambda text: text.slots)
        if ready:
            self._write(ready)
            self._let_go()
        self._read()
        self._let_go()

    def _write(self, texts: Sequence[Text]) -> None:
        last = [text.last_tokens for text in texts]
        slots = [slot for text, tokens in zip(texts, last, strict=True) for slot in text.slots[: len(tokens)]]
        try:
            logits_RV = self._slots.step(slots, [token for tokens in last for token in tokens])
        except Exception as error:  # whose fault it is can't be told
            for text in texts:
                self._fail(text, error)
        else:
            self._go_on(texts, logits_RV, [len(tokens) for tokens in last])

    def _read(self) -> None:
        room = self._chunk or sys.maxsize
        parts: list[tuple[Text, list[int]]] = []
        for text in self._running:
            if text.reading and room:
                parts.append((text, self._unread(text)[:room]))
                room -= len(parts[-1][1])
        while room and self._waiting and self._waiting[0].request.beams <= self._slots.free:
            text = self._waiting[0]
            # who comes next takes a slot only when prompts that begin alike have been read, so that it finds their beginning
            shared = max((alike(text.tokens, other.tokens) for other, _ in parts), default=0)
            if shared >= WORTH_WAITING + self._slots.known(text.tokens):
                self._read_together(parts)
                parts = []
            self._running.append(text)  # first: who looks from another thread finds it here or there
            self._waiting.popleft()
            slot, text.reused = self._slots.take(text.tokens)
            text.slots = [slot, *(self._slots.take(())[0] for _ in range(text.request.beams - 1))]
            parts.append((text, self._unread(text)[:room]))
            room -= len(parts[-1][1])
        if parts:
            self._read_together(parts)

    def _unread(self, text: Text) -> list[int]:
        return text.tokens[text.begins + self._slots.held(text.slots[0]) :]

    def _read_together(self, parts: Sequence[tuple[Text, list[int]]]) -> None:
        """Read some tokens of each text; those of which nothing is left go on."""
        try:
            logits_PV = self._slots.read([text.slots[0] for text, _ in parts], [tokens for _, tokens in parts])
        except Exception as error:
            if len(parts) == 1:
                self._fail(parts[0][0], error)
            else:  # whose fault it is can be told one by one
                for part in parts:
                    self._read_together([part])
            return
        # all but the last, for which there may have been too little room
        texts = [text for text, _ in parts if not self._unread(text)]
        for text in texts:
            text.reading = False
        if texts:
            self._go_on(texts, logits_PV[: len(texts)], [1] * len(texts))

    def _go_on(self, texts: Sequence[Text], logits_RV: Tensor, rows: Sequence[int]) -> None:
        """Let each text have what follows it, by so many rows of the logits."""
        logits_RV = logits_RV[:, : self._vocabulary]  # a model's may be rounded up
        best = likeliest(logits_RV)
        others = list[tuple[Text, Tensor]]()
        for text, end, count in zip(texts, accumulate(rows), rows, strict=True):
            try:
                if min(best[end - count : end]) < 0:
                    raise ShoalError("the model computes what is no number: its weights are damaged or not trained well")
                if text.takes_likeliest:
                    self._take(text, [best[end - 1]])
                else:
                    others.append((text, logits_RV[end - count : end]))
            except Exception as error:
                self._fail(text, error)
        if others:
            self._choose(others)

    @undivided()
    def _choose(self, texts: Sequence[tuple[Text, Tensor]]) -> None:
        """For texts and their rows of logits, where it takes more than to look for the likeliest token."""
        drawn, adjusted, logarithms = list[Text](), list[Tensor](), list[Tensor | None]()
        for text, logits_RV in texts:
            try:
                if text.beams is not None:
                    self._search(text, text.beams, logits_RV)
                else:
                    logits_V = logits_RV[-1]
                    adjusted.append(text.adjust(logits_V))
                    logarithms.append(None if text.request.alternatives is None else logits_V.log_softmax(-1))
                    drawn.append(text)
            except Exception as error:
                self._fail(text, error)
        if not drawn:
            return
        tokens = draw(torch.stack(adjusted), [text.request.sampling for text in drawn], [text.random for text in drawn])
        for text, token, logarithms_V in zip(drawn, tokens, logarithms, strict=True):
            try:
                self._take(text, [token], logarithms_V)
            except Exception as error:
                self._fail(text, error)

    def _search(self, text: Text, beams: Beams, logits_RV: Tensor) -> None:
        parents = beams.go_on(logits_RV)
        if parents:
            text.slots = self._slots.branch(text.slots, parents)
        else:
            self._take(text, beams.best)

    def _take(self, text: Text, tokens: Sequence[int], logarithms_V: Tensor | None = None) -> None:
        text.take(tokens, logarithms_V)
        if text.finish is None and len(text.tokens) - text.begins > self._slots.capacity:
            if not self._endless or text.beams is not None:
                text.end("length")
                return
            text.begins = len(text.tokens) - max(1, self._slots.capacity // 2)
            text.reading = True
            self._slots.forget(text.slots[0])

    def _fail(self, text: Text, error: Exception) -> None:
        """What is wrong with one text ends that one; what its slots hold may be half of something."""
        text.break_off("failed", str(error) or type(error).__name__)
        for slot in text.slots:
            self._slots.forget(slot)

    def _let_go(self) -> None:
        """Free the slots of texts that have ended."""
        for text in self._running:
            if text.finish is not None:
                self._slots.give_back(text.slots)
        self._running = [text for text in self._running if text.finish is None]

    def _check(self, request: Request) -> None:
        vocabulary, capacity = self._vocabulary, self._slots.capacity
        if not request.prompt:
            raise InputError("the prompt has no tokens")
        if wrong := [token for token in request.prompt if not 0 <= token < vocabulary]:
            raise InputError(f"the prompt has the token {wrong[0]}; the vocabulary is from 0 to {vocabulary - 1}")
        if len(request.prompt) > capacity:
            raise InputError(f"the prompt has {len(request.prompt)} tokens, {capacity} at most can be read")
        if request.tokens < 1:
            raise InputError(f"{request.tokens} tokens are asked for; accepted: 1 or more")
        if wrong_stops := [word for word in request.stop if not 0 < len(word) <= LONGEST_STOP]:
            raise InputError(f"a stop string of {len(wrong_stops[0])} characters; accepted: from 1 to {LONGEST_STOP}")
        if request.alternatives is not None and not 0 <= request.alternatives <= min(MOST_ALTERNATIVES, vocabulary):
            raise InputError(f"{request.alternatives} alternatives are asked for; accepted: from 0 to {MOST_ALTERNATIVES}")
        self._check_beams(request)

    def _check_beams(self, request: Request) -> None:
        most = min(self._number_of_slots, self._vocabulary // 2)
        if not 1 <= request.beams <= most:
            raise InputError(f"{request.beams} beams are asked for; accepted: from 1 to {most}")
        if not math.isfinite(request.length_penalty):
            raise InputError(f"the length penalty is {request.length_penalty}; accepted: any finite number")
        if request.beams > 1 and (request.constraint is not None or request.alternatives is not None):
            raise InputError("a beam search follows no constraint and tells no probabilities: ask for one beam")
        if request.beams > 1 and request.sampling not in (Sampling(), Sampling(temperature=0.0)):
            raise InputError(
                "a beam search takes the likeliest text and draws nothing: ask for one beam, or leave temperature, top-k, "
                "top-p, min-p and the repetition penalty as they are"
            )
