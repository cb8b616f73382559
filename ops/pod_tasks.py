"""The tasks named `pod.…`: RunPod. Above ops/runpod and ops/ssh, which do not know each other."""

from typing import TYPE_CHECKING

from invoke import Collection, Context, Exit

from ops import ui
from ops.boxes import Known
from ops.flags import COMMERCIAL, DRY_RUN, JSON, YES, task
from ops.settings import Settings

if TYPE_CHECKING:
    from ops.runpod.ready import SshChecks

_OF_POD = {
    "for_": "What the pod is for: musicgen, heartmula or train (default: that of MUSICGEN_MODEL)",
    "cloud": "secure, community or any (default: RUNPOD_CLOUD)",
    "max_price": "Maximum price in USD per hour (default: MUSICGEN_MAX_PRICE, else 0.50 to train)",
}


@task(name="offers", help={**_OF_POD, "json": JSON})
@ui.one_line_errors
def pod_offers(c: Context, for_: str = "", cloud: str = "", max_price: str = "", json: bool = False) -> None:
    """Show RunPod's GPUs, and why others will not do.

    Live prices and stock; first the cheapest, or the purpose's first choice if it costs at most half more.
    Example: inv pod.offers --for heartmula --max-price 0.60
    """
    from ops import money
    from ops.runpod import cli

    cap = money.amount_usd(max_price, "--max-price")
    cli.show_offers(Settings.load(), for_, cloud, cap, json=json)


