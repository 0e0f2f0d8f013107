"""Energy and time of a piece of work: with a counter and a clock of our own."""

import sys
from types import SimpleNamespace

import pytest
import torch

from ldm.cost.energy import EnergyMeter
from ldm.cost.timing import measure


class Counter:
    """An NVML whose counter rises by 1500 mJ at each reading."""

    def __init__(self):
        self.value, self.asked = 10_000, []

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        assert handle == "handle"
        self.value += 1500
        return self.value


@pytest.fixture
def counter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", counter := Counter())
    properties = SimpleNamespace(uuid="1234-abcd")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return counter


def test_joules_are_the_difference_of_the_counter(counter):
    meter = EnergyMeter("cuda:1")
    assert meter.reason == ""
    assert meter.joules() == pytest.approx(1.5)
    assert meter.joules() == pytest.approx(3.0)
    assert counter.asked == ["GPU-1234-abcd"]  # NVML's numbers ignore CUDA_VISIBLE_DEVICES


def test_a_board_without_a_counter_says_why(counter):
    counter.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 1 / 0
    meter = EnergyMeter("cuda")
    assert meter.joules() is None
    assert meter.reason.startswith("NVML: division")


def test_without_the_package_or_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter("cuda").reason == "the package nvidia-ml-py is not installed"
    assert EnergyMeter("cpu").joules() is None
    assert "cpu" in EnergyMeter("cpu").reason


def test_median_of_repeats_after_a_warm_up(monkeypatch):
    """The clock is read around each call only; the warm-up is outside, energy is a mean."""
    log, times = [], iter([0, 3, 10, 11, 20, 22])
    meter = SimpleNamespace(joules=lambda: 12.0, reason="")
    monkeypatch.setattr("ldm.cost.timing.EnergyMeter", lambda device: meter)
    found = measure(
        lambda: log.append("call"),
        3,
        "cpu",
        warm_up=lambda: log.append("warm-up"),
        clock=lambda: next(times),
    )
    assert log == ["warm-up", "call", "call", "call"]
    assert found.seconds == [3, 1, 2]
    assert found.median_seconds == 2
    assert found.energy_joules == 4.0
    assert found.peak_memory_bytes > 1e6
