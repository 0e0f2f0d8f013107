"""Distillation: a student that makes one step of DDIM where its teacher makes several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import read_run_config, read_weights, require_same_state
from ldm.errors import CheckpointError, ConfigError, bad_value
from ldm.models.base import Config
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.path import Denoise, Level, levels_of
from ldm.models.diffusion.samplers import ddim
from ldm.models.diffusion.schedule import Schedule
from ldm.models.diffusion.wrapper import Conditions
from ldm.models.draws import Draws
from ldm.modules.broadcast import per_item
from ldm.storage import run_folder
from ldm.study import read_study
from ldm.util import instantiate_from_config, params_of, shows, targets_in

SPACING = "trailing"  # what sampling uses where nothing else is asked for


def one_step_x_0(x_t: Tensor, x_s: Tensor, now: Level, to: Level) -> Tensor:
    """The x_0 with which one step of DDIM leads from x_t to x_s (Salimans & Ho 2022, appendix G).

    Where x_s comes from steps of DDIM it is a mean of their predictions of x_0, with weights that
    are positive and add up to 1, and so stays within the range of images.
    """
    ratio = to.sigma / now.sigma
    return (x_s - ratio * x_t) / (to.alpha - ratio * now.alpha)


def step_path(schedule: Schedule, steps: int, substeps: int, step: int) -> list[int]:
    """Timesteps of the teacher over step ``step`` of a student with ``steps`` of them.

    Every ``substeps``-th timestep of the teacher's grid of ``steps * substeps`` is one of the
    student's own grid, the one that sampling uses.

    Returns:
        ``substeps + 1`` timesteps, decreasing; the last step ends at -1, clean data.

    Raises:
        ConfigError: CONFIG-VALUE where the schedule has too few timesteps.
    """
    levels = levels_of(schedule, steps * substeps, SPACING)
    return [level.t for level in levels[step * substeps : (step + 1) * substeps + 1]]


def student_target(teacher: Denoise, x_t: Tensor, schedule: Schedule, path: list[int]) -> Tensor:
    """The x_0 that a student should predict from x_t to land where its teacher does.

    Args:
        teacher: ``denoise(x_t, t) -> x_0``.
        x_t: (B, ...) noisy data of the first timestep of the path.
        path: of the teacher, as :func:`step_path` gives it.
    """
    x_s = ddim(teacher, x_t, schedule, path)
    ends = levels_of(schedule, [path[0], path[-1]], SPACING)
    return one_step_x_0(x_t, x_s, *ends)


class Teacher:
    """A trained model that is followed: no part of the student's weights, one for all copies of it.

    Attributes:
        config: ``target`` / ``params`` of the model, None if there is no teacher.
        facts: of the study, where the configuration does not tell them.
        model: the model in eval mode, None before there are weights.
    """

    def __init__(self, config: Config | None, facts: Config) -> None:
        self.config, self.facts = config, facts
        self.model: LatentDiffusion | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def load(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Build the model of the configuration with these weights.

        Raises:
            CheckpointError: CKPT-MISMATCH for a model without steps, or weights of another.
        """
        told = params_of(self.config)
        facts = {name: value for name, value in self.facts.items() if name not in told}
        model = instantiate_from_config(
            self.config, where="model.params.teacher_config", interface=facts
        )
        if not isinstance(model, LatentDiffusion) or not model.has_reverse_steps:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{source} holds a {type(model).__name__}, which has no steps to distil: "
                "give a run of a diffusion model",
            )
        require_same_state(model.state_dict(), weights, source)
        model.load_state_dict(weights)
        self.model = model.eval().requires_grad_(False)


