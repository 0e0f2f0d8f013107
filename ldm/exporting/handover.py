"""A model to hand over: its weights, what they need, and a model card; nothing of its patients."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ldm
from ldm.checkpoint import (
    WEIGHTS,
    claim_model,
    load_model,
    read_run_config,
    require_free,
    write_model_folder,
)
from ldm.curves import read_curves
from ldm.data.seen import SUBJECTS_FILE
from ldm.errors import CheckpointError
from ldm.exporting.denoiser import denoiser_files
from ldm.model_file import read_model
from ldm.storage import (
    COST_FILE,
    ERROR_MODEL,
    MODEL_FILE,
    leave,
    read_json,
    run_folder,
    write_files,
)
from ldm.study import Study
from ldm.typed import typed
from ldm.util import user_path, without_params

CARD = "README.md"
CARD_BESIDE = "README.new.md"  # where somebody has completed the card
SEAL = "<!-- as dsdiff export wrote it, {}: a card that differs is never replaced -->\n"
# of data.params: where patients are, who they are, and how their names are read
OF_PATIENTS = ("root", "train", "val", "test", "fold", "folds", "patient", "layout", "cache")
OF_TRAINING = ("optimizer_config", "cache_latents", "teacher")  # of model.params: not to sample
# of what is written beside the weights
KEPT = ("step", "best", "scale_factor", WEIGHTS, ERROR_MODEL)
UNSTATED = "not stated: ask who gave you this folder before you use it"
VALIDATION = "val/"
log = logging.getLogger(__name__)


@typed
def export(
    run: str | Path,
    output: str | Path,
    *,
    licence: str | None = None,
    onnx: bool = False,
    overwrite: bool = False,
    trust: Collection[str] = (),
) -> Path:
    """Write a model folder without ids, paths or digests of patients, which any verb takes.

    It holds ``model.safetensors``, ``config.yaml`` and a model card, ``README.md``. A card that
    somebody has completed stays, and the new one is ``README.new.md``. The weights, their digest,
    and so the volumes are those of the run. What is tested on it cannot be compared with the
    patients that it was trained on: keep the run.

    Args:
        run: run folder, or its ``model.safetensors``.
        output: folder of the model.
        licence: under which the weights are given, such as ``CC-BY-4.0``, for the card.
        onnx: write the denoiser too, as ``denoiser.onnx`` and as ``denoiser.pt2`` of torch.export,
            once both return what torch returns; see :mod:`ldm.exporting.denoiser`.
        overwrite: replace an exported model.
        trust: see :meth:`ldm.Synthesiser.load`.

    Returns:
        ``output``.

    Raises:
        CheckpointError: see :func:`ldm.checkpoint.load_model`; CKPT-PRIVATE where something of a
            patient would be in the folder. UnsafeError, OutputError.
    """
    run, output = user_path(run), user_path(output)
    require_free(output, overwrite)
    folder, file = run_folder(run), run / MODEL_FILE if run.is_dir() else run
    loaded = load_model(file, trust)
    model = loaded.model
    tensors, metadata = read_model(file)
    config = without_patients(read_run_config(folder, trust))
    known, cost = read_json(folder / SUBJECTS_FILE), read_json(folder / COST_FILE)
    facts = _facts_of_training(folder, known, cost, metadata.get("step"))
    card = model_card(config, loaded.study, metadata, facts, licence)
    said = {name: metadata[name] for name in (*model.facts(), *KEPT) if name in metadata}
    require_private((config, said), set(_secrets(known)) | set(_secrets(cost)))
    beside = denoiser_files(model, loaded.digest) if onnx else {}
    with claim_model(output, "export", [folder], overwrite) as place:
        name = CARD if is_unchanged(output / CARD) else CARD_BESIDE
        if name != CARD:
            leave(output / CARD)
        write_files(place, {name: sealed(card), **beside})
        write_model_folder(place, config, tensors, {**said, "dsdiff": ldm.__version__})
        load_model(place, trust)
    if name != CARD:
        log.warning("%s is not as an export wrote it and stays: the new card is %s", CARD, name)
    return output


def sealed(card: str) -> str:
    """Return a card with its own digest at its end, which tells whether anybody has changed it."""
    return card + SEAL.format(hashlib.sha256(card.encode()).hexdigest())


def is_unchanged(card: Path) -> bool:
    """Return whether a card is as an export wrote it; so is one that is not there."""
    if not card.exists():
        return True
    text = card.read_text(encoding="utf-8", errors="replace")
    return text == sealed(text[: -len(sealed(""))])


def without_patients(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what sampling needs of the configuration of a run."""
    left_out = {"model": OF_TRAINING, "data": OF_PATIENTS}
    return {section: without_params(config[section], names) for section, names in left_out.items()}


