"""One request under way: its tokens so far, what may be told of them, and why it ends."""

from collections import deque
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from shoal.core.seeds import generator
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.beams import Beams
from shoal.serve.constraints import Guide
from shoal.serve.detokenizer import StopStrings, make_detokenizer, token_text
from shoal.serve.request import Finish, Piece, Request, ToldToken
from shoal.serve.sampling import penalise


class Text:
    """What a request has come to.

    `tokens` are the prompt and what was written; `begins` is the first of them that the model still sees. `slots` hold
    their keys and values, several where beams are searched; `reading`: not of all yet.
    """

    def __init__(
        self, request: Request, tell: Callable[[Piece], None], tokenizer: TextTokenizer, ends: Collection[int],
        guide: Guide | None = None,
    ) -> None:  # fmt: skip
        self.request, self.guide = request, guide
        self.tokens = [*request.prompt]
        self.begins = 0
        self.slots: list[int] = []
        self.reading = True
        self.reused = 0
        self.random = generator(request.seed, "generate")
        self.beams: Beams | None = None
        self.finish: Finish | None = None
        self._tell, self._tokenizer, self._ends = tell, tokenizer, ends
        self._detokenizer, self._stops = make_detokenizer(tokenizer, request.prompt), StopStrings(request.stop)
        # characters of the text, and of them told; tokens not told yet, each with where it begins
        self._length = self._shown = 0
        self._untold: deque[tuple[int, ToldToken]] = deque()

    @property
    def written(self) -> int:
        """Tokens that were written."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def last_tokens(self) -> list[int]:
        """What has not been read yet, when the prompt has: a token for each of the first slots."""
        return self.tokens[-1:] if self.beams is None else self.beams.last_tokens

    @property
    def takes_likeliest(self) -> bool:
        """Whether the model's likeliest token is all that it takes of the logits."""
        sampling = self.request.sampling
        alone = self.beams is None and self.guide is None and self.request.alternatives is None
        return alone and sampling.temperature == 0 and sampling.repetition_penalty == 1

    def adjust(self, logits_V: Tensor) -> Tensor:
        """The logits from which the next token is to be drawn: by what was said already, and by what may be said."""
        penalty = self.request.sampling.repetition_penalty
        if penalty != 1:
            logits_V = penalise(logits_V, self.tokens, penalty)
        return logits_V if self.guide is None else self.guide.restrict(logits_V)

    def take(self, tokens: Sequence[int], logarithms_V: Tensor | None = None) -> None:
        """Go on by a token, or by all of a text that was searched; tell what can be told.

        `logarithms`: of what the model holds likely after the tokens before, where they are asked for.
        """
        shown = ""
        for token in tokens:
            shown += self._go_on(token, logarithms_V)
            if self.finish:
                break
        if shown or self.finish:
            self._say(shown)

    def end(self, finish: Finish) -> None:
        """End here, and tell what was held back."""
        self._say(self._finished(finish))

    def break_off(self, finish: Finish, why: str = "") -> None:
        """End at once, and leave out what was held back."""
        self.finish = finish
        self._hand_over(Piece(why, self.written, finish=finish, reused=self.reused))

    def _go_on(self, token: int, logarithms_V: Tensor | None) -> str:
        """What can be shown with this token; `finish` says whether it is the last."""
        if token in self._ends:
            return self._finished("stop")
        self.tokens.append(token)
        if logarithms_V is not None:
            self._untold.append((self._length, self._told(token, logarithms_V)))
        text = self._detokenizer.put(token)
        self._length += len(text)
        shown = self._stops.put(text)
        if self.guide is not None:
            self.guide.go_on(token)
        if self._stops.found:
            self.finish = "stop"
        elif self.guide is not None and self.guide.complete:
            shown += self._finished("stop")
        elif self.written == self.request.tokens:
            shown += self._finished("length")
        return shown

    def _finished(self, finish: Finish) -> str:
        """What was held back."""
        rest = self._detokenizer.rest()
        self._length += len(rest)
        shown = self._stops.put(rest)
        self.finish = "stop" if self._stops.found else finish
        return shown if self._stops.found else shown + self._stops.rest()

    def _say(self, shown: str) -> None:
        self._shown += len(shown)
        told = []
        # of a text that ends before a stop string, what belongs to that is left out
        whole = self.finish is not None and not self._stops.found
        while self._untold and (whole or self._untold[0][0] < self._shown):
            told.append(self._untold.popleft()[1])
        self._hand_over(Piece(shown, self.written, tuple(told), self.finish, self.reused))
        self.reused = 0

    def _hand_over(self, piece: Piece) -> None:
        try:
            self._tell(piece)
        except Exception:  # nobody listens any more
            self.finish = self.finish or "cancelled"

    def _told(self, token: int, logarithms_V: Tensor) -> ToldToken:
        alternatives = self.request.alternatives or 0
        values, best = (tensor.tolist() for tensor in logarithms_V.topk(alternatives))
        likeliest = [(other, token_text(self._tokenizer, other), value) for other, value in zip(best, values, strict=True)]
        text = token_text(self._tokenizer, token)
        return ToldToken(token, text, float(logarithms_V[token]), tuple(likeliest))
