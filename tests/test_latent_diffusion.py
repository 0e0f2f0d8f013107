"""The training module: what is diffused, what the backbone is told, and where precision ends."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm.callbacks.ema import EMA
from ldm.called import require_tensor
from ldm.errors import ConfigError
from ldm.losses.prediction import PredictedBatch
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.noise import KeyedNoise
from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.regression import OneStepRegression
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.models.draws import Draws

# Neither anchor nor further loss: what these tests look at by itself.
PLAIN = {"subtract": None, "gain": 1.0, "sparsity": 0.0, "loss_type": "l2"}
PLAIN |= {"temperature": 1.0, "sampling_steps": 20}


def plain(unet_config, cls=LatentDiffusion, **params):
    return cls(unet_config, **{**PLAIN, **params})


class Probe(nn.Module):
    """A backbone that returns its weight times channel ``channel`` and records its input."""

    size_divisor = 4

    def __init__(self, in_channels: int, out_channels: int, weight: float = 0.0, channel: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), weight))
        self.channels, self.channel = (in_channels, out_channels), channel
        self.seen = None

    def forward(self, x, timesteps, context=None, y=None):
        self.seen = x
        return self.weight * x[:, self.channel : self.channel + 1]


def probe(**params):
    return {"target": f"{__name__}.Probe", "params": params}


def batch(size=(8, 8), items=2):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(items, 4, *size, generator=generator) * 2 - 1
    return {
        "condition": images[:, :3],
        "target": images[:, 3:],
        "presence": torch.ones(items, 3, dtype=torch.bool),
        "brain": torch.ones(items, 1, *size, dtype=torch.bool),
    }


def noise(items=2):
    return KeyedNoise([(0, i) for i in range(items)], "cpu")


def test_a_network_that_returns_zero_copies_the_subtracted_contrast():
    data = batch()
    for cls in (LatentDiffusion, OneStepRegression):
        model = plain(probe(), cls, subtract="t1", gain=5.0)
        image = model.synthesise(data["condition"], data["presence"], noise())
        torch.testing.assert_close(image, data["condition"][:, :1])


@pytest.mark.parametrize("neighbours", [0, 1])
def test_subtraction_takes_the_contrast_of_the_slice_itself(neighbours):
    """The subtracted channel is the named contrast of the middle slice; the map is invertible."""
    model = plain(probe(), neighbours=neighbours, subtract="t2", gain=3.0)
    condition = torch.randn(2, 3 * (2 * neighbours + 1), 4, 4)
    target = torch.randn(2, 1, 4, 4)
    told = {"condition": condition, "presence": torch.ones(2, 3, dtype=torch.bool)}
    given = model.given(condition, told)
    x_0 = model.space.to_data(target, given)
    torch.testing.assert_close(x_0, (target - condition[:, 3 * neighbours + 1, None]) * 3)
    torch.testing.assert_close(model.space.from_data(x_0, given), target)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_loss_of_the_exact_prediction_is_zero(kind):
    """A backbone that knows the answer has no loss, whatever it is asked to predict."""
    data = batch()
    model = plain(probe(), parameterization=kind, loss_type="l2")
    first, again = (Draws((1,), items=2) for _ in range(2))
    t, _ = model.timesteps.draw(first.uniform())
    eps = first.normal(data["target"].shape[1:])
    answer = GaussianProcess(model.schedule, kind).target(data["target"], eps, t)
    model.model.forward = lambda *inputs: answer
    assert model.batch_loss(data, again)["loss"].item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(("sparsity", "quantile"), [(0.0, 0.5), (0.4, 0.3)])
def test_sparsity_moves_the_median_to_a_quantile_nearer_to_zero(sparsity, quantile):
    """The constant that minimises |r - c| + sparsity |c| over r >= 0 is that quantile of r."""
    model = plain(probe(), OneStepRegression, sparsity=sparsity, loss_type="l1")
    r = torch.rand(1, 1, 1, 20001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constants = torch.linspace(0.2, 0.6, 41, dtype=torch.float64)
    losses = [
        model.total_loss(
            model.process.error(c.expand_as(r), r).mean(), PredictedBatch(c.expand_as(r), r, r, r)
        )["loss"]
        for c in constants
    ]
    best = constants[torch.stack(losses).argmin()]
    assert best == pytest.approx(r.quantile(quantile).item(), abs=0.011)


def test_backbone_is_told_its_channels_and_a_contradiction_is_refused():
    model = plain(probe(), conditions=["t1", "t2"], neighbours=1)
    assert model.model.diffusion_model.channels == (7, 1)
    with pytest.raises(ConfigError, match="CONFIG-SHAPE"):
        plain(probe(in_channels=3))
    with pytest.raises(ConfigError, match="give one of t1, t2"):
        plain(probe(), conditions=["t1", "t2"], subtract="flair")


def test_sizes_are_padded_for_the_backbone_and_cropped_back():
    interface = {"in_channels": 4, "out_channels": 1}
    wrapper = DiffusionWrapper(probe(weight=1.0), interface)
    x_t, condition = torch.randn(1, 1, 5, 7), torch.randn(1, 3, 5, 7)
    output = wrapper(x_t, torch.zeros(1), condition)
    assert wrapper.diffusion_model.seen.shape == (1, 4, 8, 8)
    torch.testing.assert_close(output, x_t)


def test_precision_of_the_backbone_ends_at_the_wrapper():
    wrapper = DiffusionWrapper(probe(weight=1.0), {"in_channels": 4, "out_channels": 1})
    wrapper.to(torch.bfloat16)
    output = wrapper(torch.randn(1, 1, 4, 4), torch.zeros(1), torch.randn(1, 3, 4, 4))
    assert wrapper.diffusion_model.seen.dtype == torch.bfloat16
    assert output.dtype == torch.float32


def test_absent_contrast_is_zero_whatever_its_channel_held():
    model = plain(probe())
    data = batch()
    data["presence"][0, 1] = False
    encoded = model.space.encode_condition(data["condition"], data["presence"])
    assert (encoded[0, 1] == 0).all()
    torch.testing.assert_close(encoded[1], data["condition"][1])


def test_keyed_noise_does_not_depend_on_the_batch():
    together = KeyedNoise([("a", 1), ("b", 2)], "cpu")
    alone = KeyedNoise([("b", 2)], "cpu")
    for shape in ((1, 5, 7), (1, 3, 3)):
        assert torch.equal(together.draw(shape)[1:], alone.draw(shape))


def test_every_option_is_checked():
    names = ("parameterization", "loss_type", "sampler", "conditioning_key")
    for wrong in ({name: "nothing of the kind"} for name in names):
        with pytest.raises(ConfigError):
            plain(probe(), **wrong)


# ---- losses of features --------------------------------------------------------------------------


class Disentangler(Probe):
    """A probe that gives two features, a multiple of its input each."""

    def forward_with_features(self, x, timesteps, context=None, y=None):
        return self.forward(x, timesteps), {"one": [x * self.weight], "two": [x]}


class Agreement(nn.Module):
    """A loss of features: the mean distance of the two, weighted."""

    needs_features = True

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, prediction):
        features = prediction.features
        distance = (features["one"][0] - features["two"][0]).abs().mean()
        return {"agreement": self.weight * distance}


def with_feature_loss(cls=LatentDiffusion, network="Disentangler", **params):
    losses = {"own": {"target": f"{__name__}.Agreement", "params": {"weight": 0.3}}, "off": None}
    unet_config = {"target": f"{__name__}.{network}", "params": {"weight": 0.5}}
    return plain(unet_config, cls, loss_config=losses, **params)


@pytest.mark.parametrize("cls", [LatentDiffusion, OneStepRegression])
def test_losses_of_features_are_added_by_name(cls):
    """``loss`` is the sum of its logged components, each with its weight."""
    model = with_feature_loss(cls, sparsity=0.2)
    torch.manual_seed(0)
    losses = model.batch_loss(batch())
    assert set(losses) == {"loss", "fit", "sparsity", "agreement"}
    total = losses["fit"] + losses["sparsity"] + losses["agreement"]
    torch.testing.assert_close(losses["loss"], total)
    seen = model.model.diffusion_model.seen
    torch.testing.assert_close(losses["agreement"], 0.3 * (0.5 * seen - seen).abs().mean())


def test_losses_of_features_train_the_backbone_and_do_not_change_its_prediction():
    data, key = batch(), noise()
    model = with_feature_loss()
    other = plain(probe(weight=0.5))
    for both in (model, other):
        torch.manual_seed(0)
        both.batch_loss(data)["loss"].backward()
    weights = [both.model.diffusion_model.weight for both in (model, other)]
    assert weights[0].grad != weights[1].grad
    images = [m.synthesise(data["condition"], data["presence"], key) for m in (model, other)]
    assert images[0].shape == images[1].shape
    assert set(model.state_dict()) == set(other.state_dict())


def test_a_backbone_without_features_refuses_their_losses():
    with pytest.raises(ConfigError, match="loss_config.own needs a backbone with features"):
        with_feature_loss(network="Probe")


def test_features_of_a_batch_do_not_depend_on_its_order():
    model = with_feature_loss()
    data = batch() | {"subject": ["a", "b"], "slice": torch.tensor([3, 5])}
    turned = {k: v[::-1] if isinstance(v, list) else v.flip(0) for k, v in data.items()}
    one, other = model.features(data)["one"][0], model.features(turned)["one"][0]
    assert torch.equal(one, other.flip(0))
    assert plain(probe()).features(data) == {}


# ---- how the backbone gets the conditions --------------------------------------------------------


class Listener(nn.Module):
    """A backbone that records all that it is given."""

    def __init__(self, in_channels: int, context_dim: int = 0, adm_in_channels: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.told = {"x": in_channels, "context": context_dim, "y": adm_in_channels}
        self.seen = {}

    def forward(self, x, timesteps, context=None, y=None):
        self.seen = {"x": x, "context": context, "y": y}
        return self.weight * x[:, :1]


@pytest.mark.parametrize(
    ("key", "channels", "encoded"),
    [("concat", 4, None), ("crossattn", 1, "context"), ("hybrid", 4, "context"), ("adm", 1, "y")],
)
def test_conditions_arrive_as_channels_as_tokens_or_as_a_vector(key, channels, encoded):
    """The network is built for what it gets, and an absent contrast is absent there too."""
    model = plain({"target": f"{__name__}.Listener"}, conditioning_key=key)
    data, network = batch((16, 20)), model.model.diffusion_model
    data["presence"][:, 2] = False
    model.synthesise(data["condition"], data["presence"], noise(), steps=1)
    seen = dict(network.seen)
    assert network.told["x"] == seen["x"].shape[1] == channels
    for name in ("context", "y"):
        assert (seen[name] is not None) == (name == encoded)
    if encoded:
        assert network.told[encoded] == seen[encoded].shape[-1] == 128
        assert seen[encoded].shape == ((2, 6, 128) if encoded == "context" else (2, 128))
        data["condition"][:, 2] = 0.5
        model.synthesise(data["condition"], data["presence"], noise(), steps=1)
        assert torch.equal(network.seen[encoded], seen[encoded])
        data["condition"][:, 0] = 0.5
        model.synthesise(data["condition"], data["presence"], noise(), steps=1)
        assert not torch.equal(network.seen[encoded], seen[encoded])


def test_an_output_of_another_shape_is_refused():
    """A loss would broadcast it."""
    wrapper = DiffusionWrapper(probe(channel=0), {"in_channels": 5, "out_channels": 2})
    with pytest.raises(ConfigError, match=r"Probe returned \(1, 1, 8, 8\).*expected one tensor"):
        wrapper(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("shape", "told"), [((1, 2, 8, 8), True), ((1, 2, 10), False)])
def test_an_output_of_another_size_says_what_a_size_must_be_divided_by(shape, told):
    """Halved and doubled, 10 is 8."""
    with pytest.raises(ConfigError, match="CONFIG-SHAPE") as raised:
        require_tensor(probe, torch.zeros(shape), (1, 2, 10, 10), torch.zeros(1, 2, 10, 10))
    assert ("attribute size_divisor" in str(raised.value)) == told


# ---- processes -----------------------------------------------------------------------------------


class Doubling(nn.Module):
    """A backbone that returns its first channel, as often as channels are wanted."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weight, self.out_channels = nn.Parameter(torch.ones(1)), out_channels

    def forward(self, x, timesteps, context=None, y=None):
        return self.weight * x[:, :1].expand(-1, self.out_channels, -1, -1)


