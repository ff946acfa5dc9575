"""From one language to another, by a decoder: `source SEP target END`.

SEP is the tokenizer's separator, or its end-of-text token where it has none, as those of decoders that others trained.
BLEU (Papineni et al. 2002) and chrF (Popović 2015) are `sacrebleu`'s (Post 2018), whose signatures say how they were
computed: figures compare where these are equal.
"""

from collections.abc import Sequence
from typing import Any

from shoal.core.extras import library
from shoal.core.recipe import Recipe
from shoal.data.examples.example import Example, Role
from shoal.data.tokenizer import TextTokenizer
from shoal.tasks.continuation import Continuation

SOURCE = Role("source", ("source", "src", "source_text"))
TARGET = Role("target", ("target", "tgt", "target_text", "translation"))


class Translate(Continuation):
    """A translation by beam search."""

    roles = (SOURCE, TARGET)

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """A source that is too long loses its end."""
        super().__init__(tokenizer, length, recipe.translate, [tokenizer.special("separator")])
        if examples:
            library("sacrebleu", "tasks")  # before training, not after

    def compare(self, written: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        """Corpus BLEU and chrF, from 0 to 100."""
        metrics = library("sacrebleu.metrics", "tasks")
        found: dict[str, Any] = {}
        for name, metric in (("bleu", metrics.BLEU(tokenize=self.settings.words)), ("chrf", metrics.CHRF())):
            found[name] = float(metric.corpus_score(list(written), [list(references)]).score)
            found[f"{name}_signature"] = str(metric.get_signature())
        return found
