"""Messages as WebSocket frames: beside the library, and cut at any byte.

Covered: what we write the library reads, and the other way round, at every length of a length;
whatever arrives in whatever pieces brings the same messages and the same state of the library
as if it had read all; control frames between, fragments, broken framing, a close; a
library that was in the middle of a frame when we came.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from shared.tunnel.messages import MessageReader, MessageWriter, WebSocket
from shared.wire.frames import MAX_MESSAGE_BYTES

SIZES = [
    0,
    1,
    125,
    126,
    127,
    65_535,
    65_536,
    32_767,
    32_768,
    200_000,
    MAX_MESSAGE_BYTES,
]


def open_pair() -> tuple[ClientProtocol, ServerProtocol]:
    """Both ends of a WebSocket whose handshake is done."""
    client = ClientProtocol(parse_uri("ws://127.0.0.1/"), max_size=MAX_MESSAGE_BYTES)
    server = ServerProtocol(max_size=MAX_MESSAGE_BYTES)
    client.send_request(client.connect())
    server.receive_data(b"".join(client.data_to_send()))
    (request,) = server.events_received()
    server.send_response(server.accept(request))
    client.receive_data(b"".join(server.data_to_send()))
    client.events_received()
    assert client.state is server.state is State.OPEN
    return client, server


class End:
    """A reader and what it brought: messages, and what the library told."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.reader = MessageReader(websocket)
        self.told: list[tuple[str, bytes]] = []

    def receive(self, data: bytes) -> None:
        self.reader.receive(data, self.message, self.events)

    def message(self, message: bytes) -> None:
        assert type(message) is bytes
        self.told.append(("message", message))

    def events(self) -> None:
        for event in self.websocket.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.BINARY and event.fin:
                self.told.append(("message", bytes(event.data)))
            else:
                self.told.append((event.opcode.name, bytes(event.data)))


class Library(End):
    """The same, read by the library alone."""

    def receive(self, data: bytes) -> None:
        self.websocket.receive_data(data)
        self.events()


def raw(frame: Frame, *, from_client: bool) -> bytes:
    return frame.serialize(mask=from_client)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("from_client", [True, False])
def test_the_library_reads_what_we_write(size: int, from_client: bool) -> None:
    client, server = open_pair()
    sender, receiver = (client, server) if from_client else (server, client)
    message = random.Random(size).randbytes(size)
    receiver.receive_data(b"".join(MessageWriter(sender).frame(message)))
    (event,) = receiver.events_received()
    assert isinstance(event, Frame) and event.opcode is Opcode.BINARY and event.fin
    assert bytes(event.data) == message and receiver.parser_exc is None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("from_client", [True, False])
def test_we_read_what_the_library_writes(size: int, from_client: bool) -> None:
    client, server = open_pair()
    sender, receiver = (client, server) if from_client else (server, client)
    message = random.Random(size).randbytes(size)
    sender.send_binary(message)
    end = End(receiver)
    assert not end.reader.is_bypassed, (
        "the library's parser has changed: see messages.py"
    )
    end.receive(b"".join(sender.data_to_send()))
    assert end.told == [("message", message)]
    assert not receiver.reader.buffer, "the library saw nothing of it"


def test_every_frame_has_a_mask_of_its_own() -> None:
    client, _ = open_pair()
    writer = MessageWriter(client)
    masks = [writer.frame(b"1234")[0][2:6] for _ in range(1000)]
    assert len(set(masks)) > 990


_frames = st.one_of(
    st.builds(Frame, st.just(Opcode.BINARY), st.binary(max_size=300)),
    st.builds(
        Frame, st.just(Opcode.BINARY), st.binary(min_size=65_536, max_size=65_540)
    ),
    st.builds(
        Frame, st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=9)
    ),
    st.builds(Frame, st.just(Opcode.BINARY), st.binary(max_size=9), st.just(False)),
    st.builds(Frame, st.just(Opcode.CONT), st.binary(max_size=9), st.booleans()),
    st.builds(Frame, st.just(Opcode.TEXT), st.just(b"text")),
    st.builds(Frame, st.just(Opcode.CLOSE), st.just(b"\x03\xe8bye")),
)


