"""Everything that goes over SSH to a GPU box. `fab --list` shows every task.

The box: `-H root@IP:PORT` or `-H ID`, else RUNPOD_HOST of .env, else the newest in `.boxes`.
"""

from pathlib import Path

from invoke import Collection, Exit

from ops import sampling, ui
from ops.flags import COMMERCIAL, DRY_RUN, JSON, MODELS, YES
from ops.settings import Settings
from ops.ssh.box import Box
from ops.ssh.tasks import CONFIG, box_task, refuse_task_as_box

_PROMPTS = "Job list (default: MUSICGEN_PROMPTS, else prompts.txt)"
_FORCE = "Also while a run is on, which keeps its release"
_OWN_KEYS = "Send your own long-lived AWS keys instead of temporary ones"
_KEEP = "Leave the box on after the run, until its deadline"
_ONLY = "Only this song (repeat for more; default: every song)"
_GRACE = "How long the worker may take to stop on Ctrl-C (default: 60s)"
_WATCH = "Refresh every two seconds until Ctrl-C"


@box_task(help={"prompts": _PROMPTS, "force": _FORCE})
def deploy(box: Box, prompts: str = "", force: bool = False) -> None:
    """Phase 1: ship code and prompts.txt to the box.

    Example: fab -H root@203.0.113.7:22001 deploy
    """
    from ops.ssh import phases  # here and below: `fab --list` stays under 1 s

    phases.deploy(box, phases.checked_release(Settings.load(), prompts), ui.say, force=force)


@box_task(
    spends=True,
    help={"use_my_keys": _OWN_KEYS, "renew": "Only renew settings and credentials; restarts nothing"},
)
def install(box: Box, use_my_keys: bool = False, renew: bool = False) -> None:
    """Phase 2: settings, bucket, environment, model.

    Example: fab install
    """
    from ops.ssh import phases
    from ops.ssh.models import OnBox

    settings = Settings.load()
    if renew:
        phases.send_settings(box, settings, ui.say, use_my_keys=use_my_keys or None)
    else:
        ui.say(phases.install_line(phases.install(box, settings, ui.say, use_my_keys=use_my_keys)))
        OnBox(box).have(settings.model)


@box_task(help={"json": JSON})
def validate(box: Box, json: bool = False) -> None:
    """Phase 3: check everything that the run will need.

    Example: fab validate --json
    """
    from ops.ssh import phases

    findings = phases.validate(box)
    ui.show(findings if json else phases.finding_rows(findings), json=json)
    phases.refuse_failing(findings)


@box_task(
    spends=True,
    help={
        "keep_alive": _KEEP,
        "only": _ONLY,
        "start_over": "Begin songs again that were begun with other settings",
        "commercial": COMMERCIAL,
        "verify": "Compare every finished song with its record's checksum first",
        **sampling.HELP,
    },
    iterable=["only"],
)
def run(
    box: Box,
    keep_alive: bool = False,
    only: list[str] | None = None,
    start_over: bool = False,
    commercial: bool = False,
    verify: bool = False,
    temperature: str = "",
    top_k: str = "",
    guidance_scale: str = "",
    stride: str = "",
    codec_steps: str = "",
    codec_guidance: str = "",
) -> None:
    """Phase 4: start the worker, which keeps running.

    Example: fab run --only dance_test
    """
    from ops import models
    from ops.ssh import phases

    settings = Settings.load()
    models.refuse_other_use(settings.model, commercial or settings.is_commercial)
    chosen = sampling.SamplingFlags(
        temperature, top_k, guidance_scale, stride, codec_steps, codec_guidance
    ).flags(settings.model)
    phases.checked_release(settings)
    arguments = [f"--only={name}" for name in only or ()]
    arguments += ["--start-over"] * start_over + ["--verify"] * verify
    arguments += ["--commercial"] * commercial + chosen
    phases.run(box, settings, ui.say, keep_alive=keep_alive, arguments=arguments)


