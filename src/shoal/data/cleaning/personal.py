"""Personal data replaced by what it is: `<email>`, `<phone>`, `<ip>`, `<card>`, `<chinese_id>`.

A pattern finds candidates, and where a number carries a check it must hold: Luhn's for cards, checksum, date and place
for Chinese identity numbers (both by python-stdnum), a public address for IP. Names and addresses are not found: that
needs a model.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stdnum import luhn
from stdnum.cn import ric

from shoal.core.errors import RecipeError
from shoal.data.cleaning.draft import Draft, Dropped, Stage, count_digits


def _is_card(number: str) -> bool:
    digits = re.sub("[ -]", "", number)
    return digits[0] in "23456" and bool(luhn.is_valid(digits))


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _always(_: str) -> bool:
    return True


# Each begins where no such run has begun before and is bounded, so a line of any length takes time in proportion.
_EMAIL = r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
_IP4 = r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)"
_IP6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])"
_PHONES = (
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,12}(?!\d)",  # international
    r"1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)",  # Chinese mobile
    r"0\d{1,3}-\d{2,4}-?\d{4}(?![\d-])",  # Chinese and Japanese landlines
    r"(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?!\d)",  # North America
)


@dataclass(frozen=True)
class Kind:
    """A pattern, whether a match holds, and what every text with one has: so many digits, and a character."""

    pattern: str
    holds: Callable[[str], bool]
    digits: int
    sign: str = ""

    def replace(self, text: str, name: str) -> str:
        """The text with `name` for every match that holds."""
        if self.sign not in text:
            return text
        # letters and digits of ASCII alone: Chinese stands right before and behind
        return re.sub(self.pattern, lambda match: name if self.holds(match[0]) else match[0], text, flags=re.ASCII)


KINDS = {
    "chinese_id": Kind(r"(?<!\w)\d{17}[\dXx](?!\w)", ric.is_valid, 17),
    "card": Kind(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])", _is_card, 13),
    "ip": Kind(f"{_IP4}|{_IP6}", _is_public, 1),
    "phone": Kind(rf"(?<![\w+.-])(?:{'|'.join(_PHONES)})", _always, 7),
    "email": Kind(_EMAIL, _always, 0, "@"),
}
"""In the order in which they are looked for: longer numbers first."""


def open_mask(kinds: Sequence[str]) -> Stage:
    """Replace these kinds of personal data."""
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"data.clean.mask: '{kind}' is not known; accepted: {', '.join(KINDS)}")
    wanted = [(f"<{name}>", kind) for name, kind in KINDS.items() if name in kinds]

    def mask(draft: Draft) -> Draft | Dropped:
        text = draft.text
        digits = count_digits(text)  # most texts have too few for most kinds
        for name, kind in wanted:
            if digits >= kind.digits:
                text = kind.replace(text, name)
        return draft if text == draft.text else Draft(text, draft.language)

    return mask
