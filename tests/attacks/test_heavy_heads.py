"""Heads that want to cost us memory or time: endless, many-fielded, slow, or built for regexes."""

import time

import pytest

from shared.http.heads import MAX_FIELDS, MAX_HEAD_BYTES, parse_request_head
from shared.http.status import Refusal
from tests.fakes.relaying import relayed
from tests.fakes.upstream import echo_heads

LINE = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize("step", [997, 16384, 10**9])
@pytest.mark.parametrize("unit", [b"x", b"X: y\r\n", b"\r", b" "])
async def test_an_endless_head_is_refused_at_its_limit(unit: bytes, step: int) -> None:
    attack = (LINE + unit * (2 * MAX_HEAD_BYTES // len(unit)))[: 2 * MAX_HEAD_BYTES]
    async with relayed(echo_heads) as bench:
        for start in range(0, len(attack), step):
            bench.send(attack[start : start + step])
            if bench.stream.is_over:
                break
        assert bench.sent_bytes <= MAX_HEAD_BYTES + step or step == 10**9
        assert bench.stream.output.startswith(b"HTTP/1.1 431 ")
        assert bench.stream.taken_bytes == bench.sent_bytes


async def test_a_head_just_below_the_limit_is_served() -> None:
    fill = MAX_HEAD_BYTES - len(LINE) - len(b"X: \r\n\r\n")
    async with relayed(echo_heads) as bench:
        bench.send(LINE + b"X: " + b"y" * fill + b"\r\n\r\n")
        assert (await bench.answer()).startswith(b"HTTP/1.1 200 ")


def test_too_many_fields_are_refused() -> None:
    with pytest.raises(Refusal) as caught:
        parse_request_head(LINE + b"X: y\r\n" * MAX_FIELDS + b"\r\n")
    assert caught.value.code == 431


@pytest.mark.parametrize(
    "filling",
    [
        b"a" * 65000,
        b" " * 65000,
        b"\t" * 65000,
        b"a" * 32000 + b" " * 32000,
        b"X: " + b" " * 64000 + b"\x00",
        b"a:" * 32000,
        b"a \t" * 21000,
        b"\r" * 65000,
        b"\r\n " * 20000,
        b"X: y\r\n" * 10000 + b"\x00",
        b"Connection: " + b"a," * 30000,
        b"Sec-WebSocket-Protocol: " + b" ,\t" * 20000,
    ],
)
def test_no_head_makes_the_grammar_slow(filling: bytes) -> None:
    for attack in (filling, LINE + filling):
        start = time.process_time()
        try:
            parse_request_head(attack + b"\r\n\r\n")
        except Refusal:
            pass
        # Linear is some milliseconds; what backtracks over 64 KiB takes many seconds.
        assert time.process_time() - start < 0.5
