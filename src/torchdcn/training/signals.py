"""Ctrl-C, SIGTERM and a closed terminal as a question that the loop asks between two steps."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a run to stop; Windows knows no SIGHUP, which a terminal sends when it is closed."""


class Interrupted(Exception):  # noqa: N818  # nothing went wrong
    """Somebody asked the run to stop, and it did, after saving. ``signal`` is the number of what asked."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class StopRequest:
    """``signal`` is None until somebody asks the process to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_requests(notice: str = "") -> Iterator[StopRequest]:
    """Notes the first of ``STOPPING`` within the block instead of dying of it; a second one kills, but for SIGHUP.

    Args:
        notice: Written to standard error at the first one.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only there does Python let handlers be set
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    hangup = getattr(signal, "SIGHUP", None)
    watched = [n for n in STOPPING if n != hangup or before[n] != signal.SIG_IGN]  # nohup has it ignored, for good

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        for each in watched:
            if each == hangup:  # it comes twice, from the shell and from the kernel
                signal.signal(each, signal.SIG_IGN)
                continue
            # A shell lets what it starts in the background ignore Ctrl-C; the notice must be true there too.
            ignored = each == signal.SIGINT and before[each] == signal.SIG_IGN
            signal.signal(each, signal.default_int_handler if ignored else before[each])
        with suppress(OSError):
            os.write(2, notice.encode())  # print could be in the middle of a line just now
        request.signal = signal.Signals(number)

    for number in watched:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in watched:
            signal.signal(number, before[number])
