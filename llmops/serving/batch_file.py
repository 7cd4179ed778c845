"""OpenAI's batch format on disk: requests read and checked before anything is asked, rows of answers appended.

A row's `id` is taken from the digest of its request, so that a file of answers tells which requests it answers:
a run that was killed goes on from it, and answers to other requests are noticed. A last line that a kill cut
short is taken off.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from llmops.errors import BadRequest, CouldNotRun, DataError
from llmops.schema import JsonDict, digest_of

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
FIELDS = {"custom_id", "method", "url", "body"}
ID_DIGITS = 24


@dataclass(frozen=True)
class BatchRequest:
    """One line of the input: its number in the file, and what it asks."""

    line: int
    id: str
    custom_id: str
    path: str
    body: bytes


def read_requests(path: Path) -> Iterator[BatchRequest]:
    """The requests of a file, in order; empty lines are passed over.

    Raises:
        BadRequest: the file cannot be read.
        DataError: a line is no request, or repeats a custom_id; names file and line.
    """
    seen: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                request = _request(line, number, f"{path}:{number}")
                if (first := seen.setdefault(request.custom_id, number)) != number:
                    raise DataError(
                        f"{path}:{number}: custom_id {request.custom_id!r} stands in line {first}, too; "
                        "give each request its own"
                    )
                yield request
    except OSError as error:
        raise BadRequest(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _request(line: bytes, number: int, where: str) -> BatchRequest:
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error}); mend the line") from None
    if not isinstance(data, dict) or data.keys() != FIELDS:
        raise DataError(f"{where}: give exactly {', '.join(sorted(FIELDS))}")
    if not isinstance(data["custom_id"], str) or not data["custom_id"]:
        raise DataError(f"{where}: custom_id is {data['custom_id']!r}; give a text")
    if data["method"] != "POST" or data["url"] not in PATHS:
        raise DataError(
            f"{where}: {data['method']} {data['url']} is no batch request; POST to {', '.join(PATHS)}"
        )
    if not isinstance(data["body"], dict) or data["body"].get("stream"):
        raise DataError(f"{where}: body must be an object without `stream`; correct it")
    id_ = "batch_req_" + digest_of(data)[:ID_DIGITS]
    return BatchRequest(number, id_, data["custom_id"], data["url"], orjson.dumps(data["body"]))


class Answers:
    """The output file: which requests it answers, and the one place that appends to it."""

    def __init__(self, path: Path, descriptor: int, known: dict[str, tuple[str, bool]]) -> None:
        """Use `open_answers`."""
        self.path = path
        self._descriptor = descriptor
        self._known = known
        self.n_failed = sum(not good for _, good in known.values())

    def __len__(self) -> int:
        """Requests that have a row."""
        return len(self._known)

    def has(self, request: BatchRequest) -> bool:
        """Whether the request has a row.

        Raises:
            BadRequest: the row under its custom_id answers another request.
        """
        found = self._known.get(request.custom_id)
        if found is not None and found[0] != request.id:
            raise BadRequest(
                f"{self.path}: {request.custom_id!r} answers another request than line {request.line} asks; "
                "write to another file, or remove this one"
            )
        return found is not None

    def add(self, request: BatchRequest, response: JsonDict | None, error: JsonDict | None) -> None:
        """Append a request's row; a killed process leaves all rows or one cut short, which the next run removes.

        Raises:
            CouldNotRun: the disk does not take it.
        """
        row = {"id": request.id, "custom_id": request.custom_id, "response": response, "error": error}
        good = response is not None and response["status_code"] == 200
        data = orjson.dumps(row) + b"\n"
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as failed:
            raise CouldNotRun(f"{self.path}: {failed.strerror}; free space and run again") from None
        self._known[request.custom_id] = (request.id, good)
        self.n_failed += not good


@contextmanager
def open_answers(path: Path, retry_failed: bool) -> Iterator[Answers]:
    """The answers in `path`, which is made where it is missing, held by this process alone.

    Args:
        path: the output file.
        retry_failed: take rows without an answer of status 200 off first.

    Raises:
        BadRequest: the file holds something else.
        CouldNotRun: another process writes to it, or it cannot be written.
    """
    descriptor = _held(path)
    try:
        known = _known(path, descriptor)
        if retry_failed and not all(good for _, good in known.values()):
            known = {custom_id: row for custom_id, row in known.items() if row[1]}
            kept = _without_failed(path)
            os.close(descriptor)
            descriptor = kept
        yield Answers(path, descriptor, known)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _held(path: Path) -> int:
    """The file, made where it is missing and locked for this process."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise BadRequest(f"{path}: cannot be written ({error.strerror}); give another path") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise CouldNotRun(f"{path}: another `llmops batch` writes to it; let it end") from None
    return descriptor


def _known(path: Path, descriptor: int) -> dict[str, tuple[str, bool]]:
    """Rows by custom_id: their id, and whether they hold an answer of status 200; takes off a line cut short."""
    known: dict[str, tuple[str, bool]] = {}
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                row = orjson.loads(line)
                known[str(row["custom_id"])] = (str(row["id"]), _good(row))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadRequest(f"{path}:{number}: is no row of a batch; give another output file") from None
    os.ftruncate(descriptor, end)
    return known


def _good(row: JsonDict) -> bool:
    return (row["response"] or {}).get("status_code") == 200


def _without_failed(path: Path) -> int:
    """Put a file without the failed rows in the place of this one, all or nothing; returns it, locked."""
    scratch = path.with_name(path.name + ".new")
    with path.open("rb") as old, scratch.open("wb") as new:
        new.writelines(line for line in old if _good(orjson.loads(line)))
        new.flush()
        os.fsync(new.fileno())
    scratch.replace(path)
    return _held(path)