FLOW = {"target": "ldm.models.diffusion.schedule.FlowSchedule"}
ZERO_SNR = {
    "target": "ldm.models.diffusion.schedule.NoiseSchedule",
    "params": {"name": "scaled_linear", "zero_terminal_snr": True},
}


def process(cls=LatentDiffusion, **params):
    return plain({"target": f"{__name__}.Doubling"}, cls, **params)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize(
    ("kind", "schedule"), [("eps", None), ("x0", None), ("v", ZERO_SNR), ("flow", FLOW)], ids=str
)
def test_every_process_trains_and_samples(kind, schedule, variance):
    model = process(parameterization=kind, schedule_config=schedule, variance=variance)
    model.batch_loss(batch())["loss"].backward()
    assert model.model.diffusion_model.weight.grad.isfinite().all()
    for sampler in ("ddpm", "ddim", "unipc_2"):
        data = batch()
        images = model.synthesise(data["condition"], data["presence"], noise(), sampler, 4)
        assert images.shape == (2, 1, 8, 8)
        assert images.abs().max() <= 1


def test_eps_is_refused_where_it_says_nothing_of_the_image():
    with pytest.raises(ConfigError, match="zero terminal SNR"):
        process(parameterization="eps", schedule_config=ZERO_SNR)


def test_regression_has_no_variance_to_learn():
    """So one YAML serves both."""
    assert process(OneStepRegression, variance="learned").batch_loss(batch())["loss"] > 0


