"""The honest baseline of every table: the same network, called once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ldm.models.base import Config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.spread import require_mean
from ldm.models.diffusion.wrapper import Conditions
from ldm.models.prior import require_prior
from ldm.util import shows

# One YAML serves both: what a model without reverse steps has no use for is not looked at.
REGRESSION = {"parameterization": "x0", "variance": "fixed_small", "objective": "mse"}
REGRESSION |= {"loss_weight": None, "mean_share": 1.0}


class OneStepRegression(LatentDiffusion):
    """The same backbone trained to return the target in one call.

    The noisy channels are 0 and the timestep is the last, so that network, conditioning and data
    are those of the diffusion model that it is compared with: one whose every item learns the mean.

    Args:
        unet_config: the backbone.
        **params: those of :class:`LatentDiffusion`.
    """

    has_reverse_steps = False

    @shows(LatentDiffusion)
    def __init__(self, unet_config: Config, **params: Any) -> None:
        super().__init__(unet_config, **{**params, **REGRESSION})

    def generate(
        self, given: Conditions, noise: KeyedNoise, *args: Any, both: bool = False, **options: Any
    ) -> list[Tensor]:
        """Return the prediction; noise, sampler and steps have no effect."""
        return super().generate(given, noise.at(0.0), "ddim", 1, both=both)

    def network_calls(self, steps: int, sampler: str | None = None, **options: Any) -> int:
        """Return 1; raises ConfigError for enhancement without a prior, and for a spread."""
        require_prior(self.prior, options)
        require_mean(self.knows_mean, options.get("spread"))
        return 1
