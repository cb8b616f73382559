"""The AWS tasks of `inv`: in which order they ask AWS, show, ask the user, act, and when they stop."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ops import boxes, env_file, ui
from ops.aws import cloud, machines, prices, regions
from ops.aws.account import setup
from ops.aws.account.step import Step
from ops.aws.fleet import status
from ops.aws.images import registry
from ops.aws.images.build import ImageBuild
from ops.aws.images.plan import plan_image
from ops.aws.launch import launch, prepare
from ops.aws.launch.prepare import LaunchOptions
from ops.aws.machines import Machine
from ops.aws.session import Aws
from ops.repository import ROOT
from ops.settings import Settings
from worker.amounts import usd
from worker.errors import BadInput, UserError
from worker.timestamps import stamp

LONGEST_HISTORY = timedelta(days=90)  # AWS keeps no more


def set_up(settings: Settings, ssh_from: str, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show what the account lacks, ask, create it, and write its names into .env."""
    aws = _checked(settings, "setup")
    name = setup.bucket_name(aws)
    steps = setup.plan(aws, name, ssh_from)
    if _done(steps, "Carry this out?", yes=yes, dry_run=dry_run, json=json):
        _into_env_file(setup.env_values(aws, name), yes=yes)


def _into_env_file(values: Mapping[str, str], *, yes: bool) -> None:
    """Write what .env lacks, if the user agrees; without a terminal the lines are for them to paste."""
    file = env_file.env_file()
    name = env_file.label(file)
    for line in env_file.differing(file, values):
        ui.say(line)
    missing = env_file.lacking(file, values)
    if not missing:
        ui.say(f"nothing to write to {name}")
        return
    ui.say("\n".join(["", f"for {name}:", *env_file.assignments(missing), ""]))
    if yes or ui.answered_yes(f"Write this to {name}?"):
        env_file.fill_in(file, missing)
        ui.say(f"written to {name}")