@task(
    name="create",
    help={
        **_OF_POD,
        "lifetime": "Duration like 8h after which the pod stops itself (default: MUSICGEN_LIFETIME_H)",
        "disk_gb": "Disk of the container in GB (default: 100, 80 for heartmula, 50 to train)",
        "another": "Create one although there is one already",
        "commercial": COMMERCIAL,
        "spot": "Refused: RunPod has no spot pods",
        "bid": "Refused: RunPod takes no bids (default: none)",
        "dry_run": DRY_RUN,
        "yes": YES,
        "json": "Print the new pod as JSON",
    },
)
@ui.one_line_errors
def pod_create(
    c: Context,
    for_: str = "",
    cloud: str = "",
    max_price: str = "",
    lifetime: str = "",
    disk_gb: int = 0,
    another: bool = False,
    commercial: bool = False,
    spot: bool = False,
    bid: str = "",
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Create a RunPod pod within a maximum price.

    Waits until it takes a login; `fab` then uses it. It stops itself.
    Example: inv pod.create --dry-run
    """
    from ops import durations, money
    from ops.runpod import cli
    from ops.runpod.prepare import PodOptions
    from ops.ssh import ready
    from ops.ssh.tasks import box_of

    options = PodOptions(
        purpose=for_,
        cloud=cloud,
        max_price_usd=money.amount_usd(max_price, "--max-price"),
        lifetime=durations.parse(lifetime, "--lifetime") if lifetime else None,
        disk_gb=disk_gb or None,
        spot=spot,
        bid=bid,
        another=another,
        commercial=commercial,
    )
    settings = Settings.load(spends=True)
    ready.refuse_unusable_key(box_of(Known("new", "runpod", "192.0.2.1"), settings))
    cli.create_pod(settings, options, _ssh_checks(settings), dry_run=dry_run, yes=yes, json=json)


def _ssh_checks(settings: Settings) -> "SshChecks":
    """What `inv pod.create` and `inv pod.resume` ask of a pod over SSH."""
    from ops.runpod.ready import SshChecks
    from ops.ssh import ready
    from ops.ssh.tasks import box_of

    return SshChecks(
        login=lambda known: ready.why_not(box_of(known, settings)),
        timer=lambda known: ready.why_unarmed(box_of(known, settings)),
    )


_POD = "Id or name of the pod (default: the only one)"


@task(name="list", help={"json": JSON})
@ui.one_line_errors
def pod_list(c: Context, json: bool = False) -> None:
    """Show this project's pods and volumes, and their cost.

    The cost so far is RunPod's bills, and the clock since the last one while it runs. Exit code 1 when one is
    past its end.
    Example: inv pod.list
    """
    from ops.runpod import cli

    if not cli.show_pods(Settings.load(), json=json):
        raise Exit(code=1)


@task(
    name="resume",
    help={
        "pod": "Id or name of the pod (default: the only stopped one)",
        "max_price": _OF_POD["max_price"],
        "lifetime": "Duration like 8h after which the pod ends (default: MUSICGEN_LIFETIME_H)",
        "dry_run": DRY_RUN,
        "yes": YES,
        "json": "Print the pod as JSON",
    },
)
@ui.one_line_errors
def pod_resume(
    c: Context,
    pod: str = "",
    max_price: str = "",
    lifetime: str = "",
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Start a stopped pod, with a new deadline.

    Its container's disk is empty then: `fab up` goes on.
    Example: inv pod.resume --lifetime 6h
    """
    from ops import durations, money
    from ops.runpod import cli_resume, resume
    from ops.runpod.types import Pod

    options = cli_resume.ResumeOptions(
        pod=pod,
        max_price_usd=money.amount_usd(max_price, "--max-price"),
        lifetime=durations.parse(lifetime, "--lifetime") if lifetime else None,
    )
    settings = Settings.load(spends=True)

    def recreate(plan: resume.Plan) -> Pod:
        return cli_resume.replacement(settings, plan, _ssh_checks(settings), yes=yes, json=json)

    cli_resume.resume_pod(
        settings, options, _ssh_checks(settings), recreate, yes=yes, dry_run=dry_run, json=json
    )


@task(name="stop", help={"pod": _POD, "dry_run": DRY_RUN, "yes": YES, "json": JSON})
@ui.one_line_errors
def pod_stop(c: Context, pod: str = "", dry_run: bool = False, yes: bool = False, json: bool = False) -> None:
    """Stop a pod, and say what is still billed.

    Its container's disk is emptied; `inv pod.resume` starts it again.
    Example: inv pod.stop --yes
    """
    from ops.runpod import cli_end

    cli_end.stop_pod(Settings.load(), pod, yes=yes, dry_run=dry_run, json=json)


@task(
    name="terminate",
    help={"pod": _POD, "all": "Every pod of this project", "dry_run": DRY_RUN, "yes": YES, "json": JSON},
)
@ui.one_line_errors
def pod_terminate(
    c: Context, pod: str = "", all: bool = False, dry_run: bool = False, yes: bool = False, json: bool = False
) -> None:
    """Delete a pod, or all; network volumes stay.

    Lists them again until none is left; exit code 1 if one stays.
    Example: inv pod.terminate --all --dry-run
    """
    from ops.runpod import cli_end

    cli_end.terminate_pods(Settings.load(), pod, everything=all, yes=yes, dry_run=dry_run, json=json)


@task(
    name="reap",
    help={
        "older_than": "Duration like 24h since it was made, stopped or not (default: a day past its end)",
        "dry_run": DRY_RUN,
        "yes": YES,
        "json": JSON,
    },
)
@ui.one_line_errors
def pod_reap(
    c: Context, older_than: str = "", dry_run: bool = False, yes: bool = False, json: bool = False
) -> None:
    """Delete forgotten pods: too old, or a day past their end.

    The end is that of its creation or resume: only the pod knows a later one (`fab status --extend`).
    Example: inv pod.reap --older-than 24h
    """
    from ops import durations
    from ops.runpod import cli_end

    age = durations.parse(older_than, "--older-than") if older_than else None
    cli_end.reap(Settings.load(), age, yes=yes, dry_run=dry_run, json=json)


@task(name="ssh", help={"pod": _POD, "show": "Print the ssh command line instead"})
@ui.one_line_errors
def pod_ssh(c: Context, pod: str = "", show: bool = False) -> None:
    """Open a shell on a pod.

    Only the pinned host key is trusted.
    Example: inv pod.ssh --show
    """
    import shlex

    from ops.runpod import cli
    from ops.ssh import terminal
    from ops.ssh.tasks import box_of

    settings = Settings.load()
    box = box_of(cli.box_of(settings, pod), settings)
    try:
        if show:
            _ = box.transport  # pins the host key, or refuses it
            ui.write(shlex.join(terminal.ssh_command(box)))
        elif code := terminal.shell(box):
            raise Exit(code=code)
    finally:
        box.close()


@task(name="volume-list", help={"json": JSON})
@ui.one_line_errors
def pod_volume_list(c: Context, json: bool = False) -> None:
    """Show RunPod's network volumes and what they cost.

    Example: inv pod.volume-list
    """
    from ops.runpod import cli_volumes

    cli_volumes.show_volumes(Settings.load(), json=json)


@task(
    name="volume-create",
    help={
        "name": "Its name (default: musicgen-songs)",
        "size": "GB; it can only grow (default: 100)",
        "data_center": "Where it, and so its pods, will be (default: none, shows which there are)",
        "dry_run": DRY_RUN,
        "yes": YES,
        "json": "Print the volume as JSON",
    },
)
@ui.one_line_errors
def pod_volume_create(
    c: Context,
    name: str = "musicgen-songs",
    size: int = 100,
    data_center: str = "",
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Make a network volume, which outlives its pods.

    Example: inv pod.volume-create --size 100 --data-center EU-RO-1
    """
    from ops.runpod import cli_volumes

    settings = Settings.load(spends=True)
    cli_volumes.create_volume(settings, name, size, data_center, yes=yes, dry_run=dry_run, json=json)


@task(
    name="volume-delete",
    help={
        "volume": "Its id (default: none, it has to be named)",
        "dry_run": DRY_RUN,
        "yes": YES,
        "json": JSON,
    },
)
@ui.one_line_errors
def pod_volume_delete(
    c: Context, volume: str = "", dry_run: bool = False, yes: bool = False, json: bool = False
) -> None:
    """Delete a network volume that no pod has.

    Example: inv pod.volume-delete --volume abc123
    """
    from ops.runpod import cli_volumes

    cli_volumes.delete_volume(Settings.load(), volume, yes=yes, dry_run=dry_run, json=json)


ns = Collection(
    "pod",
    *(pod_create, pod_list, pod_offers, pod_reap, pod_resume, pod_ssh, pod_stop, pod_terminate),
    *(pod_volume_create, pod_volume_delete, pod_volume_list),
)
