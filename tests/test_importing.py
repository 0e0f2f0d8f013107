"""Public checkpoints: every layout gives the network that was saved, and nothing else is loaded."""

import argparse
import os
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.parsing import AttributeDict
from safetensors.torch import save_file

from ldm.checkpoint import load_model
from ldm.config import load_config
from ldm.errors import CheckpointError, ConfigError, OutputError, UnsafeError
from ldm.importing.files import read_public_checkpoint
from ldm.importing.model import ImportMismatch, import_checkpoint, write_imported
from ldm.importing.names import NETWORK, translate
from ldm.importing.research_yaml import read_import_config
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.study import build_model
from ldm.util import get_obj_from_str, instantiate_from_config

SIZE = 32
SCALED_LINEAR = [
    f"model.params.schedule_config.params.{key}={value}"
    for key, value in {
        "name": "scaled_linear",
        "linear_start": 0.0015,
        "linear_end": 0.0195,
    }.items()
]


def tiny(name, *overrides):
    return load_config(
        [f"configs/backbone/{name}_tiny.yaml"], [f"data.params.image_size={SIZE}", *overrides]
    )


def network_of(config, seed=0):
    """The network of a configuration with weights of its own."""
    model = build_model(config)
    network = parity.fill(model.model.diffusion_model).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += seed / 64
    return network


@torch.no_grad()
def output(network, channels=4):
    return network(parity.normal("x", (2, channels, SIZE, SIZE)), torch.tensor([10, 700]))


def check_same(path, config, network, weights="auto"):
    """The import has bitwise the output of ``network``; returns the report."""
    model, report = import_checkpoint(path, config, weights)
    torch.testing.assert_close(output(model.model.diffusion_model), output(network), rtol=0, atol=0)
    return report


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def lit_ema(network):
    """The averages of latent-diffusion: parameters, not buffers, by names without dots."""
    names = {n.replace(".", ""): p.detach() for n, p in network.named_parameters()}
    counters = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7)}
    return prefixed("model_ema.", {**prefixed("diffusion_model", names), **counters})


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


PLAIN_LAYOUTS = {
    "guided-diffusion": lambda state: state,
    "DistributedDataParallel": lambda state: prefixed("module.", state),
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled within DDP": lambda state: prefixed("module._orig_mod.", state),
    "latent-diffusion": lambda state: {"state_dict": prefixed("model.diffusion_model.", state)},
    "compiled within Lightning": lambda state: {
        "state_dict": prefixed("model._orig_mod.diffusion_model.", state)
    },
    "DeepSpeed": lambda state: {"module": prefixed("module.model.diffusion_model.", state)},
    "wrapper alone": lambda state: prefixed("diffusion_model.", state),
    "Lightning module of a network": lambda state: {"state_dict": prefixed("model.", state)},
}


@pytest.mark.parametrize("layout", PLAIN_LAYOUTS)
def test_prefixes(tmp_path, layout):
    config = tiny("unet")
    network = network_of(config)
    path = saved(tmp_path / "model.pt", PLAIN_LAYOUTS[layout](network.state_dict()))
    assert check_same(path, config, network).weights == "raw"


@pytest.mark.parametrize("family", ["unet", "disc_unet", "ds_unet", "dit"])
def test_families_with_the_averages_of_latent_diffusion(tmp_path, family):
    """The average wins over the trained weights; schedule and text encoder are left out."""
    config = tiny(family, *SCALED_LINEAR)
    trained, average = network_of(config), network_of(config, seed=1)
    betas = instantiate_from_config(config["model"]["params"]["schedule_config"]).betas
    state = {
        **{"betas": betas.float(), "lvlb_weights": torch.ones(1000), "logvar": torch.ones(1000)},
        **prefixed(NETWORK, trained.state_dict()),
        **lit_ema(average),
        "cond_stage_model.transformer.weight": torch.ones(3),
    }
    path = saved(
        tmp_path / "last.ckpt",
        {
            "epoch": 3,
            "state_dict": state,
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}},
            "hyper_parameters": AttributeDict(lr=1e-4, unet=OmegaConf.create({"a": [1, "x"]})),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        },
    )
    report = check_same(path, config, average)
    assert report.weights == "ema" and report.schedule_confirmed
    buffers = [NETWORK + name for name, _ in trained.named_buffers()]
    assert report.not_averaged == sorted(buffers)
    assert report.ignored["condition encoder"] == ["cond_stage_model.transformer.weight"]
    assert set(report.ignored["loss"]) == {"lvlb_weights", "logvar"}
    report = check_same(path, config, trained, "raw")
    assert len(report.ignored["EMA"]) == len(list(average.parameters()))


