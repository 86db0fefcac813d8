"""HELLO: round trip, fields that later versions add, and every wrong shape.

Covered: defaults of missing fields, unknown fields, limits, text for logs, random bytes.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PeerProtocolError
from shared.wire.hello import (
    MAX_HELLO_BYTES,
    SUBPROTOCOL,
    VERSIONS,
    Hello,
    parse_hello,
    read_hello,
    subprotocol,
)
from tests.fakes.frame_factory import StreamFrames, frame, hello_frame

ID = "0123456789abcdef0123456789abcdef"
GOOD = {"session_id": ID, "window_bytes": 262144}


def encoded(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


@given(
    st.integers(0, 2**128 - 1),
    st.integers(1, 2**32 - 1),
    st.text(st.characters(categories=["L", "N"]), max_size=128),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)
def test_hello_comes_back_as_it_was(
    session: int, window: int, software: str, resume: bool, received: int, seconds: int
) -> None:
    hello = Hello(
        session_id=f"{session:032x}",
        window_bytes=window,
        software=software,
        resume=resume,
        received=received,
        resume_seconds=seconds,
        place=software,
        instance=software[:16],
    )
    assert parse_hello(hello.encode()) == hello


def test_missing_optional_fields_have_defaults_and_unknown_ones_are_skipped() -> None:
    hello = parse_hello(encoded(streams=12, later={"a": [1]}))
    assert hello == Hello(
        session_id=ID,
        window_bytes=262144,
        software="",
        resume=False,
        takes_returns=False,
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{",
        b"[" * 4000,
        b'{"window_bytes":' + b"9" * 4000 + b"}",
        encoded(pad="x" * MAX_HELLO_BYTES),
        json.dumps({"session_id": ID}).encode(),
        json.dumps({"window_bytes": 1}).encode(),
        encoded(session_id="0" * 31),
        encoded(session_id="0" * 33),
        encoded(session_id="G" * 32),
        encoded(session_id=ID.upper()),
        encoded(session_id=5),
        encoded(window_bytes=0),
        encoded(window_bytes=-1),
        encoded(window_bytes=2**32),
        encoded(window_bytes=1.5),
        encoded(window_bytes=True),
        encoded(window_bytes="1"),
        encoded(software=1),
        encoded(resume=1),
        encoded(resume=None),
        encoded(received=-1),
        encoded(received=2**64),
        encoded(received=True),
        encoded(received="1"),
        encoded(resume_seconds=-1),
        encoded(resume_seconds=2**32),
        encoded(resume_seconds=1.5),
        encoded(place=7),
        encoded(place=None),
        encoded(instance=7),
        encoded(takes_returns=1),
    ],
)
def test_a_hello_of_the_wrong_shape_is_the_peers_fault(payload: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        parse_hello(payload)


def test_hello_stands_alone_in_its_message() -> None:
    assert read_hello(hello_frame()).session_id == ID
    assert read_hello(frame(64, 0, b"hint") + hello_frame()).session_id == ID
    for message in (
        b"",
        frame(64, 0),
        hello_frame() + hello_frame(),
        hello_frame() + StreamFrames(2).open(),
        StreamFrames(2).open() + hello_frame(),
        frame(0, 2, hello_frame()[9:]),
        frame(6, 0, bytes(8)),
    ):
        with pytest.raises(PeerProtocolError):
            read_hello(message)


def test_place_and_instance_are_clipped_and_safe_to_print() -> None:
    assert parse_hello(encoded(place="a\n" + "x" * 200)).place == "a\ufffd" + "x" * 126
    instance = parse_hello(encoded(instance="a\n" + "x" * 200)).instance
    assert instance == "a\ufffd" + "x" * 62


def test_the_software_name_is_clipped_and_safe_to_print() -> None:
    software = parse_hello(encoded(software="a\nb\ud800" + "x" * 200)).software
    assert software == "a\ufffdb\ufffd" + "x" * 124
    software.encode()


@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [*GOOD, "software", "resume", "received", "place", "x"]
                ),
                inner,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_parsing_anything_raises_nothing_undeclared(payload: bytes) -> None:
    try:
        parse_hello(payload)
    except PeerProtocolError:
        pass


def test_the_subprotocol_names_the_newest_version() -> None:
    assert SUBPROTOCOL == subprotocol(max(VERSIONS)) == "tower.v1"


def test_a_peer_that_says_nothing_of_returns_takes_none() -> None:
    assert not parse_hello(encoded()).takes_returns
    assert parse_hello(encoded(takes_returns=True)).takes_returns
