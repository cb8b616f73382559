"""The regions of the account, and one question asked in each of them at once.

Machines are found by tag in every region, never by local state. A region that does not answer is
reported by name: no answer does not mean no machine.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

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
        """A line for each region that did not answer."""
        return [f"could not look in {region}: {error}" for region, error in self.failed.items()]


def enabled(aws: Aws) -> list[str]:
    """The regions that this account can use, the configured one first."""
    listed = aws.ask("ec2", "describe_regions")["Regions"]
    names = sorted(region["RegionName"] for region in listed)
    return sorted(names, key=lambda name: name != aws.region)


def chosen(aws: Aws, text: str, default: Sequence[str]) -> list[str]:
    """Regions from `us-east-1,eu-west-1` or `all`; the default if empty. Raises BadInput."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        return list(default)
    known = enabled(aws)
    if names == ["all"]:
        return known
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"no region {', '.join(unknown)} in this account; it has {', '.join(known)}")
    return names


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
