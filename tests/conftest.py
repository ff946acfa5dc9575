"""What several folders of tests share: a small corpus of real text, prepared once."""

import random
from pathlib import Path

import pytest

from shoal.core import recipe
from shoal.data.prepare import prepare

TEXT = "the shoal swims with one mind and every fish reads a part of the sea until all know the whole of it"
WORDS = TEXT.split(" ")


def fixed_text(sentences: int = 900) -> str:
    """Text that is the same for ever: golden losses depend on it."""
    choose = random.Random(7)
    return "".join(" ".join(choose.choices(WORDS, k=choose.randint(4, 9))).capitalize() + ".\n" for _ in range(sentences))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character-level corpus of about 30,000 tokens, its last tenth held out."""
    folder = tmp_path_factory.mktemp("corpus")
    source = folder / "text.txt"
    source.write_text(fixed_text())
    data = recipe.Data(sources=[str(source)], held_out=0.1, held_out_by="tail")
    prepare(data, recipe.Tokenizer(kind="char"), folder / "prepared", workers=1)
    return folder / "prepared"
