"""Distillation: where a student should land, and what it lands on when it has learned it."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from oracles import exact_denoiser, gaussian_1d, noise_in
from torch import nn

from ldm.config import save_config
from ldm.errors import CheckpointError, ConfigError
from ldm.model_file import save_model
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.distillation import Distillation, step_path, student_target
from ldm.models.diffusion.gaussian import PARAMETERISATIONS
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.samplers import ddim
from ldm.models.diffusion.schedule import FlowSchedule, NoiseSchedule, sampling_timesteps

SCHEDULES = {
    "linear": NoiseSchedule("linear"),
    "zero_snr": NoiseSchedule("linear", zero_terminal_snr=True),
    "flow": FlowSchedule(),
}
ALLOWED = [
    (kind, name)
    for kind in PARAMETERISATIONS
    for name, schedule in SCHEDULES.items()
    if not (kind == "eps" and schedule.ends_in_pure_noise)
]


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_the_teachers_path_passes_the_timesteps_that_sampling_uses(steps):
    schedule = NoiseSchedule("linear")
    paths = [step_path(schedule, steps, 12, step) for step in range(steps)]
    assert [path[0] for path in paths] == sampling_timesteps(schedule, steps).tolist()
    assert all(first[-1] == second[0] for first, second in pairwise(paths))
    assert paths[-1][-1] == -1
    assert all(len(path) == 13 for path in paths)


@pytest.mark.parametrize(("kind", "name"), ALLOWED)
@pytest.mark.parametrize("step", range(4))
def test_a_student_on_target_lands_where_the_teacher_does(kind, name, step):
    """Through the network's output in each parameterisation, float64."""
    schedule, data = SCHEDULES[name], gaussian_1d()
    teacher = exact_denoiser(data, schedule)
    path = step_path(schedule, 4, 12, step)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    t = torch.full((9,), path[0])
    x_0 = student_target(teacher, x_t, schedule, path)
    output = GaussianProcess(schedule, kind).target(x_0, noise_in(x_t, x_0, t, schedule), t)

    def student(x, t):
        return GaussianProcess(schedule, kind).x_0(output, x, t)

    one = ddim(student, x_t, schedule, [path[0], path[-1]])
    many = ddim(teacher, x_t, schedule, path)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-10)
    alone = ddim(teacher, x_t, schedule, [path[0], path[-1]])
    assert (one - alone).abs().max() > 1e-4  # what there is to learn


def test_the_target_stays_within_the_teachers_predictions():
    """It is a mean of them, so that a clipped teacher has a student within the range of images."""
    schedule, seen = NoiseSchedule("linear"), []

    def teacher(x, t):
        seen.append(torch.tanh(3 * x))
        return seen[-1]

    path = step_path(schedule, 4, 12, 1)
    x_t = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)
    x_0 = student_target(teacher, x_t, schedule, path)
    low, high = torch.stack(seen).amin(0), torch.stack(seen).amax(0)
    assert ((low - 1e-12 <= x_0) & (x_0 <= high + 1e-12)).all()


class Affine(nn.Module):
    """A backbone that returns a_t x + b_t: it holds the posterior mean of Gaussian data exactly."""

    def __init__(self, in_channels: int, out_channels: int, timesteps: int = 40):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(timesteps))
        self.b = nn.Parameter(torch.zeros(timesteps))

    def forward(self, x, timesteps, context=None, y=None):
        a, b = (table[timesteps].view(-1, 1, 1, 1) for table in (self.a, self.b))
        return a * x[:, :1] + b


PARAMS = {
    "unet_config": {"target": f"{__name__}.Affine"},
    "image_size": 4,
    "schedule_config": {
        "target": "ldm.models.diffusion.schedule.NoiseSchedule",
        "params": {"name": "cosine", "timesteps": 40},
    },
    "threshold": "none",
    "temperature": 1.0,
    "sampling_steps": 2,
    "subtract": None,
    "gain": 1.0,
    "sparsity": 0.0,
    "loss_type": "l2",
}


