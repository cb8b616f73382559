"""Keep secrets out of text that is shown, or written to a file or the store.

Knows the values of this environment's secrets, those that it is given, and the forms of key ids and tokens;
another secret without a name before it is not recognized.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

_SECRET_SETTINGS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RUNPOD_API_KEY")
_MIN_SECRET = 8  # a shorter value is not a real secret, and hiding it everywhere would spoil the text
_KEY_IDS = r"(?:AKIA|ASIA)[A-Z0-9]{12,}|hf_[A-Za-z0-9]{16,}|rpa_[A-Za-z0-9_]{16,}"
# A bare AWS secret looks like a git commit, so it is hidden only after its name.
_NAMED = re.compile(
    r"((?:secret_?access_?key|session_?token|security-token|signature|authorization)[\"']?\s*[:=]\s*"
    r"[\"']?(?:bearer\s+)?)[^\s\"'&,;]+",
    re.IGNORECASE,
)


def redactor(env: Mapping[str, str], secrets: Iterable[str] = ()) -> Callable[[str], str]:
    """A function that replaces key ids, tokens, this environment's secrets and further ones by ***."""
    values = {*secrets, *(env.get(name, "") for name in _SECRET_SETTINGS)}
    hidden = {value for value in values if len(value) >= _MIN_SECRET}
    hidden |= {quote(value, safe="") for value in hidden}  # as in a signed address
    known = sorted(map(re.escape, hidden), key=len, reverse=True)
    pattern = re.compile("|".join([*known, _KEY_IDS]))
    return lambda text: _NAMED.sub(r"\1***", pattern.sub("***", text))
