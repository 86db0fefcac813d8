"""Nobody runs as anybody else: every way to slip an identity past the relay.

For each attack the apiserver's side is looked at, byte for byte: either nothing arrived,
or exactly one Impersonate-User, the caller's own, and only our own credential.
"""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http.identity import Policy
from tests.fakes.relaying import CREDENTIAL, Bench, make_caller, relayed
from tests.fakes.upstream import RawConnection, echo_heads

LINE = b"GET /clusters/alpha/api HTTP/1.1\r\nHost: h\r\n"


def spellings(name: bytes) -> list[bytes]:
    return [name, name.lower(), name.upper(), name.swapcase()]


def assert_runs_as_the_caller(received: bytes) -> None:
    for head in filter(None, received.split(b"\r\n\r\n")):
        fields = [line.lower() for line in head.split(b"\r\n")[1:]]
        identity = [
            line for line in fields if re.match(rb"impersonate|x.remote|auth", line)
        ]
        assert identity == [
            b"impersonate-user: tower:admin",
            b"impersonate-group: tower:cluster-admins",
            b"authorization: bearer " + CREDENTIAL.encode(),
        ], head
        assert b"stolen" not in head, head


async def outcome(bench: Bench, request: bytes) -> bytes:
    """Send and return the answer; whatever arrived upstream must be harmless."""
    bench.send(request)
    answer = await bench.answer()
    assert_runs_as_the_caller(bench.received)
    return answer


