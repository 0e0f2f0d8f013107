"""Noise schedules: how much noise the data carries at each timestep.

``x_t = alpha_t x_0 + sigma_t eps``. Timesteps run from 0 (least noise) to ``timesteps - 1``;
throughout this package timestep ``-1`` is clean data, ``alpha = 1`` and ``sigma = 0``. Everything
is float64 on the CPU until :func:`gather` hands it to a network's tensors.

:class:`NoiseSchedule` is the variance-preserving diffusion of DDPM and its successors,
``alpha_t^2 + sigma_t^2 = 1``; :class:`FlowSchedule` the straight path of rectified flow,
``alpha_t + sigma_t = 1``. Whatever asks a schedule for alpha and sigma only works with both.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.called import require_tensor
from ldm.errors import ConfigError, bad_value, calling, one_of
from ldm.modules.broadcast import per_item
from ldm.util import instantiate_from_config

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: keeps the last step invertible
SCHEDULE = "model.params.schedule_config"
PARAMS = f"{SCHEDULE}.params"  # where the arguments of a schedule stand
CLOSE = 1e-6  # of alpha and sigma of clean data
SPACINGS = ("trailing", "logsnr", "uniform", "quadratic")


def betas(
    name: str,
    timesteps: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Variances of the forward steps, ``beta_t`` of ``q(x_t | x_{t-1})``.

    Args:
        name: ``linear`` (Ho et al. 2020; latent-diffusion's "sqrt_linear"); ``scaled_linear``,
            linear in ``sqrt(beta)`` (Rombach et al. 2022, where it is called "linear"); ``sqrt``,
            linear in ``beta^2`` (ibid.); ``cosine`` (Nichol & Dhariwal 2021, eq. 17; elsewhere
            "squaredcos_cap_v2"); ``sigmoid`` (Jabri et al. 2022, from -3 to 3 at temperature 1).
        timesteps: number of steps T, at least 2.
        linear_start: as ``beta`` of the first step in ``linear`` and ``scaled_linear``, as its
            square in ``sqrt``.
        linear_end: the same of the last step.
        cosine_s: offset of the cosine schedule, in units of T.
        zero_terminal_snr: move ``alpha`` to exactly 0 at the last timestep and keep it at the first
            (Lin et al. 2023, algorithm 1). A network cannot predict ``eps`` then.

    Returns:
        (T,) float64 on the CPU, every value in (0, 1); with zero_terminal_snr the last is 1.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name or a value out of range.
    """
    _check_parameters(timesteps, linear_start, linear_end, cosine_s, zero_terminal_snr)
    one_of(f"{PARAMS}.name", name, BETAS)
    values = BETAS[name](timesteps, linear_start, linear_end, cosine_s)
    if not zero_terminal_snr:
        return values
    alpha = torch.cumprod(1 - values, dim=0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return torch.cat([values[:1], 1 - (alpha[1:] / alpha[:-1]) ** 2])


def _line(timesteps: int, first: float, last: float) -> Tensor:
    return torch.linspace(first, last, timesteps, dtype=torch.float64)


def _steps_of(alphas_cumprod: Callable[[Tensor], Tensor], timesteps: int) -> Tensor:
    """Steps of a continuous ``alphas_cumprod``, up to a factor, of the time in [0, 1]."""
    values = alphas_cumprod(torch.arange(timesteps + 1, dtype=torch.float64) / timesteps)
    return (1 - values[1:] / values[:-1]).clamp(max=MAX_BETA)


BETAS: dict[str, Callable[[int, float, float, float], Tensor]] = {
    "linear": lambda T, start, end, s: _line(T, start, end),
    "scaled_linear": lambda T, start, end, s: _line(T, math.sqrt(start), math.sqrt(end)) ** 2,
    "sqrt": lambda T, start, end, s: _line(T, start, end).sqrt(),
    "cosine": lambda T, start, end, s: _steps_of(
        lambda time: torch.cos((time + s) / (1 + s) * math.pi / 2) ** 2, T
    ),
    # from sigmoid(3) down to its mirror image sigmoid(-3), shifted to end at 0
    "sigmoid": lambda T, start, end, s: _steps_of(
        lambda time: torch.sigmoid(3 - 6 * time) - 1 / (1 + math.exp(3)), T
    ),
}


class Schedule(ABC):
    """``alpha`` and ``sigma`` as functions of the timestep, and what follows from the two."""

    timesteps: int

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Factor of ``x_0`` in ``x_t`` at real timesteps in [-1, T-1]; float64."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Factor of ``eps`` in ``x_t`` at real timesteps in [-1, T-1]; float64."""

    @abstractmethod
    def timestep_of(self, half_log_snr: Tensor) -> Tensor:
        """Real timestep at which ``lambda_t`` has the given value: inverse of half_log_snr."""

    def __len__(self) -> int:
        return self.timesteps

    def to_dict(self) -> dict[str, Any]:
        """The arguments that build this schedule again, as plain numbers and strings."""
        if not is_dataclass(self):
            raise TypeError("make the class a dataclass, whose fields are its arguments")
        return asdict(self)

    def half_log_snr(self, t: Tensor) -> Tensor:
        """``lambda_t = log(alpha_t / sigma_t)`` (Lu et al. 2022), float64.

        +inf for clean data, -inf for pure noise.
        """
        return self.alpha(t).log() - self.sigma(t).log()

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        """(T,) alpha and (T,) sigma of the integer timesteps."""
        t = torch.arange(len(self))
        return self.alpha(t), self.sigma(t)

    @cached_property
    def snr(self) -> Tensor:
        """(T,) float64, signal-to-noise ratio ``alpha_t^2 / sigma_t^2``."""
        alpha, sigma = self._levels
        return (alpha / sigma) ** 2

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether nothing is left of the data at the last timestep."""
        return bool(self.snr[-1] == 0)

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha_t, sigma_t`` at integer timesteps t (B,), shaped to multiply x (B, ...)."""
        alpha, sigma = self._levels
        return gather(alpha, t, x), gather(sigma, t, x)


def build_schedule(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule that a configuration names, which anyone may have written.

    Raises:
        ConfigError: CONFIG-TARGET for what is no schedule, or contradicts itself; CONFIG-SHAPE.
    """
    made = instantiate_from_config(config, where=SCHEDULE)
    with calling(made):
        wrong = _wrong_schedule(made)
    if wrong:
        raise ConfigError("CONFIG-TARGET", f"{SCHEDULE}: {type(made).__name__}{wrong}")
    return made


def _wrong_schedule(made: Any) -> str:
    if not isinstance(made, Schedule):
        return " is no Schedule: derive it from ldm.models.diffusion.schedule.Schedule"
    _check_timesteps(getattr(made, "timesteps", None))
    t = torch.arange(-1, len(made))
    for method in (made.alpha, made.sigma):
        require_tensor(method, method(t), t.shape, t)
    alpha, sigma = made.alpha(t), made.sigma(t)
    half_log_snr = alpha.log() - sigma.log()
    if not max(abs(alpha[0] - 1), abs(sigma[0])) <= CLOSE:  # nor where it is NaN
        return f" has alpha {alpha[0]:g} and sigma {sigma[0]:g} at -1, clean data: expected 1 and 0"
    if not (half_log_snr.diff() < 0).all():
        return ": alpha / sigma does not fall with each timestep: noise must grow"
    middle = len(made) // 2
    found = made.timestep_of(half_log_snr[middle + 1 : middle + 2])
    if not abs(found.item() - middle) < 1:
        return f".timestep_of does not find timestep {middle} by its half_log_snr"
    try:
        json.dumps(made.to_dict())
    except TypeError as error:
        return f".to_dict gives no plain numbers and strings: {error}"
    return ""


@dataclass(frozen=True)
class NoiseSchedule(Schedule):
    """A variance-preserving schedule, known completely by the arguments of :func:`betas`.

    Two schedules are equal when these arguments are; ``to_dict`` gives them for a checkpoint.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name or a value out of range.
    """

    name: str = "cosine"
    timesteps: int = 1000
    linear_start: float = 1e-4
    linear_end: float = 2e-2
    cosine_s: float = 8e-3
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        _ = self.betas  # a bad value is refused here, not at first use

    def to_dict(self) -> dict[str, Any]:
        """The arguments that build this schedule again, as plain numbers and strings."""
        stored = asdict(self)
        if not self.zero_terminal_snr:  # models stored before there was one still agree
            del stored["zero_terminal_snr"]
        return stored

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64, variances of the forward steps."""
        return betas(**asdict(self))

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, ``alpha_t^2``: the share of the signal's variance left at t."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def _log_alpha_from_clean(self) -> Tensor:
        """(T + 1,) float64, ``log alpha_t`` of the timesteps -1 ... T-1."""
        clean = self.alphas_cumprod.new_zeros(1)
        return torch.cat([clean, 0.5 * self.alphas_cumprod.log()])

    def log_alpha(self, t: Tensor) -> Tensor:
        """``log alpha_t``, float64, at real timesteps in [-1, T-1]; linear between integers.

        With zero_terminal_snr it is -inf beyond T-2: no line leads there.
        """
        position = t.to("cpu", torch.float64) + 1
        below, above = position.floor().long(), position.ceil().long()
        weight, table = position - below, self._log_alpha_from_clean
        # 0 * -inf is NaN, hence no product with the end of no weight
        return table[below] * (1 - weight) + torch.where(weight > 0, table[above] * weight, 0.0)

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of ``x_0`` in ``x_t``, ``sqrt(alphas_cumprod)``, at real timesteps; float64."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of ``eps`` in ``x_t``, ``sqrt(1 - alphas_cumprod)``, at real t; float64."""
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def timestep_of(self, half_log_snr: Tensor) -> Tensor:
        """Real timestep at which ``lambda_t`` has the given value: inverse of half_log_snr."""
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(half_log_snr), -2 * half_log_snr)
        table = self._log_alpha_from_clean
        # np.interp wants an ascending abscissa; log alpha falls with t
        timesteps = np.arange(len(table) - 1, -1, -1) - 1.0
        return torch.from_numpy(np.interp(log_alpha, table.flip(0), timesteps))


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """The straight path of rectified flow, ``x = (1 - time) x_0 + time eps`` (Liu et al. 2023).

    Timestep t stands for the time ``(t + 1) / timesteps``: -1 is clean data, T-1 pure noise. It is
    what the network is told, so that backbones need not know which path they are on.

    Raises:
        ConfigError: CONFIG-VALUE for a number of timesteps below 2.
    """

    timesteps: int = 1000

    def __post_init__(self) -> None:
        _check_timesteps(self.timesteps)

    def alpha(self, t: Tensor) -> Tensor:
        """Factor of ``x_0`` in ``x_t``, one minus the time, at real timesteps; float64."""
        return 1 - self.sigma(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Factor of ``eps`` in ``x_t``, the time, at real timesteps; float64."""
        return (t.to("cpu", torch.float64) + 1) / self.timesteps

    def timestep_of(self, half_log_snr: Tensor) -> Tensor:
        """Real timestep at which ``lambda_t = log(1 / time - 1)`` has the given value."""
        return torch.sigmoid(-half_log_snr) * self.timesteps - 1


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
    return per_item(table[t.to(x.device)], x)


def sampling_timesteps(
    schedule: Schedule, steps: int, spacing: str = "trailing"
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Timesteps at which a sampler calls the network, from most to least noise.

    Args:
        schedule: gives T and, for ``logsnr``, the noise levels.
        steps: how many.
        spacing: ``trailing``, even and starting at T-1 (Lin et al. 2023, table 2); ``logsnr``, even
            in ``lambda_t`` from T-1 to 0 (Lu et al. 2022), after a first step from T-1 to T-2 where
            T-1 is pure noise; ``uniform`` and ``quadratic``, the grids of the DDIM code, which
            start below T-1 and exist for some counts only.

    Returns:
        (steps,) int64, strictly decreasing within [0, T-1].

    Raises:
        ConfigError: CONFIG-VALUE for a count outside 1..T, an unknown spacing, or a count for which
            the spacing has no grid of distinct timesteps.
    """
    T = len(schedule)
    if not isinstance(steps, Integral) or isinstance(steps, bool) or not 1 <= steps <= T:
        raise bad_value(f"{steps!r} sampling steps; expected an integer from 1 to {T}")
    one_of("spacing", spacing, SPACINGS)
    if spacing == "trailing":
        grid = np.round(T - np.arange(steps) * T / steps) - 1
    elif spacing == "logsnr":
        grid = _logsnr_timesteps(schedule, steps)
    elif spacing == "uniform":
        grid = np.arange(0, T, T // steps)[::-1] + 1
    else:
        grid = np.floor(np.linspace(0, math.sqrt(0.8 * T), steps) ** 2)[::-1] + 1
    if len(grid) != steps or grid[0] >= T or len(np.unique(grid)) != steps:
        raise bad_value(
            f"spacing {spacing} has no {steps} distinct timesteps below {T}; "
            f"take another number of steps, or spacing trailing, which has every number"
        )
    return grid.astype(np.int64)


def _logsnr_timesteps(schedule: Schedule, steps: int) -> np.ndarray[Any, Any]:
    """Integer timesteps nearest to equal distances in lambda, moved apart where they coincide."""
    last = len(schedule) - 1
    infinite = [last] if schedule.ends_in_pure_noise else []
    last, steps = last - len(infinite), steps - len(infinite)
    low, high = schedule.half_log_snr(torch.tensor([last, 0])).tolist()
    exact = schedule.timestep_of(torch.linspace(low, high, steps, dtype=torch.float64))
    rising = np.arange(steps)
    # strictly rising with the room that is left: grid - rising never falls, 0 to last + 1 - steps
    offset = np.maximum.accumulate(exact.round().numpy()[::-1] - rising)
    return np.array([*infinite, *(offset.clip(0, last + 1 - steps) + rising)[::-1]])


def _check_parameters(
    timesteps: int, start: float, end: float, cosine_s: float, zero_terminal_snr: bool
) -> None:
    _check_timesteps(timesteps)
    for key, value in (("linear_start", start), ("linear_end", end)):
        if not _is_number(value) or not 0 < value < 1:
            raise bad_value(f"{PARAMS}.{key} is {value!r}; expected a number between 0 and 1")
    if start > end:
        raise bad_value(f"{PARAMS}: linear_start {start} is above linear_end {end}; swap them")
    if not _is_number(cosine_s) or not 0 <= cosine_s <= 1:
        raise bad_value(f"{PARAMS}.cosine_s is {cosine_s!r}; expected a number from 0 to 1")
    if not isinstance(zero_terminal_snr, bool):
        raise bad_value(
            f"{PARAMS}.zero_terminal_snr is {zero_terminal_snr!r}; expected true or false"
        )


def _check_timesteps(timesteps: int) -> None:
    if not isinstance(timesteps, Integral) or isinstance(timesteps, bool) or timesteps < 2:
        raise bad_value(f"{PARAMS}.timesteps is {timesteps!r}; expected an integer of at least 2")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
