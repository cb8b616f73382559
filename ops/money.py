"""Amounts of money as users write them: `0.40`."""

import math

from worker.errors import BadInput


def amount_usd(text: str, what: str) -> float | None:
    """The amount of an option; None if it was not given. Raises BadInput, which names it `what`."""
    if not text:
        return None
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise BadInput(f"{what} {text!r} is not an amount over 0; write it like 0.40")
    return amount
