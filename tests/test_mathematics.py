"""Every array of reference/mathematics.npz, by key: numbers of the public implementations.

Each kind of key has one function here that computes the array anew; a key of no kind fails, so
arrays that are added to the file are either reproduced or missed loudly. What toy networks and
labels are is told in mathematics.json.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import even_in_lambda, toy, toy_denoiser
from test_disentangle import FORMS, of_features, random_features

from ldm.models.diffusion.gaussian import p_posterior, q_posterior, q_sample
from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.samplers import ddim, dpmpp_2m, plms
from ldm.models.diffusion.schedule import NoiseSchedule, betas, sampling_timesteps
from ldm.modules.diffusionmodules.util import timestep_embedding

REFERENCE = dict(np.load(Path(__file__).parent / "reference" / "mathematics.npz"))
INPUTS = ("x_T", "x_0", "noise", "t")
LINEAR = NoiseSchedule("linear")
LATENT = NoiseSchedule("scaled_linear")  # what latent-diffusion calls "linear"
DDIM25 = range(0, 1000, 40)  # the timesteps that it keeps
KINDS = {"EPSILON": "eps", "START_X": "x0"}
KEYS = []  # (pattern of a key, function of its parts)


def reproduces(form):
    """Register a function for the keys of a form such as ``respace/{spec}``, given its parts."""
    pattern = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", form))
    return lambda function: KEYS.append((pattern, function)) or function


def given(name):
    return torch.from_numpy(REFERENCE[name])


def computed(key):
    found = [(f, match) for pattern, f in KEYS if (match := pattern.fullmatch(key))]
    assert len(found) == 1, f"{len(found)} functions in {__file__} compute {key}; expected one"
    function, match = found[0]
    return np.asarray(function(**match.groupdict()))


@pytest.mark.parametrize("key", [key for key in REFERENCE if key not in INPUTS])
def test_reference(key):
    ours, expected = computed(key), REFERENCE[key]
    assert ours.shape == expected.shape
    if expected.dtype.kind == "i":
        assert ours.tolist() == expected.tolist()
    elif expected.dtype == np.float64:
        np.testing.assert_allclose(ours, expected, rtol=1e-10)
    else:
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


def test_a_key_that_nothing_computes_is_noticed():
    with pytest.raises(AssertionError, match="0 functions"):
        computed("ldm_ddim/eps/5/more")


# --- schedules and timesteps ----------------------------------------------------------------------


@reproduces("ldm_betas/{name}/{steps}")
def latent_diffusion_betas(name, steps):
    ends = (8.5e-4, 1.2e-2) if name == "linear_sd" else (1e-4, 2e-2)
    ours = {"linear": "scaled_linear", "linear_sd": "scaled_linear", "sqrt_linear": "linear"}
    return betas(ours.get(name, name), int(steps), *ends)


@reproduces("guided_betas/{name}/{steps}")
def guided_diffusion_betas(name, steps):
    """The ends of its linear schedule scale with 1000 / T."""
    scale = 1000 / int(steps)
    return betas(name, int(steps), scale * 1e-4, scale * 2e-2)


@reproduces("ddim_timesteps/{method}/{steps}")
def ddim_timesteps(method, steps):
    spacing = {"quad": "quadratic"}.get(method, method)
    return sampling_timesteps(LATENT, int(steps), spacing)[::-1]


@reproduces("timestep_embedding/dim{width}")
def sinusoids(width):
    return timestep_embedding(torch.tensor([0, 1, 10, 500, 999]), int(width))


# --- samplers -------------------------------------------------------------------------------------


@reproduces("ldm_ddim/{kind}/{steps}")
def latent_diffusion_ddim(kind, steps):
    return along_its_timesteps(ddim, kind, steps)


@reproduces("ldm_plms/{kind}/{steps}")
def latent_diffusion_plms(kind, steps):
    return along_its_timesteps(plms, kind, steps)


def along_its_timesteps(sampler, kind, steps):
    """Its last step ends at the noise level of timestep 0, not at clean data."""
    path = [*sampling_timesteps(LATENT, int(steps), "uniform"), 0]
    return sampler(toy_denoiser(kind, LATENT), given("x_T"), LATENT, path)


@reproduces("dpmpp_2m/{kind}/{spacing}/{steps}")
def dpm_solver(kind, spacing, steps):
    """Steps between integer timesteps, of second order up to the end for 15 steps or more."""
    spaced = {
        "logSNR": lambda n: even_in_lambda(LATENT, n),
        "time_uniform": lambda n: np.linspace(999, 0, n + 1),
    }
    return dpmpp_2m(toy_denoiser(kind, LATENT), given("x_T"), LATENT, spaced[spacing](int(steps)))


@reproduces("guided_ddim25")
def guided_diffusion_ddim():
    path = [*DDIM25[::-1], -1]
    return ddim(toy_denoiser("eps", LINEAR), given("x_T"), LINEAR, path)


@reproduces("guided_ddim25/betas")
def guided_diffusion_respaced_betas():
    alphas_cumprod = LINEAR.alphas_cumprod[DDIM25]
    return 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])


# --- the reverse process and its bound ------------------------------------------------------------


def toy_with_variance(x, t):
    return torch.cat([toy(x, t), torch.sin(x)], dim=1)


@reproduces("guided_q_sample")
def noisy():
    return q_sample(given("x_0"), given("t"), given("noise"), LINEAR)


@reproduces("guided_q_posterior/{part}")
def posterior(part):
    parts = q_posterior(given("x_0"), noisy(), given("t"), LINEAR)
    values = dict(zip(("mean", "variance", "log_variance_clipped"), parts, strict=True))[part]
    return values.expand_as(given("x_0"))


@reproduces("guided_p_mean_variance/{mean}/{part}")
def reverse_step(mean, part):
    x_t, t = noisy(), given("t")
    prediction, values = toy_with_variance(x_t, t).chunk(2, dim=1)
    x_0 = GaussianProcess(LINEAR, KINDS[mean]).x_0(prediction, x_t, t).clamp(-1, 1)
    mean, log_variance = p_posterior(x_0, values, x_t, t, LINEAR, "learned_range")
    return {
        "mean": mean,
        "variance": log_variance.exp(),
        "log_variance": log_variance,
        "pred_xstart": x_0,
    }[part]


@reproduces("guided_losses/{mean}/{loss}/{part}")
def training_loss(mean, loss, part):
    process = GaussianProcess(LINEAR, KINDS[mean], "learned_range", loss.lower(), "l2")
    noised = process.noisy(given("x_0"), given("t"), given("noise"))
    output = toy_with_variance(noised.x_t, noised.t)
    losses = process.loss(process.estimate(output, noised.x_t, noised.t), noised)
    return losses[{"mse": "fit"}.get(part, part)]


# --- disentanglement ------------------------------------------------------------------------------


@reproduces("disentangle/{form}/{term}")
def disentanglement(form, term):
    return FORMS[form]()(of_features(random_features()))[term]
