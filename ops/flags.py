"""What tasks share: how those of `inv` are made, and the help of flags that many have."""

import functools

import invoke

# No short flags: Invoke would make -h of --hourly-cost, and of --only another letter in each task.
task = functools.partial(invoke.task, auto_shortflags=False)

COMMERCIAL = "Refuse a model whose weights may not be used commercially (default: MUSICGEN_COMMERCIAL)"
DRY_RUN = "Show the plan and stop"
JSON = "Print rows as JSON"
YES = "Do not ask"
# Of `inv models` and `fab models`.
MODELS = {
    "get": "Fetch this set, or what is missing of it, and verify it (default: list)",
    "verify": "Read every file of what is there, and compare its checksum",
    "remove": "Delete this set; asks (default: list)",
    "smoke": "Make a short song with this model and say how it sounds (default: list)",
    "yes": YES,
    "dry_run": DRY_RUN,
    "json": JSON,
}
