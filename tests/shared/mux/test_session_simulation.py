"""Two cores over a fake link under random schedules: no byte lost, doubled, moved or stuck.

Covered: every byte in order and exactly once, no delivery to another stream, windows never
overrun, no stall once readers read, bounded queues and kept messages, both ends agree how a
stream ended. Connections are cut at any message, with what is under way lost or late; either
end may take a good one for dead; dials overtake each other.

The seeded runs are the bulk (3 * 10^5 steps in every run, more by TOWER_SIMULATION_STEPS); a
failing seed is named and replays. Hypothesis looks for short, nasty schedules.
"""

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared.mux.replay import ACK_AFTER_BYTES, MAX_KEPT_BYTES
from tests.fakes.session_simulation import Simulation, drive

STEPS_A_SEED = 1_000
STEPS = int(os.environ.get("TOWER_SIMULATION_STEPS", "300000"))
BATCHES = 10

numbers = st.integers(0, 2**20)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_schedules_from_seeds_lose_no_byte(batch: int) -> None:
    seeds = STEPS // STEPS_A_SEED // BATCHES
    for seed in range(batch * seeds, (batch + 1) * seeds):
        try:
            drive(seed, STEPS_A_SEED)
        except Exception as error:
            raise AssertionError(
                f"replay: drive(seed={seed}, steps={STEPS_A_SEED})"
            ) from error


class Schedule(RuleBasedStateMachine):
    """Hypothesis chooses what happens next, and makes a failing schedule short."""

    simulation: Simulation

    @initialize(
        kept=st.sampled_from([ACK_AFTER_BYTES, MAX_KEPT_BYTES]),
        agent=st.sampled_from([1, 7, 1000, 262_144]),
        server=st.sampled_from([1, 7, 1000, 262_144]),
    )
    def begin(self, kept: int, agent: int, server: int) -> None:
        self.simulation = Simulation(agent, server, kept)

    @rule(choice=numbers, amount=numbers)
    def open(self, choice: int, amount: int) -> None:
        self.simulation.open(choice, amount)

    @rule(choice=numbers, amount=numbers)
    def write(self, choice: int, amount: int) -> None:
        self.simulation.write(choice, amount)

    @rule(choice=numbers)
    def write_eof(self, choice: int) -> None:
        self.simulation.write_eof(choice, 0)

    @rule(choice=numbers)
    def reset(self, choice: int) -> None:
        self.simulation.reset(choice, 0)

    @rule(choice=numbers)
    def accept(self, choice: int) -> None:
        self.simulation.accept(choice, 0)

    @rule(choice=numbers)
    def stall(self, choice: int) -> None:
        self.simulation.stall(choice, 0)

    @rule(choice=numbers, amount=numbers)
    def take(self, choice: int, amount: int) -> None:
        self.simulation.take(choice, amount)

    @rule(choice=numbers, amount=numbers)
    def pull(self, choice: int, amount: int) -> None:
        self.simulation.pull(choice, amount)

    @rule(choice=numbers, amount=numbers)
    def deliver(self, choice: int, amount: int) -> None:
        self.simulation.deliver(choice, amount)

    @rule(amount=numbers)
    def pass_time(self, amount: int) -> None:
        self.simulation.pass_time(0, amount)

    @rule(to_agent=st.integers(0, 5), to_server=st.integers(0, 5))
    def cut(self, to_agent: int, to_server: int) -> None:
        self.simulation.cut(to_agent, to_server)

    @rule(choice=numbers)
    def lose(self, choice: int) -> None:
        self.simulation.lose(choice, 0)

    @rule(choice=numbers)
    def notice(self, choice: int) -> None:
        self.simulation.notice(choice, 0)

    @rule()
    def dial(self) -> None:
        self.simulation.dial(0, 0)

    @invariant()
    def check(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.check()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.finish()


# A hundred steps each; in CI 10^5 in all.
_MANY = 18 if os.environ.get("CI") else 1

TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(
    max_examples=60 * _MANY, stateful_step_count=100, deadline=None
)
