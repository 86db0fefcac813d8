"""What the agent makes of a stream's target, and that tunnels' news reach the link."""

from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import Code
from tests.fakes.streams import FakeStream
from tower_agent.dispatch import Dispatcher


class Opened(FakeStream):
    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target


class Calls:
    """Everything that a dispatcher hands on to, in order."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.dispatcher = Dispatcher(
            SimpleNamespace(open=self._note("raw")),  # type: ignore[arg-type]
            self._note("sealed"),
            self._note("gateway"),
            self._note("ready"),
            self._note("lost"),
            self._note("going away"),
        )

    def _note(self, what: str) -> Any:
        return lambda *arguments: self.made.append((what, *arguments))


TUNNEL: Any = object()


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("sealed", ("sealed",)),
        ("gateway", ("gateway",)),
        ("tcp/db", ("raw", "db")),
        ("tcp/a/b", ("raw", "a/b")),
        ("tcp/", ("raw", "")),
        ("tcp", ("raw", "")),
    ],
)
def test_known_kinds_go_to_their_face(target: str, call: tuple[str, ...]) -> None:
    calls, stream = Calls(), Opened(target)
    calls.dispatcher.stream_opened(TUNNEL, stream)  # type: ignore[arg-type]
    kind, *rest = call
    assert calls.made == [(kind, stream, *rest)]
    assert stream.reset_with is None


@pytest.mark.parametrize(
    "target", ["control", "gateway/x", "sealed/x", "TCP/db", "udp/db", "sealed "]
)
def test_other_kinds_are_refused(target: str) -> None:
    calls, stream = Calls(), Opened(target)
    calls.dispatcher.stream_opened(TUNNEL, stream)  # type: ignore[arg-type]
    assert calls.made == []
    assert stream.reset_with is not None
    code, reason = stream.reset_with
    assert code is Code.REFUSED and "upgrade it" in reason


def test_news_of_tunnels_are_handed_on() -> None:
    calls = Calls()
    notice: Any = SimpleNamespace(reason="restart")
    calls.dispatcher.tunnel_ready(TUNNEL, "hello")  # type: ignore[arg-type]
    calls.dispatcher.going_away(TUNNEL, notice)
    calls.dispatcher.tunnel_lost(TUNNEL, "cut")
    assert calls.made == [
        ("ready", TUNNEL, "hello"),
        ("going away", TUNNEL, notice),
        ("lost", TUNNEL, "cut"),
    ]
