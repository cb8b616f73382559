"""What an error of RunPod's API means to the user: one line with a remedy, and an exit code.

One table from HTTP statuses to sentences. Code that acts on one reads `status` and decides nothing by the
text: a lack of machines and a wrong request are both 400, and differ in RunPod's words only.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from worker.errors import BadInput, UserError

KEYS = "Settings, API Keys in RunPod's console"
NO_ANSWER = 0  # instead of a status
_LONGEST = 600  # characters of RunPod's own words
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")  # nothing that comes from elsewhere moves the cursor

# Status -> exit code and sentence. {what}: the action, {detail}: RunPod's words.
ERRORS: dict[int, tuple[int, str]] = {
    400: (1, "RunPod refused to {what} ({detail}); try another offer or correct what it names"),
    401: (2, f"RunPod does not know this API key; correct RUNPOD_API_KEY ({KEYS})"),
    402: (
        1,
        "the RunPod account has no money left to {what} ({detail}); add some under Billing in its console",
    ),
    403: (
        1,
        f"RunPod does not allow this API key to {{what}} ({{detail}}); give it that permission ({KEYS})",
    ),
    404: (1, "RunPod knows nothing of that id, so it could not {what} ({detail}); check the id"),
    405: (1, "RunPod's API cannot {what} (405); correct RUNPOD_API_URL, or upgrade this program"),
    409: (1, "RunPod cannot {what} in its present state ({detail}); look at it again in a minute"),
    410: (1, "RunPod has retired the API that was to {what} (410); upgrade this program"),
    413: (1, "the request to {what} is too large for RunPod ({detail}); shorten the settings of the pod"),
    422: (1, "RunPod does not take the request to {what}: {detail}; correct the setting it names"),
    429: (1, "RunPod limits these calls ({detail}); wait a minute and run it again"),
}
_FAULT = "RunPod failed to {what} ({status}: {detail}); run it again in a minute"
_REDIRECT = "RUNPOD_API_URL leads elsewhere ({status}), which is not followed with a key; correct it"
_HTML = (
    "what answers at RUNPOD_API_URL is not RunPod's API ({status}, a web page); "
    "check the network (a proxy, a sign-in page?) and RUNPOD_API_URL"
)
_UNREACHED = "cannot reach RunPod to {what} ({detail}); check the network and RUNPOD_API_URL"
_SILENT = (
    "RunPod did not answer ({detail}), and may or may not {what}; check the network and look what there is"
)
_BROKEN = "RunPod's answer to {what} broke off or lacks a part ({detail}); run it again"


class ApiError(UserError):
    """RunPod refused, failed or did not answer. `status`: HTTP's, or NO_ANSWER; `detail`: RunPod's words.

    `may_have_acted`: what was asked for may have been done, although RunPod does not say so.
    """

    def __init__(
        self, text: str, status: int, detail: str = "", *, code: int = 1, may_have_acted: bool = False
    ) -> None:
        super().__init__(text)
        self.status, self.detail, self.code = status, detail, code
        self.may_have_acted = may_have_acted

    @property
    def passes(self) -> bool:
        """True if the same call may succeed in a moment: RunPod failed, was silent or has had too many."""
        return self.status in (NO_ANSWER, 429) or self.status >= 500


def refused(
    status: int, content_type: str, body: bytes, what: str, hide: Callable[[str], str] = str
) -> ApiError:
    """The error of an answer that is not a success. Its own words come from the body, by way of `hide`."""
    if 300 <= status < 400:
        return ApiError(_REDIRECT.format(status=status), status, code=BadInput.code)
    if "html" in content_type.lower() and status < 500 and status not in (410, 429):
        return ApiError(_HTML.format(status=status), status)
    detail = words(body, hide)
    if status in ERRORS:
        code, text = ERRORS[status]
        return ApiError(text.format(what=what, detail=detail), status, detail, code=code)
    text = _FAULT.format(what=what, status=status, detail=detail)
    return ApiError(text, status, detail, may_have_acted=status >= 500)


def web_page(status: int) -> ApiError:
    """The error of a success that is a web page."""
    return ApiError(_HTML.format(status=status), status, may_have_acted=True)


def silent(reason: str, what: str, *, sent: bool) -> ApiError:
    """The error of a request without an answer. `sent`: RunPod may have got it."""
    text = _SILENT if sent else _UNREACHED
    return ApiError(text.format(what=what, detail=reason), NO_ANSWER, reason, may_have_acted=sent)


def broken(reason: str, what: str) -> ApiError:
    """The error of an answer that cannot be read."""
    text = _BROKEN.format(what=what, detail=reason)
    return ApiError(text, NO_ANSWER, reason, may_have_acted=True)


def words(body: bytes, hide: Callable[[str], str] = str) -> str:
    """RunPod's own words in an error's body, on one line: detail and each violation of a request.

    `hide` takes secrets out of them, before they are shortened.
    """
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        return "no reason given"
    # v2 has detail and errors; proxies before it use v1's names.
    text = str(found.get("detail") or found.get("message") or found.get("error") or "no reason given")
    more = found.get("errors")
    if isinstance(more, list) and more:
        text = f"{text.rstrip('.')}: {', '.join(map(str, more))}"
    return one_line(hide(text)).rstrip(". ")


def one_line(text: str) -> str:
    """RunPod's words for the terminal: no control characters, and not too many."""
    return " ".join(_CONTROL.sub(" ", text).split())[:_LONGEST]
