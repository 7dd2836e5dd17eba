"""Ctrl-C, SIGTERM and a closed terminal become a request to stop, which the loop looks at between two steps."""

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
"""The signals that ask a run to stop. A terminal that is closed sends SIGHUP; Windows has none."""


class Interrupted(Exception):  # noqa: N818  # nothing went wrong
    """The run was asked to stop, and has stopped after saving.

    Attributes:
        signal: The number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class StopRequest:
    """Whether the process was asked to stop.

    Attributes:
        signal: The signal that asked; None until then.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None


@contextmanager
def stop_requests(notice: str = "") -> Iterator[StopRequest]:
    """Turns the first of the signals ``STOPPING`` within the block into a request; a second one ends the process.

    SIGHUP is an exception: a second one is ignored, since a closed terminal may send two.

    Args:
        notice: Written to standard error at the first signal.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    hangup = getattr(signal, "SIGHUP", None)
    watched = [n for n in STOPPING if n != hangup or before[n] != signal.SIG_IGN]  # nohup ignores it

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        for each in watched:
            if each == hangup:  # the shell sends one and the kernel another
                signal.signal(each, signal.SIG_IGN)
                continue
            # A shell starts background processes with Ctrl-C ignored. The second one must stop those too, as noticed.
            ignored = each == signal.SIGINT and before[each] == signal.SIG_IGN
            signal.signal(each, signal.default_int_handler if ignored else before[each])
        with suppress(OSError):
            os.write(2, notice.encode())  # print is not safe in a handler: it may be running already
        request.signal = signal.Signals(number)

    for number in watched:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number in watched:
            signal.signal(number, before[number])
