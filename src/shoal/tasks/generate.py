"""The text that completes a prompt: a summary, an answer, what an instruction asks for.

ROUGE (Lin 2004) is `rouge-score`'s, with stemming, as the mean F1 over the examples, from 0 to 1. It knows words of the
letters a to z and digits alone: of texts in other scripts, bits per byte tell more.
"""

from collections.abc import Sequence
from typing import Any

from shoal.core.extras import library
from shoal.core.recipe import Recipe
from shoal.data.examples.example import Example, Role
from shoal.data.tokenizer import TextTokenizer
from shoal.tasks.continuation import Continuation

PROMPT = Role("prompt", ("prompt", "instruction", "question", "document", "article", "input", "text"))
COMPLETION = Role("completion", ("completion", "response", "output", "answer", "summary", "highlights", "target"))
ROUGE = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeLsum": "rouge_l"}


class Generate(Continuation):
    """`prompt between completion END`."""

    roles = (PROMPT, COMPLETION)

    def __init__(self, recipe: Recipe, tokenizer: TextTokenizer, length: int, examples: Sequence[Example]) -> None:
        """What a prompt that is too long loses, the recipe says; what stands between stays."""
        settings = recipe.generate
        between = tokenizer.encode(settings.between).tolist()
        super().__init__(tokenizer, length, settings, between, keep_start=settings.cut == "end")
        if examples:
            library("rouge_score", "tasks")  # before training, not after

    def compare(self, written: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        """ROUGE-1, ROUGE-2 and ROUGE-L of summaries' lines."""
        scorer = library("rouge_score.rouge_scorer", "tasks").RougeScorer(list(ROUGE), use_stemmer=True)
        scores = [scorer.score(reference, text) for text, reference in zip(written, references, strict=True)]
        return {ours: sum(score[theirs].fmeasure for score in scores) / len(scores) for theirs, ours in ROUGE.items()}
