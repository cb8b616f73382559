"""What the hub says: the commit of a branch, the files of a commit, a file's bytes from any position on.

Honours HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH and HF_HUB_OFFLINE as huggingface_hub does, whose downloads begin
anew after a kill and take wrong bytes for right ones. Files come over plain HTTPS. What a user can do
something about is one line, without the token and without signed addresses.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

import urllib3

from worker.amounts import duration
from worker.errors import BadInput, UserError
from worker.models import places
from worker.models.http import Http, Passing, Patience, blocks
from worker.models.manifest import COMMIT, File

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0)
# Without any answer so far there is probably no network.
_FIRST_PAUSES_S = (0.5, 1.0)
_TRUE = ("1", "ON", "YES", "TRUE")
_LONGEST_ANSWER_BYTES = 50_000_000


class Away(UserError):
    """The hub cannot be reached, or HF_HUB_OFFLINE is set."""


class NoCommit(UserError):
    """The hub has no such branch, or no longer such a commit."""


class Stopped(Exception):
    """Another thread has failed, or the user has stopped it."""


class Body(NamedTuple):
    """The bytes of a file from `start` on. `etag`: "" if it has none that can be relied on."""

    start: int
    etag: str
    blocks: Iterator[bytes]


class Hub:
    """The hub that an environment leads to. `stop`: ends waiting. Safe to share between threads.

    `wait`: instead of sleeping for so many seconds.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        *,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.stop = Event()
        self._is_offline = is_offline(env)
        self._token = token(env)
        self._http = Http(env.get("HF_ENDPOINT") or "https://huggingface.co", self._token)
        self._sleep = wait or self.stop.wait
        self._answered = False

    def patience(self) -> Patience:
        """For one file, or one question."""

        def pauses_s(fault: Passing) -> tuple[float, ...]:
            return _PAUSES_S if self._answered or fault.answered else _FIRST_PAUSES_S

        return Patience(pauses_s, self._wait)

    def commit(self, repo: str, revision: str) -> str:
        """The commit that a branch or tag is at. Raises NoCommit, Away, and BadInput if there is none."""
        answer, _ = self._asked(f"api/models/{repo}/revision/{quote(revision, safe='')}", repo)
        sha = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
            raise UserError(f"the hub names no commit for {repo}; check HF_ENDPOINT")
        return sha

    def files(self, repo: str, commit: str) -> dict[str, File]:
        """The files in the repository's own folder, without those below it."""
        found: dict[str, File] = {}
        place: str | None = f"api/models/{repo}/tree/{commit}"
        while place:
            answer, place = self._asked(place, repo)
            try:
                found |= {entry["path"]: _file(entry) for entry in answer if entry["type"] == "file"}
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"the hub's list of files of {repo} cannot be read; check HF_ENDPOINT"
                ) from None
        return found

    @contextmanager
    def body(self, repo: str, commit: str, name: str, start: int = 0, etag: str = "") -> Iterator[Body]:
        """The file's bytes from `start` on, or from 0 if the hub does not resume. Raises Passing."""
        self.check_online()
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and etag:
            headers["If-Range"] = etag  # another content is sent whole
        url = f"{self._http.endpoint}/{repo}/resolve/{commit}/{quote(name)}"
        with self._http.get(url, headers) as answer:
            self._answered = True
            if answer.status not in (200, 206):
                if answer.status == 416:  # there is no such position: the file is another one
                    raise Passing("it has no such part of the file")
                raise self._refusal(answer, repo)
            strong = answer.headers.get("ETag", "")
            yield Body(
                _start(answer) if answer.status == 206 else 0,
                strong if strong.startswith('"') else "",
                self._unless_stopped(blocks(answer)),
            )

    def _asked(self, place: str, repo: str) -> tuple[Any, str | None]:
        """A question's JSON answer, and the address of what follows it."""
        self.check_online()
        url = urljoin(f"{self._http.endpoint}/", place)
        patience = self.patience()
        while True:
            try:
                with self._http.get(url) as answer:
                    self._answered = True
                    if answer.status != 200:
                        raise self._refusal(answer, repo)
                    content = b""
                    for block in self._unless_stopped(blocks(answer)):
                        content += block
                        if len(content) > _LONGEST_ANSWER_BYTES:
                            raise UserError(f"the hub's answer on {repo} has no end; check HF_ENDPOINT")
                    return json.loads(content), _next(answer)
            except ValueError:
                raise UserError(f"the hub's answer on {repo} is not JSON; check HF_ENDPOINT") from None
            except Passing as fault:
                try:
                    patience.after(fault)
                except Passing:
                    raise self.given_up(fault, repo) from None

    def given_up(self, fault: Passing, what: str) -> UserError:
        """The error of a fault that did not pass. `what`: was to be fetched."""
        if not self._answered and not fault.answered:
            return Away(fault.what)
        if fault.pause_s:
            hint = "" if self._token else ", or set HF_TOKEN, which is allowed more"
            return UserError(
                f"cannot fetch {what}: the hub asks to wait {duration(fault.pause_s)}; "
                f"run it again then{hint}"
            )
        return UserError(f"cannot fetch {what} from the hub ({fault.what}); run it again to resume")

    def _refusal(self, answer: urllib3.BaseHTTPResponse, repo: str) -> UserError:
        status, code = answer.status, answer.headers.get("X-Error-Code", "")
        page = f"{self._http.endpoint}/{repo}"
        if code == "GatedRepo" or status == 403:
            having = "set HF_TOKEN to a token of that account"
            if self._token:
                having = "use a token of that account as HF_TOKEN, one that may read gated repositories"
            return BadInput(
                f"model {repo} needs a licence accepted; accept it on its page {page}, and {having}"
            )
        if code == "RevisionNotFound":
            return NoCommit(f"the hub has no such revision of {repo}; look at {page}")
        if status == 401 and code != "RepoNotFound" and self._token:
            return BadInput("the hub does not accept HF_TOKEN; set a valid token, or remove it")
        if code == "EntryNotFound":
            return UserError(f"a file of {repo} is gone from the hub; look at {page}")
        if status in (401, 404):
            return BadInput(f"no model {repo} on the hub; check the name, or HF_TOKEN if it is private")
        return UserError(f"the hub refuses {repo} (status {status}); look at {page}")

    def check_online(self) -> None:
        """Raises Away if the user wants no request."""
        if self._is_offline:
            raise Away("HF_HUB_OFFLINE is set")

    def _wait(self, seconds: float) -> None:
        self._sleep(seconds)
        if self.stop.is_set():
            raise Stopped

    def _unless_stopped(self, body: Iterator[bytes]) -> Iterator[bytes]:
        for block in body:
            if self.stop.is_set():
                raise Stopped
            yield block


