"""The settings' names in an environment: which are known, and which one a misspelt name resembles.

A misspelt name sets nothing: without a word, a maximum price would be lost unseen.
Knows names only, not what they mean: `ops/settings.py` has the users', the scripts of `remote/` the box's.
"""

import difflib
import re
from collections.abc import Collection, Iterable

# What a user sets.
SETTINGS = frozenset(
    """
    AWS_ACCESS_KEY_ID AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_PROFILE AWS_SECRET_ACCESS_KEY
    AWS_SESSION_TOKEN HF_TOKEN HOURLY_COST_USD MUSICGEN_ADDRESS_URL MUSICGEN_AMI_ID MUSICGEN_AUDIT_LOG
    MUSICGEN_BASE_IMAGE MUSICGEN_BUDGET_EMAIL MUSICGEN_BUDGET_USD MUSICGEN_CLAIM_TTL_S MUSICGEN_DISK_GIB
    MUSICGEN_DTYPE MUSICGEN_FADE_MS MUSICGEN_GIT_URL MUSICGEN_IDLE_LIMIT_S MUSICGEN_INSTANCE_PROFILE
    MUSICGEN_COMMERCIAL MUSICGEN_HEARTMULA_DIR MUSICGEN_MODELS_DIR
    MUSICGEN_INSTANCE_TYPES MUSICGEN_KEY_FILE MUSICGEN_KEY_NAME MUSICGEN_LIFETIME_H MUSICGEN_MAX_PRICE
    MUSICGEN_MODEL MUSICGEN_NO_PROGRESS_LIMIT_S MUSICGEN_OUTPUT MUSICGEN_POD_ROLE MUSICGEN_PROMPTS
    MUSICGEN_S3_BUCKET MUSICGEN_S3_PREFIX MUSICGEN_SKIP_REGIONS MUSICGEN_SLOTS MUSICGEN_SSH_FROM
    MUSICGEN_STOP_HOOK MUSICGEN_SUBNET_ID MUSICGEN_TORCH RUNPOD_API_KEY RUNPOD_API_URL RUNPOD_CLOUD
    RUNPOD_HOST RUNPOD_IMAGE RUNPOD_NETWORK_VOLUME_ID RUNPOD_SSH_KEY RUNPOD_USER
    """.split()
)
# What a user may set, too: the worker and the scripts read it wherever they run.
_WORKERS = frozenset(
    """
    MUSICGEN_BOX_HOME MUSICGEN_BOX_ROOT MUSICGEN_PRICE_PAID_USD MUSICGEN_STATE_DIR RUNPOD_POD_ID
    """.split()
)
# What the program or a box's owner sets on a box; in a user's `.env` it does nothing.
_BOXES = frozenset(
    """
    MUSICGEN_DATA_DIR MUSICGEN_DEADLINE MUSICGEN_DEADLINE_S MUSICGEN_END_GRACE_S MUSICGEN_END_MARGIN_S
    MUSICGEN_END_POLL_S MUSICGEN_END_TRY_S MUSICGEN_FLOORS_GB MUSICGEN_KEEP_ALIVE MUSICGEN_LIFETIME_END
    MUSICGEN_LIFETIME_S MUSICGEN_PLATFORM MUSICGEN_PLATFORM_ENV MUSICGEN_POD_CONSOLE MUSICGEN_POD_ENVIRON
    MUSICGEN_REQUIREMENTS
    MUSICGEN_STOP_GRACE_S MUSICGEN_STOP_REASON MUSICGEN_STOP_TERM_S
    MUSICGEN_WATCHDOG_ACTION MUSICGEN_WATCHDOG_GRACE_S MUSICGEN_WATCHDOG_POLL_S
    MUSICGEN_WATCHDOG_RETRY_S MUSICGEN_WATCHDOG_WARN_S MUSICGEN_WORKSPACE
    """.split()
)
KNOWN = SETTINGS | _WORKERS | _BOXES
_OF_TESTS = "MUSICGEN_TEST_"

_PREFIX = re.compile(r"(MUSICGEN|RUNPOD)_")
_OURS = re.compile(r"MUSICGEN_|RUNPOD_|HOURLY_COST", re.I)
# How alike names must be: of this program's the rest after the prefix, of another program's the whole.
_ALIKE, _MISSPELT = 0.6, 0.9


def mistakes(
    names: Iterable[str], settings: Collection[str] = SETTINGS, *, own_file: bool = False
) -> dict[str, str]:
    """The names that set nothing: name -> `there is no setting NAME; what to do`.

    A name counts if it begins like this program's, in any case, or is nearly one of them; in its `own_file`
    also if it is nearly one of AWS's or Hugging Face's. On a pod RunPod sets RUNPOD_ names of its own.
    """
    names = list(names)
    known = KNOWN.union(settings) - (_BOXES if own_file else frozenset())
    on_pod = "RUNPOD_POD_ID" in names and not own_file
    suspects = [
        name
        for name in names
        if name not in known
        and not name.startswith(_OF_TESTS)
        and not (on_pod and name.startswith("RUNPOD_"))
    ]
    likely = sorted(name for name in settings if own_file or _OURS.match(name))
    found = {}
    for name in suspects:
        near = _nearest(name, likely)
        if near or _OURS.match(name):
            found[name] = _explained(name, near)
    return found


def _explained(name: str, near: str | None) -> str:
    if name in _BOXES:
        there = f"write {near}" if near else "set it there (docs/box.md)"
        return f"{name} is a setting of a box and does nothing here; {there}"
    instead = f"write {near}, or remove it" if near else "remove it (.env.example lists all settings)"
    return f"there is no setting {name}; {instead}"


def _nearest(name: str, likely: list[str]) -> str | None:
    """The setting that was probably meant; None if there is none, or if the name may be another program's."""
    ours = _OURS.match(name) and name not in _BOXES
    if not ours and any(name.startswith(f"{each}_") for each in likely):
        return None
    if not ours:
        near = difflib.get_close_matches(name.upper(), likely, n=1, cutoff=_MISSPELT)
        return near[0] if near else None
    # Without the prefix: it makes all names alike, and may itself be the mistake.
    by_rest = {_PREFIX.sub("", each): each for each in likely}
    near = difflib.get_close_matches(_PREFIX.sub("", name.upper()), by_rest, n=1, cutoff=_ALIKE)
    return by_rest[near[0]] if near else None
