"""What is brain: exact zeros, a mask file, or the head where air is noise."""

from pathlib import Path

import numpy as np
import pytest
from builders import INPUTS, head_image, write_subject
from scipy import ndimage
from test_prepare import OPENMS, prepare

from ldm.data.brain import (
    MASKS,
    background,
    brain_mask,
    subject_brain,
)
from ldm.data.cache import cached_subject
from ldm.data.contrasts import load_contrasts
from ldm.data.layouts import detect_layout
from ldm.data.prepare import Preparation, prepare_subject
from ldm.errors import ConfigError, DataError
from ldm.phantom import make_patient

SIZE, VOXEL = 64, 240 / 64  # mm
FAT = {"t1": 1.6, "t1ce": 1.3, "t2": 0.8, "flair": 0.9}  # of the median of the brain


def whole_head(seed: int = 0, noise: float = 0.04) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a phantom with skull and scalp in Rician noise, and where its head is.

    The skull is dark and 6 mm thick, the scalp 8 mm; the standard deviation of the noise is a share
    of the median of the brain.
    """
    rng = np.random.default_rng(seed)
    patient = make_patient(SIZE, seed)
    brain = patient.anatomy.brain
    depth = ndimage.distance_transform_edt(~brain) * VOXEL
    head, scalp = depth <= 14, (depth > 6) & (depth <= 14)
    volumes = {}
    for name, volume in patient.contrasts.items():
        tissue = np.median(volume[brain])
        signal = np.where(brain, volume, np.where(scalp, FAT[name] * tissue, 0.0))
        real, imaginary = rng.normal(0, noise * tissue, (2, *brain.shape)) if noise else (0, 0)
        volumes[name] = np.hypot(signal + real, imaginary).astype(np.float32)
    return volumes, head


@pytest.fixture(scope="module")
def head_folder(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A whole-head patient on disk, and where its head is, canonical (as it is stored)."""
    volumes, head = whole_head()
    root = tmp_path_factory.mktemp("heads")
    write_subject(root, images=volumes, contrasts=[*volumes], affine=np.diag([VOXEL] * 3 + [1]))
    return root, head


@pytest.mark.parametrize("odd", INPUTS)
def test_one_contrast_of_a_whole_head_among_stripped_ones_is_pointed_out(tmp_path, caplog, odd):
    """Its skull would be synthesised, and taken for brain by every score."""
    heads, brain = whole_head(noise=0)[0], make_patient(SIZE, 0).anatomy.brain
    stripped = {c: np.where(brain, heads[c], 0) for c in INPUTS}
    for name, images in (("mixed", stripped | {odd: heads[odd]}), ("stripped", stripped)):
        write_subject(tmp_path / name, images=images, contrasts=INPUTS)
        prepare(tmp_path / name, target=None)
        said = f"of what {odd} does: is one of them stripped" in caplog.text
        assert said == (name == "mixed")
        caplog.clear()


@pytest.mark.parametrize("contrasts", [INPUTS, ("t1",), ("t2",), ("flair",)])
@pytest.mark.parametrize("noise", [0.02, 0.06])
def test_noisy_air_makes_a_whole_head_and_the_mask_leaves_it_out(noise, contrasts):
    volumes, head = whole_head(1, noise)
    inputs = [volumes[c] for c in contrasts]
    mask, said = subject_brain(inputs)
    assert said == "head"
    dice = 2 * (mask & head).sum() / (mask.sum() + head.sum())
    assert dice > 0.95
    far = ndimage.distance_transform_edt(~head) > 2
    assert not (mask & far).any()
    assert ndimage.label(mask)[1] == 1


def test_air_that_is_zero_needs_no_head_mask():
    volumes, head = whole_head(1, noise=0)
    assert subject_brain([volumes[c] for c in INPUTS])[1] == "nonzero"
    assert not brain_mask([volumes["t1"]])[~head].any()


@pytest.mark.parametrize("blur", [0.0, 0.7], ids=["as made", "with a blurred rim"])
def test_a_stripped_brain_is_what_is_not_zero(blur):
    """Also where interpolation has left a dark rim and small negative values."""
    for seed in range(3):
        contrasts = make_patient(48, seed).contrasts
        inputs = [ndimage.gaussian_filter(contrasts[c], blur) - (blur > 0) * 2 for c in INPUTS]
        inputs = [np.where(np.abs(a) > 3, a, 0) for a in inputs]
        assert subject_brain(inputs)[1] == "nonzero"


