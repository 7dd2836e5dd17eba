"""A queue of heavy work: one job at a time. Each job reports its progress and can be stopped."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..analysis import CancelledError

if TYPE_CHECKING:
    from collections.abc import Callable

LOG = logging.getLogger("torchdcn.web")
FAULTS = (ValueError, TypeError, OSError, ArithmeticError)  # raised for bad input; the reader is shown the message


class QueueFullError(RuntimeError):
    """More jobs are waiting than the queue holds."""


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a job: JSON, and bytes for large parts.

    Attributes:
        facts: Ready for ``json.dumps``.
        data: Bytes that the page fetches separately, or None.
    """

    facts: dict[str, Any]
    data: bytes | None = None


class Job:
    """A piece of work, and how far it has come; read by one thread while another does it.

    Args:
        work: Called with the job. It calls :meth:`progress`, and raises CancelledError once that returns False.

    Attributes:
        state: "waiting", "working", "done", "failed" or "stopped".
        done: Steps taken, of ``total``; both are 0 where steps aren't counted.
        result: The result, once the job is done.
        error: Why it failed, in one line.
    """

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self._work = work
        self._stopped = threading.Event()
        self.state = "waiting"
        self.done = self.total = 0
        self.result: Result | None = None
        self.error = ""

    def progress(self, done: int, total: int) -> bool:
        """Stores the progress; False means that the work should stop."""
        self.done, self.total = done, total
        return not self._stopped.is_set()

    def stop(self) -> None:
        """Asks the job to stop: at once if it is still waiting, else at its next step."""
        self._stopped.set()
        if self.state == "waiting":
            self.state = "stopped"

    def check(self) -> None:
        """Raises CancelledError if somebody has asked the job to stop."""
        if self._stopped.is_set():
            raise CancelledError("stopped")

    @property
    def over(self) -> bool:
        """Whether the job has ended."""
        return self.state in ("done", "failed", "stopped")

    def run(self) -> None:
        """Does the work in the calling thread; an error is stored in ``error``."""
        if self._stopped.is_set():
            self.state = "stopped"
            return
        self.state = "working"
        try:
            self.result = self._work(self)
            self.state = "done"
        except CancelledError:
            self.state = "stopped"
        except FAULTS as error:
            self._fail(" ".join(str(error).split()))
        except Exception as error:
            LOG.exception("a job failed")
            self._fail(f"unexpected {type(error).__name__}; the server's terminal shows where")

    def _fail(self, error: str) -> None:
        self.error = error
        self.state = "failed"


class Jobs:
    """Runs jobs one after the other in its own thread: two jobs must not use a network at once.

    Args:
        most: How many jobs may wait.
    """

    def __init__(self, most: int = 16) -> None:
        self._waiting: queue.Queue[Job | None] = queue.Queue()
        self._most = most
        self._lock = threading.Lock()
        self._jobs: list[Job] = []  # waiting or running, in order
        self._closed = False
        # A daemon, so that a pass of a large network, which takes seconds, does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Adds a job to the queue.

        Raises:
            QueueFullError: Too many are waiting, or the server is stopping.
        """
        with self._lock:
            if self._closed:
                raise QueueFullError("the server is stopping")
            if sum(not other.over for other in self._jobs) > self._most:
                raise QueueFullError(f"{self._most} jobs are waiting already; try again in a while")
            self._jobs.append(job)
            self._waiting.put(job)

    def ahead(self, job: Job) -> int:
        """How many jobs come before a waiting one, the running one included."""
        with self._lock:
            before = self._jobs[: self._jobs.index(job)] if job in self._jobs else []
        return sum(not other.over for other in before)

    def stop(self) -> None:
        """Stops all jobs, and takes no more."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()
        self._waiting.put(None)

    def close(self, patience: float = 3.0) -> bool:
        """Stops all jobs and waits for the thread, some seconds; True if it has ended."""
        self.stop()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            job.run()
            with self._lock:
                self._jobs.remove(job)