def test_weights_of_timesteps_scale_the_loss():
    """min-SNR-1 of an x_0 prediction is min(SNR, 5): below 5 late, never above."""
    losses = []
    for weight in (None, "min_snr"):
        model = process(parameterization="x0", loss_weight=weight)
        torch.manual_seed(0)
        losses.append(model.batch_loss(batch())["loss"])
    assert losses[1] < 5 * losses[0]
    assert losses[0] != losses[1]


def test_importance_of_timesteps_is_kept_in_the_checkpoint():
    importance = {"target": "ldm.models.diffusion.timesteps.ImportanceTimesteps"}
    model, other = (process(timesteps_config=importance) for _ in range(2))
    model.train()
    model.batch_loss(batch())
    other.restore_state(model.saved_state())
    assert model.timesteps.seen.sum() == 2
    assert torch.equal(other.timesteps.losses, model.timesteps.losses)


def test_guidance_needs_a_model_that_saw_no_conditions():
    with pytest.raises(ConfigError, match=r"drop_all=0\.1"):
        process().network_calls(4, guidance=2.0)
    model = process(drop_all=0.5)
    assert model.network_calls(4) == 4
    assert model.network_calls(4, guidance=2.0, rescale=0.5) == 8
    data = batch()
    images = [
        model.synthesise(data["condition"], data["presence"], noise(), steps=2, guidance=g)
        for g in (1.0, 2.0)
    ]
    torch.testing.assert_close(*images)  # this backbone does not look at the conditions
    model.train()
    dropped = model.drop({"condition": torch.ones(200, 3, 2, 2)}, Draws((0,), 200))["condition"]
    dropped = dropped.flatten(1)
    assert set(dropped.sum(1).tolist()) == {0.0, 12.0}
    given = {"condition": torch.ones(5, 3, 2, 2)}
    assert model.eval().drop(given, Draws((0,), 5)) is given


