"""Two cores over a simulated network under random schedules: no byte lost, doubled, moved or stuck.

Covered: every byte in order and exactly once, no delivery to another stream, windows never
overrun, no stall once readers read, bounded queues and kept messages, memory booked to the
byte and under its ceiling, both ends agree how a stream ended. Connections are delayed, frozen
and cut at any byte, with what is under way lost or late; either end may take a good one for
dead or begin anew; dials overtake each other; clocks jump; others use up the memory.

The seeded lives are the bulk: 10^7 steps in 10^4 lives in CI, by two processes; 3 * 10^5
steps elsewhere; or as many lives as TOWER_SIMULATION_SEEDS says. A seed that fails is printed
with the command that replays it. Hypothesis looks for short, nasty schedules. That the
simulation would see a mistake is shown in test_session_mistakes.
"""

import os
import subprocess
import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.mux.replay import ACK_AFTER_BYTES, MAX_KEPT_BYTES
from tests.fakes.session_seeds import ACTIONS, STEPS_A_SEED, drive
from tests.fakes.session_simulation import Circumstances, Simulation

IN_CI = bool(os.environ.get("CI"))
SEEDS = int(os.environ.get("TOWER_SIMULATION_SEEDS", "10000" if IN_CI else "300"))
PROCESSES = 2

numbers = st.integers(0, 2**20)


# Some 70 s of two idle cores in CI; others may use them, too.
@pytest.mark.timeout(600)
def test_random_lives_from_seeds_lose_no_byte() -> None:
    share = -(-SEEDS // PROCESSES)
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.session_seeds"]
            + ["--first", str(number * share), "--count", str(share)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        said = [worker.communicate()[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * PROCESSES, "".join(said)


def test_the_same_seed_lives_the_same_life() -> None:
    one, other = drive(17, STEPS_A_SEED), drive(17, STEPS_A_SEED)
    for end in ("agent", "server"):
        counts = [
            getattr(life.pair, end).session.replay.sent_count for life in (one, other)
        ]
        assert counts[0] == counts[1]
    assert one.pair.now == other.pair.now
    assert [handler.received for handler in one.handlers.values()] == [
        handler.received for handler in other.handlers.values()
    ]


def test_lives_are_full_of_what_they_are_there_for() -> None:
    lives = [drive(seed, STEPS_A_SEED) for seed in range(60)]
    pairs = [life.pair for life in lives]
    ends = [end for pair in pairs for end in (pair.agent, pair.server)]
    assert sum(pair.resumes for pair in pairs) > 60
    assert sum(pair.refusals for pair in pairs) > 3
    assert sum(life.restarts for life in lives) > 10
    assert sum(end.budget.held_back for end in ends if end.budget) > 100
    assert sum(end.session.counters.window_stalls for end in ends) > 500
    handlers = [handler for life in lives for handler in life.handlers.values()]
    windows = [handler.stream.receive_window for handler in handlers]
    assert sum(window.size_bytes > window.floor_bytes for window in windows) > 50
    assert sum(handler.received for handler in handlers) > 20_000_000


class Schedule(RuleBasedStateMachine):
    """Hypothesis chooses what happens next, and makes a failing schedule short."""

    simulation: Simulation

    @initialize(
        kept=st.sampled_from([ACK_AFTER_BYTES, MAX_KEPT_BYTES]),
        agent=st.sampled_from([1, 7, 1000, 262_144]),
        server=st.sampled_from([1, 7, 1000, 262_144]),
        ceiling=st.sampled_from([100, 100_000, 2**28]),
        delay=st.sampled_from([0.0, 0.05]),
    )
    def begin(
        self, kept: int, agent: int, server: int, ceiling: int, delay: float
    ) -> None:
        self.simulation = Simulation(
            Circumstances(
                agent_window=agent,
                server_window=server,
                max_kept_bytes=kept,
                ceiling_bytes=ceiling,
                delay_seconds=delay,
            )
        )

    @rule(name=st.sampled_from(sorted(ACTIONS)), choice=numbers, amount=numbers)
    def act(self, name: str, choice: int, amount: int) -> None:
        getattr(self.simulation, name)(choice, amount)

    @rule(choice=numbers, amounts=st.lists(numbers, min_size=1, max_size=4))
    def write_pull_and_deliver(self, choice: int, amounts: list[int]) -> None:
        """Without this most schedules would carry nothing."""
        for amount in amounts:
            self.simulation.write(choice, amount)
        for end in (0, 1):
            self.simulation.pull(end, 2)
            self.simulation.deliver(end, 3)

    @invariant()
    def check(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.check()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.finish()


# A hundred steps each; in CI 10^5 in all.
TestSchedule = pytest.mark.timeout(300)(Schedule.TestCase)
TestSchedule.settings = settings(
    max_examples=1000 if IN_CI else 60, stateful_step_count=100, deadline=None
)