def write_run(folder, model, target="ldm.models.diffusion.ddpm.LatentDiffusion", **params):
    save_model(folder, model.state_dict(), model.facts())
    described = {"target": target, "params": PARAMS | params}
    save_config({"model": described, "data": DATA}, folder / "config.yaml")
    return str(folder)


DATA = {"target": "ldm.data.datamodule.ContrastDataModule"}


@pytest.fixture
def teacher(tmp_path):
    """The run of a model that knows N(0.3, 0.5^2): x_0 = mu + a s^2 / (a^2 s^2 + sigma^2) ..."""
    model = LatentDiffusion(**PARAMS)
    t = torch.arange(40)
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    net = model.model.diffusion_model
    with torch.no_grad():
        net.a.copy_(gain)
        net.b.copy_(0.3 * (1 - gain * alpha))
    return write_run(tmp_path / "teacher", model)


def batch(items=64):
    return {
        "condition": torch.zeros(items, 3, 4, 4),
        "target": 0.3 + 0.5 * torch.randn(items, 1, 4, 4),
        "presence": torch.ones(items, 3, dtype=torch.bool),
    }


@pytest.mark.parametrize("visited", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_of_gaussian_data_has_the_teachers_mean_and_deviation(teacher, steps, visited):
    """DDIM with an affine denoiser is affine: its mean and deviation follow without sampling.

    What is learned is compared with the teacher's 20 steps, which one or two steps of the teacher
    are far from. It is learned on noised data and on the student's own path alike.
    """
    torch.manual_seed(0)
    params = PARAMS | {"sampling_steps": steps, "substeps": 20 // steps, "visited": visited}
    model = Distillation(**params, teacher=teacher)
    optimizer = torch.optim.Adam(model.model.parameters(), 0.05)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    for _ in range(160):
        optimizer.zero_grad()
        model.batch_loss(batch())["loss"].backward()
        optimizer.step()
        decay.step()

    def mean_and_std(denoise, steps):
        at_mean, one_off = ddim(denoise, torch.tensor([[0.0], [1.0]]), model.schedule, steps)
        return [at_mean.item(), (one_off - at_mean).item()]

    def student(x, t):
        denoise = model.denoiser({"condition": torch.zeros(2, 3, 1, 1)})
        return denoise(x.view(2, 1, 1, 1), t).view(2, 1)

    exact = exact_denoiser(gaussian_1d(), model.schedule)
    expected = mean_and_std(exact, 20)
    with torch.no_grad():
        assert mean_and_std(student, steps) == pytest.approx(expected, abs=5e-3)
    assert abs(mean_and_std(exact, steps)[1] - expected[1]) > 0.05
    assert expected == pytest.approx([0.3, 0.5], abs=0.04)  # of the data


def test_a_student_starts_as_its_teacher_and_does_not_hold_it(teacher):
    """The same samples, the same names of weights, one teacher for all copies of the model."""
    from copy import deepcopy

    plain = LatentDiffusion(**PARAMS)
    student = Distillation(**PARAMS, teacher=teacher, substeps=5)
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert deepcopy(student).teacher is student.teacher
    images = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, dtype=torch.bool)
    of_both = [
        model.synthesise(*images, KeyedNoise([(0, 0), (0, 1)], "cpu"), steps=3)
        for model in (student, student.teacher.model)
    ]
    assert torch.equal(*of_both)
    described = student.portable_params()
    assert described["teacher"] is None
    assert described["teacher_config"]["params"]["schedule_config"] == PARAMS["schedule_config"]


def test_a_saved_student_needs_no_teacher_until_it_trains(teacher):
    student = Distillation(**PARAMS, teacher=teacher, substeps=5)
    checkpoint = student.saved_state()
    resumed = Distillation(**PARAMS, **student.portable_params(), substeps=5)
    assert resumed.teacher.model is None
    with pytest.raises(ConfigError, match="CONFIG-MISSING: which teacher"):
        resumed.check_start(None)
    resumed.restore_state(checkpoint)
    resumed.load_state_dict(student.state_dict())  # as Lightning does
    torch.manual_seed(0)
    first = student.batch_loss(batch(2))["loss"]
    torch.manual_seed(0)
    assert torch.equal(resumed.batch_loss(batch(2))["loss"], first)


def test_a_student_in_latent_space_has_its_teachers_first_stage(tmp_path):
    """A run's configuration names no file of the autoencoder: its weights are the teacher's."""
    ddconfig = {"z_channels": 2, "resolution": 8, "ch": 32, "ch_mult": [1, 2], "out_ch": 1}
    ddconfig |= {"num_res_blocks": 1, "attn_resolutions": [], "in_channels": 1}
    first_stage = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"ddconfig": ddconfig, "embed_dim": 2},
    }
    latent = {"first_stage_config": first_stage, "scale_factor": 0.7, "subtract": "t1"}
    probe = {"unet_config": {"target": f"{__name__}.Scaled"}}
    torch.manual_seed(0)
    model = LatentDiffusion(**(PARAMS | latent | probe))
    path = write_run(tmp_path / "teacher", model, **latent, **probe)
    torch.manual_seed(1)
    student = Distillation(**(PARAMS | latent | probe), teacher=path, substeps=2)
    own, given = student.first_stage_model.state_dict(), model.first_stage_model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in given.items())
    student.check_start(SimpleNamespace(split={"val": [], "test": []}, augmentation_config=None))
    losses = student.batch_loss(batch(2))
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    trained = {name for name, p in student.named_parameters() if p.grad is not None}
    assert trained == {"model.diffusion_model.weight"}
    assert student.facts()["scale_factor"] == 0.7


