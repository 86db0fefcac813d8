"""The raw protocol's first 16 bytes, which two languages must agree on."""

import pytest

from bench.pyload import preamble


def test_a_request_preamble_is_these_bytes() -> None:
    data = preamble.encode(preamble.REQUEST, 1024, 8192)
    assert data.hex() == "52545742000004000000000000002000"
    assert preamble.decode(data) == (b"R", 1024, 8192)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        preamble.encode(b"X"),
        preamble.encode(preamble.REQUEST, 7, 8192),
        preamble.encode(preamble.REQUEST, 1024, 1 << 40),
    ],
)
def test_a_stray_client_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        preamble.decode(data)
