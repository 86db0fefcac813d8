"""Reading whatever answers a tunnel's upgrade, byte by byte. No network.

Covered: heads in pieces, interim answers, bodies (counted, chunked, endless, too long, never
finished), what is not HTTP, connections that end, frames behind a 101.
"""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.utils import accept_key

from tests.fakes.dialling import websocket_frame
from tests.fakes.virtual_time import in_virtual_time
from tower_agent.causes import UpgradeAnswer, parse_error
from tower_agent.upgrade import MAX_BODY_BYTES, Upgrade

SENTENCE = json.dumps({"error": "busy", "message": "Come back."}).encode()


class Wire:
    """The transport's write half."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def started(wire: Wire | None = None) -> Upgrade:
    upgrade = Upgrade("tower.example", 8443, "an.assertion")
    assert not upgrade.is_sent
    upgrade.connection_made(wire or Wire())  # type: ignore[arg-type]
    assert upgrade.is_sent
    return upgrade


def answer_to(*pieces: bytes, then_lost: bool = False) -> UpgradeAnswer:
    """What an upgrade makes of these bytes, at once."""

    async def scenario() -> UpgradeAnswer:
        upgrade = started()
        for piece in pieces:
            upgrade.data_received(piece)
        if then_lost:
            upgrade.connection_lost(None)
        assert upgrade.answered.done(), "it waits for more"
        assert not upgrade.succeeded
        return upgrade.answered.result()

    return asyncio.run(scenario())


def switched(upgrade: Upgrade, fields: str = "") -> bytes:
    fields = fields or "Sec-WebSocket-Protocol: tower.v1\r\n"
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(upgrade.websocket.key)}\r\n{fields}\r\n"
    ).encode()


async def test_the_request_carries_assertion_subprotocol_and_host() -> None:
    wire = Wire()
    started(wire)
    head = wire.written.decode()
    assert head.startswith("GET /tunnel HTTP/1.1\r\nHost: tower.example:8443\r\n")
    assert "\r\nAuthorization: Bearer an.assertion\r\n" in head
    assert "\r\nSec-WebSocket-Protocol: tower.v1\r\n" in head
    assert "Extensions" not in head, "compression would cost more than it saves"


async def test_a_101_for_us_succeeds_and_keeps_the_frames_behind_it() -> None:
    upgrade = started()
    frames = websocket_frame(2, b"first") + websocket_frame(2, b"second")
    stream = switched(upgrade) + frames
    for index in range(len(stream)):  # one byte at a time
        upgrade.data_received(stream[index : index + 1])
    assert upgrade.succeeded and upgrade.answered.result().status == 101
    first, second = upgrade.websocket.events_received()
    assert (first.data, second.data) == (b"first", b"second")


async def test_a_101_in_one_piece_with_frames_keeps_them_too() -> None:
    upgrade = started()
    upgrade.data_received(switched(upgrade) + websocket_frame(2, b"first"))
    upgrade.data_received(websocket_frame(2, b"second"))
    assert upgrade.succeeded
    assert [f.data for f in upgrade.websocket.events_received()] == [
        b"first",
        b"second",
    ]


async def test_a_101_without_our_subprotocol_does_not_succeed() -> None:
    upgrade = started()
    upgrade.data_received(switched(upgrade, "X: y\r\n") + websocket_frame(2, b"hi"))
    assert upgrade.answered.result().status == 101 and not upgrade.succeeded
    upgrade.data_received(websocket_frame(2, b"more"))


def test_a_refusal_is_read_with_its_fields_and_its_body() -> None:
    answer = answer_to(
        b"HTTP/1.1 503 Service Unavailable\r\nretry-AFTER:  7\r\nContent-Length: %d\r\n\r\n%b"
        % (len(SENTENCE), SENTENCE)
    )
    assert (answer.status, answer.header("Retry-After")) == (503, "7")
    error = parse_error(answer.body)
    assert error is not None and error.message == "Come back."


def test_a_refusal_may_come_in_any_pieces() -> None:
    whole = (
        b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (SENTENCE[:5], len(SENTENCE) - 5, SENTENCE[5:])
    )
    for size in (1, 2, 7, len(whole)):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        assert answer_to(*pieces).body == SENTENCE


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: https://portal/\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_answer_without_a_body_waits_for_none(answer: bytes) -> None:
    assert answer_to(answer).body == b""


def test_interim_answers_are_skipped() -> None:
    answer = answer_to(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 1",
        b"00 Continue\r\n\r\nHTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
    )
    assert answer.status == 401 and answer.header("Link") is None


def test_a_body_may_end_with_its_connection() -> None:
    head = b"HTTP/1.1 403 No\r\nConnection: close\r\n\r\n"
    assert answer_to(head, SENTENCE, then_lost=True).body == SENTENCE


def test_a_body_that_is_cut_short_is_a_refusal_all_the_same() -> None:
    head = b"HTTP/1.1 403 No\r\nContent-Length: 1000\r\n\r\n"
    assert answer_to(head + b"half", then_lost=True).status == 403
    chunked = b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha"
    assert answer_to(chunked, then_lost=True).body == b""


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 999999999", b"Connection: close", b"Transfer-Encoding: chunked"],
)
def test_no_more_of_a_body_is_read_than_a_sentence_needs(framing: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing
    chunk = b"1000\r\n" + bytes(0x1000) + b"\r\n"
    answer = answer_to(head, *[chunk] * 5)
    assert answer.status == 200 and len(answer.body) <= MAX_BODY_BYTES


@in_virtual_time
async def test_a_body_that_never_comes_is_waited_for_two_seconds() -> None:
    upgrade = started()
    upgrade.data_received(b"HTTP/1.1 403 No\r\nContent-Length: 10\r\n\r\nhalf")
    answer = await upgrade.answered
    assert asyncio.get_running_loop().time() == pytest.approx(2.0)
    assert (answer.status, answer.body) == (403, b"half")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        bytes(100_000),
    ],
)
def test_what_is_not_http_is_said_to_be_none(answer: bytes) -> None:
    async def scenario() -> None:
        upgrade = started()
        upgrade.data_received(answer)
        with pytest.raises(ValueError, match="its answer is not HTTP"):
            await upgrade.answered

    asyncio.run(scenario())


@pytest.mark.parametrize("seen", [b"", b"HTTP/1.1 200 OK\r\nX: "])
@pytest.mark.parametrize("error", [None, ConnectionResetError("by peer")])
async def test_a_connection_that_ends_before_the_answer_is_an_error(
    seen: bytes, error: Exception | None
) -> None:
    upgrade = started()
    if seen:
        upgrade.data_received(seen)
    upgrade.connection_lost(error)
    with pytest.raises(ConnectionError):
        await upgrade.answered


async def test_nobody_need_wait_for_the_answer() -> None:
    """A dial that was cancelled: nothing complains of an exception never retrieved."""
    upgrade = started()
    upgrade.answered.cancel()
    upgrade.data_received(b"HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n12")
    upgrade.data_received(b"345")
    upgrade.connection_lost(None)
    other = started()
    other.connection_lost(ConnectionResetError("by peer"))
    del other


@given(st.lists(st.binary(max_size=300), max_size=5), st.booleans())
def test_no_bytes_raise(pieces: list[bytes], starts_well: bool) -> None:
    async def scenario() -> None:
        upgrade = started()
        if starts_well:
            upgrade.data_received(b"HTTP/1.1 ")
        for piece in pieces:
            upgrade.data_received(piece)
        upgrade.connection_lost(None)
        assert upgrade.answered.done()

    asyncio.run(scenario())
