"""Networks of a user with habits of their own: they train, are saved and sample, or are refused."""

import sys
from pathlib import Path

import pytest
from workflow.conftest import SPLIT

import ldm
from ldm import Synthesiser
from ldm.checkpoint import load_model
from ldm.errors import ConfigError

YAML = """base: configs/base.yaml
model:
  params:
    unet_config: {target: own_networks.NAME}
data:
  params: {image_size: 32, batch_size: 2, augmentation_config: null, val_slices: 2}
lightning:
  trainer: {max_steps: 2, log_every_n_steps: 1, accelerator: cpu, precision: "32"}
  callbacks: {curve: null}
"""
NETWORKS = '''
import math

import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, in_channels, out_channels, width=8):
        super().__init__()
        self.enter = nn.Conv2d(in_channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x, timesteps, context=None, y=None):
        return self.leave(torch.relu(self.middle(self.enter(x))))


class TiedWeight(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.middle.weight

    def forward(self, x, timesteps, context=None, y=None):
        return self.leave(self.again(torch.relu(self.middle(self.enter(x)))))


class TiedModule(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.again = self.middle


class PartsOfOneBuffer(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        whole = torch.arange(8.0)
        self.register_buffer("first", whole[:4])
        self.register_buffer("last", whole[4:])


class Scripted(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.middle = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()))


class Sinusoidal(Plain):
    """Its embedding of time is of 32 bit, whatever its weights are."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.time = nn.Linear(8, 8)

    def forward(self, x, timesteps, context=None, y=None):
        angles = timesteps[:, None].float() * torch.exp(-math.log(1e4) * torch.arange(4) / 4)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        return self.leave(torch.relu(self.middle(self.enter(x) + time)))


class Norm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class OpenAI(Plain):
    """Its norm computes in 32 bit, as in the code of improved diffusion."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.norm = Norm32(4, 8)

    def forward(self, x, timesteps, context=None, y=None):
        return self.leave(torch.relu(self.norm(self.middle(self.enter(x)))))


class Double(Plain):
    """One layer of 64 bit, which autocast is not to touch."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.exact = nn.Conv2d(8, 8, 1).double()

    def forward(self, x, timesteps, context=None, y=None):
        h = self.middle(self.enter(x))
        with torch.autocast(x.device.type, enabled=False):
            h = self.exact(h.double()).to(h.dtype)
        return self.leave(torch.relu(h))


class Unnamed(Plain):
    def __init__(self, **kwargs):
        super().__init__(kwargs["in_channels"], kwargs["out_channels"])


class Expanded(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.register_buffer("scale", torch.ones(1).expand(8))


class Lazy(Plain):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels)
        self.middle = nn.LazyConv2d(8, 3, padding=1)


class ExtraState(Plain):
    def get_extra_state(self):
        return {"version": 1}


class OtherCall(Plain):
    def forward(self, x, t, condition):
        return super().forward(x, t)


class KeywordsAlone(Plain):
    def forward(self, x, *, timesteps):
        return super().forward(x, timesteps)


class NoModule:
    def __init__(self, in_channels, out_channels):
        pass


class NotBegun(nn.Module):
    def __init__(self, in_channels, out_channels):
        self.width = out_channels


class NoForward(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.enter = nn.Conv2d(in_channels, out_channels, 1)


class DivisorText(Plain):
    size_divisor = "2"


class DivisorZero(Plain):
    size_divisor = 0


class DivisorThree(Plain):
    size_divisor = (2, 2, 2)


class Detached(Plain):
    def forward(self, x, timesteps=None):
        return super().forward(x, timesteps).detach()


class Whole(Plain):
    def forward(self, x, timesteps=None):
        return super().forward(x, timesteps).long()
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """``own(name) -> (YAML, its folder)``; the networks lie where Python finds them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_networks.py").write_text(NETWORKS)
    sys.path.insert(0, str(folder))

    def described(name: str) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(YAML.replace("NAME", name))
        return path

    yield described
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    "name",
    ["TiedWeight", "TiedModule", "PartsOfOneBuffer", "Scripted", "Sinusoidal", "OpenAI", "Double"],
)
def test_it_trains_is_resumed_and_samples_in_either_precision(own, patients, tmp_path, name):
    """What is tied stays tied; in bf16 the image is that of 32 bit but for rounding."""
    data = [f"data.params.root={patients}", *SPLIT]
    run = ldm.train(own(name), data, output=tmp_path / "run")
    trust = [f"own_networks.{name}"]
    more = "lightning.trainer.max_steps=3"
    assert ldm.train(None, [more], resume=run.folder, trust=trust).steps == 3
    network = load_model(run.folder, trust).model.model.diffusion_model
    if name == "TiedWeight":
        assert network.again.weight.data_ptr() == network.middle.weight.data_ptr()
    volumes = {}
    for precision in ("32", "bf16"):
        made = Synthesiser.load(run.folder, precision=precision, trust=trust)
        volumes[precision] = next(made.volumes(patients, ["Phantom_0003"], seed=1)).volume
    brain = volumes["32"] != 0
    error = abs(volumes["bf16"] - volumes["32"])[brain].mean()
    assert error < 0.05 * volumes["32"][brain].std()


def test_what_is_told_by_name_alone_is_said(own, patients):
    with pytest.raises(
        ConfigError, match=r"refused: 'in_channels'; of \*\*kwargs none is passed in"
    ):
        ldm.train(own("Unnamed"), f"data.params.root={patients}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Expanded", "scale of Expanded has one value for several places (expand): add .clone()"),
        ("Lazy", "middle.weight of Lazy has no size before the first call"),
        ("ExtraState", "_extra_state of ExtraState is a dict, and a model file holds tensors"),
        ("OtherCall", "OtherCall.forward: missing a required argument: 'condition'; it is called"),
        ("KeywordsAlone", "KeywordsAlone.forward: too many positional arguments; it is called"),
        ("NoModule", "NoModule is no torch.nn.Module: derive the class from it"),
        ("NotBegun", "NotBegun.__init__ does not call super().__init__()"),
        ("NoForward", "NoForward has no method forward"),
        ("DivisorText", "DivisorText.size_divisor is '2': give a whole number from 1, or 2 of"),
        ("DivisorZero", "DivisorZero.size_divisor is 0: give a whole number from 1, or 2 of"),
        ("DivisorThree", "DivisorThree.size_divisor is (2, 2, 2): give a whole number"),
    ],
)
def test_what_could_not_be_saved_or_called_is_refused_before_the_first_step(
    own, patients, tmp_path, name, said
):
    with pytest.raises(ConfigError, match="CONFIG-TARGET: model.params.unet_config: ") as refused:
        ldm.train(own(name), f"data.params.root={patients}", output=tmp_path / "run")
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["Detached", "Whole"])
@pytest.mark.parametrize("task", ["synthesis", "segmentation"])
def test_an_output_of_which_nothing_can_be_learned_is_refused_at_the_first_step(
    own, patients, tmp_path, name, task
):
    config = [own(name)]
    if task == "segmentation":  # AttentionUNet has params that this network does not take
        network = f"{{target: own_networks.{name}, params: null}}"
        (tmp_path / "own.yaml").write_text(f"model: {{params: {{unet_config: {network}}}}}")
        config = ["configs/segmentation/attention_unet_tiny.yaml", tmp_path / "own.yaml"]
    with pytest.raises(ConfigError, match=f"the output of {name} does not depend on its weights"):
        ldm.train(config, [f"data.params.root={patients}", *SPLIT], output=tmp_path / "run")
