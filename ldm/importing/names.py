"""State-dict keys of public checkpoints, translated to those of ``LatentDiffusion``.

The modules inside the networks have the public names already; what differs is what stands before
them (``model.diffusion_model.``, ``module.``, ``_orig_mod.``), and the EMA of latent-diffusion,
whose names have lost their dots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ldm.errors import CheckpointError

NETWORK, FIRST_STAGE, LIT_EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
ROOTS = (NETWORK, "diffusion_model.", "model.")  # what may stand before a network's own names
WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module"}
IGNORED = {
    "EMA bookkeeping": r"model_ema\.(decay|num_updates)",
    "condition encoder": r"cond_stage_model\..*",
    "loss": r"(first_stage_model\.)?loss\..*|logvar|lvlb_weights",
    "EMA of the first stage": r"first_stage_model\.model_ema\..*",
    "schedule": r"betas|(sqrt_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?"
    r"|log_one_minus_alphas_cumprod|posterior_\w+|scale_factor",
}
# Last layers, whose rows are channels (of each pixel of a patch): the mean, then the variance.
LAST_LAYERS = ("out.2.", "final_layer.linear.")


@dataclass
class Translated:
    """A state dict by the names of this project.

    Attributes:
        weights: tensors by own name; a key that means nothing here keeps its name.
        averages: the tensors of latent-diffusion's EMA by own name.
        ignored: keys by group that no model here needs.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)


def translate(state: Mapping[str, Tensor], own: Iterable[str]) -> Translated:
    """Return ``state`` by the names of a LatentDiffusion whose state dict has the keys ``own``.

    Raises:
        CheckpointError: CKPT-MISMATCH where two keys mean the same weight.
    """
    own = set(own)
    result = Translated()
    wrappers = WRAPPERS - {part for name in own for part in name.split(".")}
    plain = {key: ".".join(p for p in key.split(".") if p not in wrappers) for key in state}
    root = _network_root(plain.values(), own)
    dotted = _dotted_names(own)
    for key, name in plain.items():
        network_name = NETWORK + name.removeprefix(root) if name.startswith(root) else name
        group = next((g for g, pattern in IGNORED.items() if re.fullmatch(pattern, name)), None)
        if network_name in own:
            _add(result.weights, network_name, state[key])
        elif group:
            result.ignored.setdefault(group, []).append(key)
        elif name.startswith(LIT_EMA):
            _add(result.averages, _own_name_of_average(name, dotted), state[key])
        elif name.startswith(FIRST_STAGE):
            _add(result.weights, name, state[key])
        else:
            _add(result.weights, network_name, state[key])
    return result


def _network_root(names: Iterable[str], own: set[str]) -> str:
    names = set(names)
    for root in ROOTS:
        within = {NETWORK + name.removeprefix(root) for name in names if name.startswith(root)}
        if root == "model." and not within & own:  # a network may have a module called model
            continue
        if within:
            return root
    return ""


def _add(tensors: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in tensors:
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"two keys of the checkpoint mean {name}: save one state dict, without the other copy",
        )
    tensors[name] = value


def _dotted_names(own: Iterable[str]) -> dict[str, str]:
    """Return the own names of a network by what latent-diffusion's EMA calls them; "" if unclear.

    Names such as ``a.b1.c`` and ``a.b.1c`` lose what distinguishes them with their dots.
    """
    network = [name for name in own if name.startswith(NETWORK)]
    dotless = {name: name.removeprefix("model.").replace(".", "") for name in network}
    count = Counter(dotless.values())
    return {short: name if count[short] == 1 else "" for name, short in dotless.items()}


def _own_name_of_average(name: str, dotted: Mapping[str, str]) -> str:
    dotless = name.removeprefix(LIT_EMA).replace(".", "").replace("_orig_mod", "")
    own = dotted.get(dotless, name)
    if not own:
        raise CheckpointError(
            "CKPT-MISMATCH",
            f"{name} means several weights of this network: its EMA cannot be read, give "
            "--weights=raw",
        )
    return own


