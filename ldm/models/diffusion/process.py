"""The process that a model learns to reverse: what is noised how, predicted as what, judged how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.errors import bad_value, one_of
from ldm.losses.pointwise import POINTWISE_LOSSES
from ldm.models.diffusion.gaussian import (
    LEARNED,
    LOSS_WEIGHTS,
    PARAMETERISATIONS,
    VARIANCES,
    q_sample,
    split_output,
)
from ldm.models.diffusion.schedule import Schedule, build_schedule
from ldm.models.diffusion.variational_bound import bound_term
from ldm.modules.broadcast import per_item

COSINE: Mapping[str, Any] = {
    "target": "ldm.models.diffusion.schedule.NoiseSchedule",
    "params": {"name": "cosine", "timesteps": 1000},
}
MEAN_SHARE = 0.75  # of a batch, where nothing else is asked for
# weights of the error of the output and of the bound's term, given T timesteps
OBJECTIVES: dict[str, Callable[[int], tuple[float, float]]] = {
    "mse": lambda T: (1.0, 1.0),
    "rescaled_mse": lambda T: (1.0, T / 1000),
    "hybrid": lambda T: (1.0, T / 1000),  # L_simple + 0.001 L_vlb (Nichol & Dhariwal 2021, eq. 16)
    "kl": lambda T: (0.0, 1.0),
    "rescaled_kl": lambda T: (0.0, float(T)),  # T times the mean over t is the sum, the bound
}


class Noised(NamedTuple):
    """Noisy data ``x_t`` (B, C, ...) at timesteps t (B,), and the data and noise it is made of."""

    x_0: Tensor
    eps: Tensor
    t: Tensor
    x_t: Tensor


class Estimate(NamedTuple):
    """What a network returned of the data: its output, the x_0 that it stands for, (B, C, ...).

    ``values`` (B, C, ...) are its channels of the variance, None where it is not learned.
    """

    output: Tensor
    x_0: Tensor
    values: Tensor | None


class GaussianProcess:
    """Data noised as a schedule says, a network's prediction of it, and the loss of a prediction.

    ``x_t = alpha_t x_0 + sigma_t eps``; x (B, C, ...), t (B,) integer timesteps throughout.

    Args:
        schedule_config: the noise schedule, or its ``target`` / ``params``.
        parameterization: what the network predicts: ``eps``, ``x0``, ``v`` or ``flow``.
        variance: of the reverse step, a key of :data:`~ldm.models.diffusion.gaussian.VARIANCES`;
            ``learned`` and ``learned_range`` double the channels of the output.
        objective: ``mse`` is the error of the output, ``fit``, plus the bound's term ``vb`` if the
            variance is learned; ``rescaled_mse`` weighs that term with T / 1000; ``hybrid`` is the
            same but insists on a learned variance; ``kl`` is the bound's term alone,
            ``rescaled_kl`` T times it. Beside an error of the output the bound trains the variance
            only (Nichol & Dhariwal 2021, section 3.1).
        loss_type: the error of the output, ``l1``, ``l2`` or ``charbonnier``.
        loss_weight: weight of that error over timesteps, ``min_snr``, ``p2`` or
            ``truncated_snr``; None: all outputs alike.
        mean_share: share of each training batch that learns the posterior mean, where sampling at
            temperature 0 asks for it, see :meth:`at_mean`. 1 is a one-step regression; ``auto`` is
            three quarters, and 0 with ``eps``, which in pure noise says next to nothing of x_0.

    Raises:
        ConfigError: CONFIG-VALUE for an unknown name; for ``eps`` on a schedule that ends in pure
            noise, from which x_0 does not follow (Lin et al. 2023, section 3.2); for ``hybrid``
            without a learned variance; for ``eps`` with a ``mean_share``.
    """

    def __init__(
        self,
        schedule_config: Mapping[str, Any] | Schedule = COSINE,
        parameterization: str = "x0",
        variance: str = "fixed_small",
        objective: str = "rescaled_mse",
        loss_type: str = "l2",
        loss_weight: str | None = None,
        mean_share: float | str = 0.0,
    ) -> None:
        self.schedule: Schedule = (
            schedule_config
            if isinstance(schedule_config, Schedule)
            else build_schedule(schedule_config or COSINE)
        )
        one_of("model.params.parameterization", parameterization, PARAMETERISATIONS)
        one_of("model.params.variance", variance, VARIANCES)
        one_of("model.params.objective", objective, OBJECTIVES)
        one_of("model.params.loss_type", loss_type, POINTWISE_LOSSES)
        if loss_weight is not None:
            one_of("model.params.loss_weight", loss_weight, LOSS_WEIGHTS)
        if parameterization == "eps" and self.schedule.ends_in_pure_noise:
            raise bad_value(
                "model.params.parameterization is 'eps' on a schedule that ends in pure noise, "
                "where eps says nothing of x_0; expected v, x0 or flow, or a schedule without zero "
                "terminal SNR"
            )
        if objective == "hybrid" and variance not in LEARNED:
            raise bad_value(
                f"model.params.objective is 'hybrid' with variance {variance!r}, which it has "
                f"nothing to teach; expected variance {' or '.join(LEARNED)}, or objective mse"
            )
        if mean_share == "auto":
            mean_share = 0.0 if parameterization == "eps" else MEAN_SHARE
        if (
            isinstance(mean_share, str)
            or not 0 <= mean_share <= 1
            or (mean_share and parameterization == "eps")
        ):
            raise bad_value(
                f"model.params.mean_share is {mean_share} with parameterization "
                f"'{parameterization}': give auto, or 0 to 1, and above 0 only with x0, v or flow"
            )
        self.parameterization, self.variance, self.objective = parameterization, variance, objective
        self.error = POINTWISE_LOSSES[loss_type]
        self.loss_weight, self.mean_share = loss_weight, float(mean_share)

    def __repr__(self) -> str:
        return f"GaussianProcess({self.parameterization}, {len(self.schedule)} timesteps)"

    def noisy(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Noised:
        """Return x_0 at timesteps t with the noise eps."""
        return Noised(x_0, eps, t, q_sample(x_0, t, eps, self.schedule))

    def through(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Noised:
        """Return noisy data x_t that are to lead to x_0, with the noise that is then in them."""
        alpha, sigma = self.schedule.at(t, x_t)
        return Noised(x_0, (x_t - alpha * x_0) / sigma, t, x_t)

    def at_mean(self, noised: Noised, count: int) -> Noised:
        """Return the same with the first ``count`` items where the posterior mean is asked for.

        That is ``x_t = 0`` at the last timestep, which knows nothing of x_0: the least squared
        error is there the mean of the data given the conditions. It is where sampling at
        temperature 0 starts, and no state of the forward process, whose x_T has length.
        """
        x_0, eps, t, x_t = (value.clone() for value in noised)
        x_t[:count], t[:count] = 0.0, len(self.schedule) - 1
        eps[:count] = self.through(x_0[:count], x_t[:count], t[:count]).eps
        return Noised(x_0, eps, t, x_t)

    @property
    def knows_mean(self) -> bool:
        """Whether the posterior mean is learned, see :meth:`at_mean`."""
        return self.mean_share > 0

    def as_taught(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return x_t as a network is shown it: noise alone, which says nothing of x_0, as 0.

        Sampling starts at the last timestep with noise that no data are in, so the best answer is
        the posterior mean, whatever the noise: it is asked for where it was learned.
        """
        if not self.knows_mean:
            return x_t
        return torch.where(per_item(t == len(self.schedule) - 1, x_t), 0.0, x_t)

    def mean_loss(
        self, estimate: Estimate, noised: Noised, weights: Tensor | float = 1.0
    ) -> Tensor:
        """Return the error of x_0 (B,), the loss of items at :meth:`at_mean`; see :meth:`loss`."""
        return (weights * self.error(estimate.x_0, noised.x_0)).flatten(1).mean(dim=1)

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what a network should return at t."""
        _, _, p, q = self._levels(x_0, t)
        return p * x_0 + q * eps

    def x_0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the clean data that a network's output (without variance) stands for."""
        alpha, sigma, p, q = self._levels(x_t, t)
        return (q * x_t - sigma * output) / (alpha * q - sigma * p)

    def estimate(self, output: Tensor, x_t: Tensor, t: Tensor) -> Estimate:
        """Return what a network's output, with its channels of the variance, stands for."""
        prediction, values = split_output(output, self.variance)
        return Estimate(prediction, self.x_0(prediction, x_t, t), values)

    def weight(self, x_t: Tensor, t: Tensor) -> Tensor | float:
        """Return the weight (B, 1, ...) on the squared error of the output."""
        if self.loss_weight is None:
            return 1.0
        alpha, sigma, p, q = self._levels(x_t, t)
        of_x_0 = sigma / (alpha * q - sigma * p)  # the error of x_0 that one of the output makes
        return LOSS_WEIGHTS[self.loss_weight]((alpha / sigma).square()) * of_x_0**2

    def loss(
        self, estimate: Estimate, noised: Noised, weights: Tensor | float = 1.0
    ) -> dict[str, Tensor]:
        """Return the loss of each item by component, all (B,); ``loss`` is what to minimise.

        Args:
            weights: (B, 1, ...) of the error of each voxel, beside those of the timesteps.
        """
        x_0, eps, t, x_t = noised
        of_error, of_bound = OBJECTIVES[self.objective](len(self.schedule))
        losses, predicted = {}, estimate.x_0
        if of_error:
            error = self.error(estimate.output, self.target(x_0, eps, t))
            error = weights * self.weight(x_t, t) * error
            losses["fit"] = of_error * error.flatten(1).mean(dim=1)
            predicted = predicted.detach()
        if not of_error or estimate.values is not None:
            losses["vb"] = of_bound * bound_term(
                predicted, estimate.values, x_0, x_t, t, self.schedule, self.variance
            )
        return {"loss": sum(losses.values()), **losses}

    def _levels(
        self, x: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | float, Tensor | float]:
        """Return alpha, sigma, and p and q of the output p x_0 + q eps, to multiply x."""
        alpha, sigma = self.schedule.at(t, x)
        return alpha, sigma, *PARAMETERISATIONS[self.parameterization](alpha, sigma)
