"""What a finished model is shown with: text that goes on, words behind masks, blanks filled in."""

from collections.abc import Sequence

from shoal.serve.filling import BLANK, Layout, fill_in, fill_masks
from shoal.serve.generation import LanguageModel, generate
from shoal.serve.sampling import Sampling


def make_samples(
    language: LanguageModel,
    prompts: Sequence[str],
    tokens: int,
    sampling: Sampling,
    seed: int,
    layout: Layout | None = None,
) -> list[dict[str, str]]:
    """A prompt and the model's text each; `after` is what follows a blank that was filled in."""
    samples = []
    for prompt in prompts:
        before, blank, after = prompt.partition(BLANK)
        if not language.model.config.causal:
            samples.append({"prompt": prompt, "text": _guesses(language, prompt)})
        elif blank and layout is not None:
            text = fill_in(language, before, after, layout, tokens, sampling, seed)
            shown = before.removesuffix(" ") if text.startswith(" ") else before
            samples.append({"prompt": shown, "text": text, "after": after})
        else:
            samples.append({"prompt": prompt, "text": "".join(generate(language, prompt, tokens, sampling, seed))})
    return samples


def shown(word: str) -> str:
    """A word in which line ends and what can't be seen are written out."""
    return word if word.isprintable() and word else repr(word)


def _guesses(language: LanguageModel, prompt: str) -> str:
    """A line for each mask: the likeliest words and their probabilities."""
    lines = (
        ", ".join(f"{shown(guess.word)} {guess.probability:.0%}" for guess in guesses)
        for guesses in fill_masks(language, prompt)
    )
    return "".join(f"\n    {line}" for line in lines)
