"""What a finished model is shown with: text that goes on, words behind masks, blanks filled in."""

from collections.abc import Sequence

from shoal.core.errors import InputError
from shoal.data.tokenizer import TextTokenizer
from shoal.serve.filling import BLANK, Guess, Layout, fill_in, fill_masks, lay_out_masks, room_around
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
        if not language.model.config.causal:
            samples.append({"prompt": prompt, "text": told(fill_masks(language, prompt))})
        elif BLANK in prompt and layout is not None:
            before, after = around_blank(prompt)
            text = fill_in(language, before, after, layout, tokens, sampling, seed)
            shown = before.removesuffix(" ") if text.startswith(" ") else before
            samples.append({"prompt": shown, "text": text, "after": after})
        else:
            samples.append({"prompt": prompt, "text": "".join(generate(language, prompt, tokens, sampling, seed))})
    return samples


def check_prompts(task: str, prompts: Sequence[str], tokens: int, tokenizer: TextTokenizer, context: int) -> None:
    """`InputError` for a prompt of which a model of that task could make no sample: before it is trained, not after."""
    for prompt in prompts:
        try:
            if task == "masked":
                lay_out_masks(tokenizer, prompt, context)
                continue
            parts = [prompt]
            if task == "infill" and BLANK in prompt:
                parts = [*around_blank(prompt)]
                room_around(tokens, context)
            for part in parts:
                tokenizer.encode(part)
        except InputError as error:
            raise InputError(f"'samples.prompts': {error}") from None


def around_blank(prompt: str) -> tuple[str, str]:
    """The texts before and after a prompt's blank; `InputError` where it has several."""
    before, *rest = prompt.split(BLANK)
    if len(rest) != 1:
        raise InputError(f"{prompt!r} has {len(rest)} {BLANK}, and a model that fills in fills one")
    return before, rest[0]


def shown(word: str) -> str:
    """A word in which line ends and what can't be seen are written out."""
    return word if word.isprintable() and word else repr(word)


def told(found: Sequence[Sequence[Guess]]) -> str:
    """A line for each mask: the likeliest words and their probabilities."""
    lines = (", ".join(f"{shown(guess.word)} {guess.probability:.0%}" for guess in guesses) for guesses in found)
    return "".join(f"\n    {line}" for line in lines)
