"""The clouds that machines are rented from, in one table, and a box of any of them by its id."""

from ops import boxes
from ops.aws.cloud import Ec2
from ops.boxes import Known
from ops.cloud import Cloud
from ops.runpod.cloud import Pods
from ops.settings import Settings
from worker.errors import BadInput, UserError

CLOUDS: tuple[Cloud, ...] = (Ec2(), Pods())


def of_kind(kind: str) -> Cloud | None:
    """The cloud of a box in `.boxes`; None for a machine of the user's own."""
    return next((cloud for cloud in CLOUDS if cloud.kind == kind), None)


def of_id(text: str) -> Cloud | None:
    """The cloud whose machines have ids like this one: of a known box, else by its form."""
    known = boxes.load(text) if boxes.is_id(text) else None
    return (known and of_kind(known.kind)) or next((cloud for cloud in CLOUDS if cloud.owns(text)), None)


def by_id(text: str, settings: Settings) -> Known | None:
    """The box of this id: a known one, else the machine that a cloud has; None for what is not an id.

    What may be a host's name as well is an id only if its cloud has that machine. Raises UserError if the
    machine has no address, BadInput if there is none.
    """
    if not boxes.is_id(text):
        return None
    if known := boxes.load(text):
        return known
    cloud = of_id(text)
    if cloud is None or (cloud.may_be_host(text) and cloud.not_set_up(settings)):
        return None
    try:
        found = cloud.locate(settings, text)
    except UserError as error:
        if cloud.may_be_host(text):
            raise _unsure(text, error) from None
        raise
    if found is None:
        if cloud.may_be_host(text):
            return None
        raise BadInput(f"{cloud.name} has no machine {text}; see which there are: inv status")
    if found.box is None:
        raise UserError(f"{text} has no address, as it is {found.state}; see: inv status")
    boxes.update(found.box)
    return found.box


def _unsure(text: str, error: UserError) -> UserError:
    """It is not known whether this is a machine or a host."""
    unsure = UserError(f"{error}; if {text} is a host, write -H USER@{text}")
    unsure.code = error.code
    return unsure
