"""How far a training is to go, and whether it got there.

Only `global_step` counts, as a checkpoint's trainer_state.json has it: a training that saved on SIGTERM ends
with exit code 0, too.
"""

from __future__ import annotations

import math
from typing import Any

from .config import Config


def goal(state: dict[str, Any], config: Config) -> int | None:
    """The step at which the training is finished; None if nothing says so yet.

    The configuration wins over what Trainer noted in `state`: it may have been raised since.
    """
    noted, epochs = state.get("max_steps"), state.get("num_train_epochs")
    if config.max_steps is not None:
        return config.max_steps
    if not isinstance(noted, int) or noted <= 0:
        return None
    if config.epochs and isinstance(epochs, int | float) and 0 < epochs < config.epochs:
        return math.ceil(noted * config.epochs / epochs)
    return noted


def is_reached(state: dict[str, Any], config: Config) -> bool:
    """True if the checkpoint with this state is the training's last.

    That is also where its own EarlyStoppingCallback ended it: started again it would only stop again.
    """
    step, last = state.get("global_step"), goal(state, config)
    if isinstance(step, int) and last is not None and step >= last:
        return True
    callbacks = state.get("stateful_callbacks")
    stopper: Any = callbacks.get("EarlyStoppingCallback") if isinstance(callbacks, dict) else None
    try:
        patience = stopper["args"]["early_stopping_patience"]
        return bool(stopper["attributes"]["early_stopping_patience_counter"] >= patience)
    except (KeyError, TypeError):
        return False
