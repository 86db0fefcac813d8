"""The simulation of two sessions, led by coverage instead of chance; every byte is checked.

The same `Simulation` that CI drives from seeds (tests/fakes/session_simulation.py). Here the
fuzzer chooses what happens: it looks for the rare path where the seeds look for the many.
"""

import random

from shared.mux.replay import ACK_AFTER_BYTES, MAX_KEPT_BYTES
from tests.fakes.session_seeds import ACTIONS
from tests.fakes.session_simulation import Circumstances, Simulation
from tests.fuzz.target import Source, Target

__all__ = ["TARGETS"]

_NAMES = tuple(ACTIONS)
_WINDOWS = (1, 100, 5_000, 70_000, 262_144)
_KEPT = (ACK_AFTER_BYTES, 2 * ACK_AFTER_BYTES, MAX_KEPT_BYTES)
_CEILINGS = (3_000, 1_000_000, 2**28)
_DELAYS = (0.0, 0.02)
_STEP_BYTES = 6


def _run(data: bytes) -> None:
    source = Source(data)
    simulation = Simulation(
        Circumstances(
            agent_window=_WINDOWS[1 + source.number() % 4],
            server_window=_WINDOWS[source.number() % 5],
            max_kept_bytes=_KEPT[source.number() % 3],
            ceiling_bytes=_CEILINGS[source.number() % 3],
            delay_seconds=_DELAYS[source.number() % 2],
        )
    )
    while source:
        act = getattr(simulation, _NAMES[source.number() % len(_NAMES)])
        act(source.number(2), source.number(3))
        simulation.check()
    simulation.finish()


def _seeds() -> list[bytes]:
    """Some lives as chance would lead them."""
    seeds = []
    for seed in range(8):
        rng = random.Random(seed)
        names = rng.choices(range(len(_NAMES)), list(ACTIONS.values()), k=100)
        steps = (bytes((name,)) + rng.randbytes(_STEP_BYTES - 1) for name in names)
        seeds.append(rng.randbytes(5) + b"".join(steps))
    return seeds


TARGETS = (Target(name="life", run=_run, seeds=_seeds, max_bytes=1200, runs=400),)