@settings(max_examples=300, deadline=None)
@given(
    frames=st.lists(_frames, max_size=8),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    from_client=st.booleans(),
    damage=st.one_of(st.none(), st.tuples(st.integers(0, 40), st.integers(0, 255))),
)
def test_in_any_pieces_it_is_as_if_the_library_had_read_it(
    frames: list[Frame],
    cuts: list[int],
    from_client: bool,
    damage: tuple[int, int] | None,
) -> None:
    ends = []
    for kind in (End, Library):
        client, server = open_pair()
        ends.append(kind(server if from_client else client))
    stream = bytearray().join(raw(frame, from_client=from_client) for frame in frames)
    if damage is not None and damage[0] < len(stream):
        stream[damage[0]] = damage[1]
    data, offset, number = bytes(stream), 0, 0
    while offset < len(data):
        size = cuts[number % len(cuts)] ** (2 if number % 3 == 0 else 1)
        for end in ends:
            end.receive(data[offset : offset + size])
        offset, number = offset + size, number + 1
    ours, library = ends
    assert ours.told == library.told
    assert ours.websocket.state is library.websocket.state
    assert repr(ours.websocket.parser_exc) == repr(library.websocket.parser_exc)
    assert ours.websocket.close_rcvd == library.websocket.close_rcvd


@pytest.mark.parametrize("to_server", [True, False])
def test_a_frame_with_the_wrong_masking_is_refused(to_server: bool) -> None:
    client, server = open_pair()
    end = End(server if to_server else client)
    end.receive(raw(Frame(Opcode.BINARY, b"x" * 200), from_client=not to_server))
    assert end.told == [] and end.websocket.state is State.CLOSING
    assert "incorrect masking" in str(end.websocket.parser_exc)


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_whole_message_among_fragments_is_refused(cut: int) -> None:
    client, server = open_pair()
    end = End(server)
    data = raw(Frame(Opcode.BINARY, b"begin", fin=False), from_client=True)
    data += raw(Frame(Opcode.BINARY, b"whole"), from_client=True)
    for start in range(0, len(data), cut):
        end.receive(data[start : start + cut])
    assert end.told == [("BINARY", b"begin")]
    assert "continuation" in str(server.parser_exc)


def test_a_message_that_is_too_large_is_refused_by_its_header() -> None:
    client, server = open_pair()
    end = End(server)
    frame = Frame(Opcode.BINARY, bytes(MAX_MESSAGE_BYTES + 1))
    end.receive(raw(frame, from_client=True)[:20])
    assert end.told == [] and server.close_sent is not None
    assert server.close_sent.code == CloseCode.MESSAGE_TOO_BIG
    end.receive(b"the rest")
    assert end.told == []


@pytest.mark.parametrize("already", range(1, 30))
def test_a_frame_that_the_library_has_begun_is_the_librarys(already: int) -> None:
    """As when the first message comes in the segment of the handshake's end."""
    client, server = open_pair()
    client.send_binary(b"x" * 20)
    client.send_binary(b"y" * 20)
    data = b"".join(client.data_to_send())
    server.receive_data(data[:already])
    end = End(server)
    end.events()
    end.receive(data[already:])
    assert end.told == [("message", b"x" * 20), ("message", b"y" * 20)]


def test_a_session_that_ends_in_the_middle_reads_no_further() -> None:
    client, server = open_pair()
    end = End(server)
    client.send_binary(b"one")
    client.send_close(CloseCode.NORMAL_CLOSURE)
    data = b"".join(client.data_to_send())
    late = raw(Frame(Opcode.BINARY, b"late"), from_client=True)
    end.receive(data + late)
    end.receive(late)
    assert [kind for kind, _ in end.told] == ["message", "CLOSE"]