@dataclass
class Fit:
    """Weights in the shapes of a model, and what had to be changed for it.

    Attributes:
        weights: by own name; of the model's shape where that is possible.
        reshaped: 1x1 convolutions that are linear layers here, or the reverse.
        trimmed: last layers that lost the rows of the learned variance.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    trimmed: list[str] = field(default_factory=list)


def fit_shapes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], channels: int) -> Fit:
    """Return ``weights`` in the shapes of ``own`` where this changes no output of the network.

    Args:
        channels: channels of the prediction. A network trained with ``learn_sigma`` (Nichol and
            Dhariwal 2021) has twice as many, the second half for the variance, which no sampler
            here reads.
    """
    fit = Fit(dict(weights))
    for name in weights.keys() & own.keys():
        value, shape = weights[name], own[name].shape
        if value.shape == shape:
            continue
        if _without_trailing_ones(value.shape) == _without_trailing_ones(shape):
            fit.weights[name] = value.reshape(shape)
            fit.reshaped.append(name)
        elif name.removeprefix(NETWORK).startswith(LAST_LAYERS) and value.shape == (
            2 * shape[0],
            *shape[1:],
        ):
            fit.weights[name] = value.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1)
            fit.trimmed.append(name)
    return fit


def _without_trailing_ones(shape: Iterable[int]) -> list[int]:
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return sizes


STEM = re.compile(r"(input_blocks\w*\.0\.0|x_embedder\.proj|patch_embed\.proj|conv_in)\.weight$")
WIDTHS = {
    "time_embed.0.weight": (1, "model_channels"),
    "t_embedder.mlp.0.weight": (0, "hidden_size"),
}


def hints(
    shapes: Mapping[str, tuple[list[int], list[int]]],
    unexpected: Iterable[str],
    latent_channels: int,
    conditions: Iterable[str],
) -> list[str]:
    """Return what known differences say about a checkpoint that does not fit, one sentence each.

    Args:
        shapes: (in the checkpoint, of the model) of the tensors whose shapes differ.
        unexpected: keys that the model does not have.
        latent_channels: channels of one image in the space of diffusion.
        conditions: names of the conditions of the model.
    """
    found = [_hint_of_key(name) for name in unexpected]
    for name, (given, expected) in shapes.items():
        short = name.removeprefix(NETWORK)
        if short in WIDTHS:
            axis, parameter = WIDTHS[short]
            found.append(
                f"the checkpoint has {parameter} {given[axis]}, the YAML gives {expected[axis]}"
            )
        elif short == "pos_embed":
            found.append(
                f"the checkpoint was trained on {given[1]} patches, the YAML gives {expected[1]}: "
                "set data.params.image_size to its training size"
            )
        elif STEM.search(short) and given[1] != expected[1]:
            found.append(
                f"the checkpoint has {given[1]} input channels, the YAML gives {expected[1]}: "
                f"an image has {latent_channels} and the conditions are {', '.join(conditions)}; "
                "give those it was trained with: data.params.conditions=[...]"
            )
        elif short.startswith(LAST_LAYERS) and given[0] != expected[0]:
            per_channel = max(1, expected[0] // latent_channels)
            found.append(
                f"the checkpoint predicts {given[0] / per_channel:g} channels, an image has "
                f"{latent_channels}: a network of colour images or other latents cannot be used"
            )
        elif short.endswith(".emb_layers.1.weight") and given[1:] == expected[1:]:
            turn = "true" if given[0] > expected[0] else "false"
            found.append(f"set use_scale_shift_norm: {turn} in unet_config")
    return list(dict.fromkeys(filter(None, found)))


def _hint_of_key(name: str) -> str | None:
    short = name.removeprefix(NETWORK)
    if short.startswith(("label_emb.", "y_embedder.")):
        return (
            "the checkpoint is conditioned on a class: LatentDiffusion gives its network none, "
            "so it cannot be used"
        )
    if ".attn2." in short:
        return (
            "the checkpoint attends to a context, such as text: LatentDiffusion gives its network "
            "none, so it cannot be used"
        )
    if name.startswith(FIRST_STAGE):
        return (
            "the checkpoint has a first stage, the YAML diffuses pixels: give its "
            "model.params.first_stage_config"
        )
    return None
