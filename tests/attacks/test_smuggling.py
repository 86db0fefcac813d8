"""Request smuggling: no byte sequence makes us and the apiserver disagree on a boundary.

Each attack is sent with a second request behind it that must never be served as one of
its own. Refused means: a 4xx or 5xx answer of ours, the connection ended, and not one
byte at the apiserver.
"""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.relaying import relayed
from tests.fakes.upstream import RawConnection, echo_heads

LINE = b"POST /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n"
SMUGGLED = (
    b"GET /clusters/alpha/api/v1/secrets HTTP/1.1\r\nHost: h\r\n"
    b"Impersonate-User: system:admin\r\n\r\n"
)
CL_TE = [
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    b"Content_Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer_Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n",
    b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
]
TRANSFER_ENCODINGS = [
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding: chunked,",
    b"Transfer-Encoding: chunked;q=1",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: 'chunked'",
    b"Transfer-Encoding: chunk",
    b"Transfer-Encoding:",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked\x0b",
    b"Transfer-Encoding: \x00chunked",
    b"Transfer-Encoding: chunked\x00",
    b"Transfer-Encoding: \xffchunked",
    b"Transfer-Encoding: chunked\xa0",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding\t: chunked",
    b"Transfer-Encoding\x0b: chunked",
    b" Transfer-Encoding: chunked",
    b"\tTransfer-Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\r\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding:\n chunked",
    b"Transfer-Encoding: chunked\nX: y",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\ntransfer-encoding: identity",
    b"Transfer\xadEncoding: chunked",
    b"Transfer-Encoding\x00: chunked",
]
LENGTHS = [
    b"Content-Length: 1\r\nContent-Length: 1",
    b"Content-Length: 1\r\nContent-Length: 2",
    b"Content-Length: 1\r\ncontent-length: 0",
    b"Content-Length: 1, 1",
    b"Content-Length: 1,2",
    b"Content-Length: +1",
    b"Content-Length: -1",
    b"Content-Length: 0x1",
    b"Content-Length: 1 0",
    b"Content-Length: 1.0",
    b"Content-Length: 1e3",
    b"Content-Length: ",
    b"Content-Length: a",
    b"Content-Length: \xb2",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 18446744073709551617",
    b"Content-Length : 1",
    b"Content-Length\x00: 1",
    b"Content-Length: 1\x00",
    b"X: y\r\n\tContent-Length: 1",
    b"X: y\nContent-Length: 1",
    b"Connection: content-length\r\nContent-Length: 1",
    b"Connection: close, Content-Length\r\nContent-Length: 1",
    b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
    b"Connection: host",
]
HEADS = [
    b"GET /clusters/alpha/api\r\n\r\n",  # HTTP/0.9
    b"GET /clusters/alpha/api HTTP/0.9\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/2.0\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.2\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.10\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/01.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api http/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTPS/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1 \r\nHost: h\r\n\r\n",
    b"GET  /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET\t/clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/a b HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/a\x00b HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api#f HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET http://h/clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET https://h/clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"CONNECT /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"TRACE /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"FOO /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"get /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\n\r\n",  # no Host
    b"GET /clusters/alpha/api HTTP/1.0\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost:\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: a, b\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: u@h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h/p\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\nHost: h\n\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\rHost: h\r\r\n\r\n",
    b"\r\nGET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b" GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\n Host: h\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n: empty\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\nNo-Colon\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\nA(b): c\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\nA: b\x7f\r\n\r\n",
    b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\nA: b\x08\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
]
EXPECTATIONS = [b"Expect: x", b"Expect: 100-continue, x", b"Expect:", b"Expect: 200-ok"]
UPGRADES = [
    b"Connection: Upgrade\r\nUpgrade: h2c",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Connection: Upgrade\r\nUpgrade: TLS/1.0",
    b"Connection: Upgrade\r\nUpgrade: websocket, h2c",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
    b"Connection: Upgrade\r\nUpgrade: SPDY/3.0",
    b"Connection: Upgrade\r\nUpgrade:",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
]
CHUNKED = [
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"5\r\nhello\r0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"5\r\nhell\r\n0\r\n\r\n",
    b"5;ext=1\r\nhello\r\n0\r\n\r\n",
    b"5;\nhello\r\n0\r\n\r\n",
    b"\r\nhello\r\n0\r\n\r\n",
    b"g\r\nhello\r\n0\r\n\r\n",
    b"1_0\r\nhello world 1234\r\n0\r\n\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\n\n",
    b"5\r\nhello\r\n0\r\n\n",
    b"5\r\nhello\r\n0;x\r\n\r\n",
    b"5\r\nhello\r\n0\r\n X: folded\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\x00\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\nA: b\r\n\r\n",
]
TRAILERS = [
    b"Impersonate-User: x",
    b"impersonate-group: x",
    b"Impersonate_User: x",
    b"Authorization: Bearer x",
    b"X-Remote-User: x",
    b"X_Remote_Group: x",
    b"Content-Length: 5",
    b"Content_Length: 5",
    b"Transfer-Encoding: chunked",
    b"Host: other",
    b"Connection: close",
    b"Upgrade: websocket",
    b"Ok: fine\r\nImpersonate-Uid: 1",
    b"Sec-WebSocket-Protocol: x",
    b"Trailer: Authorization",
    b"Content-Type: text/html",
    b"Cookie: a=b",
]