# ---- losses of images, other conditions, names of before -----------------------------------------


class EdgeLoss(nn.Module):
    """A loss of one's own on predicted images: a class, and a line of YAML."""

    def forward(self, prediction):
        difference = prediction.image - prediction.batch["target"]
        return {"edges": difference.diff(dim=-1).abs().mean()}


@pytest.mark.parametrize("cls", [LatentDiffusion, OneStepRegression])
def test_a_loss_of_ones_own_sees_predicted_and_true_images(cls):
    """A network that returns 0 predicts the subtracted contrast."""
    losses = {"own": {"target": f"{__name__}.EdgeLoss"}}
    model = plain(probe(), cls, loss_config=losses, subtract="t1", gain=5.0)
    data = batch()
    losses = model.batch_loss(data)
    expected = (data["condition"][:, :1] - data["target"]).diff(dim=-1).abs().mean()
    torch.testing.assert_close(losses["edges"], expected)
    torch.testing.assert_close(losses["loss"], losses["fit"] + losses["edges"])


def test_numbers_of_a_patient_are_a_condition_by_yaml():
    """Age, as the network's ``y``: known or not, in training and in sampling."""
    model = plain(
        {"target": f"{__name__}.Listener"},
        conditioning_key="concat-adm",
        covariates=["age", "field_strength"],
        cond_stage_config={
            "target": "ldm.modules.condition.CovariateVector",
            "params": {"width": 16, "mean": {"age": 60.0}, "std": {"age": 15.0}},
        },
        drop_all=1.0,
    )
    data, network = batch(), model.model.diffusion_model
    with pytest.raises(ConfigError, match=r"give data\.params\.covariates"):
        model.batch_loss(data)
    data["covariates"] = torch.tensor([[75.0, torch.nan], [60.0, 3.0]])
    model.eval().batch_loss(data)
    told = network.seen["y"]
    assert told.shape == (2, 16)
    assert network.seen["x"].shape[1] == network.told["x"] == 4
    assert not torch.equal(told[0], told[1])
    model.synthesise(
        data["condition"],
        data["presence"],
        noise(),
        steps=1,
        others={"covariates": data["covariates"]},
    )
    assert torch.equal(network.seen["y"], told)
    model.train().batch_loss(data)  # every item loses all of its conditions
    unknown = model.model.cond_stage_model(torch.full((1, 2), torch.nan))
    torch.testing.assert_close(network.seen["y"], unknown.expand(2, -1))
    assert (network.seen["x"][:, 1:] == 0).all()


