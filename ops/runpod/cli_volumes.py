"""`inv pod.volume-list`, `pod.volume-create` and `pod.volume-delete`: what they ask, show and carry out."""

from ops import interrupts, ui
from ops.runpod import bills, volumes
from ops.runpod.api import RunPod
from ops.runpod.types import Volume
from ops.settings import Settings
from worker.amounts import count, usd
from worker.errors import BadInput, UserError


def show_volumes(settings: Settings, *, json: bool) -> None:
    """Show every network volume of the account, what it costs, and which pods have it."""
    runpod = RunPod.of(settings, "pod.volume-list", ui.say)
    found, there = runpod.volumes(), runpod.pods()
    ui.show(volumes.rows(found, there), json=json)
    month = sum(map(bills.month_usd, found))
    ui.say(
        f"{count(len(found), 'network volume')}, {usd(month)} a month, used or not ({bills.LISTED}, "
        "standard storage)"
        if found
        else "no network volume"
    )


def create_volume(
    settings: Settings, name: str, size_gb: int, data_center: str, *, yes: bool, dry_run: bool, json: bool
) -> None:
    """Show what it costs, ask, make a network volume, and say how a pod gets it."""
    settings.check()
    runpod = RunPod.of(settings, "pod.volume-create", ui.say)
    plan = volumes.checked(runpod, name, size_gb, data_center)
    question = f"Make it, for {usd(plan['per_month_usd'])} a month ({bills.LISTED}) until it is deleted?"
    if not ui.agreed_for_json([plan], question, yes=yes, dry_run=dry_run, json=json):
        return
    made = _made(runpod, name, size_gb, data_center)
    if json:
        ui.show(volumes.rows([made], []), json=True)
    else:
        ui.write(made.id)
    ui.say(f"a pod gets it by this line in .env: RUNPOD_NETWORK_VOLUME_ID={made.id}")


def _made(runpod: RunPod, name: str, size_gb: int, data_center: str) -> Volume:
    """The new volume. Raises UserError, also for a Ctrl-C once it is there: it is not to be made twice."""
    made: Volume | UserError | None = None
    try:
        with interrupts.held(ui.say, "RunPod's answer"):
            try:
                made = runpod.create_volume(name, size_gb, data_center)
            except UserError as error:
                made = error
    except KeyboardInterrupt:
        if isinstance(made, Volume):
            made = UserError(
                f"interrupted after network volume {made.id} was made, which costs "
                f"{usd(bills.month_usd(made))} a month until: inv pod.volume-delete --volume {made.id}"
            )
            made.code = ui.INTERRUPTED
    if isinstance(made, Volume):
        return made
    raise made or KeyboardInterrupt


def delete_volume(settings: Settings, volume_id: str, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show, ask, and delete a network volume that no pod has; see that it is gone."""
    settings.check()
    runpod = RunPod.of(settings, "pod.volume-delete", ui.say)
    found = {volume.id: volume for volume in runpod.volumes()}
    if volume_id not in found:
        raise BadInput(f"the RunPod account has no network volume {volume_id}; see: inv pod.volume-list")
    volume, there = found[volume_id], runpod.pods()
    volumes.refuse_used(volume, there)
    question = "Delete it, with all songs and weights on it?"
    if not ui.agreed(volumes.rows([volume], there), question, yes=yes, dry_run=dry_run, json=json):
        return
    volumes.delete(runpod, volume)
    ui.say(f"network volume {volume_id} is gone, and {usd(bills.month_usd(volume))} a month with it")