async def assert_refused(attack: bytes, *, cut: int = 0, known: bytes = b"") -> None:
    """Whatever way it is cut in two: refused, ended, and nothing went upstream.

    With `known`, a harmless request with these fields goes before it, which are then
    known to the relay.
    """
    async with relayed(echo_heads) as bench:
        if known:
            bench.send(b"GET /clusters/alpha/known HTTP/1.1\r\n" + known + b"\r\n")
            assert b"GET /known " in await bench.answer()
            await bench.until(lambda: bench.pool.idle_connections == 1)
            before, served = len(bench.stream.output), len(bench.received)
            bench.send(attack[: cut or len(attack)])
            if cut:
                bench.send(attack[cut:])
            await bench.stream.until(lambda: bench.stream.is_over)
            assert bench.stream.output[before:][:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5")
            assert bench.stream.output.count(b'"kind":"Status"') == 1
            assert len(bench.received) == served
            return
        if cut:
            bench.send(attack[:cut])
            await asyncio.sleep(0)
        bench.send(attack[cut:])
        await bench.stream.until(lambda: bench.stream.is_over)
        answer = bench.stream.output
        assert answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.1 5"), answer
        assert answer.count(b'"kind":"Status"') == 1, "something behind was answered"
        assert b"Connection: close\r\n" in answer
        await asyncio.sleep(0)
        assert bench.pool.open_connections == 0 and not bench.received


@pytest.mark.parametrize("rest", CL_TE)
async def test_length_and_coding_together_are_refused(rest: bytes) -> None:
    await assert_refused(LINE + rest + SMUGGLED)


@pytest.mark.parametrize("field", TRANSFER_ENCODINGS)
async def test_every_spelling_of_the_coding_but_one_is_refused(field: bytes) -> None:
    await assert_refused(LINE + field + b"\r\n\r\n0\r\n\r\n" + SMUGGLED)


@pytest.mark.parametrize("field", LENGTHS)
async def test_every_length_but_one_decimal_number_is_refused(field: bytes) -> None:
    await assert_refused(LINE + field + b"\r\n\r\n" + SMUGGLED)


@pytest.mark.parametrize("head", HEADS)
async def test_every_head_that_is_not_plain_http_1_is_refused(head: bytes) -> None:
    await assert_refused(head + SMUGGLED)


@pytest.mark.parametrize("head", HEADS)
async def test_knowing_a_heads_fields_does_not_let_its_line_pass(head: bytes) -> None:
    for known in (b"Host: h\r\n", b"Host: h\r\nA: b\r\n"):
        await assert_refused(head + SMUGGLED, known=known)
        await assert_refused(head, known=known)


@pytest.mark.parametrize(
    "rest",
    CL_TE + [field + b"\r\n\r\n" for field in TRANSFER_ENCODINGS + LENGTHS + UPGRADES],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_knowing_the_last_fields_does_not_let_others_pass(
    rest: bytes, method: bytes
) -> None:
    """The attack's field stands before the known ones, or is all that is not known."""
    line = LINE.replace(b"POST", method).removesuffix(b"Host: h\r\n")
    field = rest.partition(b"\r\n\r\n")[0] + b"\r\n"
    known = b"Host: h\r\nA: b\r\n"
    await assert_refused(line + field + known + b"\r\n" + SMUGGLED, known=known)
    await assert_refused(line + known + field + b"\r\n" + SMUGGLED, known=known)


@pytest.mark.parametrize(
    "begun",
    [b"G", LINE + b"X: ", LINE, LINE + b"X: y\r\n"],
)
async def test_what_looks_like_a_head_is_none_behind_the_beginning_of_one(
    begun: bytes,
) -> None:
    whole = b"GET /clusters/alpha/api/v1/secrets HTTP/1.1\r\nHost: h\r\n\r\n"
    for known in (b"", b"Host: h\r\n"):
        await assert_refused(begun + whole, cut=len(begun), known=known)


@pytest.mark.parametrize("field", EXPECTATIONS)
async def test_every_other_expectation_is_refused(field: bytes) -> None:
    await assert_refused(LINE + field + b"\r\n\r\n" + SMUGGLED)


@pytest.mark.parametrize("fields", UPGRADES)
async def test_every_other_upgrade_is_refused(fields: bytes) -> None:
    await assert_refused(LINE + fields + b"\r\n\r\n" + SMUGGLED)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
async def test_refusals_do_not_depend_on_how_the_bytes_are_cut(
    data: st.DataObject,
) -> None:
    attack = data.draw(
        st.sampled_from(
            [LINE + rest for rest in CL_TE]
            + [LINE + field + b"\r\n\r\n0\r\n\r\n" for field in TRANSFER_ENCODINGS]
            + [LINE + field + b"\r\n\r\n" for field in LENGTHS + UPGRADES]
            + HEADS
        )
    )
    cut = data.draw(st.integers(0, len(attack) - 1))
    await assert_refused(attack + SMUGGLED, cut=cut)


@pytest.mark.parametrize("body", CHUNKED)
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_broken_chunk_never_gets_an_answer_or_a_successor(
    body: bytes, is_cut: bool
) -> None:
    """Cut, part of the body may be upstream already: then that request is aborted."""

    async def script(connection: RawConnection) -> None:
        await connection.read_to_end()

    head = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
    async with relayed(script) as bench:
        message = head + body + SMUGGLED
        if is_cut:
            for start in range(len(message)):
                bench.send(message[start : start + 1])
                if start == len(head):
                    await bench.until(
                        lambda: bool(bench.received) or bench.stream.is_over
                    )
        else:
            bench.send(message)
        await bench.stream.until(lambda: bench.stream.is_over)
        assert bench.stream.output.startswith(b"HTTP/1.1 400 ")
        assert bench.stream.output.count(b"HTTP/1.1 ") == 1
        for link in bench.upstream.connections:
            await asyncio.wait_for(link.ended.wait(), 5)
        assert b"0\r\n\r\n" not in bench.received, "the broken body was ended"
        assert b"secrets" not in bench.received


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("is_cut", [False, True])
async def test_trailers_carry_no_identity_and_no_framing(
    trailer: bytes, is_cut: bool
) -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_to_end()

    head = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
    async with relayed(script) as bench:
        message = head + b"2\r\nhi\r\n0\r\n" + trailer + b"\r\n\r\n" + SMUGGLED
        step = 1 if is_cut else len(message)
        for start in range(0, len(message), step):
            bench.send(message[start : start + step])
        await bench.stream.until(lambda: bench.stream.is_over)
        assert bench.stream.output.startswith(b"HTTP/1.1 400 ")
        await bench.until(lambda: bench.pool.open_connections == 0)
        assert trailer not in bench.received


async def test_trailers_have_a_limit() -> None:
    async with relayed(echo_heads) as bench:
        bench.send(LINE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        for _ in range(70):
            bench.send(b"X: " + b"y" * 1000 + b"\r\n")
        await bench.stream.until(lambda: bench.stream.is_over)
        assert b"HTTP/1.1 400 " in bench.stream.output


async def test_bytes_behind_a_refused_upgrade_never_ride_on_its_connection() -> None:
    """They would be served under our own credential, without any Impersonate-User."""
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        while True:
            head = await connection.read_head()
            await go_on.wait()
            await connection.respond(head)

    bare = b"GET /api/v1/secrets HTTP/1.1\r\nHost: h\r\n\r\n"
    async with relayed(script) as bench:
        bench.send(LINE + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + bare)
        await bench.until(lambda: bool(bench.received))
        await asyncio.sleep(0.05)
        assert b"secrets" not in bench.received
        go_on.set()
        await bench.answer()
        # What came behind is a request like any other: judged, and here refused.
        assert b"HTTP/1.1 404 " in await bench.answer()
        assert b"secrets" not in bench.received


ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 999 What\r\n\r\n",
    b"hello\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("is_cut", [False, True])
async def test_an_answer_that_can_be_read_in_two_ways_becomes_a_502(
    answer: bytes, is_cut: bool
) -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        if is_cut:
            await connection.send(answer[:7])
            await asyncio.sleep(0.002)
        await connection.send(answer[7 * is_cut :])
        await connection.read_to_end()

    async with relayed(script) as bench:
        bench.send(b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"HTTP/1.1 502 " in await bench.answer()
        await bench.until(lambda: bench.pool.open_connections == 0)


async def test_bytes_behind_an_answer_are_never_the_next_answer() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        )
        await connection.read_to_end()

    async with relayed(script) as bench:
        for count in (1, 2):
            bench.send(b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await bench.answer()).endswith(b"good")
            assert len(bench.upstream.connections) == count


async def test_bytes_that_come_unasked_end_an_idle_connection() -> None:
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        await connection.respond(await connection.read_head())
        if len(bench.upstream.connections) == 1:
            await go_on.wait()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await connection.respond(await connection.read_head())

    async with relayed(script) as bench:
        bench.send(b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n")
        await bench.answer()
        go_on.set()
        await bench.until(lambda: bench.pool.open_connections == 0)
        bench.send(b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"evil" not in await bench.answer()
