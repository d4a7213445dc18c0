"""Which faults a run tries: all with SAFE_PIP_TEST_EVERY, else some, by a seed that is printed."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

EVERY = bool(os.environ.get("SAFE_PIP_TEST_EVERY"))
SEED = int(os.environ.get("SAFE_PIP_TEST_SEED") or random.randrange(2**32))
T = TypeVar("T")


def some(every: Sequence[T], count: int) -> Sequence[T]:
    """So many of these, in their order; all of them if SAFE_PIP_TEST_EVERY is set."""
    print(f"SAFE_PIP_TEST_SEED={SEED}")
    if EVERY or len(every) <= count:
        return every
    return [every[at] for at in sorted(random.Random(SEED).sample(range(len(every)), count))]


def step(length: int) -> tuple[int, int]:
    """The number of the first fault to try, below `length`, and how much further each next one is; for all: 0 and 1."""
    print(f"SAFE_PIP_TEST_SEED={SEED}")
    return (0, 1) if EVERY else (SEED % length, length)