def test_training_checkpoint_of_dit(tmp_path):
    config = tiny("dit")
    trained, average = network_of(config), network_of(config, seed=1)
    content = {
        "model": trained.state_dict(),
        "ema": average.state_dict(),
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="DiT-S/8", results_dir=Path("results"), seed=np.int64(1)),
    }
    path = saved(tmp_path / "0050000.pt", content)
    assert check_same(path, config, average).weights == "ema"
    assert check_same(path, config, trained, "raw").weights == "raw"
    path = saved(tmp_path / "model.pt", trained.state_dict())
    with pytest.raises(CheckpointError, match="holds no EMA weights"):
        import_checkpoint(path, config, "ema")


def test_legacy_file_and_safetensors(tmp_path):
    config = tiny("unet")
    network = network_of(config)
    state = network.state_dict()
    legacy = saved(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False)
    check_same(legacy, config, network)
    save_file(prefixed("model.diffusion_model.", state), tmp_path / "model.safetensors")
    check_same(tmp_path / "model.safetensors", config, network)


def test_half_precision_is_widened(tmp_path):
    config = tiny("unet")
    network = network_of(config).half()
    path = saved(tmp_path / "half.pt", network.state_dict())
    check_same(path, config, network.float())


def test_linear_layers_as_convolutions(tmp_path):
    config = tiny("unet")
    network = network_of(config)
    state = network.state_dict()
    qkv = [name for name in state if name.endswith("qkv.weight")]
    for name in qkv:
        state[name] = state[name].squeeze(-1)
    report = check_same(saved(tmp_path / "model.pt", state), config, network)
    assert report.reshaped == sorted(NETWORK + name for name in qkv)


@pytest.mark.parametrize(("family", "double"), [("unet", "out_channels"), ("dit", "learn_sigma")])
def test_learned_variance_is_left_out(tmp_path, family, double):
    """With learn_sigma the first half of the channels is what a denoiser here predicts."""
    config = tiny(family)
    node = config["model"]["params"]["unet_config"]
    params = {**node["params"], "in_channels": 4, "out_channels": 1, "image_size": SIZE}
    params[double] = 2 if double == "out_channels" else True
    network = parity.fill(get_obj_from_str(node["target"])(**params)).eval()
    assert output(network).shape[1] == 2
    model, report = import_checkpoint(saved(tmp_path / "m.pt", network.state_dict()), config)
    assert len(report.trimmed) == 2
    torch.testing.assert_close(output(model.model.diffusion_model), output(network)[:, :1])


FIRST_STAGE = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 3,
        "monitor": "val/rec_loss",
        "lossconfig": {"target": "torch.nn.Identity"},
        "ddconfig": {
            **{"double_z": True, "z_channels": 3, "resolution": 32, "in_channels": 1, "out_ch": 1},
            **{"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": []},
        },
    },
}
UNET = tiny("unet")["model"]["params"]["unet_config"]


def research_yaml(path, unet=UNET, **changes):
    """The YAML of a latent-diffusion code, with ``changes`` of the model's parameters."""
    params = {
        **{"linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "log_every_t": 200},
        **{"first_stage_key": "image", "cond_stage_key": "condition", "image_size": 16},
        **{"channels": 3, "monitor": "val/loss_simple_ema", "use_ema": True, "scale_factor": 0.5},
        "cond_stage_config": "__is_first_stage__",
        "unet_config": {**unet, "params": {**unet["params"], "in_channels": 12, "image_size": 16}},
        "first_stage_config": FIRST_STAGE,
        **changes,
    }
    model = {"base_learning_rate": 1e-6, "target": "ldm.models.diffusion.ddpm.LatentDiffusion"}
    config = {"model": {**model, "params": params}, "data": {"target": "main.DataModuleFromConfig"}}
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_research_yaml_and_its_latent_diffusion_checkpoint(tmp_path):
    """Network, first stage, schedule and scale come over; what has no meaning is listed."""
    config, ignored = read_import_config([research_yaml(tmp_path / "ldm.yaml")])
    assert {"model.params.monitor", "model.base_learning_rate", "data"} <= set(ignored)
    original = build_model(config)
    parity.fill(original.model)
    parity.fill(original.first_stage_model)
    assert original.schedule == NoiseSchedule("scaled_linear", 1000, 0.0015, 0.0195)
    assert (original.process.parameterization, original.space.scale_factor) == ("eps", 0.5)
    assert original.latent_shape == (3, 16, 16) and config["data"]["params"]["image_size"] == 32
    state = {**original.state_dict(), "alphas_cumprod": original.schedule.alphas_cumprod.float()}
    state["first_stage_model.loss.logvar"] = torch.zeros(())
    state |= prefixed("cond_stage_model.", original.first_stage_model.state_dict())
    path = saved(tmp_path / "last.ckpt", {"state_dict": state})
    model, report = import_checkpoint(path, config)
    assert report.schedule_confirmed
    assert {"loss", "condition encoder", "schedule"} == set(report.ignored)
    digest = write_imported(tmp_path / "model", model, config, path)
    loaded, _, stored, *_ = load_model(tmp_path / "model", [FIRST_STAGE["target"]])
    assert stored == digest
    torch.testing.assert_close(
        dict(loaded.state_dict()), dict(original.state_dict()), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditioning_key": "crossattn"}, "conditioning_key is 'crossattn'"),
        ({"first_stage_config": {"target": "ldm.models.autoencoder.VQModelInterface"}}, "VQModel"),
        ({"beta_schedule": "sqrt"}, "beta_schedule is 'sqrt'"),
        ({"cond_stage_config": {"target": "torch.nn.Identity"}}, "encoded by torch.nn.Identity"),
        (
            {
                "first_stage_config": {
                    "target": "ldm.models.autoencoder.AutoencoderKL",
                    "params": {"embed_dim": 4, "ddconfig": {"in_channels": 3}},
                }
            },
            "3 channels",
        ),
    ],
)
def test_research_models_that_cannot_be_used(tmp_path, changes, said):
    with pytest.raises(CheckpointError, match=said) as refused:
        read_import_config([research_yaml(tmp_path / "ldm.yaml", **changes)])
    assert refused.value.code == "CKPT-UNSUPPORTED"


