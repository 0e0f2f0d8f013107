"""Losses that compare structure rather than pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from ldm.errors import CheckpointError, UnsafeError, one_of
from ldm.storage import head_of

if TYPE_CHECKING:
    from torch import Tensor

LPIPS_NETS = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}  # torchvision's names
SCALES = 3


def multi_scale_gradient(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error of the finite differences along both axes, at three scales.

    It needs no weights: it asks for edges where the target has them, at sizes of 1, 2 and 4 pixels
    (the gradient difference loss of Mathieu et al. 2016, on a pyramid).

    Args:
        prediction, target: images (B, C, H, W) with sides of at least 8.
    """
    import torch.nn.functional as F

    error = (prediction - target).float()
    total = error.new_zeros(())
    for scale in range(SCALES):
        if scale:
            error = F.avg_pool2d(error, 2)
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return total / SCALES


class LPIPS:
    """Learned perceptual distance (Zhang et al. 2018) of images with one channel in [-1, 1].

    The linear heads come with torchmetrics, the weights of the network do not. It is no
    ``nn.Module``, so that its fixed weights stay out of checkpoints.

    Args:
        weights: file with the state dict of torchvision's network, ImageNet weights.
        net: ``vgg``, ``alex`` or ``squeeze``.

    Raises:
        ConfigError: CONFIG-VALUE for another net. CheckpointError: CKPT-MISSING, CKPT-MISMATCH,
            CKPT-FORMAT.
    """

    def __init__(self, weights: str | Path, net: str = "vgg") -> None:
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        one_of("lpips_net", net, LPIPS_NETS)
        path = Path(weights)
        if not path.is_file():
            raise CheckpointError(
                "CKPT-MISSING",
                f"there is no {path}: lpips_weights must be torchvision's {LPIPS_NETS[net]} state "
                "dict; without it leave the key out",
            )
        self.network = _NoTrainLpips(net=net, pnet_rand=True)
        given = _read(path)
        # `slice2.5.weight` and `slices.1.3.squeeze.weight` are torchvision's features 5 and 3
        names = {k: re.sub(r"^slices?\.?\d+", "features", k) for k in self.network.net.state_dict()}
        missing = sorted(set(names.values()) - set(given))
        if missing:
            raise CheckpointError(
                "CKPT-MISMATCH",
                f"{path.name} has no '{missing[0]}': expected the state dict of torchvision's "
                f"{LPIPS_NETS[net]}",
            )
        self.network.net.load_state_dict({key: given[name] for key, name in names.items()})

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance of images (B, 1, H, W)."""
        network = self.network.to(prediction.device)
        return network(*(x.expand(-1, 3, -1, -1) for x in (prediction, target))).float().mean()


def _read(path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in a file of torch, in its formats of before ZIP too.

    Raises:
        CheckpointError: CKPT-FORMAT. UnsafeError: UNSAFE-PICKLE.
    """
    import torch

    from ldm.model_file import looks_like

    try:
        given = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(given, Mapping):
            return given
        seen = f"holds a {type(given).__name__}"
    except Exception as error:  # whatever torch raises for bytes of somebody else
        if isinstance(error, UnpicklingError) and head_of(path)[:1] in (b"P", b"\x80"):
            raise UnsafeError(
                "UNSAFE-PICKLE", f"{path.name} holds objects other than tensors and plain values"
            ) from error
        seen = looks_like(head_of(path))
    raise CheckpointError(
        "CKPT-FORMAT", f"{path.name} is no state dict, it {seen}: give torchvision's weights"
    )
