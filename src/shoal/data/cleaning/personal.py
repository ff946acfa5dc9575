"""Personal data replaced by what it is: `<email>`, `<phone>`, `<ip>`, `<card>`, `<chinese_id>`.

A pattern finds candidates, and where a number carries a check it must hold: Luhn's for cards, checksum, date and place
for Chinese identity numbers (both by python-stdnum), a public address for IP. Names and addresses are not found: that
needs a model.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence

from stdnum import luhn
from stdnum.cn import ric

from shoal.core.errors import RecipeError
from shoal.data.cleaning.draft import Draft, Dropped, Stage


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
_EMAIL = r"(?<![\w.%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
_EMAIL = _EMAIL.replace(r"\w", "A-Za-z0-9_")  # Chinese stands right before an address
_PHONE = "|".join(
    (
        r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,12}(?!\d)",  # international
        r"1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)",  # Chinese mobile
        r"0\d{1,3}-\d{2,4}-?\d{4}(?![\d-])",  # Chinese and Japanese landlines
        r"(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?!\d)",  # North America
    )
)
_IP = r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)|(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4}(?![\w:])"

KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "chinese_id": (re.compile(r"(?<![0-9A-Za-z])\d{17}[\dXx](?![0-9A-Za-z])"), ric.is_valid),
    "card": (re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card),
    "ip": (re.compile(_IP), _is_public),
    "phone": (re.compile(rf"(?<![\w+.-])(?:{_PHONE})".replace(r"\w", "A-Za-z0-9_")), _always),
    "email": (re.compile(_EMAIL), _always),
}
"""In the order in which they are looked for: longer numbers first."""


def open_mask(kinds: Sequence[str]) -> Stage:
    """Replace these kinds of personal data."""
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"data.clean.mask: '{kind}' is not known; accepted: {', '.join(KINDS)}")
    wanted = [(f"<{kind}>", *found) for kind, found in KINDS.items() if kind in kinds]

    def mask(draft: Draft) -> Draft | Dropped:
        text = draft.text
        for name, pattern, holds in wanted:
            text = pattern.sub(lambda match: name if holds(match[0]) else match[0], text)  # noqa: B023
        return draft if text == draft.text else Draft(text, draft.language)

    return mask
