"""Ctrl-C and SIGTERM as a question that the loop asks between two steps."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class StopRequest:
    """``signal`` is None until somebody asks the process to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes the first Ctrl-C or SIGTERM within the block instead of dying of it; a second one kills as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only there does Python let handlers be set
        yield request
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        request.signal = signal.Signals(number)
        for each in watched:
            signal.signal(each, before[each])

    for number in watched:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in watched:
            signal.signal(number, before[number])
