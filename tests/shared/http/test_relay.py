"""The relay on a watched stream before a scripted apiserver, over plain loopback TCP.

Covered: keep-alive and order, bodies both ways, 100-continue, HEAD, trailers, slow
answers, backpressure both ways, upgrades, aborts, the caller's expiry, limits by time.
"""

import asyncio
from datetime import timedelta

import pytest

from shared.errors import Code, StreamReset
from shared.http.relay import Limits
from tests.fakes.relaying import CREDENTIAL, NOW, make_caller, relayed
from tests.fakes.upstream import RawConnection, echo_heads

GET = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n"
UPGRADE = (
    b"POST /clusters/alpha/exec HTTP/1.1\r\nHost: h\r\n"
    b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
)


async def test_a_request_goes_out_with_our_credential_and_the_callers_identity() -> (
    None
):
    async with relayed(echo_heads) as bench:
        bench.send(GET)
        head = (await bench.answer()).partition(b"\r\n\r\n")[2]
        assert head == (
            b"GET /api HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
            b"Impersonate-User: tower:admin\r\n"
            b"Impersonate-Group: tower:cluster-admins\r\n"
            b"Authorization: Bearer %b\r\n\r\n"
        ) % (bench.upstream.port, CREDENTIAL.encode())


async def test_requests_follow_each_other_on_one_connection() -> None:
    async with relayed(echo_heads) as bench:
        for number in range(5):
            bench.send(GET.replace(b"/api", b"/api/%d" % number))
            assert b"GET /api/%d " % number in await bench.answer()
        assert len(bench.upstream.connections) == 1
        assert bench.stream.taken_bytes == bench.sent_bytes


async def test_pipelined_requests_wait_uncredited_and_are_answered_in_order() -> None:
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        while True:
            head = await connection.read_head()
            await go_on.wait()
            await connection.respond(head)

    async with relayed(script) as bench:
        first, second = GET, GET.replace(b"/api", b"/second")
        bench.send(first + second[:-9])
        bench.send(second[-9:-1])
        bench.send(second[-1:])
        await bench.until(lambda: first.partition(b" ")[0] in bench.received)
        assert bench.stream.taken_bytes == len(first)
        go_on.set()
        assert b"GET /api " in await bench.answer()
        assert b"GET /second " in await bench.answer()
        assert bench.stream.taken_bytes == bench.sent_bytes


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 5\r\n\r\n", b"hello"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nh\r\n0\r\nX-Sum: 3\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_a_request_body_passes_verbatim_however_it_is_cut(
    framing: bytes, body: bytes, step: int
) -> None:
    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            assert await connection.read_exactly(len(body)) == body
            await connection.respond(b"done")

    async with relayed(script) as bench:
        for _ in range(2):
            message = POST + framing + body
            for start in range(0, len(message), step):
                bench.send(message[start : start + step])
            assert (await bench.answer()).endswith(b"done")
        assert len(bench.upstream.connections) == 1
        assert bench.stream.taken_bytes == bench.sent_bytes


async def test_expect_continue_is_answered_by_the_apiserver() -> None:
    async def script(connection: RawConnection) -> None:
        assert b"Expect: 100-continue\r\n" in await connection.read_head()
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await connection.read_exactly(3) == b"abc"
        await connection.respond(b"thanks")
        await connection.read_head()

    async with relayed(script) as bench:
        bench.send(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await bench.answer() == b"HTTP/1.1 100 Continue\r\n\r\n"
        bench.send(b"abc")
        assert (await bench.answer()).endswith(b"thanks")


async def test_a_final_answer_before_the_body_ends_both_connections() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await connection.read_to_end()

    async with relayed(script) as bench:
        bench.send(POST + b"Content-Length: 1000\r\n\r\nabc")
        answer = await bench.answer()
        assert b"Connection: close\r\n" in answer and b" 413 " in answer
        await bench.stream.until(lambda: bench.stream.has_eof)
        await bench.until(lambda: bench.pool.open_connections == 0)
        bench.send(b"d" * 997)  # it is not stalled, so it can read the answer
        assert bench.stream.taken_bytes == bench.sent_bytes


async def test_head_has_no_body_whatever_its_length_says() -> None:
    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")

    async with relayed(script) as bench:
        for _ in range(2):
            bench.send(GET.replace(b"GET", b"HEAD"))
            await bench.text(b"Content-Length: 99\r\n\r\n")
        assert len(bench.upstream.connections) == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_answers_without_a_body_leave_the_connection_usable(
    status: bytes,
) -> None:
    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            await connection.send(b"HTTP/1.1 %b\r\nX: y\r\n\r\n" % status)

    async with relayed(script) as bench:
        for _ in range(2):
            bench.send(GET)
            assert b"X: y\r\n" in await bench.answer()
        assert len(bench.upstream.connections) == 1


async def test_chunks_and_trailers_of_an_answer_pass_verbatim() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        b"5\r\nhello\r\n0\r\nX-Sum: 5d41\r\n\r\n"
    )

    async def script(connection: RawConnection) -> None:
        while True:
            await connection.read_head()
            for start in range(len(answer)):
                await connection.send(answer[start : start + 1])

    async with relayed(script) as bench:
        for _ in range(2):
            bench.send(GET)
            assert await bench.text(b"5d41\r\n\r\n") == answer
        assert len(bench.upstream.connections) == 1


