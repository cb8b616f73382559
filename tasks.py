"""Local work: rehearse, check, generate and fetch songs. `inv --list` shows every task."""

from pathlib import Path

from invoke import Context, Exit, task

from ops import ui
from ops.settings import Settings

_PROMPTS = "Job list (default: MUSICGEN_PROMPTS, else prompts.txt)"
_OUTPUT = "Folder or s3://bucket/prefix (default: from .env, else out/songs)"
_MODEL = "Hugging Face id, model folder, or `rehearsal` (default: MUSICGEN_MODEL)"
_ONLY = "Only this song (repeat for more)"


@task
@ui.one_line_errors
def demo(c: Context) -> None:
    """Rehearse prompts.txt into out/demo: noise, no GPU.

    A tiny model with random weights stands in for MusicGen. No cloud, no download.
    Example: inv demo
    """
    from ops import generate  # here and below: `inv --list` stays under 1 s

    hourly = Settings.load().hourly_cost_usd
    code = generate.run_worker(
        prompts=str(generate.ROOT / "prompts.txt"),
        output=str(generate.ROOT / "out" / "demo"),
        model="rehearsal",
        hourly_cost=0.40 if hourly is None else hourly,
        price_basis="an example, no machine was rented" if hourly is None else "HOURLY_COST_USD",
    )
    if code:
        raise Exit(code=code)
    ui.say(generate.AFTER_DEMO)


@task(
    help={
        "prompts": _PROMPTS,
        "output": _OUTPUT,
        "model": _MODEL,
        "only": _ONLY,
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
    json: bool = False,
) -> None:
    """Check prompts and settings, and show the plan.

    Example: inv check --prompts prompts.txt --output s3://my-bucket/album
    """
    from ops import plan

    settings = Settings.load()
    settings.check()
    settings.export_aws()
    place = output or settings.output_place
    songs = plan.plan(Path(prompts or settings.prompts), place, model or settings.model, only or ())
    ui.show(songs, json=json)
    ui.say(plan.closing_line(songs, place))


@task(
    help={
        "prompts": _PROMPTS,
        "output": _OUTPUT,
        "model": _MODEL,
        "hourly_cost": "USD per hour of this machine (default: HOURLY_COST_USD, else 0)",
        "only": _ONLY,
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
) -> None:
    """Make the songs of a prompts file on this machine.

    What is done already is skipped; run it again after any interruption.
    Example: inv generate --model facebook/musicgen-small --only dance_test
    """
    from ops import generate

    settings = Settings.load()
    code = generate.run_worker(
        prompts=prompts or settings.prompts,
        output=output or settings.output_place,
        model=model or settings.model,
        hourly_cost=hourly_cost or settings.hourly_cost_usd,
        price_basis="--hourly-cost" if hourly_cost else "HOURLY_COST_USD",
        only=only or (),
    )
    if code:
        raise Exit(code=code)


@task(
    help={
        "source": "Folder or s3://bucket/prefix to fetch from (default: from .env)",
        "to": "Folder to fetch into",
        "json": "Print rows as JSON",
    }
)
@ui.one_line_errors
def fetch(c: Context, source: str = "", to: str = "out/fetched", json: bool = False) -> None:
    """Bring finished songs and reports to a folder.

    Only what is new, each song checked by size and checksum.
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


@task(help={"args": "More arguments for pytest, as one string"})
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
        raise Exit(f"error: failed: {', '.join(failed)}; see above", code=1)


@task(help={"args": "More arguments for `python -m bench`, as one string"})
@ui.one_line_errors
def bench(c: Context, args: str = "") -> None:
    """Measure the engine against transformers, half an hour.

    Example: inv bench --args "--only songs --repetitions 3"
    """
    import shlex

    from ops import checks

    if code := checks.bench(shlex.split(args)):
        raise Exit(code=code)