def model_card(
    config: Mapping[str, Any],
    study: Study,
    metadata: Mapping[str, Any],
    facts: Mapping[str, Any],
    licence: str | None,
) -> str:
    """Return the text of ``README.md``: data, protocol, metrics, limits, use, licence."""
    params, data = config["model"]["params"], config["data"]["params"]
    network = (params.get("unet_config") or params.get("autoencoder_config") or {}).get("target")
    made = study.target or "label maps"
    source = "the others of " * study.varies + ", ".join(study.conditions)
    prepared = ("image_size", "axis", "spacing", "mask", "neighbours")
    normaliser = (data.get("normaliser_config") or {}).get("target", "RobustNormaliser")
    sections = {
        "": f"# {study.target or 'segmentation'} from {source}\n\n"
        f"Made with dsdiff {ldm.__version__}; SHA-256 of the weights {metadata['sha256']}.",
        "Intended use": f"Research: {made} from {source}. A synthetic volume "
        "is no acquisition: not for diagnosis, nor for any decision about a patient.",
        "Data": _listed(facts | {name: data.get(name) for name in prepared})
        + f"\n- normaliser: {normaliser}",
        "Protocol": _listed(
            {
                "model": config["model"]["target"],
                "network": network,
                "parameterization": params.get("parameterization"),
                "sampler": params.get("sampler"),
                "sampling steps": params.get("sampling_steps"),
                "step of the weights": metadata.get("step"),
            }
        ),
        "Metrics": _listed(facts.get("validation") or {})
        or "None was measured of these weights: run `dsdiff evaluate` on patients of your own.",
        "Limits": "Judged on the scanners, the agent dose and the diseases of its training data "
        "only, of which this folder keeps no name: that a patient you test it on was not among "
        "them cannot be checked here. Small lesions, and enhancement that no input shows, may be "
        "missed or made up.",
        "Licence": licence or UNSTATED,
    }
    head = f"---\nlicense: {licence or 'unknown'}\nlibrary_name: dsdiff\n---\n\n"
    texts = [f"## {title}\n\n{text}" if title else text for title, text in sections.items()]
    return head + "\n\n".join(texts) + "\n"


def _facts_of_training(
    folder: Path, known: Mapping[str, Any], cost: Mapping[str, Any], step: int | None
) -> dict[str, Any]:
    """Return what is told of a training: numbers, no names; metrics of the weights of ``step``."""
    patients = known.get("train") or cost.get("train_subjects") or ()
    measured = {
        name: f"{value:.4g}"
        for name, curve in read_curves(folder).items()
        for number, value in zip(*curve, strict=True)
        if name.startswith(VALIDATION) and number + 1 == step  # rows count steps from 0
    }
    return {
        "patients trained on": len(patients) or None,
        "patients validated on": len(known.get("val") or cost.get("val_subjects") or ()) or None,
        "validation": measured,
    }


def _listed(facts: Mapping[str, Any]) -> str:
    told = {n: v for n, v in facts.items() if v is not None and not isinstance(v, Mapping)}
    return "\n".join(f"- {name}: {value}" for name, value in told.items())


def _secrets(value: Any) -> Iterator[str]:
    """Yield the names and digests of patients in ``subjects.json`` or ``cost.json``."""
    if isinstance(value, Mapping):
        for part in ("train", "val", "train_subjects", "val_subjects"):
            yield from value.get(part) or ()
            files = value[part].values() if isinstance(value.get(part), Mapping) else ()
            yield from (digest for digests in files for digest in digests.values())


def require_private(said: Any, secrets: Collection[str]) -> None:
    """Refuse to write a text that is a name, digest or folder.

    Raises:
        CheckpointError: CKPT-PRIVATE.
    """
    for text in _texts(said):
        words = {text, *text.split()}
        if found := next((w for w in words if w in secrets or _is_place(w)), None):
            raise CheckpointError(
                "CKPT-PRIVATE",
                f"config.yaml holds '{found}', a patient or a place: take it out, or train without",
            )


def _is_place(word: str) -> bool:
    return len(word) > 1 and (Path(word).is_absolute() or word.startswith("~"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
