"""Variance-preserving noise schedules: how much noise the data carries at each timestep.

``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t = sqrt(alphas_cumprod[t])`` and
``alpha_t^2 + sigma_t^2 = 1``. Timesteps run from 0 (least noise) to ``timesteps - 1``; throughout
this package timestep ``-1`` is clean data, ``alpha = 1`` and ``sigma = 0``. Everything is float64
on the CPU until :func:`gather` hands it to a network's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate, repeat
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ConfigError

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last cosine step invertible


def betas(
    name: str,
    timesteps: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> Tensor:
    """Variances of the forward steps, ``beta_t`` of ``q(x_t | x_{t-1})``.

    Args:
        name: ``linear`` (Ho et al. 2020); ``scaled_linear``, linear in ``sqrt(beta)`` (Rombach et
            al. 2022, where it is called "linear"); ``cosine`` (Nichol & Dhariwal 2021, eq. 17).
        timesteps: number of steps T, at least 2.
        linear_start: first beta of the two linear schedules.
        linear_end: last beta of the two linear schedules.
        cosine_s: offset of the cosine schedule, in units of T.

    Returns:
        (T,) float64 on the CPU, every value in (0, 1).

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name or a value out of range.
    """
    _check_parameters(timesteps, linear_start, linear_end, cosine_s)
    if name == "linear":
        return torch.linspace(linear_start, linear_end, timesteps, dtype=torch.float64)
    if name == "scaled_linear":
        ends = math.sqrt(linear_start), math.sqrt(linear_end)
        return torch.linspace(*ends, timesteps, dtype=torch.float64) ** 2
    if name == "cosine":
        time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        alphas_cumprod = torch.cos((time + cosine_s) / (1 + cosine_s) * math.pi / 2) ** 2
        return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)
    raise _bad_value(f"schedule is {name!r}; expected linear, scaled_linear or cosine")


@dataclass(frozen=True)
class NoiseSchedule:
    """A schedule, known completely by the arguments of :func:`betas`.

    Two schedules are equal when these arguments are; ``to_dict`` gives them for a checkpoint.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name or a value out of range.
    """

    name: str = "linear"
    timesteps: int = 1000
    linear_start: float = 1e-4
    linear_end: float = 2e-2
    cosine_s: float = 8e-3

    def __post_init__(self) -> None:
        _ = self.betas  # a bad value is refused here, not at first use

    def __len__(self) -> int:
        return self.timesteps

    def to_dict(self) -> dict[str, Any]:
        """The arguments that build this schedule again, as plain numbers and strings."""
        return asdict(self)

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64, variances of the forward steps."""
        return betas(**asdict(self))

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, ``alpha_t^2``: the share of the signal's variance left at t."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """(T,) float64, ``alphas_cumprod`` one timestep earlier; 1 at the first."""
        return torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])

    @cached_property
    def _log_alpha_from_clean(self) -> Tensor:
        """(T + 1,) float64, ``log alpha_t`` of the timesteps -1 ... T-1."""
        clean = self.alphas_cumprod.new_zeros(1)
        return torch.cat([clean, 0.5 * self.alphas_cumprod.log()])

    def log_alpha(self, t: Tensor) -> Tensor:
        """``log alpha_t``, float64, at real timesteps in [-1, T-1]; linear between integers."""
        position = t.to("cpu", torch.float64) + 1
        below, above = position.floor().long(), position.ceil().long()
        table = self._log_alpha_from_clean
        return torch.lerp(table[below], table[above], position - below)

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of ``x_0`` in ``x_t``, ``sqrt(alphas_cumprod)``, at real timesteps; float64."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of ``eps`` in ``x_t``, ``sqrt(1 - alphas_cumprod)``, at real t; float64."""
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def half_log_snr(self, t: Tensor) -> Tensor:
        """``lambda_t = log(alpha_t / sigma_t)`` (Lu et al. 2022), +inf for clean data; float64."""
        return self.log_alpha(t) - self.sigma(t).log()

    def timestep_of(self, half_log_snr: Tensor) -> Tensor:
        """Real timestep at which ``lambda_t`` has the given value: inverse of half_log_snr."""
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(half_log_snr), -2 * half_log_snr)
        table = self._log_alpha_from_clean
        # np.interp wants an ascending abscissa; log alpha falls with t
        timesteps = np.arange(len(table) - 1, -1, -1) - 1.0
        return torch.from_numpy(np.interp(log_alpha, table.flip(0), timesteps))

    @cached_property
    def snr(self) -> Tensor:
        """(T,) float64, signal-to-noise ratio ``alpha_t^2 / sigma_t^2``."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha_t, sigma_t`` at integer timesteps t (B,), shaped to multiply x (B, ...)."""
        alpha, sigma = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        return gather(alpha, t, x), gather(sigma, t, x)