def test_a_saved_run_of_before_is_read_by_its_old_names(tmp_path):
    from ldm.checkpoint import read_run_config
    from ldm.config import save_config
    from ldm.util import instantiate_from_config

    old = {
        "target": "ldm.models.diffusion.ddpm.OneStepRegression",
        "params": {"unet_config": probe(), "bound": "mse"},
    }
    data = {"target": "ldm.data.datamodule.ContrastDataModule", "params": {}}
    save_config({"model": old, "data": data}, tmp_path / "config.yaml")
    config = read_run_config(tmp_path, trust=[f"{__name__}.Probe"])
    assert config["model"]["params"]["objective"] == "mse"
    assert type(instantiate_from_config(config["model"])) is OneStepRegression


# ---- the posterior mean --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_temperature_0_is_one_call_whatever_sampler_and_steps(kind):
    """The posterior mean has no steps: from x_T = 0 at the last timestep to the data."""
    model = process(parameterization=kind, schedule_config=FLOW, mean_share=0.5)
    calls, network = [], model.model.forward
    model.model.forward = lambda *inputs: calls.append(inputs) or network(*inputs)
    data, still = batch(), KeyedNoise([(0, 0), (0, 1)], "cpu", temperature=0.0)
    images = [
        model.synthesise(data["condition"], data["presence"], still, sampler, steps)
        for sampler, steps in (("ddim", 1), ("ddim", 10), ("ddpm", 4), ("heun", 3), ("unipc_2", 50))
    ]
    assert len(calls) == len(images)
    assert all((x_t == 0).all() and (t == 999).all() for x_t, t, *_ in calls)
    for image in images[1:]:
        torch.testing.assert_close(image, images[0])
    assert model.network_calls(10, temperature=0.0) == 1
    assert model.network_calls(10, temperature=1.0) == 10


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_a_model_whose_every_item_learns_the_mean_is_the_one_step_regression(loss_type):
    """The same loss, the same gradient, the same image."""
    data, grads, images = batch(), [], []
    for cls, share in ((LatentDiffusion, {"mean_share": 1.0}), (OneStepRegression, {})):
        model = plain(
            probe(weight=0.3, channel=1), cls, loss_type=loss_type, subtract="t2", **share
        )
        losses = model.batch_loss(data)
        losses["loss"].backward()
        grads.append([losses["loss"].detach(), model.model.diffusion_model.weight.grad])
        still = KeyedNoise([(0, 0), (0, 1)], "cpu", temperature=0.0)
        images.append(model.synthesise(data["condition"], data["presence"], still))
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(images[0], images[1])


