"""The training module: what is diffused, what the backbone is told, and where precision ends."""

import pytest
import torch
from torch import nn

from ldm.errors import ConfigError
from ldm.models.diffusion.ddpm import DiffusionWrapper, LatentDiffusion, OneStepRegression
from ldm.models.diffusion.noise import KeyedNoise


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
        model = cls(probe(), subtract="t1", gain=5.0)
        image = model.synthesise(data["condition"], data["presence"], noise())
        torch.testing.assert_close(image, data["condition"][:, :1])


@pytest.mark.parametrize("neighbours", [0, 1])
def test_subtraction_takes_the_contrast_of_the_slice_itself(neighbours):
    """The subtracted channel is the named contrast of the middle slice; the map is invertible."""
    model = LatentDiffusion(probe(), neighbours=neighbours, subtract="t2", gain=3.0)
    condition = torch.randn(2, 3 * (2 * neighbours + 1), 4, 4)
    target = torch.randn(2, 1, 4, 4)
    x_0 = model.to_data(target, condition)
    torch.testing.assert_close(x_0, (target - condition[:, 3 * neighbours + 1, None]) * 3)
    torch.testing.assert_close(model.from_data(x_0, condition), target)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_loss_of_the_exact_prediction_is_zero(kind):
    """A backbone that knows the answer has no loss, whatever it is asked to predict."""
    from ldm.models.diffusion.gaussian import target_of

    data = batch()
    model = LatentDiffusion(probe(), parameterization=kind, loss_type="l2")
    torch.manual_seed(1)
    t = torch.randint(len(model.schedule), (2,))
    eps = torch.randn(data["target"].shape)
    answer = target_of(kind, data["target"], eps, t, model.schedule)
    model.model.forward = lambda x_t, t, condition: answer
    torch.manual_seed(1)
    assert model.batch_loss(data)["loss"].item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(("sparsity", "quantile"), [(0.0, 0.5), (0.4, 0.3)])
def test_sparsity_moves_the_median_to_a_quantile_nearer_to_zero(sparsity, quantile):
    """The constant that minimises |r - c| + sparsity |c| over r >= 0 is that quantile of r."""
    model = OneStepRegression(probe(), sparsity=sparsity, loss_type="l1")
    r = torch.rand(1, 1, 1, 20001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constants = torch.linspace(0.2, 0.6, 41, dtype=torch.float64)
    losses = [
        model.total_loss(model.loss(c.expand_as(r), r).mean(), c.expand_as(r), {})["loss"]
        for c in constants
    ]
    best = constants[torch.stack(losses).argmin()]
    assert best == pytest.approx(r.quantile(quantile).item(), abs=0.011)


def test_backbone_is_told_its_channels_and_a_contradiction_is_refused():
    model = LatentDiffusion(probe(), conditions=["t1", "t2"], neighbours=1)
    assert model.model.diffusion_model.channels == (7, 1)
    with pytest.raises(ConfigError, match="CONFIG-SHAPE"):
        LatentDiffusion(probe(in_channels=3))
    with pytest.raises(ConfigError, match="expected one of t1, t2"):
        LatentDiffusion(probe(), conditions=["t1", "t2"], subtract="flair")


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
    model = LatentDiffusion(probe())
    data = batch()
    data["presence"][0, 1] = False
    encoded = model.encode_condition(data["condition"], data["presence"])
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
            LatentDiffusion(probe(), **wrong)


# ---- losses of features --------------------------------------------------------------------------


class Disentangler(Probe):
    """A probe that gives two features, a multiple of its input each."""

    def forward_with_features(self, x, timesteps, context=None, y=None):
        return self.forward(x, timesteps), {"one": [x * self.weight], "two": [x]}


class Agreement(nn.Module):
    """A loss of features: the mean distance of the two, weighted."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def forward(self, features):
        distance = (features["one"][0] - features["two"][0]).abs().mean()
        return {"agreement": self.weight * distance}


def with_feature_loss(cls=LatentDiffusion, network="Disentangler", **params):
    losses = {"own": {"target": f"{__name__}.Agreement", "params": {"weight": 0.3}}, "off": None}
    unet_config = {"target": f"{__name__}.{network}", "params": {"weight": 0.5}}
    return cls(unet_config, loss_config=losses, **params)


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
    plain = LatentDiffusion(probe(weight=0.5))
    for both in (model, plain):
        torch.manual_seed(0)
        both.batch_loss(data)["loss"].backward()
    weights = [both.model.diffusion_model.weight for both in (model, plain)]
    assert weights[0].grad != weights[1].grad
    images = [m.synthesise(data["condition"], data["presence"], key) for m in (model, plain)]
    assert images[0].shape == images[1].shape
    assert set(model.state_dict()) == set(plain.state_dict())


def test_a_backbone_without_features_refuses_their_losses():
    with pytest.raises(ConfigError, match="loss_config.own needs a backbone with features"):
        with_feature_loss(network="Probe")


def test_features_of_a_batch_do_not_depend_on_its_order():
    model = with_feature_loss()
    data = batch() | {"subject": ["a", "b"], "slice": torch.tensor([3, 5])}
    turned = {k: v[::-1] if isinstance(v, list) else v.flip(0) for k, v in data.items()}
    one, other = model.features(data)["one"][0], model.features(turned)["one"][0]
    assert torch.equal(one, other.flip(0))
    assert LatentDiffusion(probe()).features(data) == {}


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
    model = LatentDiffusion({"target": f"{__name__}.Listener"}, conditioning_key=key)
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
    return cls({"target": f"{__name__}.Doubling"}, **params)


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
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
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
    torch.manual_seed(0)
    dropped = model.drop(torch.ones(200, 3, 2, 2)).flatten(1)
    assert set(dropped.sum(1).tolist()) == {0.0, 12.0}
    assert torch.equal(model.eval().drop(torch.ones(5, 3, 2, 2)), torch.ones(5, 3, 2, 2))
