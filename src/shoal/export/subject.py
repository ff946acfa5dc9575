"""What is exported: a model, its tokenizer, and what its folder says of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.data.tokenizer import TextTokenizer
from shoal.models.transformer import Transformer


@dataclass(frozen=True)
class Subject:
    """`said`: the content of the folder's `config.json`; `card`: that of its README.md, or nothing."""

    name: str
    model: Transformer
    tokenizer: TextTokenizer
    said: Mapping[str, Any]
    card: str = ""

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text, or a turn of a dialogue: as `config.json` says, else the end-of-text token."""
        said = self.said.get("eos_token_id")
        ends = said if isinstance(said, list) else [said]
        return [end for end in ends if isinstance(end, int)] or [self.tokenizer.end_of_text]
