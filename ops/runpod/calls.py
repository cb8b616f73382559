"""One call to RunPod's API with a typed answer: a list with its pages, one object, an end, a lost answer.

Knows paths and names of fields only as it is given them (ops/runpod/api.py has them).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from ops import interrupts
from ops.audit import AuditLog
from ops.runpod import errors
from ops.runpod.errors import ApiError
from ops.runpod.http import Http
from worker.errors import BadInput

# A list lags behind: so long a pod may be there and not be listed.
LIST_LAG_S = 60.0
_MOST_PAGES = 100

T = TypeVar("T")
Tell = Callable[[str], None]


class Calls:
    """What every request of one account shares. Not safe to share between threads."""

    def __init__(self, http: Http, audit: AuditLog, tell: Tell) -> None:
        self.http, self._audit, self._tell = http, audit, tell

    def listed(
        self,
        path: str,
        into: str,
        what: str,
        of: Callable[[Mapping[str, Any]], T],
        query: Mapping[str, str] | None = None,
    ) -> list[T]:
        """Every item under `into` of every page; an answer without pages is the only one."""
        found: list[T] = []
        asked, query = set[str](), dict(query or {})
        for _ in range(_MOST_PAGES):
            answer = self.http.json("GET", path, what, query=query)
            found += _read(lambda page: [of(each) for each in page[into]], answer, what)
            pagination = answer.get("pagination") or {}
            cursor = pagination.get("nextCursor")
            if pagination.get("hasNextPage") and not cursor:
                raise errors.broken("no cursor of the next page", what)
            if not cursor or cursor in asked:
                return found
            asked.add(cursor)
            query["cursor"] = str(cursor)
        raise errors.broken("its pages have no end", what)

    def one(
        self,
        method: str,
        path: str,
        what: str,
        of: Callable[[Mapping[str, Any]], T],
        body: Mapping[str, Any] | None = None,
        *,
        again: bool = True,
    ) -> T:
        """What the answer describes. `again`: as for Http.json. Raises ApiError if it lacks a part."""
        answer = self.http.json(method, path, what, body=body, again=again)
        return _read(of, answer, what)

    def delete(self, action: str, path: str, item_id: str, what: str) -> None:
        """Delete something that costs money, with its lines in the audit log; what is not there is gone."""
        with self._audit.action(action, {"id": item_id}, ends=True) as done:
            try:
                self.http.json("DELETE", path, what)
            except ApiError as error:
                if error.status != 404:
                    raise
                done({"there": False})

    def made(self, name: str, look: Callable[[], list[T]], error: ApiError) -> T:
        """What a request made whose answer was lost: the first that a look finds. Raises ApiError."""
        tell = interrupts.quietly(self._tell)
        tell(f"{error}")
        tell(f"looking for {name}, which may have been created all the same ...")
        unseen: ApiError | None = error
        for _ in self.http.clock.looks(LIST_LAG_S):
            try:
                found = look()
            except ApiError as failed:
                unseen = failed
                continue
            unseen = None
            if found:
                return found[0]
        if unseen is None:
            text = f"RunPod failed ({error.detail}) and lists no {name}, so it was not created; try again"
            raise ApiError(text, error.status, error.detail)
        raise ApiError(
            f"it is not known whether {name} was created ({unseen.detail}), and it would cost money; "
            "look in RunPod's console",
            unseen.status,
            unseen.detail,
            may_have_acted=True,
        )


def at(kind: str, item_id: str) -> str:
    """The path of one pod or volume. Raises BadInput without an id: it would be that of all of them."""
    if not item_id:
        raise BadInput(f"there is no id of one of the {kind}; give one")
    return f"/v2/{kind}/{quote(item_id, safe='')}"


def _read(of: Callable[[Any], T], answer: Any, what: str) -> T:
    """What an answer says. Raises ApiError if it lacks a part."""
    try:
        return of(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        lacking = f"no {error}" if isinstance(error, KeyError) else "not as documented"
        raise errors.broken(lacking, what) from None
