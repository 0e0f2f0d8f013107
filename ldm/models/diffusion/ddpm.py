"""Latent diffusion of one contrast given others, with any denoising backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import bad_value, calling
from ldm.losses.prediction import PredictedBatch, build_losses, portable_losses, terms_of
from ldm.losses.weights import VoxelWeights
from ldm.models.base import Config, RunModule, Validated, image_quality, places, psnr_of_each
from ldm.models.diffusion.gaussian import LEARNED
from ldm.models.diffusion.guidance import THRESHOLDS, clip, guide
from ldm.models.diffusion.latent_space import LatentSpace
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.process import GaussianProcess, Noised
from ldm.models.diffusion.samplers import Sampling, asked_timesteps, get_sampler, options_of
from ldm.models.diffusion.schedule import sampling_timesteps
from ldm.models.diffusion.spread import asked_once, calls_of, draw_samples, require_mean, width
from ldm.models.diffusion.tiling import Tiling
from ldm.models.diffusion.timesteps import build_timesteps
from ldm.models.diffusion.wrapper import IMAGES, Conditions, DiffusionWrapper
from ldm.models.draws import Draws
from ldm.models.prior import build_prior, informed, maps_of, prior_inputs, require_prior
from ldm.study import ANY, Study
from ldm.util import image_sides, shows, taken

UNIFORM: Config = {"target": "ldm.models.diffusion.timesteps.UniformTimesteps"}


class LatentDiffusion(RunModule):
    """Denoising diffusion of the target contrast in the space of a first stage.

    Images are slices (H, W) or, in pixel space, patches (D, H, W) of volumes. A volume larger than
    a patch is sampled as a whole, see :class:`ldm.models.diffusion.tiling.Tiling`.

    Args:
        unet_config: the backbone; channels and image size are passed in.
        conditions: input contrasts, in channel order.
        target: contrast to synthesise, or ``any`` of the conditions.
        image_size: side or [H, W] of the training slices, or [D, H, W] of patches.
        neighbours: slices on each side that join the conditions.
        covariates: numbers of a patient that a batch gives, by name.
        conditioning_key: how the backbone gets the conditions, see :class:`DiffusionWrapper`.
        cond_stage_config: what encodes them for it, see :class:`DiffusionWrapper`.
        loss_config: further losses {name: ``target`` / ``params``}, see
            :mod:`ldm.losses.prediction`; each returns weighted terms, added and logged by name.
        sparsity: weight of a :class:`~ldm.losses.prediction.Sparsity` among them: enhance where it
            is likely only; none where ``subtract=auto`` found nothing to subtract.
        voxel_weight_config: ``target`` / ``params`` of how much the error of each voxel counts,
            see :mod:`ldm.losses.weights`; None: all alike.
        prior_config: ``target`` / ``params`` of what few patients tell of where tissue enhances,
            which joins each image that is made, see :mod:`ldm.models.prior`; None: nothing.
        timesteps_config: ``target`` / ``params`` of the sampler of training timesteps.
        drop_all: probability that a training item loses all its conditions, for guidance.
        **settings: the process (:class:`GaussianProcess`), its space (:class:`LatentSpace`), how it
            is sampled (:class:`Sampling`) and trained (:class:`RunModule`).
    """

    has_reverse_steps = True  # whose variance may be learned
    last_fit: tuple[Tensor, Tensor] | None = None  # timesteps, losses (B,) of the last batch
    next_command = "dsdiff sample {run} --input {patients} --output {predictions}"

    @shows(GaussianProcess, LatentSpace, Sampling, RunModule)
    def __init__(
        self,
        unet_config: Config,
        conditions: Sequence[str] = Study.conditions,
        target: str | None = Study.target,
        image_size: int | list[int] = 192,
        neighbours: int = 0,
        covariates: Sequence[str] = (),
        conditioning_key: str = "concat",
        cond_stage_config: Config | None = None,
        loss_config: Mapping[str, Config | None] | None = None,
        sparsity: float = 0.0,
        voxel_weight_config: Config | None = None,
        prior_config: Config | None = None,
        timesteps_config: Config = UNIFORM,
        drop_all: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**taken(settings, RunModule))
        self.space = LatentSpace(conditions, neighbours, target, **taken(settings, LatentSpace))
        self.first_stage_model = self.space.first_stage  # by the name of public checkpoints
        self.anchor, self.drop_all = self.space.anchor, drop_all
        sampling = self.sampling = Sampling(**taken(settings, Sampling))
        self.sampler, self.sampling_steps = sampling.sampler, sampling.sampling_steps
        self.temperature, self.threshold = sampling.temperature, THRESHOLDS[sampling.threshold]
        self.process = GaussianProcess(**settings)
        self.schedule = self.process.schedule
        self.timesteps = build_timesteps(timesteps_config or UNIFORM, len(self.schedule))
        self.conditions, self.image_size = tuple(conditions), image_sides(image_size)
        channels, images = self.space.channels, list(conditions) * (2 * neighbours + 1)
        self.images = len(images)
        size = self.space.latent_size(self.image_size)
        self.latent_shape, self.tiling = (channels, *size), Tiling(size) if len(size) == 3 else None
        self.model = DiffusionWrapper(
            unet_config,
            {
                "in_channels": channels * (1 + len(images)),
                "out_channels": channels * (2 if self.process.variance in LEARNED else 1),
                "image_size": size[0] if len(set(size)) == 1 else size,
                "dims": len(size),
                "stream_channels": channels,
                "condition_names": images,
                "covariates": list(covariates),
                "asked": len(conditions) if target == ANY else 0,
            },
            conditioning_key,
            cond_stage_config,
        )
        facts = {"channels": channels, "size": size, "images": self.images, "target": target}
        facts |= {"conditions": self.conditions, "neighbours": neighbours}
        self.loss_config = dict(loss_config or {})
        self.losses = build_losses(
            self.loss_config,
            0.0 if self.space.has_no_native else sparsity,
            None if self.model.gives_features else type(self.model.diffusion_model).__name__,
            facts,
        )
        facts["image_size"] = self.image_size
        self.voxel_weights = VoxelWeights(voxel_weight_config, **facts)
        self.prior = build_prior(prior_config, facts)

    @property
    def network(self) -> nn.Module:
        """The backbone in its wrapper."""
        return self.model

    @property
    def knows_mean(self) -> bool:
        """Whether samples may lie about a mean that the network has learned."""
        return self.has_reverse_steps and self.process.knows_mean

    @property
    def varies(self) -> bool:
        """Whether each item of a batch asks for a contrast of its own."""
        return bool(self.model.contrasts)

    @torch.no_grad()
    def network_inputs(self, batch: int = 1) -> Sequence[Any]:
        """Return blank (x_t, t, condition), and other conditions, as ``model`` takes them."""
        images = torch.zeros(batch, self.images, *self.image_size)
        presence = torch.ones(batch, len(self.conditions), dtype=torch.bool)
        others = self.model.blank_others(batch)
        return (
            torch.zeros(batch, *self.latent_shape),
            torch.zeros(batch, dtype=torch.long),
            self.space.encode_condition(images, presence),
            *([others] if others else []),
        )

    def check_start(self, data: Any) -> None:
        """Refuse a first stage that is not ready; fit anchor and prior; ask losses that check."""
        self.space.check_start(data)
        if self.prior:
            with calling(self.prior):
                self.prior.fit(data)
        for loss in self.losses.values():
            if hasattr(loss, "check_start"):
                loss.check_start(data)

    def begin_training(self, data: Any) -> None:
        """Let validation show what the prior finds in the volumes of its slices."""
        if hasattr(self.prior, "maps"):
            data.show_maps(partial(maps_of, self.prior))

    def portable_params(self) -> dict[str, Any]:
        """Return what was read from files without them: the run's own weights hold it."""
        return {**self.space.portable_params(), **portable_losses(self.loss_config, self.losses)}

    def facts(self) -> dict[str, Any]:
        """Return the noise schedule and, in latent space, the scale."""
        return {"schedule": self.schedule.to_dict(), **self.space.facts()}

    def diffused(self) -> dict[str, Any]:
        """Return what must agree for the images of two models to be the same numbers."""
        return {"schedule": self.schedule, **self.space.diffused()}

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Set the mode of the backbone; the first stage is never in training mode."""
        super().train(mode)
        self.first_stage_model.eval()
        return self

    def encode_batch(self, batch: Mapping[str, Any]) -> tuple[Conditions, Tensor]:
        """Return the encoded conditions by name, and x_0 (B, C, *s), of a batch."""
        images, target = self.space.encode_batch(batch, cached=self.training)
        given = self.given(images, batch)
        return given, self.space.to_data(target, given)

    def given(self, images: Tensor, batch: Mapping[str, Any]) -> Conditions:
        """Return the conditions of a batch by name, and its anchor, in the space of diffusion.

        Args:
            images: (B, N*M*C, *s) its encoded contrasts.
        """
        return {
            IMAGES: self.space.inputs(images, batch["presence"]),
            **self.model.others(batch),
            **self.space.anchor_of(images, batch),
        }

    def batch_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Return the training loss of a batch by component; ``loss`` is the sum to minimise."""
        given, x_0 = self.encode_batch(batch)
        draws = draws or Draws.unkeyed(len(x_0))
        with calling(self.timesteps):
            t, importance = (n.to(x_0.device) for n in self.timesteps.draw(draws.uniform()))
        noised = self.process.noisy(x_0, t, draws.normal(x_0.shape[1:]).to(x_0.device))
        means = draws.items_of(self.process.mean_share)
        noised = self.process.at_mean(noised, means) if means else noised
        output, features = self.output_and_features(noised.x_t, noised.t, self.drop(given, draws))
        estimate = self.process.estimate(output, noised.x_t, noised.t)
        weights = self.voxel_weights(batch, x_0.shape[2:], means)
        losses = self.process.loss(estimate, noised, weights)["loss"]
        if self.training:  # also without an item that is no mean: every rank waits for all others
            self.last_fit = t[means:], losses[means:].detach()
            self.timesteps.update(*self.last_fit)
        of_means = self.process.mean_loss(estimate, noised, weights)[:means]
        fit = torch.cat([of_means, importance[means:] * losses[means:]])
        prediction = self.prediction(estimate.x_0, noised, features, given, batch)
        return self.total_loss(fit.mean(), prediction)

    def drop(self, given: Conditions, draws: Draws) -> Conditions:
        """Return the conditions as training shows them: now and then none of an item's."""
        if not self.drop_all or not self.training:
            return given
        return self.model.kept(given, draws.uniform() >= self.drop_all)

    def output_and_features(
        self, x_t: Tensor, t: Tensor, given: Conditions
    ) -> tuple[Tensor, Mapping[str, list[Tensor]]]:
        """Return the network's output, and its features where a loss needs them."""
        inputs = x_t, t, given[IMAGES], self.model.others(given)
        if any(getattr(loss, "needs_features", False) for loss in self.losses.values()):
            return self.model.forward_with_features(*inputs)
        return self.model(*inputs), {}

    def prediction(
        self,
        x_0: Tensor,
        noised: Noised,
        features: Mapping[str, list[Tensor]],
        given: Conditions,
        batch: Mapping[str, Any],
    ) -> PredictedBatch:
        """Return what the further losses see of predicted x_0 (B, C, *s)."""

        def to_image(x_0: Tensor) -> Tensor:
            return self.space.decode(self.space.from_data(x_0, given), batch["target"].shape[2:])

        return PredictedBatch(x_0, noised.x_0, noised.x_t, noised.t, features, batch, to_image)

    def total_loss(self, fit: Tensor, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return ``loss`` and the weighted components, misfit first, that it is the sum of."""
        components = terms_of(self.losses, prediction, fit)
        total = {"loss": sum(components.values())}
        return total | components if len(components) > 1 else total

    def output(self, x_t: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """Return the backbone's output (B, C_out, *s), of volumes in windows.

        All parameterisations are affine in x_0, so the mean of outputs is that of their x_0.
        """
        network = self.tiling.windows(self.model) if self.tiling else self.model
        return network(x_t, t, given[IMAGES], self.model.others(given))

    def denoiser(
        self, given: Conditions, guidance: float = 1.0, rescale: float = 0.0, learned: bool = False
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``denoise(x_t, t) -> x_0`` given encoded conditions: what a sampler calls.

        With ``learned`` the channels of the variance follow those of x_0.
        """
        absent = self.model.absent(given)
        network = guide(
            lambda x_t, t: self.output(x_t, t, given),
            lambda x_t, t: self.output(x_t, t, absent),
            guidance,
            rescale,
        )

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            x_t = self.process.as_taught(x_t, t)
            _, x_0, values = self.process.estimate(network(x_t, t), x_t, t)
            if self.space.downsampling == 1:  # latents have no known range
                x_0 = self.space.to_data(self.threshold(self.space.from_data(x_0, given)), given)
            return torch.cat([x_0, values], dim=1) if learned else x_0

        return denoise

    @torch.no_grad()
    def synthesise(
        self,
        condition: Tensor,
        presence: Tensor,
        noise: KeyedNoise,
        sampler: str | None = None,
        steps: int | None = None,
        others: Conditions | None = None,
        enhancement: float = 1.0,
        both: bool = False,
        **options: Any,
    ) -> Tensor:
        """Sample images (B, 1, *S) in [-1, 1] given condition (B, N*M, *S), presence (B, M).

        Args:
            noise: all randomness; one key an item.
            sampler, steps: None means the model's own. At temperature 0 the answer is the
                posterior mean, whatever they are: one call of the network, see :meth:`path`.
            others: other conditions by the names of a batch, such as ``covariates`` (B, K), or what
                is ``asked`` (B, 2M) of a model of any target.
            enhancement: factor of what the prior changes; 0: the network alone.
            both: return what the noise of the other sign leads to, too, (2, B, 1, *S).
            **options: ``spread``; ``guidance`` and ``rescale`` (see :func:`~.guidance.guide`); the
                others go to the sampler (``eta``, ``callback``, ...).
        """
        batch = {"condition": condition, "presence": presence, **(others or {})}
        given = self.given(self.space.encode_condition(condition, presence), batch)
        is_mean = self.knows_mean and (steps or self.sampling_steps) == 1
        sampled = self.has_reverse_steps and noise.temperature > 0 and not is_mean
        images = []
        for x_0 in self.generate(given, noise, sampler, steps, both=both, **options):
            image = self.space.decode(self.space.from_data(x_0, given), condition.shape[2:])
            images.append(informed(self.prior, clip(image), batch, enhancement, sampled))
        return torch.stack(images) if both else images[0]

    def generate(
        self,
        given: Conditions,
        noise: KeyedNoise,
        sampler: str | None,
        steps: int | None,
        both: bool = False,
        guidance: float = 1.0,
        rescale: float = 0.0,
        spread: float | None = None,
        **options: Any,
    ) -> list[Tensor]:
        """Return x_0 (B, C, *s) given encoded conditions, or both; see :meth:`synthesise`."""
        name = sampler or self.sampler
        if "variance" in options_of(name):
            options = {"variance": self.process.variance, **options}
        learned = options.get("variance") in LEARNED
        denoise = self.denoiser(given, guidance, rescale, learned)
        denoise = asked_once(denoise, len(self.schedule) - 1) if self.knows_mean else denoise
        steps = self.sampling_steps if steps is None else steps

        def walk(noise: KeyedNoise) -> Tensor:
            x_T = noise.draw((self.latent_shape[0], *given[IMAGES].shape[2:]))
            path = self.path(steps, noise.temperature)
            return get_sampler(name, noise=noise, **options)(denoise, x_T, self.schedule, path)

        factor = self.spread(spread, steps, noise.temperature)
        if factor:
            known = {**options, "variance": "fixed_small"} if learned else options
            factor /= width(get_sampler(name, **known), self.schedule, steps)
        return draw_samples(walk, noise, factor, both)

    def spread(self, asked: float | None, steps: int, temperature: float) -> float | None:
        """Return that of samples, see :class:`Sampling`; one step gives the mean in any case."""
        own = self.sampling.spread if self.knows_mean else None
        return (own if asked is None else asked) if temperature and steps > 1 else None

    def path(self, steps: int, temperature: float) -> int | list[int]:
        """Return the number of steps of a sampler, or its timesteps.

        Without noise there is one, from the last timestep to clean data: what the network makes of
        x_T = 0 is its mean, and no state between has been seen in training.
        """
        return steps if temperature else [len(self.schedule) - 1, -1]

    def network_calls(
        self,
        steps: int,
        sampler: str | None = None,
        guidance: float = 1.0,
        temperature: float = 1.0,
        spread: float | None = None,
        **options: Any,
    ) -> int:
        """Return how often the backbone runs for one slice, or window; see :meth:`synthesise`.

        Raises:
            ConfigError: CONFIG-VALUE for guidance of a model that never saw conditions dropped,
                enhancement without a prior, spread without a mean; see :func:`get_sampler`.
        """
        if guidance != 1 and not self.drop_all:
            raise bad_value(
                f"guidance is {guidance}, but in training no item lost all its conditions: give 1, "
                "or a model trained with model.params.drop_all=0.1"
            )
        require_prior(self.prior, options)
        require_mean(self.knows_mean, spread)
        options = {n: v for n, v in options.items() if n not in ("rescale", "enhancement")}
        sampling_timesteps(self.schedule, steps)  # refused also where, without noise, one is made
        path = self.path(steps, temperature)
        asked = asked_timesteps(sampler or self.sampler, self.schedule, path, **options)
        spread = self.spread(spread, steps, temperature)
        calls = calls_of(asked, len(self.schedule) - 1, spread)
        return calls if guidance in (0, 1) else 2 * calls

    def saved_state(self) -> dict[str, Any]:
        """Return what the sampler of timesteps has learned."""
        return {"timesteps": self.timesteps.state_dict()}

    def restore_state(self, saved: Mapping[str, Any]) -> None:
        """Restore it; a checkpoint of before there was one starts it anew."""
        if "timesteps" in saved:
            self.timesteps.load_state_dict(saved["timesteps"])

    def validate(self, batch: Mapping[str, Any], place: int) -> Validated:
        """Return the loss and the quality of sampled slices, and these for pictures."""
        keys = [(self.seed, *key) for key in places(batch)]
        draws = Draws((self.seed, "validation", place), len(keys))
        loss = self.batch_loss(batch, draws)["loss"]
        noise = KeyedNoise(keys, self.device, self.temperature)
        others = self.model.others(batch) | prior_inputs(batch)
        synthetic = self.synthesise(batch["condition"], batch["presence"], noise, others=others)
        each = psnr_of_each(synthetic, batch, self.conditions) if self.varies else {}
        return image_quality(loss, synthetic, batch, of_some=each)

    @torch.no_grad()
    def features(self, batch: Mapping[str, Any]) -> dict[str, list[Tensor]]:
        """Return what the backbone disentangles of a batch, {kind: [(B, C, *S) a stream]}.

        Empty for a backbone without features. The noisy image is that of the middle timestep, its
        noise a function of the slices.
        """
        if not self.model.gives_features:
            return {}
        given, x_0 = self.encode_batch(batch)
        t = torch.full((len(x_0),), len(self.schedule) // 2, device=x_0.device)
        keys = [(self.seed, *key) for key in places(batch)]
        eps = KeyedNoise(keys, self.device).draw(tuple(x_0.shape[1:]))
        x_t = self.process.noisy(x_0, t, eps).x_t
        inputs = x_t, t, given[IMAGES], self.model.others(given)
        features = self.model.forward_with_features(*inputs)[1]
        return {kind: maps for kind, maps in features.items() if maps}
