"""Tasks on this machine and on AWS: generate, check, fetch, rent, end. `inv --list` shows every task."""

from pathlib import Path

from invoke import Collection, Context, Exit
from invoke.main import program

from ops import mistyped, pod_tasks, sampling, ui
from ops.flags import COMMERCIAL, DRY_RUN, JSON, MODELS, YES, task
from ops.settings import Settings
from worker.errors import BadInput, UserError

mistyped.explain(program, "inv")
ui.quiet_libraries()

_PROMPTS = "Job list (default: MUSICGEN_PROMPTS, else prompts.txt)"
_OUTPUT = "Folder or s3://bucket/prefix (default: from .env, else out/songs)"
_MODEL = "Hugging Face id, model folder, `heartmula`, or `rehearsal` (default: MUSICGEN_MODEL)"
_ONLY = "Only this song (repeat for more; default: every song)"


@task(help={"model": "`rehearsal`, or `heartmula-rehearsal`, of the models that sing (default: rehearsal)"})
@ui.one_line_errors
def demo(c: Context, model: str = "rehearsal") -> None:
    """Rehearse prompts.txt into out/demo: noise, no GPU.

    A tiny model with random weights stands in for MusicGen, or for HeartMuLa. No cloud, no download.
    Example: inv demo --model heartmula-rehearsal
    """
    from ops import demo  # here and below: `inv --list` stays under 1 s

    if code := demo.run(model, Settings.load().hourly_cost_usd):
        raise Exit(code=code)


@task(
    help={
        "prompts": _PROMPTS,
        "output": _OUTPUT,
        "model": _MODEL,
        "only": _ONLY,
        "commercial": COMMERCIAL,
        "json": "Print rows as JSON",
    },
    iterable=["only"],
)
@ui.one_line_errors
def check(
    c: Context,
    prompts: str = "",
    output: str = "",
    model: str = "",
    only: list[str] | None = None,
    commercial: bool = False,
    json: bool = False,
) -> None:
    """Check prompts and settings, and show the plan.

    Example: inv check --prompts prompts.txt --output s3://my-bucket/album
    """
    from ops import models, plan

    settings = Settings.load()
    settings.check()
    settings.export_aws()
    output = output or settings.output_place
    model = model or settings.model
    models.refuse_other_use(model, commercial or settings.is_commercial)
    songs = plan.plan_songs(Path(prompts or settings.prompts), output, model, only or ())
    ui.show(songs, json=json)
    ui.say(plan.closing_line(songs, output))
    for line in plan.what_it_takes(songs, model, output, settings):
        ui.say(line)
    for line in plan.advice(Path(prompts or settings.prompts), model, only or ()):
        ui.warn(line)