@pytest.mark.parametrize(
    "name",
    [
        *spellings(b"Authorization"),
        *spellings(b"X-Remote-User"),
        *spellings(b"X-Remote-Group"),
        b"X-Remote-Uid",
        b"X-Remote-Extra-Scopes",
        b"X-Remote-Anything",
        b"Proxy-Authorization",
    ],
)
@pytest.mark.parametrize("count", [1, 3])
async def test_credentials_of_the_caller_are_removed(name: bytes, count: int) -> None:
    async with relayed(echo_heads) as bench:
        answer = await outcome(bench, LINE + (name + b": stolen\r\n") * count + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        # A second time, now that the fields are known.
        await outcome(bench, LINE + (name + b": stolen\r\n") * count + b"\r\n")


@pytest.mark.parametrize(
    "field",
    [
        b"Impersonate-User: stolen",
        b"impersonate-user: stolen",
        b"IMPERSONATE-USER: stolen",
        b"Impersonate-User:stolen",
        b"Impersonate-User: \t stolen \t",
        b"Impersonate-User: stolen\r\nImpersonate-User: stolen",
        b"Impersonate-User: tower:admin\r\nimpersonate-user: stolen",
        b"Impersonate-User:",
        b"Impersonate-User: \t ",
        b"Impersonate-User: \xff\xfe",
        b"Impersonate-User: " + b"x" * 257,
        b"Impersonate-Group: stolen",
        b"Impersonate-Group: system:masters",
        b"Impersonate-User: tower:admin\r\nImpersonate-Group: system:masters",
        b"Impersonate-User: system:kube-controller-manager",
        b"Impersonate-Uid: 1",
        b"Impersonate-Extra-Scopes: stolen",
        b"Impersonate-Extra-%53copes: stolen",
        b"Impersonate-User: tower:admin\r\nImpersonate-Uid: 1",
        b"Impersonate-User: tower:admin\r\nImpersonate-Extra-A: b",
        b"Impersonate-Anything: stolen",
        b"Impersonate-: stolen",
        b"Impersonate_User: stolen",
        b"Impersonate-User_: stolen",
        b"impersonate_group: stolen",
        b"X_Remote_User: stolen",
        b"X-Remote_User: stolen",
        b"Connection: Impersonate-User\r\nImpersonate-User: stolen",
        b"Connection: close, impersonate-user\r\nImpersonate-User: stolen",
        b"Connection: Impersonate-Group",
        b"Impersonate-User : stolen",
        b"Impersonate-User\t: stolen",
        b" Impersonate-User: stolen",
        b"X: y\r\n Impersonate-User: stolen",
        b"X: y\nImpersonate-User: stolen",
        b"X: y\rImpersonate-User: stolen",
        b"X: y\r\r\nImpersonate-User: stolen",
        b"X: y\x00\r\nImpersonate-User: stolen",
        b"X: y\x0bImpersonate-User: stolen\x00",
        b"Impersonate-User\x00: stolen",
        b"\x0bImpersonate-User: stolen",
        b"Imper\xc2\xadsonate-User: stolen",
    ],
)
async def test_an_identity_of_the_callers_choice_is_refused(field: bytes) -> None:
    async with relayed(echo_heads) as bench:
        bench.send(LINE + field + b"\r\n\r\n")
        answer = await bench.answer()
        assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403"), answer
        assert not bench.received


@pytest.mark.parametrize(
    "named",
    [b"Authorization", b"X-Remote-User", b"User-Agent", b"Accept", b"authorization, x"],
)
async def test_naming_fields_in_connection_gains_nothing(named: bytes) -> None:
    fields = b"Authorization: stolen\r\nX-Remote-User: stolen\r\nUser-Agent: u\r\n"
    async with relayed(echo_heads) as bench:
        answer = await outcome(
            bench, LINE + b"Connection: " + named + b"\r\n" + fields + b"\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("protocols", "left"),
    [
        (b"base64url.bearer.authorization.k8s.io.c3RvbGVu, v5.channel.k8s.io", [1]),
        (b"v5.channel.k8s.io,base64url.bearer.authorization.k8s.io.c3RvbGVu", [1]),
        (b"v5.channel.k8s.io,\tBASE64URL.Bearer.authorization.k8s.io.c3RvbGVu ,", [1]),
        (b"base64url.bearer.authorization.k8s.io.c3RvbGVu", []),
        (b"base64url.bearer.authorization.k8s.io.", []),
    ],
)
@pytest.mark.parametrize("name", [b"Sec-WebSocket-Protocol", b"sec-websocket-protocol"])
async def test_the_bearer_entry_of_a_websocket_is_removed(
    name: bytes, protocols: bytes, left: list[int]
) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    for extra in (upgrade, b""):
        async with relayed(echo_heads) as bench:
            await outcome(bench, LINE + extra + name + b": " + protocols + b"\r\n\r\n")
            assert b"bearer.authorization" not in bench.received.lower()
            expected = [b"v5.channel.k8s.io"] * len(left)
            found = re.findall(rb"(?i)sec-websocket-protocol: (.*)\r", bench.received)
            assert found == expected


async def test_two_websocket_protocol_fields_are_cleaned_each() -> None:
    field = b"Sec-WebSocket-Protocol: %b\r\n"
    bearer = b"base64url.bearer.authorization.k8s.io.c3RvbGVu"
    async with relayed(echo_heads) as bench:
        await outcome(
            bench, LINE + field % b"v4.channel.k8s.io" + field % bearer + b"\r\n"
        )
        assert b"bearer.authorization" not in bench.received


async def test_an_upgrade_carries_the_callers_identity_like_any_request() -> None:
    upgrade = (
        b"Connection: Upgrade, Authorization\r\nUpgrade: SPDY/3.1\r\n"
        b"Authorization: stolen\r\nX-Remote-User: stolen\r\n\r\n"
    )
    async with relayed(echo_heads) as bench:
        assert (await outcome(bench, LINE + upgrade)).startswith(b"HTTP/1.1 200 ")


async def test_the_identity_is_not_remembered_from_one_request_to_the_next() -> None:
    """The cache of known fields must not let the second through with the first's verdict."""
    plain = LINE + b"A: 12345678901234567890123456789\r\n\r\n"
    attack = LINE + b"Impersonate-User: system:masters\r\n\r\n"
    async with relayed(echo_heads) as bench:
        for request, status in ((plain, b"200"), (attack, b"403")) * 2:
            bench.send(request)
            assert (await bench.answer()).startswith(b"HTTP/1.1 " + status)
        assert_runs_as_the_caller(bench.received)


@pytest.mark.parametrize(
    ("user", "groups", "policy", "named"),
    [
        ("jane", (), Policy(), "jane"),
        ("tower:admin", ("devs",), Policy(), "devs"),
        ("tower:admin", ("tower:cluster-admins", "devs"), Policy(), "devs"),
        ("system:admin", (), Policy(users=frozenset("*")), "system:admin"),
        (
            "jane",
            ("system:masters",),
            Policy(users=frozenset("*"), groups=frozenset("*")),
            "system:masters",
        ),
    ],
)
async def test_a_caller_that_the_member_does_not_list_is_refused_by_name(
    user: str, groups: tuple[str, ...], policy: Policy, named: str
) -> None:
    caller = make_caller(user=user, groups=groups)
    async with relayed(echo_heads, caller=caller, policy=policy) as bench:
        bench.send(LINE + b"\r\n")
        answer = await bench.answer()
        assert answer.startswith(b"HTTP/1.1 403 ") and named.encode() in answer
        assert not bench.received


@pytest.mark.parametrize(
    "name",
    ["", " jane", "jane ", "ja\nne", "a\r\nImpersonate-Group: system:masters", "\x00"]
    + ["x" * 257, "jane\x85", "jane\u2028x", "\ud800"],
)
@pytest.mark.parametrize("is_group", [False, True])
async def test_names_that_could_break_a_field_never_leave(
    name: str, is_group: bool
) -> None:
    anyone = Policy(users=frozenset({"*"}), groups=frozenset({"*"}))
    caller = make_caller(
        user="tower:admin" if is_group else name, groups=(name,) if is_group else ()
    )
    async with relayed(echo_heads, caller=caller, policy=anyone) as bench:
        bench.send(LINE + b"\r\n")
        assert (await bench.answer()).startswith(b"HTTP/1.1 403 ")
        assert not bench.received


NAMES = [b"Impersonate-User", b"Impersonate-Group", b"Authorization", b"X-Remote-User"]


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    case=st.integers(0),
    before=st.sampled_from(
        [b"", b"A: b\r\n", b"Connection: close\r\n", b"Accept: */*\r\n"]
    ),
    colon=st.sampled_from(
        [b":", b": ", b" :", b"\t:", b":\t", b"\x00:", b":\r\n ", b"::"]
    ),
    end=st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b" \r\n"]),
    cut=st.integers(0, 60),
)
async def test_no_spelling_of_a_field_changes_who_is_served(
    name: bytes, case: int, before: bytes, colon: bytes, end: bytes, cut: int
) -> None:
    flips = itertools.cycle(bin(case)[2:])
    spelled = bytes(
        byte ^ 0x20 if chr(byte).isalpha() and next(flips) == "1" else byte
        for byte in name
    )
    request = LINE + before + spelled + colon + b"stolen" + end + b"X: y\r\n\r\n"

    async def script(connection: RawConnection) -> None:
        await connection.respond(await connection.read_head())

    async with relayed(script) as bench:
        bench.send(request[:cut])
        await outcome(bench, request[cut:])