class Scaled(nn.Module):
    """A backbone of one weight, for images of any number of channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5]))
        self.out_channels = out_channels

    def forward(self, x, timesteps, context=None, y=None):
        return self.weight * x[:, : self.out_channels]


def test_a_student_that_teaches_leaves_its_own_teacher_behind(tmp_path, teacher):
    """Salimans & Ho's progression: 10 steps, 2, 1; configurations do not nest."""
    two = Distillation(**PARAMS, teacher=teacher, substeps=5)
    target = "ldm.models.diffusion.distillation.Distillation"
    path = write_run(tmp_path / "two", two, target, substeps=5, **two.portable_params())
    one = Distillation(**(PARAMS | {"sampling_steps": 1}), teacher=path, substeps=2)
    described = one.portable_params()["teacher_config"]
    assert described["target"] == target
    assert "teacher_config" not in described["params"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "dpmpp_2m"}, "sampler is 'dpmpp_2m': a student makes steps of ddim"),
        ({"visited": 1.5}, "visited 1.5: give >= 1 and 0 to 1"),
        ({"substeps": 11}, "44 sampling steps; expected an integer from 1 to 40"),
        ({"gain": 2.0}, "has gain 1.0, this model 2.0"),
    ],
)
def test_what_cannot_be_distilled_is_refused(teacher, change, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        Distillation(**(PARAMS | {"sampling_steps": 4, "substeps": 5} | change), teacher=teacher)


def test_a_regression_has_no_steps_to_distil(tmp_path):
    from ldm.models.diffusion.regression import OneStepRegression

    target = "ldm.models.diffusion.ddpm.OneStepRegression"
    path = write_run(tmp_path / "run", OneStepRegression(**PARAMS), target)
    with pytest.raises(CheckpointError, match="OneStepRegression, which has no steps to distil"):
        Distillation(**PARAMS, teacher=path)


def test_a_misspelt_argument_is_refused_by_its_nearest_name():
    from ldm.config import validate

    described = {"target": "ldm.models.diffusion.distillation.Distillation"}
    for wrong, right in (("substep", "substeps"), ("parametrization", "parameterization")):
        params = {**PARAMS, wrong: 1}
        with pytest.raises(ConfigError, match=f"{wrong} is not a parameter .*nearest: '{right}'"):
            validate({"model": {**described, "params": params}, "data": DATA})
