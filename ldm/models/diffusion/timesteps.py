"""Which timesteps a training batch sees, and what their losses weigh for it.

Every sampler has ``draw(uniform) -> (t, weight)``, which makes of numbers (B,) in [0, 1) timesteps
(B,) int64 and weights (B,) float32, and ``update(t, loss)`` for those that learn from the losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, distributed

from ldm.errors import CheckpointError, bad_value
from ldm.util import instantiate_from_config


class UniformTimesteps:
    """All timesteps alike (Ho et al. 2020, algorithm 1)."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps and the weights of their losses."""
        return (uniform * self.timesteps).long(), torch.ones(len(uniform))

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Take note of the losses (B,), before weighting, at timesteps t (B,)."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to draw as if it had not stopped."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`."""


class LogitNormalTimesteps(UniformTimesteps):
    """Timesteps in the middle more often (Esser et al. 2024, section 3.1).

    The logit of the time ``(t + u) / T``, u uniform, is normal. The losses keep weight 1: it is the
    emphasis that is wanted, not another estimate of the same mean.

    Args:
        timesteps: T.
        mean: of the logit; above 0 leans to noise.
        std: of the logit; small values crowd the middle.

    Raises:
        ConfigError: CONFIG-VALUE for a std that is not positive.
    """

    def __init__(self, timesteps: int, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(timesteps)
        if not isinstance(std, Real) or not std > 0:
            raise bad_value(f"std is {std!r}; expected a number above 0")
        edges = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        self.probabilities = torch.special.ndtr((edges.logit() - mean) / std).diff()

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps and the weights of their losses, which are 1."""
        return _quantile(self.probabilities, uniform), torch.ones(len(uniform))


class ImportanceTimesteps(UniformTimesteps):
    """Timesteps of large loss more often, each loss weighing less for it.

    ``p_t`` is proportional to the root mean square of the last losses at t, which gives the mean of
    the losses over all timesteps the least variance (Nichol & Dhariwal 2021, section 3.3, eq. 18).
    Uniform until every timestep has a full history. On several ranks all share one history.

    Args:
        timesteps: T.
        history: losses kept of each timestep.
        uniform: share of uniform draws, so that no timestep is forgotten.

    Raises:
        ConfigError: CONFIG-VALUE for a history below 1 or a share outside (0, 1].
    """

    def __init__(self, timesteps: int, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__(timesteps)
        if not isinstance(history, Integral) or history < 1:
            raise bad_value(f"history is {history!r}; expected 1 or more")
        if not isinstance(uniform, Real) or not 0 < uniform <= 1:
            raise bad_value(f"uniform is {uniform!r}; expected 0 < uniform <= 1")
        self.uniform = uniform
        self.losses = torch.zeros(timesteps, history, dtype=torch.float64)
        self.seen = torch.zeros(timesteps, dtype=torch.int64)

    @property
    def probabilities(self) -> Tensor:
        """(T,) float64, of drawing each timestep."""
        even = torch.full((self.timesteps,), 1 / self.timesteps, dtype=torch.float64)
        rms = self.losses.square().mean(dim=1).sqrt()
        if (self.seen < self.losses.shape[1]).any() or rms.sum() == 0:
            return even
        return torch.lerp(rms / rms.sum(), even, self.uniform)

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps and the weights of their losses, ``1 / (T p_t)``: the mean is unbiased."""
        probabilities = self.probabilities
        t = _quantile(probabilities, uniform)
        return t, (1 / (self.timesteps * probabilities[t])).float()

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Replace the oldest losses of timesteps t (B,) by loss (B,), from all ranks."""
        seen = _from_all_ranks(list(zip(t.tolist(), loss.tolist(), strict=True)))
        for timestep, value in sorted(seen):  # in one order, whichever rank it is from
            place = self.seen[timestep] % self.losses.shape[1]
            self.losses[timestep, place] = value
            self.seen[timestep] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The history: losses (T, history) and how many were seen (T,)."""
        return {"losses": self.losses.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CheckpointError: CKPT-MISMATCH for no history or one of another shape.
        """
        shape = tuple(state["losses"].shape) if "losses" in state else "absent"
        if shape != tuple(self.losses.shape):
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"history of losses is {shape}; expected {tuple(self.losses.shape)}, "
                "sampler of timesteps and its arguments as in the run that is resumed",
            )
        self.losses.copy_(state["losses"])
        self.seen.copy_(state["seen"])


def build_timesteps(config: Mapping[str, Any], timesteps: int) -> Any:
    """Return the sampler that ``timesteps_config`` names, told how many timesteps there are.

    Raises:
        ConfigError: CONFIG-TARGET for a class that draws no timesteps.
    """
    return instantiate_from_config(
        config,
        where="model.params.timesteps_config",
        interface={"timesteps": timesteps},
        needs=("draw", "update", "state_dict"),
    )


def _quantile(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the first timestep (B,) that is reached with more than this probability (B,)."""
    reached = torch.searchsorted(probabilities.cumsum(0), uniform, right=True)
    return reached.clamp(max=len(probabilities) - 1)


def _from_all_ranks(pairs: list[Any]) -> list[Any]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return pairs
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, pairs)
    return [pair for rank in gathered for pair in rank]
