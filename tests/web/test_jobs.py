from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from torchdcn.web.jobs import Job, Jobs, QueueFullError, Result

from .running import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs(most=2)
    yield made
    assert made.close(5)


def nothing(_: Job) -> Result:
    return Result({})


def endless(job: Job) -> Result:
    step = 0
    while job.progress(step, 1000):
        step += 1
        threading.Event().wait(0.001)
    job.check()
    raise AssertionError("check() raises for a stopped job")


def test_jobs_are_done_one_at_a_time_and_in_order(jobs: Jobs) -> None:
    at_work, most, order = 0, 0, []

    def work(number: int) -> Job:
        def do(_: Job) -> Result:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            threading.Event().wait(0.02)
            order.append(number)
            at_work -= 1
            return Result({"number": number})

        return Job(do)

    given = [work(number) for number in range(3)]
    for job in given:
        jobs.put(job)
    assert jobs.ahead(given[2]) >= 1
    assert until(lambda: given[2].over)
    assert (most, order) == (1, [0, 1, 2])
    assert [job.result.facts["number"] for job in given if job.result] == [0, 1, 2]


def test_a_running_job_stops_at_its_next_step_and_frees_the_next_one(jobs: Jobs) -> None:
    first, second = Job(endless), Job(nothing)
    jobs.put(first)
    jobs.put(second)
    assert until(lambda: first.done > 3)
    assert (second.state, jobs.ahead(second)) == ("waiting", 1)
    first.stop()
    assert until(lambda: second.state == "done")
    assert (first.state, first.result) == ("stopped", None)


def test_a_waiting_job_that_is_stopped_is_never_begun(jobs: Jobs) -> None:
    begun = threading.Event()

    def note(_: Job) -> Result:
        begun.set()
        return Result({})

    first, second = Job(endless), Job(note)
    jobs.put(first)
    jobs.put(second)
    second.stop()
    first.stop()
    assert until(lambda: first.over)
    assert second.state == "stopped"
    assert jobs.close(5)
    assert not begun.is_set()


def test_a_full_queue_refuses_until_a_job_is_stopped(jobs: Jobs) -> None:
    given = [Job(endless) for _ in range(3)]
    for job in given:
        jobs.put(job)
    with pytest.raises(QueueFullError, match="2 jobs are waiting already"):
        jobs.put(Job(nothing))
    given[1].stop()
    last = Job(nothing)
    jobs.put(last)
    for job in given:
        job.stop()
    assert until(lambda: last.state == "done")


def test_what_goes_wrong_is_told_in_one_line(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    def bad_input(_: Job) -> Result:
        raise ValueError("node: no\nsuch layer")

    def bug(_: Job) -> Result:
        raise KeyError("secret")

    first, second = Job(bad_input), Job(bug)
    jobs.put(first)
    jobs.put(second)
    assert until(lambda: second.over)
    assert (first.state, first.error) == ("failed", "node: no such layer")
    assert second.error == "unexpected KeyError; the server's terminal shows where"
    assert "secret" in caplog.text


def test_closing_stops_what_runs_and_takes_no_more(jobs: Jobs) -> None:
    job = Job(endless)
    jobs.put(job)
    assert until(lambda: job.done > 0)
    assert jobs.close(5)
    assert job.state == "stopped"
    with pytest.raises(QueueFullError, match="stopping"):
        jobs.put(Job(nothing))