@box_task(
    spends=True,
    help={
        "prompts": _PROMPTS,
        "force": _FORCE,
        "use_my_keys": _OWN_KEYS,
        "keep_alive": _KEEP,
        "commercial": COMMERCIAL,
        **sampling.HELP,
    },
)
def up(
    box: Box,
    prompts: str = "",
    force: bool = False,
    use_my_keys: bool = False,
    keep_alive: bool = False,
    commercial: bool = False,
    temperature: str = "",
    top_k: str = "",
    guidance_scale: str = "",
    stride: str = "",
    codec_steps: str = "",
    codec_guidance: str = "",
) -> None:
    """All four phases; stops at the first that fails.

    Example: fab up logs
    """
    from ops import models
    from ops.ssh import phases
    from ops.ssh.models import OnBox

    settings = Settings.load()
    models.refuse_other_use(settings.model, commercial or settings.is_commercial)
    chosen = sampling.SamplingFlags(
        temperature, top_k, guidance_scale, stride, codec_steps, codec_guidance
    ).flags(settings.model)
    release = phases.checked_release(settings, prompts)
    phases.deploy(box, release, ui.say, force=force)
    ui.say(phases.install_line(phases.install(box, settings, ui.say, use_my_keys=use_my_keys)))
    OnBox(box).have(settings.model)
    findings = phases.validate(box)
    ui.show(phases.finding_rows(findings))
    phases.refuse_failing(findings)
    phases.run(
        box, settings, ui.say, keep_alive=keep_alive, arguments=[*["--commercial"] * commercial, *chosen]
    )


@box_task(help={"prompts": _PROMPTS, "grace": _GRACE, **sampling.HELP})
def sync(
    box: Box,
    prompts: str = "",
    grace: str = "60s",
    temperature: str = "",
    top_k: str = "",
    guidance_scale: str = "",
    stride: str = "",
    codec_steps: str = "",
    codec_guidance: str = "",
) -> None:
    """Ship code and prompts.txt, restart the worker.

    Finished songs are kept; songs in progress resume from their checkpoints.
    Example: fab sync logs
    """
    from ops import durations
    from ops.ssh import phases

    settings = Settings.load()
    grace_s = int(durations.parse(grace, "--grace").total_seconds())
    chosen = sampling.SamplingFlags(
        temperature, top_k, guidance_scale, stride, codec_steps, codec_guidance
    ).flags(settings.model)
    release = phases.checked_release(settings, prompts)
    phases.sync(box, settings, release, ui.say, grace_s=grace_s, arguments=chosen)


@box_task(
    help={
        "run": "A run by its id, or the end of it (default: the newest)",
        "lines": "Start this many lines back (default: 20)",
        "since": "Start this long ago (30m), or at this time like 2026-11-22T19:50:59Z (default: --lines)",
        "once": "Print what there is now, and end",
    }
)
def logs(box: Box, run: str = "", lines: str = "", since: str = "", once: bool = False) -> None:
    """Follow the run's log; ends with its exit code.

    Continues across lost connections. Ctrl-C stops following; the run goes on.
    Example: fab logs --since 30m
    """
    from ops.ssh import run_log

    if code := run_log.show(box, Settings.load(), run_log.LogQuery(run, lines, since), once=once):
        raise Exit(code=code)


@box_task(
    help={"json": JSON, "extend": "Move the box's deadline by this much, like 2h (default: not at all)"}
)
def status(box: Box, json: bool = False, extend: str = "") -> None:
    """Show the run, its speed and cost, GPU, disk, deadline.

    Example: fab status --extend 2h
    """
    from ops.ssh import status

    if extend:
        ui.say(status.extend(box, extend))
    ui.show(status.rows(box, json=json), json=json)


@box_task(help={"grace": "How long the run may take to stop (default: 60s, a training 5m)"})
def stop(box: Box, grace: str = "") -> None:
    """Stop the run, gently, then firmly; the box stays on.

    Example: fab stop --grace 5m
    """
    from ops import durations
    from ops.ssh import session

    grace_s = int(durations.parse(grace, "--grace").total_seconds()) if grace else None
    stopped, needed = session.stop(box, grace_s)
    text = session.ended_by(needed, stopped.job)
    ui.say(f"run {stopped.run_id}: {text}" if stopped.run_id else text)