def gather(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Per-timestep numbers for the items of a batch.

    Args:
        values: (T,) float64 on the CPU.
        t: (B,) integer timesteps.
        x: (B, ...) the tensor the result is to be multiplied with.

    Returns:
        (B, 1, ...) on the device of x, in its dtype but never below float32.
    """
    # cast before the move: not every device holds float64
    table = values.to(torch.promote_types(x.dtype, torch.float32)).to(x.device)
    return table[t.to(x.device)].reshape(-1, *[1] * (x.ndim - 1))


def sampling_timesteps(
    schedule: NoiseSchedule, steps: int, spacing: str = "trailing"
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Timesteps at which a sampler calls the network, from most to least noise.

    Args:
        schedule: gives T and, for ``logsnr``, the noise levels.
        steps: number of network calls.
        spacing: ``trailing``, even and starting at T-1 (Lin et al. 2023, table 2); ``logsnr``, even
            in ``lambda_t`` from T-1 to 0 (Lu et al. 2022); ``uniform`` and ``quadratic``, the grids
            of the DDIM code, which start below T-1 and exist for some counts only.

    Returns:
        (steps,) int64, strictly decreasing within [0, T-1].

    Raises:
        ConfigError: CONFIG-VALUE for a count outside 1..T, an unknown spacing, or a count for which
            the spacing has no grid of distinct timesteps.
    """
    T = len(schedule)
    if not isinstance(steps, Integral) or isinstance(steps, bool) or not 1 <= steps <= T:
        raise _bad_value(f"{steps!r} sampling steps; expected an integer from 1 to {T}")
    if spacing == "trailing":
        grid = np.round(T - np.arange(steps) * T / steps) - 1
    elif spacing == "logsnr":
        grid = _logsnr_timesteps(schedule, steps)
    elif spacing == "uniform":
        grid = np.arange(0, T, T // steps)[::-1] + 1
    elif spacing == "quadratic":
        grid = np.floor(np.linspace(0, math.sqrt(0.8 * T), steps) ** 2)[::-1] + 1
    else:
        known = "trailing, logsnr, uniform or quadratic"
        raise _bad_value(f"spacing is {spacing!r}; expected {known}")
    if len(grid) != steps or grid[0] >= T or len(np.unique(grid)) != steps:
        raise _bad_value(
            f"spacing {spacing} has no {steps} distinct timesteps below {T}; "
            f"take another number of steps, or spacing trailing, which has every number"
        )
    return grid.astype(np.int64)


def _logsnr_timesteps(schedule: NoiseSchedule, steps: int) -> np.ndarray[Any, Any]:
    """Integer timesteps nearest to equal distances in lambda, moved apart where they coincide."""
    low, high = schedule.half_log_snr(torch.tensor([len(schedule) - 1, 0])).tolist()
    exact = schedule.timestep_of(torch.linspace(low, high, steps, dtype=torch.float64))
    rising = np.arange(steps)
    # strictly rising with the room that is left: grid - rising never falls, from 0 to T - steps
    offset = np.maximum.accumulate(exact.round().numpy()[::-1] - rising)
    return (offset.clip(0, len(schedule) - steps) + rising)[::-1]


def respace(timesteps: int, spec: int | str | Sequence[int]) -> list[int]:
    """Subset of ``range(timesteps)`` by the notation of guided-diffusion.

    Args:
        timesteps: T, the number of timesteps to choose from.
        spec: a count per section of equal length, as numbers or as text ("10,15,20"; "50" is one
            section), each section with its ends; or "ddimN" for the fixed stride that gives N.

    Returns:
        The chosen timesteps, increasing.

    Raises:
        ConfigError: CONFIG-VALUE for a text that is not of this form, a count that does not fit its
            section, or an N that no stride gives.
    """
    if isinstance(spec, str) and spec.startswith("ddim"):
        return _fixed_stride(timesteps, spec)
    counts = _counts(spec)
    length, longer = divmod(timesteps, len(counts))
    chosen: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = length + (i < longer)
        if not 1 <= count <= size:
            raise _bad_value(f"respacing {spec!r} takes {count} of {size} timesteps in a section")
        stride = (size - 1) / max(count - 1, 1)
        # The published models were trained on a running sum; a product rounds otherwise at ties.
        chosen += [start + round(p) for p in accumulate(repeat(stride, count - 1), initial=0.0)]
        start += size
    return chosen


def _fixed_stride(timesteps: int, spec: str) -> list[int]:
    counts = _counts(spec.removeprefix("ddim"))
    for stride in range(1, timesteps + 1):
        chosen = list(range(0, timesteps, stride))
        if [len(chosen)] == counts:
            return chosen
    raise _bad_value(f"no integer stride of {timesteps} timesteps gives respacing {spec!r}")


def _counts(spec: int | str | Sequence[int]) -> list[int]:
    parts = spec.split(",") if isinstance(spec, str) else np.atleast_1d(spec)
    try:
        counts = [int(part) for part in parts]
    except ValueError:
        counts = []
    if not counts:
        raise _bad_value(f"respacing is {spec!r}; expected counts, as in 10,15,20, or as in ddim25")
    return counts


def _check_parameters(
    timesteps: int, linear_start: float, linear_end: float, cosine_s: float
) -> None:
    if not isinstance(timesteps, Integral) or isinstance(timesteps, bool) or timesteps < 2:
        raise _bad_value(f"timesteps is {timesteps!r}; expected an integer of at least 2")
    for key, value in (("linear_start", linear_start), ("linear_end", linear_end)):
        if not _is_number(value) or not 0 < value < 1:
            raise _bad_value(f"{key} is {value!r}; expected a number between 0 and 1")
    if linear_start > linear_end:
        raise _bad_value(f"linear_start {linear_start} is above linear_end {linear_end}; swap them")
    if not _is_number(cosine_s) or not 0 <= cosine_s <= 1:
        raise _bad_value(f"cosine_s is {cosine_s!r}; expected a number from 0 to 1")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _bad_value(message: str) -> ConfigError:
    return ConfigError("CONFIG-VALUE", message)
