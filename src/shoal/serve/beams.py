"""The likeliest text of a request, searched for among several beginnings: a slot each, all of one step."""

from collections.abc import Collection

from torch import Tensor

from shoal.models.decoding import Beginnings, Decoding


class Beams:
    """A search that has read the prompt alone; `limit`: tokens of the text at most."""

    def __init__(self, beams: int, limit: int, length_penalty: float, ends: Collection[int]) -> None:
        self._how = Decoding(ends, limit, beams, length_penalty, offset=0)
        self._text = Beginnings(limit)
        self._ends = ends

    @property
    def last_tokens(self) -> list[int]:
        """Of each beginning, the token that has not been read."""
        return [said[-1] for _, said in self._text.open]

    def go_on(self, logits_RV: Tensor) -> list[int]:
        """Take in what follows each beginning; returns of which of them the next ones come. None: the search is over."""
        vocabulary = logits_RV.shape[1]
        before_R = logits_RV.new_tensor([log_probability for log_probability, _ in self._text.open])
        best_C, place_C = (before_R[:, None] + logits_RV.log_softmax(-1)).view(-1).topk(2 * self._how.beams)
        candidates = [
            (value, *divmod(place, vocabulary)) for value, place in zip(best_C.tolist(), place_C.tolist(), strict=True)
        ]
        return self._text.go_on(candidates, self._how)

    @property
    def best(self) -> list[int]:
        """The text found, with an end where it came to one."""
        said = self._text.ended[0][1]
        return said if len(said) == self._text.limit else [*said, min(self._ends)]
