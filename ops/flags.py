"""What tasks share: how those of `inv` are made, and the help of flags that many have."""

import functools

import invoke

# No short flags: Invoke would make -h of --hourly-cost, and of --only another letter in each task.
task = functools.partial(invoke.task, auto_shortflags=False)

DRY_RUN = "Show the plan and stop"
JSON = "Print rows as JSON"
YES = "Do not ask"