def test_a_share_of_each_batch_learns_the_mean():
    """Its items stand at x_T = 0, their loss is the error of x_0; the others are noised data."""
    model = process(
        parameterization="v", schedule_config=FLOW, mean_share=0.5, loss_weight="min_snr"
    )
    seen, network = {}, model.model.forward

    def record(x_t, t, *given):
        seen.update(x_t=x_t, t=t)
        return network(x_t, t, *given)

    model.model.forward = record
    data = batch(items=4)
    losses = model.train().batch_loss(data)
    assert (seen["x_t"][:2] == 0).all() and (seen["t"][:2] == 999).all()
    assert (seen["x_t"][2:] != 0).all()
    assert len(model.last_fit[0]) == 2  # the mean is no timestep of the process
    of_means = data["target"][:2].square().flatten(1).mean(dim=1)  # this network returns x_t
    torch.testing.assert_close(losses["loss"], torch.cat([of_means, model.last_fit[1]]).mean())


def test_every_rank_tells_its_losses_to_the_others(monkeypatch):
    """Also one whose items all learn the mean: the others wait for it."""
    for share, told in ((0.75, 1), (1, 0)):
        model = process(parameterization="v", schedule_config=FLOW, mean_share=share)
        seen = []
        monkeypatch.setattr(model.timesteps, "update", lambda *of, seen=seen: seen.append(of))
        model.train().batch_loss(batch(items=4))
        assert [len(values) for values in seen[0]] == [told, told]


def test_eps_has_no_mean_to_learn():
    with pytest.raises(ConfigError, match="mean_share is 0.5 with parameterization 'eps'"):
        process(parameterization="eps", mean_share=0.5)
    assert process(parameterization="eps", mean_share="auto").process.mean_share == 0


def test_most_of_a_batch_learns_the_mean_and_some_the_samples():
    share = process(parameterization="x0", mean_share="auto").process.mean_share
    items = [Draws.unkeyed(4).items_of(share) for _ in range(4)]
    assert items == [3] * 4  # of four


# ---- anchors -------------------------------------------------------------------------------------


ANCHORS = "ldm.models.diffusion.anchors"


def patients(count=6):
    """Slices whose target is a known polynomial of the contrasts, with a border of background."""
    items = []
    for number in range(count):
        data = batch((8, 8), 1)
        condition = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(number)) - 0.5
        t1, t2, flair = condition
        target = 0.1 + 0.5 * t1 - 0.2 * flair + 0.3 * t1 * t2 - 0.1 * flair**2
        brain = torch.zeros(1, 8, 8, dtype=torch.bool)
        brain[:, 1:7, 1:7] = True
        images = torch.where(brain, torch.stack([*condition, target]), -1.0)
        items.append({"condition": images[:3], "target": images[3:], "brain": brain})
        items[-1]["presence"] = data["presence"][0]
    return items


def of_patients(items):
    split = {"train": ["a"], "val": [], "test": []}
    return SimpleNamespace(train_slices=items, split=split, augmentation_config=None)


def residual(anchor, unet_config=None, **params):
    return plain(unet_config or probe(), anchor_config=anchor, gain=4.0, **params)


def test_the_residual_to_the_regression_is_what_it_does_not_explain():
    """Fitted on the training patients when a training starts; its coefficients are weights."""
    model = residual({"target": f"{ANCHORS}.RegressionAnchor"})
    items = patients()
    model.check_start(of_patients(items))
    data = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    _, x_0 = model.encode_batch(data)
    assert x_0.abs().max() < 1e-4
    image = model.synthesise(
        data["condition"], data["presence"], KeyedNoise([(i,) for i in range(6)], "cpu", 0.0)
    )
    torch.testing.assert_close(image, data["target"], rtol=0, atol=1e-5)
    again = residual({"target": f"{ANCHORS}.RegressionAnchor"})
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.encode_batch(data)[1], x_0)