def remove_setup(settings: Settings, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show what setup created, ask, and remove it."""
    steps = setup.removal(_checked(settings, "setup"))
    _done(steps, "Remove all this?", yes=yes, dry_run=dry_run, json=json)


def _done(steps: Sequence[Step], question: str, *, yes: bool, dry_run: bool, json: bool) -> bool:
    """True if the account now is as the steps want it; False for a dry run."""
    rows = [step.row() for step in steps]
    if setup.n_changes(steps) == 0:
        ui.show(rows, json=json)
        ui.say("nothing to do")
        return True
    if not ui.agreed(rows, question, yes=yes, dry_run=dry_run, json=json):
        return False
    setup.carry_out(steps, ui.say)
    return True


def show_images(settings: Settings, *, bases: bool, json: bool) -> None:
    """This project's images, or the images of AWS that one can be built on."""
    aws = _checked(settings, "image")
    ui.show(registry.bases(aws) if bases else registry.found(aws), json=json)


def remove_images(settings: Settings, names: Sequence[str], *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show, ask, and remove images with their snapshots."""
    steps = registry.removal(_checked(settings, "image"), names)
    _done(steps, "Remove these images?", yes=yes, dry_run=dry_run, json=json)


def build_image(settings: Settings, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show the plan, ask, and build the machine image."""
    aws = _checked(settings, "image")
    plan = plan_image(aws, ROOT, datetime.now(UTC))
    build = ImageBuild(aws, plan, ui.say)
    if dry_run:
        build.dry_run()
    if ui.agreed(plan.rows(), "Rent this machine and build?", yes=yes, dry_run=dry_run, json=json):
        made = build.carry_out()
        ui.say(f"made {made.name}: {made.ami}; images.json has it, commit that file")


def show_prices(settings: Settings, types: str, region: str, span: timedelta | None, *, json: bool) -> None:
    """Current prices, or a summary of a span of time."""
    aws, now = Aws(settings, task="spot-price"), datetime.now(UTC)
    kinds = [name.strip() for name in types.split(",") if name.strip()] or settings.instance_type_list
    chosen = regions.chosen(aws, region, ui.say) or [aws.region]
    if span is None:
        ui.show(prices.quotes(aws, kinds, chosen, now, ui.say), json=json)
        return
    since = now - min(span, LONGEST_HISTORY)
    changes = prices.history(aws, kinds, chosen, since, ui.say)
    if json:
        ui.show(changes, json=True)
    else:
        ui.show(prices.summaries(changes, since, now, blocks=ui.can_show(prices.BLOCKS)))


def launch_machine(
    settings: Settings, options: LaunchOptions, *, dry_run: bool, yes: bool, json: bool
) -> None:
    """Check, show, ask, rent, and say how to follow and how to end it."""
    prepare.check_list(settings, options)
    settings.export_aws()
    aws = Aws(settings, task="launch")
    there = launch.existing(aws, ui.say)
    if there and not options.another:
        _already(there, json, ui.say if dry_run else None)
        if not dry_run:
            return
    prepared = prepare.prepare(aws, options, datetime.now(UTC), ui.say)
    if prepared is None:
        ui.say("no song of the list is left to make (inv check shows them); nothing was launched")
        return
    if not json:
        ui.show(prepared.offers)
    rows = [] if json else prepared.plan.rows()
    if dry_run:
        ui.agreed(rows or prepared.plan.rows(), "", dry_run=True, json=json)
        launch.dry_run(aws, prepared.plan, ui.say)
        return
    question = f"Rent it, for at most {usd(prepared.plan.worst_case_usd())}?"
    if json:
        if not yes:
            raise BadInput("--json cannot ask; give --yes, or --dry-run for the plan")
    else:
        ui.agreed(rows, question, yes=yes)
    result = launch.carry_out(aws, prepared.plan, options.another, ui.say)
    if result.started is None:
        _already(result.there, json, None)
        return
    _started(settings, result.started, options.keep_alive, json)


def _checked(settings: Settings, task: str) -> Aws:
    settings.check()
    return Aws(settings, task=task)


def _already(there: Sequence[Machine], json: bool, dry: Callable[[str], None] | None) -> None:
    """Show the machines that keep this launch from renting. Raises UserError if none of them runs."""
    if not json:
        ui.show([status.machine_row(machine, datetime.now(UTC), None) for machine in there])
    elif dry is None:
        ui.show([_row(machine) for machine in there], json=True)
    lines = "; ".join(machine.line() for machine in there)
    if dry is not None:
        dry(f"there is a machine already, so a launch would stop here: {lines}")
    elif any(machine.state in machines.WORKING for machine in there):
        ui.say(f"there is a machine already, nothing was launched: {lines}")
        ui.say("follow it: inv status    launch another: inv launch --another    end it: inv kill-all")
    else:
        raise UserError(
            f"there is a machine already, but not running: {lines}; run inv kill-all, or --another"
        )


def _started(settings: Settings, machine: Machine, keep_alive: bool, json: bool) -> None:
    if box := cloud.known(machine, settings.key_file):
        try:
            boxes.save(box)
        except OSError as error:  # a convenience: the machine runs all the same
            ui.say(f"warning: cannot write {boxes.boxes_folder()} ({error.strerror})")
    if json:
        ui.show([_row(machine)], json=True)
    else:
        ui.write(f"{machine.id}  {machine.address or 'no public address'}")
    ends = stamp(machine.expires_at) if machine.expires_at else "?"
    when = "it stays on after the batch" if keep_alive else "it ends after the batch"
    ui.say(
        f"{machine.instance_type} in {machine.zone} is starting; {when}, and ends by {ends} at the latest\n"
        "  follow it   inv status        (progress, cost so far)\n"
        "              inv logs          (from the bucket)\n"
        "              fab logs          (over SSH)\n"
        "  the songs   inv fetch\n"
        "  end it now  inv kill-all"
    )


def _row(machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "address": machine.address,
        "region": machine.region,
        "zone": machine.zone,
        "instance_type": machine.instance_type,
        "state": machine.state,
        "run_id": machine.run_id,
        "per_hour_usd": machine.hourly_usd,
        "ends_at": stamp(machine.expires_at) if machine.expires_at else None,
    }
