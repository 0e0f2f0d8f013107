"""What every shipped backbone must hold: one suite over the tiny YAMLs of ``configs/backbone``.

A new backbone is tested by its YAML alone. Each is built as a run builds it, inside
LatentDiffusion, so conditions, padding and precision are part of what is tested.
"""

import importlib

import parity
import pytest
import torch
from families import (
    check_bf16,
    check_checkpointing,
    check_gradients_of_a_narrow_network,
    check_samples_are_independent,
    check_timestep_matters,
)

from ldm.config import config_root, load_config, merge_config
from ldm.errors import ConfigError
from ldm.models.diffusion.noise import KeyedNoise
from ldm.study import build_model
from ldm.util import accepted_parameters, resolve_target, targets_in

FOLDER = config_root() / "backbone"
TINY = sorted(path.stem for path in FOLDER.glob("*_tiny.yaml"))
OUR_PACKAGES = ("ldm.", "guided_diffusion.", "UNet_DS_Diff.")
SIZE = (32, 48)
LATENT = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 3,
        "ddconfig": {
            **{"z_channels": 3, "resolution": 32, "in_channels": 1, "out_ch": 1, "ch": 32},
            **{"ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []},
        },
    },
}


def build(name, size=SIZE, **params):
    """The LatentDiffusion of a tiny YAML, with ``params`` of the network changed."""
    config = configuration(name, size)
    unet_config(config)["params"].update(params)
    return build_model(config)


def file_of(name):
    return f"configs/backbone/{name}.yaml"


def unet_config(config):
    return config["model"]["params"]["unet_config"]


def configuration(name, size=SIZE, *more):
    file = file_of(name)
    for target in targets_in(merge_config([file])):
        pytest.importorskip(target.partition(".")[0])
    return load_config([file, *more], [f"data.params.image_size={list(size)}".replace(" ", "")])


def that_offer(option):
    """The YAMLs whose network takes a constructor argument."""
    nodes = {name: unet_config(merge_config([file_of(name)])) for name in TINY}
    ours = {n: node for n, node in nodes.items() if node["target"].startswith(OUR_PACKAGES)}
    return [n for n, node in ours.items() if option in accepted_parameters(resolve_target(node))[0]]


def call_inputs(model, size=SIZE, batch=3):
    """Arguments of DiffusionWrapper.forward: noisy latents, timesteps, three conditions."""
    channels = model.latent_shape[0]
    return {
        "x_t": parity.normal("x_t", (batch, channels, *size)),
        "t": torch.arange(batch) * 300 + 10,
        "condition": parity.normal("condition", (batch, 3 * channels, *size)),
    }


@pytest.fixture(params=TINY)
def name(request):
    return request.param


def test_shape_and_gradient_in_every_parameter(name):
    model = build(name)
    check_gradients_of_a_narrow_network(model.model, call_inputs(model), (3, 1, *SIZE))


@pytest.mark.parametrize("name", [n for n in TINY if n.startswith(("disc_", "ds_"))])
def test_features_come_with_the_prediction_and_depend_on_their_heads(name):
    """``forward_with_features`` predicts what ``forward`` does; a feature trains its own head."""
    network = parity.fill(build(name).model.diffusion_model).eval()
    inputs = parity.normal("x", (2, 4, *SIZE)), torch.tensor([5, 500])
    output, features = network.forward_with_features(*inputs)
    assert torch.equal(output, network(*inputs))
    for kind, maps in features.items():
        network.zero_grad()
        sum(m.square().mean() for m in maps).backward(retain_graph=True)
        reached = {n for n, p in network.named_parameters() if p.grad is not None}
        heads = {n for n, _ in network.named_parameters() if n.startswith(f"conv_{kind}.")}
        assert heads
        assert heads <= reached
        assert not any(n.startswith(("output_blocks", "middle_block", "out.")) for n in reached)


def test_samples_of_a_batch_do_not_see_each_other(name):
    model = build(name)
    check_samples_are_independent(model.model, call_inputs(model))


def test_output_follows_the_timestep(name):
    model = build(name)
    check_timestep_matters(model.model, call_inputs(model), "t")


def test_weights_in_bf16_stay_close(name):
    model = build(name)
    check_bf16(model.model, call_inputs(model), "x_t")


@pytest.mark.parametrize("name", that_offer("use_checkpoint"))
def test_checkpointing_changes_nothing(name):
    inputs = call_inputs(build(name))
    check_checkpointing(lambda flag: build(name, use_checkpoint=flag).model, inputs)