@pytest.mark.parametrize("first", [LatentDiffusion, OneStepRegression])
def test_a_flow_starts_at_the_mean_of_a_trained_run(tmp_path, first):
    """Posterior-Mean Rectified Flow by YAML: the first model is frozen, and saved with the second.

    The second needs no run folder any more, and a network that returns 0 gives the first's mean.
    """
    from ldm.config import save_config
    from ldm.model_file import save_model

    mean = plain(probe(weight=0.5, channel=1), first, subtract="t1", mean_share=1.0)
    params = {"unet_config": probe(channel=1), "subtract": "t1", "gain": 1.0, "sparsity": 0.0}
    target = f"{first.__module__}.{first.__name__}"
    data = {"target": "ldm.data.datamodule.ContrastDataModule", "params": {}}
    save_config(
        {"model": {"target": target, "params": params}, "data": data}, tmp_path / "config.yaml"
    )
    save_model(tmp_path, mean.state_dict(), mean.facts())
    config = {
        "target": f"{ANCHORS}.ModelAnchor",
        "params": {"path": str(tmp_path), "trust": [f"{__name__}.Probe"]},
    }
    flow = {"parameterization": "flow", "schedule_config": FLOW}
    zero = {"target": f"{__name__}.Listener"}
    model = residual(config, zero, **flow).train()
    assert not model.anchor.model.training
    assert not any(p.requires_grad for p in model.anchor.parameters())
    told = batch()
    still = KeyedNoise([(0, 0), (0, 1)], "cpu", temperature=0.0)
    expected = mean.synthesise(told["condition"], told["presence"], still)
    given, x_0 = model.encode_batch(told)
    torch.testing.assert_close(x_0, 4 * (told["target"] - expected))
    model.batch_loss(told)["loss"].backward()
    image = model.synthesise(told["condition"], told["presence"], still)
    torch.testing.assert_close(image, expected)
    portable = model.portable_params()["anchor_config"]
    assert str(tmp_path) not in str(portable)
    again = residual(portable, zero, **flow)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.encode_batch(told)[1], x_0)


def test_an_anchor_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="subtract is 't1' beside an anchor_config"):
        residual({"target": f"{ANCHORS}.RegressionAnchor"}, subtract="t1")
    with pytest.raises(ConfigError, match="which model is the anchor"):
        residual({"target": f"{ANCHORS}.ModelAnchor"})


# ---- the learning rate and the average of the weights --------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "middle"),
    [("constant", 1.0), ("cosine", 0.55), ("polynomial", 0.1 + 0.9 * 0.5**0.9)],
)
def test_the_learning_rate_follows_the_length_of_the_run(schedule, middle):
    """Linear warm-up of 10 steps, then down to a tenth at step 110, and no further."""
    model = plain(probe(), rate_schedule=schedule, warmup_steps=10, decay_steps=110, decay_to=0.1)
    rates = [model.rate_factor(step) for step in (0, 10, 60, 110, 500)]
    end = 1.0 if schedule == "constant" else 0.1
    assert rates == pytest.approx([0.1, 1.0, middle, end, end])
    with pytest.raises(ConfigError, match=r"rate_schedule is 'cosin': .* \(nearest: 'cosine'\)"):
        plain(probe(), rate_schedule="cosin")


@pytest.mark.parametrize("steps", [200, 2000])
def test_the_average_is_as_long_as_a_share_of_the_run(steps):
    """Half of the average of a long run is of its last ``half_life`` steps."""
    ema = EMA(half_life=0.05)
    ema.on_train_start(SimpleNamespace(max_steps=steps), None)
    average, counts = torch.zeros(1), range(steps)
    first_of_last = round(steps * 0.95)
    for count in counts:  # what was seen before is 0, the last twentieth is 1
        ema.average([average], [torch.tensor([float(count >= first_of_last)])], count)
    assert average.item() == pytest.approx(0.5, abs=0.03)
    endless = EMA(decay=0.9, half_life=0.05)
    endless.on_train_start(SimpleNamespace(max_steps=-1), None)
    assert endless.decay == 0.9
    with pytest.raises(ConfigError, match="half_life is 4: give a share"):
        EMA(half_life=4)