@task(
    help={
        "prompts": _PROMPTS,
        "output": _OUTPUT,
        "model": _MODEL,
        "hourly_cost": "USD per hour of this machine (default: HOURLY_COST_USD, else 0)",
        "only": _ONLY,
        "start_over": "Begin songs again that were begun with other settings",
        "commercial": COMMERCIAL,
        "verify": "Compare every finished song with its record's checksum first",
        **sampling.HELP,
    },
    iterable=["only"],
)
@ui.one_line_errors
def generate(
    c: Context,
    prompts: str = "",
    output: str = "",
    model: str = "",
    hourly_cost: str = "",
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
    """Make the songs of a prompts file on this machine.

    Finished songs are skipped; run it again after any interruption.
    Example: inv generate --model facebook/musicgen-small --only dance_test
    """
    flags = ["--start-over"] * start_over + ["--verify"] * verify + ["--commercial"] * commercial
    chosen = sampling.SamplingFlags(temperature, top_k, guidance_scale, stride, codec_steps, codec_guidance)
    _run_worker(prompts, output, model, only, chosen, flags, hourly_cost)


@task(
    help={"prompts": _PROMPTS, "output": _OUTPUT, "model": _MODEL, "only": _ONLY, **sampling.HELP},
    iterable=["only"],
)
@ui.one_line_errors
def decode(
    c: Context,
    prompts: str = "",
    output: str = "",
    model: str = "",
    only: list[str] | None = None,
    temperature: str = "",
    top_k: str = "",
    guidance_scale: str = "",
    stride: str = "",
    codec_steps: str = "",
    codec_guidance: str = "",
) -> None:
    """Make lost WAVs again from their tokens.

    Generates nothing; takes seconds a song. A damaged WAV has to be moved away first.
    Example: inv decode --output out/songs --only dance_test
    """
    chosen = sampling.SamplingFlags(temperature, top_k, guidance_scale, stride, codec_steps, codec_guidance)
    _run_worker(prompts, output, model, only, chosen, ["--from-tokens"])


@task(help=MODELS)
@ui.one_line_errors
def models(
    c: Context,
    get: str = "",
    verify: bool = False,
    remove: str = "",
    smoke: str = "",
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """List the models here; get, verify, remove, try.

    Example: inv models --get facebook/musicgen-small
    """
    from ops import model_files

    flags = model_files.ModelFlags(get, verify, remove, smoke, yes, dry_run, json)
    if code := model_files.act(model_files.Here(), flags):
        raise Exit(code=code)


def _run_worker(
    prompts: str,
    output: str,
    model: str,
    only: list[str] | None,
    chosen: sampling.SamplingFlags,
    flags: list[str],
    hourly_cost: str = "",
) -> None:
    """Run the worker here, with what is set where a text is empty; ends with its exit code."""
    from ops import generate, models

    settings = Settings.load()
    model = model or settings.model
    models.refuse_other_use(model, "--commercial" in flags or settings.is_commercial)
    basis = "--hourly-cost" if hourly_cost else "HOURLY_COST_USD"
    usd = hourly_cost or settings.hourly_cost_usd
    code = generate.run_worker(
        prompts=prompts or settings.prompts,
        output=output or settings.output_place,
        model=model,
        hourly_cost=None if usd is None else generate.HourlyCost(usd, basis),
        only=only or (),
        flags=flags + chosen.flags(model),
    )
    if code:
        raise Exit(code=code)


@task(
    help={
        "source": "Folder or s3://bucket/prefix to fetch from (default: from .env)",
        "to": "Folder to fetch into (default: out/fetched)",
        "json": "Print rows as JSON",
    }
)
@ui.one_line_errors
def fetch(c: Context, source: str = "", to: str = "out/fetched", json: bool = False) -> None:
    """Bring finished songs and reports to a folder.

    Only new ones; each song is checked by size and checksum.
    Example: inv fetch --source s3://my-bucket/album --to album
    """
    from ops import fetch

    settings = Settings.load()
    settings.export_aws()
    fetched = fetch.fetch(source or settings.output_place, Path(to), ui.say)
    ui.show(fetched.rows(), json=json)
    ui.say(fetched.closing_line(Path(to)))
    if fetched.wrong:
        raise Exit(code=1)


_TYPES = "EC2 instance types, separated by commas (default: MUSICGEN_INSTANCE_TYPES)"
_REGION = "Regions, separated by commas, or `all`"


@task(
    name="spot-price",
    help={
        "instance_types": _TYPES,
        "region": f"{_REGION} (default: AWS_DEFAULT_REGION)",
        "history": "Summary of the prices of a duration like 7d, at most 90d (default: prices now)",
        "json": JSON,
    },
)
@ui.one_line_errors
def spot_price(
    c: Context, instance_types: str = "", region: str = "", history: str = "", json: bool = False
) -> None:
    """Show spot prices, the cheapest first.

    Example: inv spot-price --instance-types g4dn.xlarge,g5.xlarge --region all
    """
    from ops import durations
    from ops.aws import cli

    span = durations.parse(history, "--history") if history else None
    cli.show_prices(Settings.load(), instance_types, region, span, json=json)


@task(
    help={
        "prompts": _PROMPTS,
        "only": _ONLY,
        "instance_types": _TYPES,
        "max_price": "Maximum price in USD per hour (default: MUSICGEN_MAX_PRICE)",
        "lifetime": "Duration like 8h after which the machine ends (default: MUSICGEN_LIFETIME_H)",
        "on_demand": "Rent at the on-demand price instead of spot",
        "keep_alive": "Keep the machine on after the batch, until its deadline",
        "another": "Launch although there is a machine already",
        "commercial": COMMERCIAL,
        **sampling.HELP,
        "dry_run": "Check everything, ask EC2 whether it would do it, and stop",
        "yes": YES,
        "json": "Print the new machine as JSON",
    },
    iterable=["only"],
)
@ui.one_line_errors
def launch(
    c: Context,
    prompts: str = "",
    only: list[str] | None = None,
    instance_types: str = "",
    max_price: str = "",
    lifetime: str = "",
    on_demand: bool = False,
    keep_alive: bool = False,
    another: bool = False,
    commercial: bool = False,
    temperature: str = "",
    top_k: str = "",
    guidance_scale: str = "",
    stride: str = "",
    codec_steps: str = "",
    codec_guidance: str = "",
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Rent a spot machine that makes the songs.

    Example: inv launch --dry-run
    """
    from ops import durations, money
    from ops.aws import cli
    from ops.aws.launch.prepare import LaunchOptions

    options = LaunchOptions(
        prompts=prompts,
        only=tuple(only or ()),
        types=instance_types,
        max_price_usd=money.amount_usd(max_price, "--max-price"),
        lifetime=durations.parse(lifetime, "--lifetime") if lifetime else None,
        on_demand=on_demand,
        keep_alive=keep_alive,
        another=another,
        commercial=commercial,
        sampling=sampling.SamplingFlags(
            temperature, top_k, guidance_scale, stride, codec_steps, codec_guidance
        ),
    )
    cli.launch_machine(Settings.load(spends=True), options, dry_run=dry_run, yes=yes, json=json)


@task(help={"region": f"{_REGION} (default: all)", "json": JSON})
@ui.one_line_errors
def status(c: Context, region: str = "", json: bool = False) -> None:
    """Show this project's machines and costs.

    Also what they left behind. Exit code 1 when one is past its deadline, or a cloud does not answer.
    Example: inv status
    """
    from ops import fleet

    if not fleet.show_status(Settings.load(), region, json=json):
        raise Exit(code=1)


@task(
    help={
        "run": "RUN_ID (default: the newest; without a log, its machine's console)",
        "console": "Id of a machine whose console is printed (default: none, the log)",
        "lines": "Only this many of the last lines (default: all)",
    }
)
@ui.one_line_errors
def logs(c: Context, run: str = "", console: str = "", lines: int = 0) -> None:
    """Print a run's log, also of a terminated machine.

    Example: inv logs --lines 50
    """
    from ops import fleet

    fleet.show_logs(Settings.load(), run, console, lines)


@task(
    name="kill-all",
    aliases=["terminate-all"],
    help={
        "region": f"{_REGION} (default: all)",
        "dry_run": "Show what would be ended, and stop",
        "yes": YES,
        "json": JSON,
    },
)
@ui.one_line_errors
def kill_all(
    c: Context, region: str = "", dry_run: bool = False, yes: bool = False, json: bool = False
) -> None:
    """End this project's machines and leftovers.

    Lists them again until nothing is left; exit code 1 if something stays.
    Example: inv kill-all --dry-run
    """
    from ops import fleet

    if not fleet.kill_all(Settings.load(), region, dry_run=dry_run, yes=yes, json=json):
        raise Exit(code=1)


@task(
    help={
        "ssh_from": "IP address or network for SSH, or `none` (default: from .env, else yours)",
        "remove": "Remove what setup created; a bucket with content stays",
        "yes": YES,
        "dry_run": DRY_RUN,
        "json": JSON,
    }
)
@ui.one_line_errors
def setup(
    c: Context,
    ssh_from: str = "",
    remove: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Prepare the AWS account, or show what differs.

    Bucket, roles, key pair, security group, budget alert; then .env. Again: changes only what differs.
    Example: inv setup --dry-run
    """
    from ops.aws import cli

    if remove:
        cli.remove_setup(Settings.load(), yes=yes, dry_run=dry_run, json=json)
    else:
        cli.set_up(Settings.load(spends=True), ssh_from, yes=yes, dry_run=dry_run, json=json)


@task(
    help={
        "list": "Show this project's images",
        "bases": "Show the images of AWS that one can be built on",
        "remove": "Remove this image with its snapshots (repeat for more; `old`: all but the newest)",
        "yes": YES,
        "dry_run": "Show the plan, check permissions and stop",
        "json": JSON,
    },
    iterable=["remove"],
)
@ui.one_line_errors
def image(
    c: Context,
    list: bool = False,
    bases: bool = False,
    remove: list[str] | None = None,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Build the machine image; list or remove them.

    Rents an on-demand machine for some 20 minutes, and always ends it.
    Example: inv image --dry-run
    """
    from ops.aws import cli

    if list or bases:
        cli.show_images(Settings.load(), bases=bases, json=json)
    elif remove:
        cli.remove_images(Settings.load(), remove, yes=yes, dry_run=dry_run, json=json)
    else:
        cli.build_image(Settings.load(spends=True), yes=yes, dry_run=dry_run, json=json)


@task(help={"args": "More arguments for pytest, as one string (default: none)"})
@ui.one_line_errors
def test(c: Context, args: str = "") -> None:
    """Run the tests.

    Example: inv test --args "-k jobs -x"
    """
    import shlex

    from ops import checks

    if code := checks.test(shlex.split(args)):
        raise Exit(code=code)


@task
@ui.one_line_errors
def lint(c: Context) -> None:
    """Run linters, types, import contracts, shellcheck.

    Example: inv lint
    """
    from ops import checks

    if failed := checks.lint():
        raise UserError(f"failed: {', '.join(failed)}; see above")


@task(
    help={
        "gpu": "Measure the GPU of this machine instead, in under ten minutes",
        "pretend": "With --gpu: rehearse it on the CPU with a tiny model; the figures are not kept",
        "args": "More arguments for `python -m bench` (or `bench.gpu`), as one string, like "
        "'--family heartmula' (default: none)",
    }
)
@ui.one_line_errors
def bench(c: Context, gpu: bool = False, pretend: bool = False, args: str = "") -> None:
    """Measure the engine against transformers, half an hour.

    Example: inv bench --gpu --args "--size medium"
    """
    import shlex

    from ops import checks

    if pretend and not gpu:
        raise BadInput("--pretend is for --gpu; add --gpu, or leave it out")
    if code := checks.bench([*["--pretend"] * pretend, *shlex.split(args)], gpu=gpu):
        raise Exit(code=code)


ns = Collection(
    *(bench, check, decode, demo, fetch, generate, image, kill_all, launch, lint, logs, models, setup),
    *(spot_price, status, test),
    pod_tasks.ns,
)
