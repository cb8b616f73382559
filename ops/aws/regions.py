"""The regions of the account, and one question asked in each of them at once.

Machines are found by tag in every region, never by local state. A region that does not answer is
reported by name: no answer does not mean no machine.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from ops.aws.errors import Closed
from ops.aws.session import Aws
from worker.errors import BadInput, UserError

T = TypeVar("T")
_AT_ONCE = 12


@dataclass(frozen=True)
class ByRegion(Generic[T]):
    """Answers by region, and why the others gave none."""

    answers: dict[str, T]
    failed: dict[str, UserError]

    def problems(self) -> list[str]:
        """A line for each region that did not answer and is not closed."""
        return [
            f"could not look in {region}: {error}"
            for region, error in self.failed.items()
            if not isinstance(error, Closed)
        ]

    def notes(self) -> list[str]:
        """One line for all regions that a policy closes: this project cannot have rented there."""
        closed = [region for region, error in self.failed.items() if isinstance(error, Closed)]
        if not closed:
            return []
        return [
            f"a policy closes {', '.join(closed)}, so nothing was looked for there; "
            f"to leave them out, set MUSICGEN_SKIP_REGIONS={','.join(closed)}"
        ]


def enabled(aws: Aws) -> list[str]:
    """The regions that this account can use, but MUSICGEN_SKIP_REGIONS; the configured one first."""
    listed = aws.ask("ec2", "describe_regions")["Regions"]
    return _ordered(aws, [region["RegionName"] for region in listed])


def enabled_or_known(aws: Aws, tell: Callable[[str], None]) -> list[str]:
    """`enabled`, or what boto3 knows of their partition, with a warning, if these credentials get no list."""
    try:
        return enabled(aws)
    except BadInput:  # wrong credentials or settings
        raise
    except UserError as error:
        tell(f"warning: could not list the regions: {error}; asking every region that these tools know")
        here = aws.partition_of(aws.region)
        return _ordered(aws, [name for name in aws.known_regions() if aws.partition_of(name) == here])


def _ordered(aws: Aws, names: Sequence[str]) -> list[str]:
    skipped = _split(aws.settings.skip_regions or "")
    kept = sorted(name for name in names if name not in skipped)
    if not kept:
        raise BadInput("MUSICGEN_SKIP_REGIONS leaves out every region; correct it")
    return sorted(kept, key=lambda name: name != aws.region)


def chosen(aws: Aws, text: str, tell: Callable[[str], None]) -> list[str]:
    """Regions from `us-east-1,eu-west-1` or `all`; none if empty. Raises BadInput for an unknown one."""
    names = list(dict.fromkeys(_split(text)))
    if names == ["all"]:
        return enabled_or_known(aws, tell)
    if unknown := set(names) - set(aws.known_regions()):  # too new for boto3, or a mistake
        here = enabled_or_known(aws, tell)
        if unknown := unknown - set(here):
            wrong = ", ".join(sorted(unknown))
            raise BadInput(f"no region {wrong} in this account; it has {', '.join(here)}")
    return names


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def ask_each(regions: Sequence[str], ask: Callable[[str], T]) -> ByRegion[T]:
    """`ask(region)` for every region, several at once. UserErrors are kept, not raised.

    Raises the last error if every region failed.
    """
    answers: dict[str, T] = {}
    failed: dict[str, UserError] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = {region: pool.submit(ask, region) for region in regions}
        for region, answer in asked.items():
            try:
                answers[region] = answer.result()
            except UserError as error:
                failed[region] = error
    if failed and not answers:
        raise next(iter(failed.values()))
    return ByRegion(answers, failed)
