"""HTTP to an engine: every way an answer can be framed, cut off, or come on a connection that is used again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from llmops.serving.engine_http import HIGH_WATER_BYTES, Broken, Dropped, NotReached, Pool

COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nhello"
Serve = Callable[[asyncio.StreamWriter, int], Awaitable[None]]


class Counted:
    """A server's address, and how often it was connected to and asked."""

    def __init__(self) -> None:
        self.url, self.n_connections, self.asked = "", 0, list[bytes]()


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Counted]:
    """Answers each request by `serve(writer, number)`; closes when that closes the writer."""
    seen = Counted()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.n_connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                seen.asked.append(head + await reader.readexactly(length))
                await serve(writer, len(seen.asked))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    seen.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield seen
    finally:
        listening.close()


def saying(answer: bytes, close: bool = False, step: int = 0) -> Serve:
    """Write an answer, in steps of so many bytes."""

    async def serve(writer: asyncio.StreamWriter, _number: int) -> None:
        for at in range(0, len(answer), step or len(answer)):
            writer.write(answer[at : at + (step or len(answer))])
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return serve


async def asked(pool: Pool, url: str) -> bytes:
    async with await pool.post(url, "/v1/x", b"{}", {"traceparent": "00-1"}) as answer:
        assert answer.status == 200
        return await answer.read()


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(("answer", "n_connections"), [(COUNTED, 1), (CHUNKED, 1), (ENDLESS, 3)])
async def test_every_framing_gives_the_body_and_keeps_what_can_be_kept(
    answer: bytes, n_connections: int, step: int
) -> None:
    pool = Pool()
    async with server(saying(answer, close=answer == ENDLESS, step=step)) as seen:
        assert [await asked(pool, seen.url) for _ in range(3)] == [b"hello"] * 3
        assert seen.n_connections == n_connections
        assert seen.asked[0].startswith(b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"traceparent: 00-1\r\n" in seen.asked[0]
    pool.close()


@pytest.mark.parametrize("answer", [COUNTED[:-2], CHUNKED[:-9], b"HTTP/1.1 200 OK\r\nX"])
async def test_answer_that_is_cut_off_is_broken(answer: bytes) -> None:
    pool = Pool()
    async with server(saying(answer, close=True)) as seen:
        with pytest.raises(Broken):
            await asked(pool, seen.url)


async def test_answer_that_is_no_http_is_broken() -> None:
    pool = Pool()
    async with server(saying(b"SSH-2.0-OpenSSH\r\n\r\n")) as seen:
        with pytest.raises(Broken):
            await asked(pool, seen.url)


async def test_connection_that_ends_without_a_byte_is_told_apart() -> None:
    pool = Pool()
    async with server(saying(b"", close=True)) as seen:
        with pytest.raises(Dropped):
            await asked(pool, seen.url)
    with pytest.raises(NotReached):
        await asked(pool, "http://127.0.0.1:9")


async def test_connection_whose_answer_was_not_read_is_not_used_again() -> None:
    pool = Pool()
    async with server(saying(COUNTED[:-1])) as seen:
        for _ in range(2):
            async with await pool.post(seen.url, "/", b"", None) as answer:
                assert await answer.next() == b"hell"
        await asyncio.sleep(0.05)
        assert seen.n_connections == 2


async def test_reader_that_is_slow_stops_the_engine_from_sending() -> None:
    n_bytes, written = 64 * HIGH_WATER_BYTES, 0

    async def serve(writer: asyncio.StreamWriter, _number: int) -> None:
        nonlocal written
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {n_bytes}\r\n\r\n".encode())
        while written < n_bytes:
            writer.write(bytes(HIGH_WATER_BYTES))
            written += HIGH_WATER_BYTES
            await writer.drain()

    pool = Pool()
    async with server(serve) as seen, await pool.post(seen.url, "/", b"", None) as answer:
        await asyncio.sleep(0.2)
        assert written < n_bytes / 2  # what the system's own buffers hold
        assert sum([len(data) async for data in _pieces(answer)]) == n_bytes


async def _pieces(answer: object) -> AsyncIterator[bytes]:
    while data := await answer.next():  # type: ignore[attr-defined]
        yield data