async def test_a_watch_event_passes_before_the_next_is_there() -> None:
    events: asyncio.Queue[bytes] = asyncio.Queue()

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            event = await events.get()
            await connection.send(b"%x\r\n%b\r\n" % (len(event), event))

    async with relayed(script) as bench:
        bench.send(GET)
        for number in range(3):
            events.put_nowait(b'{"n":%d}\n' % number)
            await bench.text(b'{"n":%d}\n' % number)


async def test_an_answer_that_ends_with_its_connection_ends_ours() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nall of it")

    async with relayed(script) as bench:
        bench.send(GET)
        await bench.stream.until(lambda: bench.stream.has_eof)
        assert bench.unread == (
            b"HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nall of it"
        )


async def test_an_answer_that_breaks_off_resets_the_stream() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")

    async with relayed(script) as bench:
        bench.send(GET)
        await bench.stream.until(lambda: bench.stream.reset_with is not None)
        assert bench.stream.reset_with is not None
        assert bench.stream.reset_with[0] is Code.UNREACHABLE
        assert bench.unread.endswith(b"half")


async def test_fields_of_the_apiservers_hop_stay_behind_and_its_close_is_kept() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.respond(
            b"ok", b"Connection: close, X-Hop\r\nX-Hop: 1\r\nA: b\r\n"
        )

    async with relayed(script) as bench:
        for count in (1, 2):
            bench.send(GET)
            answer = await bench.answer()
            assert b"X-Hop" not in answer and b"Connection" not in answer
            assert b"A: b\r\n" in answer
            assert len(bench.upstream.connections) == count


async def test_a_redirect_of_the_apiserver_stays_below_the_prefix() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(
            b"HTTP/1.1 301 Moved\r\nLocation: /base/api/v1/\r\nContent-Length: 0\r\n\r\n"
        )
        await connection.read_head()

    async with relayed(script, base_path=b"/base") as bench:
        bench.send(GET)
        assert b"\r\nLocation: /clusters/alpha/api/v1/\r\n" in await bench.answer()


async def test_a_slow_client_stops_the_reading_of_the_answer() -> None:
    total = 64 * 1024 * 1024
    sent = 0

    async def script(connection: RawConnection) -> None:
        nonlocal sent
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            await connection.send(b"x" * 65536)
            sent += 65536
        await connection.read_head()

    async with relayed(script) as bench:
        bench.relay.pause_writing()
        bench.send(GET)
        await bench.until(lambda: sent > 0)
        previous = -1
        while previous != sent:  # until the kernel's buffers are full
            previous = sent
            await asyncio.sleep(0.1)
        assert sent < total // 2
        assert not bench.stream.written
        bench.relay.resume_writing()
        await bench.until(lambda: sum(map(len, bench.stream.written)) > total)


