"""Simulated lives from seeds: the same seed does the same, here and everywhere.

    python -m tests.fakes.session_seeds --first 4711 --check-every 1

runs the life of one seed and prints the traceback where it fails.
"""

import argparse
import random
import sys
import traceback

from shared.mux.replay import ACK_AFTER_BYTES, MAX_KEPT_BYTES
from tests.fakes.session_simulation import Circumstances, Simulation

__all__ = ["ACTIONS", "STEPS_A_SEED", "drive", "replay_command", "run_seeds"]

STEPS_A_SEED = 1_000

# Looking at all streams costs more than most steps do; what is wrong stays wrong for a while.
CHECK_EVERY = 4

# With how often each happens.
ACTIONS = {
    "open": 3,
    "write": 30,
    "write_eof": 4,
    "reset": 1.5,
    "accept": 1,
    "stall": 4,
    "take": 12,
    "use_memory": 2,
    "pull": 22,
    "deliver": 22,
    "pass_time": 3,
    "rest": 0.4,
    "jump": 0.1,
    "cut": 1.5,
    "freeze": 0.3,
    "lose": 0.5,
    "notice": 8,
    "dial": 8,
    "restart": 0.1,
}
# What may not happen at all in some lives, so that the others have time to do their work.
FAULTS = ("cut", "lose", "freeze", "restart", "jump")


def circumstances_of(rng: random.Random, check_every: int) -> Circumstances:
    windows = (1, 100, 5_000, 32_768, 262_144)
    return Circumstances(
        agent_window=rng.choice(windows[1:]),
        server_window=rng.choice(windows),
        max_kept_bytes=rng.choice(
            (ACK_AFTER_BYTES, 2 * ACK_AFTER_BYTES, MAX_KEPT_BYTES)
        ),
        ceiling_bytes=rng.choice((3_000, 100_000, 1_000_000, 2**28)),
        delay_seconds=rng.choice((0, 0, 0.0002, 0.02, 0.15)),
        check_every=check_every,
    )


def drive(seed: int, steps: int, check_every: int = CHECK_EVERY) -> Simulation:
    """Run a life from a seed.

    Raises:
        AssertionError: Something that must hold does not.
    """
    rng = random.Random(seed)
    simulation = Simulation(circumstances_of(rng, check_every))
    # Some lives have few deliveries, some many resets: averages would never meet.
    weights = {
        name: often * rng.choice((0.2, 1, 1, 4)) for name, often in ACTIONS.items()
    }
    if rng.random() < 0.2:
        weights.update(dict.fromkeys(FAULTS, 0))
    if simulation.circumstances.delay_seconds:
        weights["pass_time"] *= 6
    names, often = list(weights), list(weights.values())
    happen = [getattr(simulation, name) for name in names]
    for act in rng.choices(happen, often, k=steps):
        act(rng.getrandbits(20), rng.getrandbits(20))
        simulation.check()
    simulation.finish()
    return simulation


def replay_command(seed: int, steps: int) -> str:
    return (
        f"python -m tests.fakes.session_seeds --first {seed} --steps {steps} "
        "--check-every 1"
    )


def run_seeds(
    first: int, count: int, steps: int, check_every: int = CHECK_EVERY
) -> int:
    """Run that many lives; print the first that fails and return its seed, else -1."""
    for seed in range(first, first + count):
        try:
            drive(seed, steps, check_every)
        except Exception:
            traceback.print_exc()
            print(
                f"seed {seed} fails; to see it again: {replay_command(seed, steps)}",
                file=sys.stderr,
                flush=True,
            )
            return seed
    return -1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.session_seeds")
    parser.add_argument("--first", type=int, required=True, metavar="SEED")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS_A_SEED)
    parser.add_argument("--check-every", type=int, default=CHECK_EVERY, metavar="STEPS")
    options = parser.parse_args()
    failed = run_seeds(options.first, options.count, options.steps, options.check_every)
    raise SystemExit(1 if failed >= 0 else 0)


if __name__ == "__main__":
    main()
