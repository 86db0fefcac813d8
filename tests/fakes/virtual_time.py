"""An event loop whose time jumps to the next timer when nothing else is to be done: hours in a moment."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["VirtualTimeLoop", "in_virtual_time"]


class _JumpingSelector:
    """Looks at the real selector and never waits; waiting is what moves the clock."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = self._selector.select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("the test waits for what will never happen")
            self.now += max(0.0, timeout)
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For code that uses timers and no network. Time begins at 0."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._clock.now


def in_virtual_time(
    scenario: Callable[..., Awaitable[None]],
) -> Callable[..., None]:
    """Make a coroutine function a test that runs on a loop of its own; no fixtures."""

    def test() -> None:
        complaints: list[dict[str, Any]] = []

        async def strictly() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            await scenario()

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(strictly())
        assert not complaints, complaints

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test