async def test_an_apiserver_that_reads_nothing_stops_the_clients_credit() -> None:
    go_on = asyncio.Event()
    total = 32 * 1024 * 1024

    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await go_on.wait()
        await connection.read_exactly(total)
        await connection.respond(b"done")

    async with relayed(script) as bench:
        bench.send(POST + b"Content-Length: %d\r\n\r\n" % total)
        head_bytes = bench.sent_bytes
        sent = 0
        while sent < total:  # as a client would: only into the window
            if bench.sent_bytes - bench.stream.taken_bytes >= 256 * 1024:
                if go_on.is_set():
                    await bench.stream.until(
                        lambda: bench.sent_bytes - bench.stream.taken_bytes < 256 * 1024
                    )
                else:
                    await asyncio.sleep(0.1)
                    assert bench.stream.taken_bytes < total // 2
                    go_on.set()
                continue
            bench.send(b"x" * 65536)
            sent += 65536
            await asyncio.sleep(0)
        assert go_on.is_set(), "the apiserver took all without reading"
        assert (await bench.answer()).endswith(b"done")
        assert bench.stream.taken_bytes == head_bytes + total


async def test_an_upgrade_becomes_raw_bytes_in_both_directions() -> None:
    async def script(connection: RawConnection) -> None:
        head = await connection.read_head()
        assert b"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n" in head
        await asyncio.sleep(0.05)
        assert not connection.reader._buffer, "bytes came before the 101"  # type: ignore[attr-defined]
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: SPDY/3.1\r\n\r\nfirst"
        )
        while data := await connection.read():
            await connection.send(data.upper())
        await connection.send(b"the end")

    async with relayed(script) as bench:
        bench.send(UPGRADE + b"early\x00")
        assert bench.stream.taken_bytes == len(UPGRADE)
        assert b"Upgrade: SPDY/3.1\r\n" in await bench.text(b"\r\n\r\n")
        await bench.text(b"EARLY\x00")
        bench.send(b"GET / HTTP/1.1\r\n\r\n")
        await bench.text(b"GET / HTTP/1.1\r\n\r\n")
        bench.relay.eof_received()
        await bench.text(b"the end")
        await bench.stream.until(lambda: bench.stream.has_eof)
        assert bench.stream.taken_bytes == bench.sent_bytes
        assert bench.pool.idle_connections == 0


async def test_answers_are_counted_by_status_and_by_who_gave_them() -> None:
    async def script(connection: RawConnection) -> None:
        for answer in (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        ):
            await connection.read_head()
            await connection.send(answer)

    async with relayed(script) as bench:
        bench.send(GET)
        await bench.text(b"200 OK\r\nContent-Length: 0\r\n\r\n")
        bench.send(GET)
        assert b" 404 " in await bench.answer()
        bench.send(GET.replace(b"/alpha/", b"/beta/"))
        assert b" 404 " in await bench.answer()
        answers = bench.service.answers
        assert answers.by_apiserver == {200: 1, 404: 1}
        assert answers.by_agent == {404: 1}


async def test_an_upgrade_counts_as_answered() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: SPDY/3.1\r\n\r\nfirst"
        )
        await connection.read_to_end()

    async with relayed(script) as bench:
        bench.send(UPGRADE)
        await bench.text(b"first")
        assert bench.service.answers.by_apiserver == {101: 1}


async def test_a_refused_upgrade_is_answered_and_its_connection_never_used_again() -> (
    None
):
    async with relayed(echo_heads) as bench:
        bench.send(UPGRADE)
        assert b"POST /exec " in await bench.answer()
        bench.send(GET)
        assert b"GET /api " in await bench.answer()
        assert len(bench.upstream.connections) == 2


async def test_a_client_that_leaves_aborts_the_apiservers_work() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert await connection.read() == b""

    for leave in ("eof", "reset"):
        async with relayed(script) as bench:
            bench.send(GET)
            await bench.text(b"\r\n\r\n")
            if leave == "eof":
                bench.relay.eof_received()
            else:
                bench.relay.stream_closed(StreamReset(Code.CANCELLED, "gone"))
            await asyncio.wait_for(bench.upstream.connections[0].ended.wait(), 5)


async def test_a_stale_connection_is_replaced_once_and_unseen() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.respond(await connection.read_head())
        if connection is bench.upstream.connections[0]:
            await connection.read_head()  # takes the second request to its grave
            return
        await connection.read_head()

    async with relayed(script) as bench:
        bench.send(GET)
        await bench.answer()
        bench.send(GET)
        assert b"GET /api" in await bench.answer()
        assert len(bench.upstream.connections) == 2


async def test_a_post_is_not_repeated() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.respond(await connection.read_head())
        await connection.read_head()

    async with relayed(script) as bench:
        bench.send(GET)
        await bench.answer()
        bench.send(POST + b"Content-Length: 0\r\n\r\n")
        answer = await bench.answer()
        assert b"HTTP/1.1 502 " in answer and b'"kind":"Status"' in answer
        assert len(bench.upstream.connections) == 1


