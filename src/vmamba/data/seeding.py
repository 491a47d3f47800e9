"""Random numbers as a pure function of a few integers, so that nothing random needs to be saved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(*numbers: int) -> None:
    """Seed PyTorch (CPU, and GPUs in use), NumPy and Python from some non-negative integers."""
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
    torch.default_generator.manual_seed(int(state[0]))
    if torch.cuda.is_initialized():  # else torch.manual_seed would note a stack trace for later, every time
        torch.cuda.manual_seed_all(int(state[0]))
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(int(state[0]))
    _seed_others(int(state[1]))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, the CPU generators of PyTorch, NumPy and Python are seeded from `numbers`; afterwards as before."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (what transforms draw from)
    state = np.random.SeedSequence(numbers).generate_state(2, np.uint64)
    torch.default_generator.manual_seed(int(state[0]))
    _seed_others(int(state[1]))
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _seed_others(seed: int) -> None:
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