@box_task(help={"json": JSON, "watch": _WATCH})
def gpu(box: Box, json: bool = False, watch: bool = False) -> None:
    """Show what the GPUs do.

    Example: fab gpu --watch
    """
    from ops.ssh import look, terminal

    terminal.refresh(lambda: ui.show(look.gpus(box), json=json), watch)


@box_task(
    help={
        "json": JSON,
        "watch": _WATCH,
        "follow": "Follow the logs of the kernel and the watchdog, from the newest run's start, until Ctrl-C",
    }
)
def system(box: Box, json: bool = False, watch: bool = False, follow: bool = False) -> None:
    """Show CPU, memory, disk, network, processes.

    Example: fab system --watch
    """
    from ops.ssh import look, terminal

    def show() -> None:
        found = look.system(box)
        ui.show([found] if json else look.system_rows(found), json=json)
        if not json:
            ui.show(found.processes)

    if follow:
        terminal.follow(look.SystemLog(box).new)
    else:
        terminal.refresh(show, watch)


@box_task()
def shell(box: Box) -> None:
    """Open a shell on the box.

    Example: fab shell
    """
    from ops.ssh import terminal

    if code := terminal.shell(box):
        raise Exit(code=code)


@box_task(help={"to": "Folder to fetch into (default: out/fetched)", "json": JSON})
def fetch(box: Box, to: str = "out/fetched", json: bool = False) -> None:
    """Bring songs from the box itself, without a bucket.

    Only what is new, each song checked by size and checksum.
    Example: fab fetch --to album
    """
    from ops.ssh import box_store

    fetched = box_store.fetch(box, Settings.load(), to)
    ui.show(fetched.rows(), json=json)
    ui.say(fetched.closing_line(Path(to)))
    if fetched.wrong:
        raise Exit(code=1)


@box_task(help=MODELS)
def models(
    box: Box,
    get: str = "",
    verify: bool = False,
    remove: str = "",
    smoke: str = "",
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """List the models on the box; get, verify, remove, try.

    The box goes on with it when you stop following; the same command follows it again.
    Example: fab models --get heartmula-3b
    """
    from ops import model_files
    from ops.ssh.models import OnBox

    flags = model_files.ModelFlags(get, verify, remove, smoke, yes, dry_run, json)
    if code := model_files.act(OnBox(box), flags):
        raise Exit(code=code)


@box_task(
    help={
        "source": "Folder with a training's data (default: none; give it)",
        "delete": "Also delete what the box has and the folder has not, after a question",
        "yes": YES,
        "dry_run": DRY_RUN,
    },
)
def sync_data(box: Box, source: str, delete: bool = False, yes: bool = False, dry_run: bool = False) -> None:
    """Send a training's data to the box; goes on where it was cut.

    Only what differs, with rsync if both machines have it, each file compared by its checksum.
    Example: fab sync-data data --dry-run
    """
    from ops.ssh import sync_data
    from ops.ssh.sync_data import SyncFlags

    sync_data.sync(box, Path(source).expanduser(), SyncFlags(delete, yes, dry_run))


@box_task(
    help={
        "logs": "Folder with event files, on the box (default: the newest training's)",
        "port": "Port of this machine that the page is at (default: 6006)",
        "no_browser": "Only print the address",
    }
)
def tensorboard(box: Box, logs: str = "", port: int = 6006, no_browser: bool = False) -> None:
    """Show a training's curves in the browser, until Ctrl-C.

    Once the box is gone, those that were fetched.
    Example: fab tensorboard --port 6007
    """
    from ops.ssh import tensorboard

    tensorboard.show(box, logs, port, browse=not no_browser)


ns = Collection(
    deploy,
    install,
    validate,
    run,
    up,
    sync,
    logs,
    status,
    stop,
    gpu,
    system,
    shell,
    fetch,
    models,
    sync_data,
    tensorboard,
)
ns.configure(CONFIG)
refuse_task_as_box()