async def test_an_unreachable_apiserver_is_a_502_that_says_so() -> None:
    async with relayed(echo_heads) as bench:
        await bench.upstream.__aexit__()
        for _ in range(2):  # and the client's connection goes on
            bench.send(GET)
            answer = await bench.answer()
            assert b"HTTP/1.1 502 " in answer
            assert b"connection refused" in answer
        assert not bench.stream.has_eof


async def test_a_401_for_our_own_credential_is_a_502() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await connection.read_head()

    async with relayed(script) as bench:
        bench.send(GET)
        answer = await bench.answer()
        assert b"HTTP/1.1 502 " in answer and b"own credential" in answer
        assert CREDENTIAL.encode() not in answer
        bench.send(GET.replace(b"/api", b"/api/v1/namespaces/d/services/s/proxy/login"))
        assert b" 401 " in await bench.answer()


async def test_an_expired_certificate_is_refused_at_the_next_request() -> None:
    time = [NOW]
    caller = make_caller(not_after=NOW + timedelta(seconds=60))
    async with relayed(echo_heads, caller=caller, now=lambda: time[0]) as bench:
        bench.send(GET)
        await bench.answer()
        time[0] += timedelta(seconds=60)
        bench.send(GET)
        answer = await bench.answer()
        assert b"HTTP/1.1 401 " in answer and b"expired" in answer
        assert bench.stream.has_eof


async def test_open_requests_end_when_the_certificate_does() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.read_head()
        await connection.read()

    time = [NOW]
    caller = make_caller(not_after=NOW + timedelta(seconds=0.05))
    async with relayed(script, caller=caller, now=lambda: time[0]) as bench:
        bench.send(GET)
        await bench.until(lambda: bool(bench.received))
        time[0] += timedelta(seconds=1)
        await bench.stream.until(lambda: bench.stream.reset_with is not None)
        assert bench.stream.reset_with is not None
        assert bench.stream.reset_with[0] is Code.REVOKED
        await asyncio.wait_for(bench.upstream.connections[0].ended.wait(), 5)


async def test_a_revoked_serial_ends_its_connections_and_no_others() -> None:
    async with relayed(echo_heads) as bench:
        assert bench.service.end_serials(frozenset({8}), "revoked") == 0
        assert bench.stream.reset_with is None
        assert bench.service.end_serials(frozenset({7, 8}), "revoked") == 1
        assert bench.stream.reset_with == (Code.REVOKED, "revoked")


async def test_a_head_has_its_time_and_not_more_for_coming_slowly() -> None:
    limits = Limits(head_seconds=0.2, idle_seconds=60, linger_seconds=0.1)
    async with relayed(echo_heads, limits=limits) as bench:
        bench.send(b"GET /clusters/alpha/api HTTP/1.1\r\n")
        for number in range(100):
            if bench.stream.has_eof:
                break
            bench.send(b"X-%d: y\r\n" % number)
            await asyncio.sleep(0.02)
        assert b"HTTP/1.1 408 " in bench.unread
        assert number < 50
        await bench.stream.until(lambda: bench.stream.reset_with is not None)


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    go_on = asyncio.Event()

    async def script(connection: RawConnection) -> None:
        head = await connection.read_head()
        await go_on.wait()
        await connection.respond(head)
        await connection.read_head()

    limits = Limits(head_seconds=60, idle_seconds=0.05, linger_seconds=60)
    async with relayed(script, limits=limits) as bench:
        bench.send(GET)
        await asyncio.sleep(0.15)
        assert not bench.stream.is_over
        go_on.set()
        await bench.answer()
        await bench.stream.until(lambda: bench.stream.has_eof)
        assert bench.unread == b""


async def test_http_1_0_gets_its_answer_and_the_connection_ends() -> None:
    async with relayed(echo_heads) as bench:
        bench.send(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert b"GET /api HTTP/1.0\r\n" in await bench.answer()
        assert bench.stream.has_eof


async def test_connection_close_of_the_client_is_kept() -> None:
    async with relayed(echo_heads) as bench:
        bench.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answer = await bench.answer()
        assert b"Connection: close\r\n" in answer.partition(b"\r\n\r\n")[0] + b"\r\n"
        assert bench.stream.has_eof
