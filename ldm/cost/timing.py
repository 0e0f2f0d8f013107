"""Time, memory and energy of one piece of work, measured after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from ldm.cost.energy import EnergyMeter
from ldm.cost.network import peak_memory, reset_peak_memory


@dataclass(frozen=True)
class Measurement:
    """What a call costs.

    Args:
        seconds: of each call; :attr:`median_seconds` is the figure to report.
        peak_memory_bytes: see :func:`ldm.cost.network.peak_memory`.
        energy_joules: of one call, or None.
        energy_reason: why there is none.
    """

    seconds: list[float]
    peak_memory_bytes: int
    energy_joules: float | None
    energy_reason: str

    @property
    def median_seconds(self) -> float:
        """Median over the repeats."""
        return median(self.seconds)


def measure(
    call: Callable[[], object],
    repeats: int,
    device: torch.device | str,
    warm_up: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Run ``warm_up`` once (allocations, choice of kernels), then ``call`` ``repeats`` times.

    The device has finished what it was given before each reading of the clock.
    """
    (warm_up or call)()
    synchronise(device)
    reset_peak_memory(device)
    meter, seconds = EnergyMeter(device), []
    for _ in range(repeats):
        started = clock()
        call()
        synchronise(device)
        seconds.append(clock() - started)
    joules = meter.joules()
    return Measurement(
        seconds=seconds,
        peak_memory_bytes=peak_memory(device),
        energy_joules=None if joules is None else joules / repeats,
        energy_reason=meter.reason,
    )


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device | str
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round; one round that is not timed warms up.

    Each round makes every call once, so that other load on the machine meets all of them: compare
    by ratio.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            synchronise(device)
            started = time.perf_counter()
            call()
            synchronise(device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def synchronise(device: torch.device | str) -> None:
    """Wait until ``device`` has finished; a CPU always has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))
