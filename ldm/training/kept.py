"""What a run keeps of its model: read again from its weights, it must make the same images.

A class that anyone has written may hold what it has learned in a plain attribute, or draw anew what
it should keep; its samples would then be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.config import foreign_targets
from ldm.errors import ConfigError
from ldm.study import build_model
from ldm.training.run_config import portable_config

LOST = "a plain attribute holds what register_buffer, nn.Parameter or nn.ModuleList must hold"
CLOSE = 1e-3  # of the largest value, by which two calls on one device may differ


def require_kept(config: Mapping[str, Any], model: Any, data: Any, batch: Mapping[str, Any]) -> str:
    """Refuse a model that is another one after it is read from its run.

    Args:
        config: of the training.
        model: that has been trained, in eval mode.
        data: that it has been trained on.
        batch: of validation, on the device of the model.

    Returns:
        What to warn of: images that differ each time; or an empty text.

    Raises:
        ConfigError: CONFIG-TARGET.
    """
    named = ", ".join(foreign_targets(config["model"]))
    first, state = _images(model, batch, seed=0), model.state_dict()
    again = build_model(portable_config(config, model, data))
    if not all(images.isfinite().all() for images in first.values()):
        wrong = "an image of it is not finite: look for a division by 0, a logarithm or a root"
    elif _differ(first, _images(model, batch, seed=0)):
        wrong = f"the same input gives another image each time: {LOST}"
    elif not (wrong := _other_names(again.state_dict(), state)):
        again.load_state_dict(state)
        again.sampling_steps = getattr(model, "sampling_steps", None)  # fewer, for the rehearsal
        if _differ(first, _images(again.to(model.device).eval(), batch, seed=0)):
            wrong = f"it makes another image after it is read from its run: {LOST}"
    if wrong:
        raise ConfigError("CONFIG-TARGET", f"a model of {named}: {wrong}")
    if _differ(first, _images(model, batch, seed=1)):
        return f"{named} draws when it samples, too: no two samplings of a patient are the same"
    return ""


@torch.no_grad()
def _images(model: Any, batch: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Return what a validation shows of a batch; what a class draws by itself is of the seed."""
    torch.manual_seed(seed)
    model.begin_validation()
    return model.validate(batch, 0).images


def _differ(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return any((other[n] - x).abs().max() > CLOSE * x.abs().max() for n, x in one.items())


def _other_names(own: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> str:
    """Return what keeps a state from being loaded where it is built anew, or an empty text."""
    for name in sorted(own.keys() ^ trained.keys()):
        what = "made after __init__" if name in trained else "gone after a step"
        return f"its state {name} is {what}: make all that is saved there"
    for name, value in own.items():
        if value.shape != trained[name].shape:
            sizes = tuple(value.shape), tuple(trained[name].shape)
            return "its state {} is {} in __init__, and {} after a step".format(name, *sizes)
    return ""