def test_slices_of_a_whole_head_hold_no_air_and_samples_none_either(head_folder):
    root, head = head_folder
    prepared = prepare(root)
    assert prepared.mask == "head"
    air = ndimage.distance_transform_edt(~head) > 2
    box = prepared.box
    in_slices = np.moveaxis(air[box], 2, 0)
    assert (prepared.slices.swapaxes(0, 1)[:, in_slices] == -1).all()
    sample = prepared.to_volume(np.ones(prepared.brain.shape, np.float32))
    assert (sample[air] == 0).all()
    assert sample[head].mean() > 0.9
    everything = prepare(root, mask="nonzero")
    assert everything.brain.all()


def test_the_head_is_cached_apart(head_folder, tmp_path):
    layout, subjects = detect_layout(head_folder[0])
    entries = {
        cached_subject(
            subjects["p0"], layout, list(INPUTS), "t1ce", Preparation(mask=mask), tmp_path
        ).folder
        for mask in MASKS
    }
    assert len(entries) == 3


def test_a_mask_file_takes_precedence(tmp_path):
    mask = np.zeros((12, 14, 10), np.uint8)
    mask[4:8, 4:9, 3:7] = 1
    contrasts = (*INPUTS, "t1ce", "brain")
    air = np.random.default_rng(0).integers(1, 9, (12, 14, 10), np.int16)
    noisy = {c: head_image(seed=i) + air for i, c in enumerate(contrasts)}  # nothing is 0
    write_subject(tmp_path, images={**noisy, "brain": mask}, contrasts=contrasts)
    layout, subjects = detect_layout(tmp_path)
    subject = subjects["p0"]

    def prepared(mask):
        return prepare_subject(subject, layout, INPUTS, "t1ce", Preparation(mask=mask))

    assert prepared("auto").mask == "file"
    values = prepared("auto").to_volume(np.ones(prepared("auto").brain.shape))
    assert np.array_equal(values, mask)
    assert prepared("nonzero").brain.all()
    write_subject(tmp_path, images={"brain": 0 * mask}, contrasts=["brain"])
    with pytest.raises(DataError, match="DATA-CONSTANT case=p0: the mask file brain is empty"):
        prepared("auto")
    write_subject(tmp_path, images={"brain": mask[1:]}, contrasts=["brain"])
    with pytest.raises(DataError, match=r"DATA-SHAPE case=p0: t1 is .* but brain"):
        prepared("auto")


def test_a_mask_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"data\.params\.mask is 'skull': give one of auto"):
        Preparation(mask="skull")


@pytest.mark.skipif(not OPENMS.is_dir(), reason="the real patients are not shipped")
def test_real_stripped_patients_stay_as_they_are():
    """They hold small negative values, from interpolation, inside the brain and at its rim."""
    layout, subjects = detect_layout(OPENMS)
    for subject in subjects.values():
        arrays, geometry = load_contrasts(subject, layout, INPUTS)
        inputs = list(arrays.values())
        assert min(a.min() for a in inputs) < -10
        brain, rule = subject_brain(inputs)
        assert rule == "nonzero"
        assert np.array_equal(brain, brain_mask(inputs))


def standardised(volume: np.ndarray) -> np.ndarray:
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)


@pytest.mark.parametrize("scale", [lambda a: a, lambda a: 2 * a / a.max() - 1, standardised])
def test_the_background_is_what_the_faces_say(scale):
    """As distributed, scaled to [-1, 1], standardised as a whole: one brain, stripped or not."""
    volumes, head = whole_head()
    stripped = [np.where(head, volumes[c], 0) for c in INPUTS]
    expected = brain_mask(stripped)
    scaled = [scale(array) for array in stripped]
    assert background(scaled[0]) == pytest.approx(scaled[0].min())
    for rule in ("auto", "nonzero"):
        brain, said = subject_brain(scaled, rule=rule)
        assert said == "nonzero" and np.array_equal(brain, expected)
    found, said = subject_brain(scaled, rule="head")
    assert said == "head" and (found & head).sum() > 0.95 * found.sum()
    noisy = [scale(volumes[c]) for c in INPUTS]
    assert background(noisy[0]) is None
    (found, said), (head, _) = (subject_brain(a) for a in (noisy, [volumes[c] for c in INPUTS]))
    assert said == "head" and (found == head).mean() > 0.99
