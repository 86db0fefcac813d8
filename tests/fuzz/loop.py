"""The plain driver: good inputs, changed at random. For where there is no atheris.

It sees no coverage, so it finds less; but it needs nothing, and the same seed does the same
on every machine.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.target import Target

__all__ = ["Crash", "Result", "fuzz", "mutated"]

# Numbers at the edges of what lengths and offsets can be.
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**31, 2**32 - 1, 2**63)


@dataclass(frozen=True, kw_only=True)
class Crash:
    """An input on which a target raised."""

    data: bytes
    error: Exception


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gave."""

    runs: int
    seconds: float
    crash: Crash | None = None


def fuzz(
    target: Target, corpus: Sequence[bytes], *, seed: int, runs: int, seconds: float
) -> Result:
    """Run the corpus as it is, then changed, until a bound is reached or the target raises."""
    rng = random.Random(f"{target.name} {seed}")
    start = time.monotonic()
    count = 0
    while count < max(runs, len(corpus)) and time.monotonic() - start < seconds:
        if count < len(corpus):
            data = corpus[count]
        else:
            data = mutated(rng, corpus, target.words)[: target.max_bytes]
        count += 1
        try:
            target.run(data)
        except Exception as error:
            return Result(
                runs=count,
                seconds=time.monotonic() - start,
                crash=Crash(data=data, error=error),
            )
    return Result(runs=count, seconds=time.monotonic() - start)


def mutated(
    rng: random.Random, corpus: Sequence[bytes], words: Sequence[bytes]
) -> bytes:
    """One input of the corpus, with one to six changes; most have few."""
    data = bytearray(rng.choice(corpus) if corpus else b"")
    for _ in range(min(rng.randint(1, 6), rng.randint(1, 6))):
        at = rng.randrange(len(data) + 1)
        _change(rng, data, at, corpus, words)
    return bytes(data)


def _change(
    rng: random.Random,
    data: bytearray,
    at: int,
    corpus: Sequence[bytes],
    words: Sequence[bytes],
) -> None:
    length = rng.choice((1, 1, 2, 4, 8, 32))
    match rng.randrange(8):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + length] = rng.randbytes(length)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[at : at + length]
        case 4 if words:
            word = rng.choice(words)
            data[at : at + rng.choice((0, len(word)))] = word
        case 5:
            size = rng.choice((1, 2, 4, 8))
            edge = rng.choice(_EDGES) % 256**size
            data[at : at + size] = edge.to_bytes(size)
        case 6 if corpus:
            other = rng.choice(corpus)
            begin = rng.randrange(len(other) + 1)
            data[at:] = other[begin:]
        case _:
            del data[at:]
