import time

import pytest
import torch

from torchdcn.bench.timing import machine, measure, measure_times


def test_median_leaves_out_the_first_round_and_the_odd_slow_one() -> None:
    calls = 0

    def slow_at_times() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.05 if calls in (1, 3) else 0.0)

    assert measure({"a": slow_at_times}, rounds=5)["a"] < 0.04
    assert calls == 6


def test_a_slow_contender_takes_part_in_three_rounds_spread_over_the_run() -> None:
    order: list[str] = []

    def fast() -> None:
        order.append("f")

    def slow() -> None:
        order.append("s")
        time.sleep(0.11)

    times = measure_times({"fast": fast, "slow": slow}, rounds=7)
    assert (len(times["fast"]), len(times["slow"])) == (7, 3)
    assert "".join(order) == "fs" + "fs" + "fff" + "s" + "fff" + "s"


def test_a_device_is_waited_for_before_and_after_every_call() -> None:
    order: list[str] = []
    measure_times({"a": lambda: order.append("call")}, rounds=1, wait=lambda: order.append("wait"))
    assert order == ["wait", "call", "wait"] * 2


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rounds: expected at least 1, got 0"):
        measure({}, rounds=0)


def test_machine_names_the_processor_and_what_the_kernels_run_on() -> None:
    found = machine()
    assert found["CPU"]
    assert int(found["cores"]) >= 1
    assert found["instruction set"].split()[0] in ("portable", "avx2", "avx512", "avx512_bf16", "none:")
    assert found["torch"] == torch.__version__
