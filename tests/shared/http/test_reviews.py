"""kubectl --as: what is asked at the member, what each answer leads to, what is remembered."""

import json

import pytest

from shared.http.identity import Policy
from shared.http.reviews import REMEMBERED_SECONDS
from tests.fakes.relaying import Bench, relayed
from tests.fakes.upstream import RawConnection, Script

ANYONE = Policy(
    users=frozenset({"*", "system:serviceaccount:ns:robot"}), groups=frozenset({"*"})
)


def request(fields: bytes, line: bytes = b"GET /clusters/alpha/api") -> bytes:
    return line + b" HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n"


def member(
    asked: list[dict[str, object]],
    *,
    refused: frozenset[str] = frozenset(),
    raw: bytes = b"",
) -> Script:
    """An apiserver that answers reviews, and echoes everything else."""

    async def script(connection: RawConnection) -> None:
        while True:
            head = await connection.read_head()
            if b"/subjectaccessreviews " not in head:
                await connection.respond(head)
                continue
            assert b"impersonate" not in head.lower()
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            spec = json.loads(await connection.read_exactly(length))["spec"]
            asked.append(spec)
            if raw:
                await connection.send(raw)
                continue
            is_allowed = spec["resourceAttributes"]["name"] not in refused
            body = json.dumps({"status": {"allowed": is_allowed}}).encode()
            await connection.respond(body)

    return script


async def ask(bench: Bench, fields: bytes) -> bytes:
    bench.send(request(fields))
    return await bench.answer()


async def test_user_and_groups_are_each_asked_in_the_callers_name() -> None:
    asked: list[dict[str, object]] = []
    async with relayed(member(asked), policy=ANYONE) as bench:
        answer = await ask(
            bench, b"Impersonate-User: jane\r\nImpersonate-Group: devs\r\n"
        )
        assert b"\r\nImpersonate-User: jane\r\nImpersonate-Group: devs\r\n" in answer
        assert b"tower:" not in answer
        caller = {
            "user": "tower:admin",
            "groups": ["tower:cluster-admins", "system:authenticated"],
        }
        assert asked == [
            caller
            | {
                "resourceAttributes": {
                    "verb": "impersonate",
                    "resource": resource,
                    "name": name,
                }
            }
            for resource, name in (("users", "jane"), ("groups", "devs"))
        ]


async def test_a_service_account_is_asked_as_what_it_is() -> None:
    asked: list[dict[str, object]] = []
    async with relayed(member(asked), policy=ANYONE) as bench:
        await ask(bench, b"Impersonate-User: system:serviceaccount:ns:robot\r\n")
        assert [spec["resourceAttributes"] for spec in asked] == [
            {
                "verb": "impersonate",
                "resource": "serviceaccounts",
                "namespace": "ns",
                "name": "robot",
            }
        ]


@pytest.mark.parametrize("refused", ["jane", "devs"])
async def test_a_no_for_any_of_them_is_a_403_that_names_it(refused: str) -> None:
    asked: list[dict[str, object]] = []
    script = member(asked, refused=frozenset({refused}))
    async with relayed(script, policy=ANYONE) as bench:
        answer = await ask(
            bench, b"Impersonate-User: jane\r\nImpersonate-Group: devs\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 403 ") and refused.encode() in answer
        assert b"/api HTTP" not in bench.received
        # The connection goes on, for the caller as itself.
        assert b"tower:admin" in await ask(bench, b"")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", b"502"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b"502"),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}", b"403"),
        (b'HTTP/1.1 201 C\r\nContent-Length: 13\r\n\r\n{"status":[]}', b"403"),
        (
            b'HTTP/1.1 201 C\r\nContent-Length: 28\r\n\r\n{"status":{"allowed":"yes"}}',
            b"403",
        ),
        (b"nonsense\r\n\r\n", b"502"),
    ],
)
async def test_only_a_clear_yes_is_a_yes(raw: bytes, code: bytes) -> None:
    async with relayed(member([], raw=raw), policy=ANYONE) as bench:
        answer = await ask(bench, b"Impersonate-User: jane\r\n")
        assert answer.startswith(b"HTTP/1.1 " + code)
        assert b"/api HTTP" not in bench.received


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop's clock cannot be set
async def test_a_yes_is_remembered_for_a_moment_and_a_no_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, object]] = []
    script = member(asked, refused=frozenset({"joe"}))
    async with relayed(script, policy=ANYONE) as bench:
        for _ in range(3):
            assert b"200 OK" in await ask(bench, b"Impersonate-User: jane\r\n")
        assert len(asked) == 1
        for _ in range(2):
            assert b" 403 " in await ask(bench, b"Impersonate-User: joe\r\n")
        assert len(asked) == 3
        # Another group makes it another question.
        fields = b"Impersonate-User: jane\r\nImpersonate-Group: devs\r\n"
        await ask(bench, fields)
        assert len(asked) == 5
        loop = bench.service.loop
        later = loop.time() + REMEMBERED_SECONDS
        monkeypatch.setattr(loop, "time", lambda: later)
        await ask(bench, b"Impersonate-User: jane\r\n")
        assert len(asked) == 6


async def test_the_body_waits_uncredited_for_the_review() -> None:
    asked: list[dict[str, object]] = []

    async def script(connection: RawConnection) -> None:
        while True:
            head = await connection.read_head()
            if b"/subjectaccessreviews " in head:
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                await connection.read_exactly(length)
                assert bench.stream.taken_bytes == head_bytes
                asked.append({})
                await connection.respond(b'{"status":{"allowed":true}}')
            else:
                assert await connection.read_exactly(5) == b"hello"
                await connection.respond(head)

    async with relayed(script, policy=ANYONE) as bench:
        head = request(
            b"Impersonate-User: jane\r\nContent-Length: 5\r\n",
            b"PUT /clusters/alpha/api",
        )
        head_bytes = len(head)
        bench.send(head + b"hello")
        assert b"Impersonate-User: jane\r\n" in await bench.answer()
        assert asked and bench.stream.taken_bytes == bench.sent_bytes


async def test_a_client_that_leaves_during_its_review_is_not_served() -> None:
    asked: list[dict[str, object]] = []
    async with relayed(member(asked), policy=ANYONE) as bench:
        bench.send(request(b"Impersonate-User: jane\r\n"))
        bench.relay.stream_closed(None)
        await bench.until(lambda: bool(asked))
        await bench.until(lambda: bench.pool.idle_connections == 1)
        assert b"/api HTTP" not in bench.received
        assert not bench.stream.written