def is_offline(env: Mapping[str, str]) -> bool:
    """True if the user wants no request to the hub."""
    return (env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE") or "").upper() in _TRUE


def token(env: Mapping[str, str]) -> str | None:
    """The user's token: from the environment, else from the file that `hf auth login` writes."""
    found = env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not found and env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() not in _TRUE:
        named = env.get("HF_TOKEN_PATH")
        with suppress(OSError, UnicodeDecodeError):
            file = places.expanded(named) if named else places.hub_home(env) / "token"
            found = file.read_text("utf-8")
    found = found.strip()
    if not (found.isascii() and found.isprintable() and " " not in found):
        raise BadInput("HF_TOKEN has characters that no token has; copy it again")
    return found or None


def _file(entry: Mapping[str, Any]) -> File:
    if large := entry.get("lfs"):
        return File(int(large["size"]), "sha256", str(large["oid"]).removeprefix("sha256:"))
    return File(int(entry["size"]), "git_sha1", str(entry["oid"]))


def _start(answer: urllib3.BaseHTTPResponse) -> int:
    """Where a 206 begins: `Content-Range: bytes 100-199/200`."""
    words = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")
    if not words[0].isdigit():
        raise Passing("it does not say which part it sends")
    return int(words[0])


def _next(answer: urllib3.BaseHTTPResponse) -> str | None:
    """The address in `Link: <...>; rel="next"`."""
    for link in answer.headers.get("Link", "").split(","):
        address, _, relation = link.partition(";")
        if 'rel="next"' in relation:
            return address.strip().strip("<>")
    return None
