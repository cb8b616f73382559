"""Keep secrets out of text that is written to a file or the store.

Knows the values of this environment's secrets and the forms of key ids and tokens; another secret
without a name before it is not recognized.
"""

import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

_SECRET_SETTINGS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RUNPOD_API_KEY")
_MIN_SECRET = 8  # a shorter value is not a real secret, and hiding it everywhere would spoil the text
_KEY_IDS = r"(?:AKIA|ASIA)[A-Z0-9]{12,}|(?:hf|rpa)_[A-Za-z0-9]{16,}"
# A bare AWS secret looks like a git commit, so it is hidden only after its name.
_NAMED = re.compile(
    r"((?:secret_?access_?key|session_?token|security-token|signature|authorization)[\"']?\s*[:=]\s*"
    r"[\"']?(?:bearer\s+)?)[^\s\"'&,;]+",
    re.IGNORECASE,
)


def redactor(env: Mapping[str, str]) -> Callable[[str], str]:
    """A function that replaces key ids, tokens and the values of this environment's secrets by ***."""
    secrets = {value for name in _SECRET_SETTINGS if len(value := env.get(name, "")) >= _MIN_SECRET}
    secrets |= {quote(secret, safe="") for secret in secrets}  # as in a signed address
    known = sorted(map(re.escape, secrets), key=len, reverse=True)
    pattern = re.compile("|".join([*known, _KEY_IDS]))
    return lambda text: _NAMED.sub(r"\1***", pattern.sub("***", text))
