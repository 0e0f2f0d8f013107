"""Foreign networks as backbones: names translated, outputs unwrapped, timesteps added."""

from types import SimpleNamespace

import pytest
import torch
from families import call_inputs
from torch import nn

from ldm.errors import ConfigError
from ldm.modules.adapter import ForeignBackbone

CHANNELS = {"in_channels": 4, "out_channels": 1, "image_size": 16}
MONAI = {
    "target": "monai.networks.nets.DiffusionModelUNet",
    "params": {
        "spatial_dims": 2,
        "channels": [32, 64],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "num_head_channels": 32,
    },
}


class Recorder(nn.Module):
    """Stands for a network of another package; keeps what it was built and called with."""

    def __init__(self, in_channels, classes, img_size=None):
        super().__init__()
        self.built = {"in_channels": in_channels, "classes": classes, "img_size": img_size}
        self.conv = nn.Conv2d(in_channels, classes, 1)

    def record(self, image, **called):
        self.called = called
        return self.conv(image)


class SampleNetwork(Recorder):
    def forward(self, sample, timestep, encoder_hidden_states=None, class_labels=None):
        called = {"t": timestep, "context": encoder_hidden_states, "y": class_labels}
        return SimpleNamespace(sample=self.record(sample, **called))


class TupleNetwork(Recorder):
    def forward(self, x):
        return self.record(x), "something else"


class TimeFirstNetwork(Recorder):
    def forward(self, t, image, x_self_cond=None):
        return {"out": self.record(image, t=t), "aux": None}


class NeedyNetwork(Recorder):
    def forward(self, x, time, cond):
        return self.record(x)


class HalvingNetwork(Recorder):
    def forward(self, x):
        return self.conv(x)[..., ::2, ::2]


def wrapped(cls, **options):
    return ForeignBackbone({"target": f"{__name__}.{cls.__name__}"}, **CHANNELS, **options)


def test_volumes():
    params = {name: value for name, value in MONAI["params"].items() if name != "spatial_dims"}
    model = ForeignBackbone({**MONAI, "params": params}, **CHANNELS, size_divisor=2, dims=3)
    assert model.eval()(**call_inputs(4, (8, 8, 8))).shape == (3, 1, 8, 8, 8)
    with pytest.raises(ConfigError, match="SampleNetwork has no argument dims or spatial_dims"):
        wrapped(SampleNetwork, dims=3)


def test_names_are_translated_both_ways():
    model = wrapped(SampleNetwork)
    more = {"context": torch.zeros(3, 5, 6), "y": torch.tensor([0, 1, 2])}
    kwargs = call_inputs(4, (4, 6), **more)
    output = model(**kwargs)
    torch.testing.assert_close(output, model.network.conv(kwargs["x"]))
    assert model.network.built == {"in_channels": 4, "classes": 1, "img_size": 16}
    assert model.network.called["t"] is kwargs["timesteps"]
    assert model.network.called["context"] is kwargs["context"]
    assert model.network.called["y"] is kwargs["y"]


def test_a_network_whose_timestep_comes_first_under_another_name():
    model, kwargs = wrapped(TimeFirstNetwork), call_inputs(4, (4, 6))
    torch.testing.assert_close(model(**kwargs), model.network.conv(kwargs["x"]))
    assert model.network.called["t"] is kwargs["timesteps"]


def test_a_network_that_needs_more_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match="NeedyNetwork.forward needs 'cond', but beside the im"):
        wrapped(NeedyNetwork)


def test_a_network_without_timesteps_gets_them_as_constant_channels():
    model = wrapped(TupleNetwork)
    seen = []
    model.network.register_forward_pre_hook(lambda network, args: seen.append(args[0]))
    kwargs = call_inputs(4, (4, 6))
    assert model(**kwargs).shape == (3, 1, 4, 6)
    image, time = seen[0].split([4, seen[0].shape[1] - 4], dim=1)
    assert torch.equal(image, kwargs["x"])
    assert torch.equal(time, time[..., :1, :1].expand_as(time))
    assert (time[0] - time[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("network", "change", "words"),
    [
        (TupleNetwork, {"context": torch.zeros(3, 5, 6)}, "TupleNetwork has no input"),
        (HalvingNetwork, {}, r"HalvingNetwork returned \(3, 1, 4, 4\)"),
        (SampleNetwork, {"x": torch.zeros(3, 3, 8, 8)}, "4 channels"),
        (SampleNetwork, {"x": torch.zeros(3, 4, 8, 7)}, "multiples of 4"),
    ],
    ids=["context", "output", "channels", "size"],
)
def test_what_does_not_fit_is_refused(network, change, words):
    with pytest.raises(ConfigError, match=words):
        wrapped(network, size_divisor=4)(**{**call_inputs(4, (8, 8)), **change})


def test_a_misspelt_parameter_is_named_with_its_path():
    network = {**MONAI, "params": {**MONAI["params"], "channel": [32]}}
    with pytest.raises(ConfigError, match=r"network.params.channel .*nearest: 'channels'"):
        ForeignBackbone(network, **CHANNELS)