class Distillation(LatentDiffusion):
    """A student of ``sampling_steps`` steps of DDIM, each of which equals several of its teacher.

    Progressive distillation (Salimans & Ho 2022) without the halving: a step from timestep t to s
    is compared with ``substeps`` steps of the teacher between the same two, by the prediction of
    x_0 that would lead there at once. The student starts with the teacher's weights, and is sampled
    and saved like any other model: the teacher is in no more than the checkpoints of the training,
    so that a run resumes, and samples, without the folder it came from.

    A student meets noise of its own making: in sampling, the states behind the first one are where
    its earlier steps ended, and the first one is noise of ``temperature`` (at 0: none), while
    training data are noised to temperature 1. It therefore learns in both: a share ``visited`` of
    each batch stands where the student itself now arrives from noise of ``temperature``, the rest
    on noised data, which keeps it a model to draw samples from.

    Args:
        unet_config: the backbone, that of the teacher.
        teacher: run folder of the teacher, or its ``model.safetensors``; None in a saved run.
        teacher_config: ``target`` / ``params`` of the teacher's model; None: as its run folder
            says, where that names no class but shipped ones and those of the student.
        substeps: steps of the teacher in one of the student.
        visited: share of the states in training that are the student's own.
        **params: those of :class:`LatentDiffusion`. ``sampler`` must be ddim. ``parameterization``
            may differ from the teacher's: eps says little of x_0 at the first step, where a student
            of few steps has to know it.

    Raises:
        ConfigError: CONFIG-VALUE for another sampler, a share outside [0, 1], or more steps than
            the schedule has.
        CheckpointError: CKPT-MISMATCH for a teacher that is no diffusion model or diffuses another
            quantity; see :func:`ldm.checkpoint.read_weights`.
    """

    @shows(LatentDiffusion)
    def __init__(
        self,
        unet_config: Config,
        teacher: str | None = None,
        teacher_config: Config | None = None,
        substeps: int = 12,
        visited: float = 0.5,
        **params: Any,
    ) -> None:
        super().__init__(unet_config, **{**params, "mean_share": 0.0})  # it learns no mean
        if self.sampler != "ddim":
            raise bad_value(
                f"model.params.sampler is '{self.sampler}': a student makes steps of ddim"
            )
        if substeps < 1 or not 0 <= visited <= 1:
            raise bad_value(
                f"model.params.substeps is {substeps}, visited {visited}: give >= 1 and 0 to 1"
            )
        step_path(self.schedule, self.sampling_steps, substeps, 0)  # refuses what has no grid
        self.substeps, self.visited = substeps, visited
        facts = ("conditions", "target", "image_size", "neighbours", "covariates")
        self.teacher = Teacher(teacher_config, {n: params[n] for n in facts if n in params})
        if teacher is not None:
            # what the user's configuration names is trusted, and it names the same network
            self.follow(Path(teacher), targets_in({"unet_config": unet_config, **params}))

    def follow(self, path: Path, trust: list[str]) -> None:
        """Take the teacher of a run folder, and its weights to start from."""
        if self.teacher.config is None:
            folder = run_folder(path)
            config = read_run_config(folder, trust)
            self.teacher.config = portable_teacher(config["model"])
            if (told := read_study(config).conditions) != self.conditions:
                raise CheckpointError(
                    "CKPT-MISMATCH",
                    f"{path} was given {', '.join(told)}, this model {', '.join(self.conditions)}: "
                    "leave out data.params.conditions",
                )
        self.teacher.load(read_weights(path)[0], path.name)
        model = self.teacher.model
        for name, own in self.diffused().items():
            if own != (given := model.diffused().get(name)):
                raise CheckpointError(
                    "CKPT-MISMATCH", f"{path} has {name} {given}, this model {own}: make them one"
                )
        require_same_state(self.model.state_dict(), model.model.state_dict(), path.name)
        self.model.load_state_dict(model.model.state_dict())
        self.first_stage_model.load_state_dict(model.first_stage_model.state_dict())
        if self.prior and model.prior:  # whose is taken when the training starts
            require_same_state(self.prior.state_dict(), model.prior.state_dict(), path.name)
        if self.anchor:
            self.anchor.load_state_dict(model.anchor.state_dict())
        self.first_stage_model.trained = True

    def check_start(self, data: Any) -> None:
        """Refuse to start without a teacher, beside what every diffusion model refuses.

        Raises:
            ConfigError: CONFIG-MISSING.
        """
        if self.teacher.model is None:
            raise ConfigError(
                "CONFIG-MISSING",
                "which teacher? Give model.params.teacher=RUN, a trained diffusion model; "
                "`dsdiff distill RUN` does it all",
            )
        super().check_start(data)
        if self.prior and self.teacher.model.prior:
            self.prior.load_state_dict(self.teacher.model.prior.state_dict())

    def portable_params(self) -> dict[str, Any]:
        """Return what describes the teacher without its folder."""
        described = {"teacher": None, "teacher_config": self.teacher.config}
        return super().portable_params() | described

    def saved_state(self) -> dict[str, Any]:
        """Return the teacher's weights too, which a resumed run needs."""
        teacher = {k: v.cpu() for k, v in self.teacher.model.state_dict().items()}
        return {**super().saved_state(), "teacher": teacher}

    def restore_state(self, saved: Mapping[str, Any]) -> None:
        """Restore them."""
        super().restore_state(saved)
        self.teacher.load(saved["teacher"], "the checkpoint")

    def batch_loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """Return the misfit of one step, the same for all items of a batch, drawn at random."""
        given, x_0 = self.encode_batch(batch)
        draws = draws or Draws.unkeyed(len(x_0))
        given = self.drop(given, draws)
        step = draws.one_of(self.sampling_steps)
        path = step_path(self.schedule, self.sampling_steps, self.substeps, step)
        t = torch.full((len(x_0),), path[0], device=x_0.device)
        with torch.no_grad():
            x_t = self.states(x_0, given, step, t, draws)
            teacher = self.teacher.model.to(x_0.device).denoiser(given)
            x_0 = student_target(teacher, x_t, self.schedule, path)
        output, features = self.output_and_features(x_t, t, given)
        estimate, noised = self.process.estimate(output, x_t, t), self.process.through(x_0, x_t, t)
        target = self.process.target(x_0, noised.eps, t)
        fit = self.process.weight(x_t, t) * self.process.error(estimate.output, target)
        prediction = self.prediction(estimate.x_0, noised, features, given, batch)
        return self.total_loss(fit.mean(), prediction)

    def path(self, steps: int, temperature: float) -> int:
        """Return the number of steps: a student follows its teacher without noise too."""
        return steps

    def states(self, x_0: Tensor, given: Conditions, step: int, t: Tensor, draws: Draws) -> Tensor:
        """Return x_t (B, C, h, w) at the start of a step: noised data, or where the student is."""
        noise = draws.normal(x_0.shape[1:]).to(x_0.device)
        drawn = self.process.noisy(x_0, t, noise).x_t
        visited = self.temperature * noise
        if step:
            grid = levels_of(self.schedule, self.sampling_steps, SPACING)
            path = [level.t for level in grid[: step + 1]]
            visited = ddim(self.denoiser(given), visited, self.schedule, path)
        own = (draws.uniform() < self.visited).to(x_0.device)
        return torch.where(per_item(own, x_0), visited, drawn)


def portable_teacher(config: Config) -> dict[str, Any]:
    """Return the model's configuration without the teacher that it may have had itself."""
    params = {k: v for k, v in params_of(config).items() if not k.startswith("teacher")}
    return {"target": config["target"], "params": params}
