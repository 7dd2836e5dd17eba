"""How the threads of our own commands wait for work."""

from __future__ import annotations

import os

POLICY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""The variables by which a user says how OpenMP's threads wait."""
SPINS = "1000"
"""Turns of its waiting loop, some microseconds, after which a thread of libgomp sleeps. By default it spins for
milliseconds or without end, and takes the core from the threads of another program that has work."""


def limit_spinning() -> None:
    """Lets waiting threads sleep soon, unless the user has said how they are to wait.

    OpenMP reads the variable when torch loads it, so this comes before torch is imported. Worker processes inherit it.
    """
    if not any(name in os.environ for name in POLICY):
        os.environ["GOMP_SPINCOUNT"] = SPINS
