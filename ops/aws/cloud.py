"""EC2 as one of the clouds (ops/cloud.py). What it is asked needs boto3, which is loaded only then."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ops.boxes import Known
from ops.cloud import Doomed, Ended, Inventory, Located, Tell
from ops.settings import Settings
from worker.amounts import count
from worker.errors import UserError
from worker.timestamps import stamp

if TYPE_CHECKING:
    from ops.aws.machines import Machine
    from ops.aws.session import Aws

SSH_USER = "ubuntu"


class Ec2:
    """This project's machines on EC2, and any other that is named by its id."""

    name = "AWS"
    kind = "ec2"
    has_regions = True

    def owns(self, text: str) -> bool:
        """True for `i-` and 8 or 17 hexadecimal digits."""
        return re.fullmatch(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})", text) is not None

    def may_be_host(self, text: str) -> bool:
        """Never: no host has such a name."""
        return False

    def locate(self, settings: Settings, machine: str, region: str | None = None) -> Located | None:
        """The machine in this region, else in the first that has it."""
        found = _find(_everywhere(settings), machine, region)
        return Located(found.state, known(found, settings.key_file)) if found else None

    def not_set_up(self, settings: Settings) -> str:
        """Whether there are credentials; what is wrong with them, an answer says."""
        from ops.aws.errors import NO_KEYS

        try:
            return "" if _everywhere(settings).has_keys() else NO_KEYS
        except UserError:
            return ""

    def inventory(self, settings: Settings, region: str, tell: Tell) -> Inventory:
        """Machines, and what they left behind. Arms the schedules that a launch could not."""
        from ops.aws.fleet import status

        aws = _everywhere(settings, "status")
        found = status.fleet_status(aws, _regions(aws, region, tell), datetime.now(UTC), tell)
        return Inventory(
            rows=found.rows(),
            tables=[table for table in (found.machines, found.leftovers) if table],
            closing=found.closing_line(),
            warnings=[*found.problems, *found.notes],
            wrong=found.wrong,
            mend=lambda: status.arm_again(aws, found.unscheduled, tell),
        )

    def doomed(self, settings: Settings, region: str, tell: Tell) -> Doomed:
        """Machines and what they left behind; images stay."""
        from ops.aws.fleet import kill, status

        aws = _everywhere(settings, "kill-all")
        found = status.survey(aws, _regions(aws, region, tell))
        unanswered = status.problems(found)
        seen = "nothing of this project" if not unanswered else "no machine of this project seen"
        return Doomed(
            rows=kill.rows(found.answers),
            closing=f"{seen} in {count(len(found.answers), 'region')}{_and_images(status.n_images(found))}",
            unanswered=unanswered,
            notes=found.notes(),
        )

    def end_all(self, settings: Settings, region: str, tell: Tell) -> Ended:
        """As ops/aws/fleet/kill.py does it."""
        from ops.aws.fleet import kill

        aws = _everywhere(settings, "kill-all")
        ended = kill.kill(aws, _regions(aws, region, tell), tell)
        failures = [f"{line}; something may be left, run it again" for line in ended.problems]
        if ended.left:
            failures = [
                f"{', '.join(ended.left)} did not end; look at it in the AWS console (is it protected?), "
                "then run inv kill-all again"
            ]
        left = f"nothing of this project is left in {count(ended.n_regions, 'region')}"
        return Ended(len(ended.ended), left + _and_images(ended.n_images), failures)

    def runs(self, settings: Settings, output: str, tell: Tell) -> dict[str, str]:
        """Of the machines in every region; a region that does not answer is told."""
        from ops.aws import machines, regions

        aws = _everywhere(settings, "logs")
        found = machines.find(aws, regions.enabled(aws))
        for line in [*found.problems(), *found.notes()]:
            tell(f"warning: {line}")
        there = [machine for answer in found.answers.values() for machine in answer]
        return {
            machine.run_id: machine.id for machine in there if machine.run_id and machine.output == output
        }

    def console(self, settings: Settings, machine: str) -> str:
        """As new as EC2 gives it, which is some minutes behind."""
        from ops.aws.fleet import status

        aws = _everywhere(settings, "logs")
        found = _find(aws, machine)
        return status.console(aws, machine, found.region if found else aws.region)


def known(machine: "Machine", key_file: str) -> Known | None:
    """The machine as a box; None while it has no address."""
    if not machine.address:
        return None
    return Known(
        id=machine.id,
        kind=Ec2.kind,
        host=machine.address,
        user=SSH_USER,
        key_file=key_file,
        region=machine.region,
        hourly_usd=machine.hourly_usd,
        created_at=stamp(machine.launched_at),
    )


def _everywhere(settings: Settings, task: str = "") -> "Aws":
    from ops.aws.session import Aws

    return Aws(settings, task=task, all_regions=True)


def _find(aws: "Aws", machine: str, region: str | None = None) -> "Machine | None":
    """The machine in this region, else in the one that has it. Raises UserError if that is not known."""
    from ops.aws import machines, regions

    if region:
        return machines.by_id(aws, machine, region)
    found = regions.ask_each(regions.enabled(aws), lambda each: machines.by_id(aws, machine, each))
    there = next((each for each in found.answers.values() if each), None)
    if there is None and (unsure := found.problems()):
        raise UserError(f"{machine} was not found, but {unsure[0]}")
    return there


def _regions(aws: "Aws", region: str, tell: Tell) -> list[str]:
    from ops.aws import regions

    return regions.chosen(aws, region, tell) or regions.enabled_or_known(aws, tell)


def _and_images(n: int) -> str:
    from ops.aws.fleet import status

    return f", but {status.images_line(n)}" if n else ""
