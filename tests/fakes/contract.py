"""An API's OpenAPI 3.1 document as a judge: are a request and an answer what it describes?

An overlay changes the document: a list of `{"at": JSON pointer, "value": ..., "source": ...}`, one for each
field that only a later document has. Unknown paths, query parameters and fields are violations, in some
answers also where the document would allow them. Headers are not judged.
"""

import functools
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """A path of the document and one of its methods. `ids`: what the path's parameters are in the request."""

    path: str
    method: str
    ids: tuple[str, ...]
    described: Mapping[str, Any]
    parameters: Sequence[Mapping[str, Any]]


class Contract:
    """A document with its overlay. `closed`: schemas in which a field that is not named is wrong."""

    def __init__(self, document: Path, overlay: Path, closed: Sequence[str] = ()) -> None:
        self.document: dict[str, Any] = json.loads(document.read_text("utf-8"))
        for entry in json.loads(overlay.read_text("utf-8")):
            if not entry["source"]:
                raise ValueError(f"{entry['at']} has no source")
            self._set(entry["at"], entry["value"])
        for name in closed:
            self.document["components"]["schemas"][name]["unevaluatedProperties"] = False
        resource = Resource(contents=self.document, specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource("urn:api", resource)

    def _set(self, pointer: str, value: Any) -> None:
        *above, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        node: Any = self.document
        for part in above:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                node = node.setdefault(part, []) if part == "parameters" else node[part]
        if last == "-":
            node.append(value)
        else:
            node[last] = value

    def operation(self, method: str, path: str) -> Operation | None:
        """What the document says of a request; None if it does not know it."""
        for pattern, item in self.document["paths"].items():
            found = re.fullmatch(re.sub(r"\{[^}]+\}", "([^/]+)", pattern), path)
            if found and method.lower() in item and method.lower() in _METHODS:
                described = item[method.lower()]
                parameters = [*item.get("parameters", []), *described.get("parameters", [])]
                ids = tuple(urllib.parse.unquote(each) for each in found.groups())
                return Operation(
                    pattern, method.lower(), ids, described, [self._whole(each) for each in parameters]
                )
        return None

    def of_request(self, operation: Operation, query: str, content_type: str, body: bytes) -> list[str]:
        """What is wrong with a request, in words; empty if it is as described."""
        return [*self._of_query(operation, query), *self._of_body(operation, content_type, body)]

    def _of_query(self, operation: Operation, query: str) -> list[str]:
        known = {each["name"]: each for each in operation.parameters if each["in"] == "query"}
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        wrong = [f"query: unknown parameter {name}" for name in given if name not in known]
        needed = {name for name, each in known.items() if each.get("required")}
        wrong += [f"query: {name} is missing" for name in needed - given.keys()]
        for name, text in given.items():
            if name in known:
                schema = self._whole(known[name]["schema"])
                wrong += [f"query {name}: {line}" for line in self._errors(schema, _typed(schema, text))]
        return wrong

    def _of_body(self, operation: Operation, content_type: str, body: bytes) -> list[str]:
        expected = self._whole(operation.described.get("requestBody", {}))
        if not expected:
            return ["body: there must be none"] if body else []
        if not body:
            return ["body: missing"] if expected.get("required") else []
        media = expected["content"].get(content_type.partition(";")[0].strip())
        if media is None:
            return [f"body: content type {content_type!r}"]
        try:
            value = json.loads(body)
        except ValueError:
            return ["body: not JSON"]
        return self._errors(media["schema"], value)

    def of_answer(self, operation: Operation, status: int, value: Any) -> list[str]:
        """What is wrong with an answer; `value` is None for no body."""
        responses = operation.described["responses"]
        described = self._whole(responses.get(str(status)) or responses["default"])
        content = [media["schema"] for media in described.get("content", {}).values()]
        if not content:
            return [] if value is None else [f"{status}: there must be no body"]
        return self._errors(content[0], value)

    def _whole(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        while "$ref" in node:
            found: Any = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            node = found
        return node

    def _errors(self, schema: Any, value: Any) -> list[str]:
        errors = self._validator(json.dumps(schema)).iter_errors(value)
        return [f"{error.json_path}: {error.message}"[:300] for error in errors]

    @functools.cache  # noqa: B019 (one document lives as long as the process)
    def _validator(self, schema: str) -> Draft202012Validator:
        # A reference counts from the document, not from the part of it that is asked for.
        rooted = json.loads(schema.replace('"#/', '"urn:api#/'))
        formats = Draft202012Validator.FORMAT_CHECKER
        return Draft202012Validator(rooted, registry=self._registry, format_checker=formats)


def _typed(schema: Mapping[str, Any], text: str) -> Any:
    if schema.get("type") == "array":
        return text.split(",")
    if schema.get("type") in ("integer", "number", "boolean"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