@pytest.mark.parametrize("size", [(31, 45), (17, 50)], ids=str)
def test_odd_sizes_are_padded_and_cropped(name, size):
    """What an odd size gives is what its edge-padded image gives, cropped."""
    model = build(name)
    parity.fill(model.model).eval()
    inputs = call_inputs(model, size)
    divisor = model.model.size_divisor
    with torch.no_grad():
        output = model.model(**inputs)
        padding = [p for n in reversed(size) for p in (0, -n % divisor)]
        padded = {
            key: torch.nn.functional.pad(inputs[key], padding, mode="replicate")
            for key in ("x_t", "condition")
        }
        whole = model.model(**padded, t=inputs["t"])
    assert output.shape == (3, 1, *size)
    torch.testing.assert_close(output, whole[..., : size[0], : size[1]])


def test_content_of_an_absent_contrast_changes_nothing(name):
    model = build(name)
    parity.fill(model.model)
    model.eval()
    condition = parity.normal("condition", (2, 3, *SIZE)).clamp(-1, 1)
    presence = torch.tensor([[True, False, True], [True, True, False]])
    garbage = torch.where(presence[..., None, None], condition, 0.7 * condition.flip(0) - 0.2)
    noise = [KeyedNoise([("a", 1), ("b", 2)], "cpu") for _ in range(3)]
    one = model.synthesise(condition, presence, noise[0], steps=2)
    other = model.synthesise(garbage, presence, noise[1], steps=2)
    assert torch.equal(one, other)
    everything = model.synthesise(condition, torch.ones_like(presence), noise[2], steps=2)
    assert not torch.equal(one, everything)


def test_weights_survive_a_round_trip(name, tmp_path):
    model = build(name)
    parity.fill(model.model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = build(name)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    inputs = call_inputs(model)
    with torch.no_grad():
        assert torch.equal(model.eval().model(**inputs), other.eval().model(**inputs))


def test_latents_of_an_autoencoder(name):
    """The same YAML in latent space: channels, image size and streams follow the first stage."""
    config = configuration(name, (64, 96))
    config["model"]["params"]["first_stage_config"] = LATENT
    model = build_model(config)
    assert model.latent_shape == (3, 16, 24)
    check_gradients_of_a_narrow_network(model.model, call_inputs(model, (16, 24)), (3, 3, 16, 24))


def knows_volumes(name):
    """Whether the network of a YAML, perhaps one of another package, has a number of axes."""
    params = unet_config(configuration(name))
    network = (params.get("params") or {}).get("network", params)
    return bool({"dims", "spatial_dims"} & set(accepted_parameters(resolve_target(network))[0]))


def test_volumes(name):
    """Three numbers are all it takes to train on patches, of any size, and to sample a volume."""
    size = (6, 16, 20)
    config = configuration(name, size, "configs/volume.yaml")
    if not knows_volumes(name):
        with pytest.raises(ConfigError, match=r"CONFIG-SHAPE: .*takes slices only"):
            build_model(config)
        return
    model = build_model(config)
    batch = {
        "condition": parity.normal("condition", (2, 3, *size)).clamp(-1, 1),
        "target": parity.normal("target", (2, 1, *size)).clamp(-1, 1),
        "presence": torch.tensor([[True, False, True], [True, True, True]]),
        "brain": torch.ones(2, 1, *size, dtype=torch.bool),
    }
    assert model.batch_loss(batch)["loss"].isfinite()
    inputs = call_inputs(model, size, batch=1)
    check_gradients_of_a_narrow_network(model.model, inputs, (1, 1, *size))
    volume = parity.normal("volume", (1, 3, 7, 16, 25)).clamp(-1, 1)
    noise = KeyedNoise([("a", 1)], "cpu")
    image = model.eval().synthesise(volume, batch["presence"][1:], noise, steps=1)
    assert image.shape == (1, 1, 7, 16, 25)
    assert image.isfinite().all()


def test_every_family_has_a_paper_size_and_a_tiny_yaml():
    paper = {path.stem for path in FOLDER.glob("*.yaml")} - set(TINY) - {"unet_small"}
    assert {name.removesuffix("_tiny") for name in TINY} == paper


def test_targets_of_shipped_backbones_are_importable():
    for name in TINY:
        for target in targets_in(merge_config([f"configs/backbone/{name}.yaml"])):
            if target.startswith(OUR_PACKAGES):
                module, _, attribute = target.rpartition(".")
                assert hasattr(importlib.import_module(module), attribute)