def test_a_misspelt_key_of_a_run_is_no_research_yaml():
    files = ["configs/backbone/unet_tiny.yaml"]
    with pytest.raises(ConfigError, match="nearest: 'gain'"):
        read_import_config(files, ["model.params.gian=2"])


@pytest.mark.parametrize(
    ("family", "override", "said"),
    [
        ("unet", "num_classes=10", "y is missing"),
        ("unet", "{use_spatial_transformer: true, context_dim: 8}", "contexts of width"),
        ("dit", "learn_sigma=true", "learn_sigma, set it to false"),
    ],
)
def test_networks_that_cannot_be_used(tmp_path, family, override, said):
    key = "model.params.unet_config.params"
    joint = "=" if override.startswith("{") else "."
    config = tiny(family, f"{key}{joint}{override}")
    path = saved(tmp_path / "m.pt", {"weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=said) as refused:
        import_checkpoint(path, config)
    assert refused.value.code == "CKPT-UNSUPPORTED"


def test_another_schedule_is_named(tmp_path):
    config = tiny("unet")  # cosine
    state = {**network_of(config).state_dict()}
    schedule = NoiseSchedule("scaled_linear", 1000, 0.00085, 0.012)
    for stated in ({"betas": schedule.betas}, {"alphas_cumprod": schedule.alphas_cumprod}):
        stated = {name: value.float() for name, value in stated.items()}
        path = saved(tmp_path / "m.ckpt", {"state_dict": {**prefixed(NETWORK, state), **stated}})
        with pytest.raises(CheckpointError, match="cosine, 1000 timesteps") as refused:
            import_checkpoint(path, config)
        seen = "scaled_linear, 1000 timesteps, linear_start 0.00085, linear_end 0.012"
        assert seen in refused.value.message


def test_another_scale_is_named(tmp_path):
    config = tiny("unet")
    state = prefixed(NETWORK, network_of(config).state_dict())
    path = saved(tmp_path / "m.pt", {**state, "scale_factor": torch.tensor(0.18215)})
    with pytest.raises(CheckpointError, match="model.params.scale_factor=0.18215"):
        import_checkpoint(path, config)


MISFITS = {
    "two conditions": ("unet", ["data.params.conditions=[t1,flair]"], "3 input channels"),
    "width": ("unet", ["{}.model_channels=64"], "has model_channels 64, the YAML gives 32"),
    "hidden size": ("dit", ["{}.hidden_size=48"], "has hidden_size 48, the YAML gives 96"),
    "image size": ("dit", ["data.params.image_size=64"], "64 patches, the YAML gives 16"),
    "embedding": ("unet", ["{}.use_scale_shift_norm=false"], "set use_scale_shift_norm: true"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_have_a_hint(tmp_path, name):
    family, changes, hint = MISFITS[name]
    other = tiny(family, *(c.format("model.params.unet_config.params") for c in changes))
    config = tiny(family)
    if name == "embedding":
        other, config = config, other
    path = saved(tmp_path / "m.pt", network_of(other).state_dict())
    with pytest.raises(ImportMismatch) as refused:
        import_checkpoint(path, config)
    assert any(hint in h for h in refused.value.report.hints)
    assert refused.value.report.hints[0][:60] in refused.value.message


@pytest.mark.parametrize(
    ("extra", "hint"),
    [
        ("label_emb.weight", "conditioned on a class"),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", "attends to a context"),
        ("first_stage_model.encoder.conv_in.weight", "the YAML diffuses pixels"),
    ],
)
def test_parts_that_the_model_lacks_have_a_hint(tmp_path, extra, hint):
    config = tiny("unet")
    state = {**network_of(config).state_dict(), extra: torch.ones(2, 2)}
    with pytest.raises(ImportMismatch, match=hint) as refused:
        import_checkpoint(saved(tmp_path / "m.pt", state), config)
    assert len(refused.value.report.unexpected) == 1


def test_report_has_every_key_with_both_shapes(tmp_path):
    config = tiny("unet")
    state = network_of(config).state_dict()
    del state["out.0.weight"], state["out.0.bias"]
    state["time_embed.2.bias"] = torch.ones(7)
    state["extra"] = torch.ones(1)
    with pytest.raises(ImportMismatch, match="2 missing.*1 unexpected.*1 of other shape") as error:
        import_checkpoint(saved(tmp_path / "m.pt", state), config)
    report = error.value.report
    assert report.missing == [NETWORK + "out.0.bias", NETWORK + "out.0.weight"]
    assert report.unexpected == [NETWORK + "extra"]
    shapes = {"checkpoint": [7], "model": [128]}
    assert report.other_shape == {NETWORK + "time_embed.2.bias": shapes}


def test_names_that_lose_their_difference_with_the_dots_are_refused():
    own = [NETWORK + "a.b1.c", NETWORK + "a.b.1c", NETWORK + "d.e"]
    value = torch.ones(1)
    assert translate({"model_ema.diffusion_modelde": value}, own).averages == {own[2]: value}
    with pytest.raises(CheckpointError, match="weights='raw'"):
        translate({"model_ema.diffusion_modelab1c": value}, own)


def test_two_copies_of_a_weight_are_refused():
    value = torch.ones(1)
    with pytest.raises(CheckpointError, match="two keys"):
        translate({"module.a": value, "a": value}, [NETWORK + "a"])


def test_a_wrapper_name_that_the_network_uses_itself_is_kept():
    value = torch.ones(1)
    own = [NETWORK + "module.a"]
    assert list(translate({"model.diffusion_model.module.a": value}, own).weights) == own


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Custom:
    """A class that no list names."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["weights", "callbacks", "Namespace"])
def test_payload_is_refused_and_does_not_run(tmp_path, zipped, place):
    payload, weights = Payload(tmp_path / "ran"), {"a": torch.ones(1)}
    content = {
        "weights": {"state_dict": {**weights, "b": payload}},
        "callbacks": {"state_dict": weights, "callbacks": {ModelCheckpoint: payload}},
        "Namespace": {"model": weights, "args": argparse.Namespace(x=payload)},
    }[place]
    path = saved(tmp_path / "m.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeError, match=r"UNSAFE-PICKLE.*mkdir.*safetensors"):
        read_public_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_unknown_class_is_named(tmp_path):
    path = saved(tmp_path / "m.pt", {"state_dict": {"a": torch.ones(1)}, "extra": Custom()})
    with pytest.raises(UnsafeError, match=rf"{__name__}\.Custom"):
        read_public_checkpoint(path)


def test_stand_ins_are_gone_after_reading(tmp_path):
    """Other code that loads with ``weights_only`` is as strict as before."""
    path = saved(tmp_path / "m.pt", {"model": {"a": torch.ones(1)}, "args": argparse.Namespace()})
    assert read_public_checkpoint(path).raw.keys() == {"a"}
    with pytest.raises(Exception, match="argparse.Namespace"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, kind, share):
    path, state = tmp_path / "m", {f"layer.{i}": torch.randn(64) for i in range(20)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="CKPT-(CORRUPT|FORMAT)"):
        read_public_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"", "is empty"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, said):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"CKPT-FORMAT.*{said}"):
        read_public_checkpoint(path)


def test_optimizer_file_and_lone_tensor(tmp_path):
    state = {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []}
    with pytest.raises(CheckpointError, match="its keys: state, param_groups"):
        read_public_checkpoint(saved(tmp_path / "opt.pt", state))
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        read_public_checkpoint(saved(tmp_path / "t.pt", torch.ones(1)))


def test_nan_is_refused(tmp_path):
    config = tiny("unet")
    state = network_of(config).state_dict()
    state["out.2.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match="CKPT-NONFINITE"):
        import_checkpoint(saved(tmp_path / "m.pt", state), config)


def test_a_training_run_is_never_replaced(tmp_path):
    config = tiny("unet")
    path = saved(tmp_path / "m.pt", network_of(config).state_dict())
    model, _ = import_checkpoint(path, config)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").touch()
    with pytest.raises(OutputError, match="training run"):
        write_imported(tmp_path / "run", model, config, path, overwrite=True)
