"""Disentanglement losses of DS-Diff: features of one kind agree, features of others differ.

A view is one feature map of one sample; its label says with which views it must agree:

- content: the sample. All streams of a sample show the same content.
- style: the stream. All samples of a contrast have the same style.
- anatomy, lesion: the sample and the kind. Both streams agree, anatomy and lesion do not.

Two terms compare content with style, and style with anatomy and lesion; each exists in a distance
form and in a supervised-contrastive form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import bad_value
from ldm.losses.prediction import PredictedBatch
from ldm.modules.diffusionmodules.multi_stream import Features

TERMS = {
    "content_style": ("content", "style"),
    "style_anatomy_lesion": ("style", "anatomy", "lesion"),
}


def label(kind: str, sample: Tensor, stream: Tensor) -> Tensor:
    """Return the labels of views of one kind, given the numbers of sample and stream."""
    if kind == "style":
        return -1 - stream + 0 * sample
    if kind == "content":
        return sample + 0 * stream
    return 2 * sample + (kind == "lesion") + 0 * stream


def labelled_views(features: Features, kinds: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return the views (V, D) of some kinds in float32, and their labels (V,).

    Raises:
        ConfigError: CONFIG-VALUE when the backbone gives no such features.
    """
    missing = [kind for kind in kinds if kind not in features]
    if missing:
        raise bad_value(
            f"the loss needs features {list(kinds)}, the backbone gives {sorted(features)}: "
            "choose UNet_DS_Diff.model.DSUnetModel, or drop the loss"
        )
    views, labels = [], []
    for kind in kinds:
        maps = torch.stack(features[kind], dim=1).flatten(2)  # (B, n, D)
        sample, stream = (torch.arange(n, device=maps.device) for n in maps.shape[:2])
        views.append(maps.flatten(0, 1).float())  # (B * n, D)
        labels.append(label(kind, sample[:, None], stream).flatten())  # (B * n,)
    return torch.cat(views), torch.cat(labels)


def distance_ratio(views: Tensor, labels: Tensor) -> Tensor:
    """Sum of mean-L1 distances of views (V, D) with one label over that of different labels."""
    distances = torch.cdist(views, views, p=1) / views.shape[1]  # (V, V)
    same = labels[:, None] == labels
    return (distances * same).sum() / (distances * ~same).sum().clamp_min(1e-12)


def supervised_contrast(views: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss on cosine similarity (Khosla et al. 2020, equation 2).

    A view whose label is its own alone has nothing to agree with and is left out of the mean.
    """
    views = F.normalize(views, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=views.device)
    logits = (views @ views.T / temperature).masked_fill(itself, float("-inf"))  # (V, V)
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    n_positive = positive.sum(dim=1)  # (V,)
    agreement = log_probability.masked_fill(~positive, 0.0).sum(dim=1) / n_positive.clamp_min(1)
    return -agreement.sum() / (n_positive > 0).sum().clamp_min(1)


class Disentanglement(nn.Module):
    """The two terms, each compared by a subclass; returned weighted, by name.

    Args:
        content_style, style_anatomy_lesion: weights of the terms; a term of weight 0 is left out.
    """

    needs_features = True

    def __init__(self, content_style: float = 1.0, style_anatomy_lesion: float = 1.0) -> None:
        super().__init__()
        self.weights = {
            "content_style": content_style,
            "style_anatomy_lesion": style_anatomy_lesion,
        }

    def forward(self, prediction: PredictedBatch) -> dict[str, Tensor]:
        """Return the weighted terms of the features ``{kind: [(B, C, *S)] a stream}``.

        Raises:
            ConfigError: CONFIG-VALUE when the backbone gives no such features.
        """
        terms = {}
        for term, weight in self.weights.items():
            if weight:
                views, labels = labelled_views(prediction.features, TERMS[term])
                with torch.autocast(views.device.type, enabled=False):
                    terms[term] = weight * self.compare(views, labels)
        return terms

    def compare(self, views: Tensor, labels: Tensor) -> Tensor:
        """Return one term, small when views (V, D) agree exactly where labels (V,) do."""
        raise NotImplementedError


class DistanceDisentanglement(Disentanglement):
    """Terms are ratios of the distances within labels to the distances between labels."""

    def compare(self, views: Tensor, labels: Tensor) -> Tensor:
        return distance_ratio(views, labels)


class ContrastiveDisentanglement(Disentanglement):
    """Terms are supervised contrastive losses.

    Args:
        content_style, style_anatomy_lesion: weights, see :class:`Disentanglement`.
        temperature: divides the cosine similarities; low values look at the hardest views.
    """

    def __init__(
        self,
        content_style: float = 1.0,
        style_anatomy_lesion: float = 1.0,
        temperature: float = 0.05,
    ) -> None:
        super().__init__(content_style, style_anatomy_lesion)
        self.temperature = temperature

    def compare(self, views: Tensor, labels: Tensor) -> Tensor:
        return supervised_contrast(views, labels, self.temperature)
