"""remote/training/goal.py: finished means that global_step reached the goal."""

import pytest

from remote.training.config import Config
from remote.training.goal import goal, is_reached


def state(step, max_steps=40, epochs=5, **more):
    return {"global_step": step, "max_steps": max_steps, "num_train_epochs": epochs, **more}


def config(**more):
    return Config(output_dir="o", **more)


@pytest.mark.parametrize(("step", "reached"), [(0, False), (39, False), (40, True), (41, True)])
def test_training_is_finished_at_the_goal_that_trainer_noted(step, reached):
    assert is_reached(state(step), config()) is reached


def test_configuration_that_asks_for_more_steps_is_not_finished():
    assert not is_reached(state(40), config(max_steps=60))


def test_configuration_that_asks_for_more_epochs_is_not_finished():
    assert goal(state(40), config(epochs=10.0)) == 80
    assert not is_reached(state(40), config(epochs=10.0))


def test_configuration_that_asks_for_as_many_epochs_is_finished():
    assert is_reached(state(40), config(epochs=5.0))


def test_training_without_any_goal_is_not_finished():
    assert not is_reached({}, config())
    assert not is_reached({"global_step": 5, "max_steps": None}, config())
    assert goal({}, config()) is None


@pytest.mark.parametrize(("counter", "reached"), [(4, False), (5, True)])
def test_training_that_its_own_early_stopping_ended_is_finished(counter, reached):
    stopper = {
        "args": {"early_stopping_patience": 5},
        "attributes": {"early_stopping_patience_counter": counter},
    }
    found = state(20, stateful_callbacks={"EarlyStoppingCallback": stopper})
    assert is_reached(found, config()) is reached


def test_strange_callbacks_are_no_early_stopping():
    assert not is_reached(state(20, stateful_callbacks=[]), config())
    assert not is_reached(state(20, stateful_callbacks={"EarlyStoppingCallback": None}), config())
