"""What each protocol compares: against the code it follows, and its blind spots."""

import json
from math import isnan

import numpy as np
import pytest
import torch
from builders import evaluate_volume
from scipy.ndimage import binary_dilation, gaussian_filter

from ldm.errors import ConfigError
from ldm.evaluation.measures import MEASURES
from ldm.evaluation.metrics.published import brasyn_ssim, legacy_ms_ssim
from ldm.evaluation.metrics.similarity import psnr
from ldm.evaluation.protocol import PROTOCOLS, SPREAD, find_protocol
from ldm.evaluation.regions import REGIONS, Labelled
from ldm.label_scheme import SCHEMES


@pytest.fixture(scope="module")
def patient():
    """Smooth prediction, reference, brain and labels 1, 2 and 4, in scanner units, (40, 36, 14)."""
    rng = np.random.default_rng(0)
    shape = (40, 36, 14)
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    brain = np.linalg.norm(grid, axis=0) < 0.85
    texture = [gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(2)]
    reference = np.where(brain, 500 + 1500 * texture[0], 0).clip(0)
    prediction = np.where(brain, reference + 300 * texture[1], 0).clip(0)
    labels = np.zeros(shape, np.uint8)
    labels[12:24, 12:24, 4:10], labels[15:21, 15:21, 5:9], labels[16:19, 16:19, 6:8] = 2, 4, 1
    return prediction, reference, brain, labels


def scores(patient, name, prediction=None):
    given, *others = patient
    given = given if prediction is None else prediction
    return evaluate_volume(given, *others, protocol=find_protocol(name))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_states_what_it_uses(name):
    protocol = PROTOCOLS[name]
    written = json.loads(json.dumps(protocol.to_dict()))
    assert written["name"] == name
    assert written["bounds_of"] in ("reference", "own")
    used = {*protocol.regions, *protocol.measures, *protocol.more, "bounds"}
    assert set(SPREAD) <= used or protocol.bounds_of == "own"
    assert used <= set(written["definitions"])
    assert all(written["definitions"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_fills_its_tables_and_prefers_the_truth(patient, name):
    protocol = PROTOCOLS[name]
    found, truth = scores(patient, name), scores(patient, name, patient[1])
    assert tuple(found) == protocol.regions
    for region, values in found.items():
        assert tuple(values) == protocol.names(region, ["region", "volume"])
        for metric in (m for m in values if m != "lpips"):
            better = truth[region][metric], values[metric]
            best = MEASURES[metric].best
            if best == "one":
                better = [-abs(value - 1) for value in better]
            assert np.subtract(*better) * (-1 if best == "low" else 1) > 0, (region, metric)


def test_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match=r"CONFIG-VALUE.*'legcay'.*brasyn, legacy"):
        find_protocol("legcay")


# --- which protocols see a wrong gain and offset -----------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "offset"), [(3.0, 0.0), (1.0, 400.0), (0.2, -70.0)])
def test_legacy_is_blind_to_gain_and_offset_and_default_is_not(patient, gain, offset):
    """The defect for which ``legacy`` is not the default: any grey values score alike."""
    wrong = patient[0] * gain + offset
    before, after = scores(patient, "legacy")["full"], scores(patient, "legacy", wrong)["full"]
    assert after["psnr"] == pytest.approx(before["psnr"], abs=1e-9)
    assert after["nrmse"] == pytest.approx(before["nrmse"], abs=1e-9)
    assert after["legacy_ms_ssim"] == pytest.approx(before["legacy_ms_ssim"], abs=1e-6)
    honest, seen = (scores(patient, "default", p)["brain"]["psnr"] for p in (None, wrong))
    assert seen < honest - 5


def test_the_scale_of_legacy_is_blind_to_gain_and_offset(patient):
    """The same for two slices, at the core of it."""
    prediction, reference = (volume[..., 6:8] for volume in patient[:2])
    before = legacy_ms_ssim(prediction, reference)
    assert legacy_ms_ssim(prediction * 0.2 - 70, reference) == pytest.approx(before, abs=1e-9)


def test_legacy_calls_a_useless_contrast_perfect(patient):
    """A tenth of the contrast on a bright plateau shows nothing to a reader."""
    useless = patient[1] * 0.1 + 900
    assert scores(patient, "legacy", useless)["full"]["psnr"] > 100
    assert scores(patient, "default", useless)["brain"]["psnr"] < 10


def test_brasyn_is_blind_to_gain_only(patient):
    """Each volume sets its own bounds; the lower one is the background, 0 in both."""
    before = scores(patient, "brasyn")
    doubled = scores(patient, "brasyn", patient[0] * 2)
    assert doubled["tumour"] == pytest.approx(before["tumour"])
    moved = scores(patient, "brasyn", np.where(patient[2], patient[0] + 400, 0))
    assert moved["tumour"]["brasyn_ssim"] < before["tumour"]["brasyn_ssim"] - 0.01


# --- against the libraries they follow ----------------------------------------------------------


def test_brasyn_equals_torchmetrics(patient):
    from torchmetrics.functional.image import structural_similarity_index_measure

    prediction, reference, _, labels = patient
    unit = []
    for volume in (prediction, reference):
        low, high = np.percentile(volume, [0.5, 99.5])
        low = max(low, 0)
        unit.append((np.clip(volume, low, high) - low) / (high - low))
    found = scores(patient, "brasyn")
    for region, mask in (("tumour", labels > 0), ("rest", labels == 0)):
        pair = [torch.from_numpy(volume * mask).float()[None, None] for volume in unit]
        _, full = structural_similarity_index_measure(*pair, return_full_image=True)
        expected = float(full[0, 0][torch.from_numpy(mask)].mean())
        assert found[region]["brasyn_ssim"] == pytest.approx(expected, abs=1e-6)


def test_brasyn_mirrors_at_the_border_as_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    rng = np.random.default_rng(1)
    x, y = rng.random((2, 16, 15, 14))
    mask = np.zeros(x.shape, bool)
    mask[:6, 4:, 3:12] = True
    pair = [torch.from_numpy(volume * mask)[None, None] for volume in (x, y)]
    _, full = structural_similarity_index_measure(*pair, return_full_image=True)
    expected = float(full[0, 0][torch.from_numpy(mask)].mean())
    assert brasyn_ssim(x, y, mask) == pytest.approx(expected, abs=1e-6)
    assert isnan(brasyn_ssim(x, y, mask & False))


def test_legacy_equals_the_columns_of_the_tables():
    """Own 12-bit scale, then torchmetrics slice by slice with its default data range."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    rng = np.random.default_rng(2)
    reference = gaussian_filter(rng.random((176, 180, 3)), 2)
    prediction = reference + gaussian_filter(rng.normal(size=reference.shape), 1) * 0.02
    scaled = []
    for volume in (prediction, reference):
        values = (volume - volume.mean()) / (volume.std() / 400) + 2048
        scaled.append(torch.from_numpy(np.clip(values, 1e-10, 4095)))
    slices = zip(*(volume.permute(2, 0, 1)[:, None, None] for volume in scaled), strict=True)
    expected = [float(multiscale_structural_similarity_index_measure(*pair)) for pair in slices]
    assert legacy_ms_ssim(prediction, reference) == pytest.approx(np.mean(expected), abs=1e-6)
    found = evaluate_volume(
        prediction, reference, np.ones_like(reference), protocol=find_protocol("legacy")
    )["full"]
    unit = [(v - v.min()) / np.ptp(v) for v in (prediction, reference)]
    assert found["legacy_ms_ssim"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert found["psnr"] == pytest.approx(psnr(*unit, 1.0))
    assert found["nrmse"] == pytest.approx(10 ** (-found["psnr"] / 20))


def test_empty_slices_do_not_count_in_legacy(patient):
    """0 / 0 in torchmetrics: they are left out, and a constant volume has no value."""
    prediction, reference = patient[:2]
    assert not reference[..., 0].any()  # the brain begins further up
    assert np.isfinite(legacy_ms_ssim(prediction, reference))
    assert isnan(legacy_ms_ssim(np.zeros_like(reference), reference))


# --- regions ------------------------------------------------------------------------------------


def test_regions_are_parts_of_the_brain(patient):
    *_, brain, labels = patient
    labelled = Labelled(brain, labels)
    masks = {name: region.mask(labelled) for name, region in REGIONS.items()}
    assert np.array_equal(masks["tumour"] | masks["healthy"], brain)
    assert not (masks["tumour"] & masks["healthy"]).any()
    assert np.array_equal(masks["enhancing"], labels == 4)
    assert not (masks["ring"] & ~masks["healthy"]).any()
    assert np.array_equal(masks["rest"], ~masks["tumour"])


def test_enhancing_is_label_3_or_4_by_the_year(patient):
    *_, brain, labels = patient
    newer = np.where(labels == 4, 3, labels)
    read = SCHEMES["brats2023"].inside(newer)
    assert np.array_equal(Labelled(brain, read).enhancing(), labels == 4)
    cavity = newer.copy()
    cavity[26:28, 14:18, 7] = 4  # resection cavity, from 2024 on
    read = SCHEMES["brats2024"].inside(cavity)
    assert np.array_equal(Labelled(brain, read).enhancing(), labels == 4)
    read = SCHEMES["brats2017"].inside(newer)  # 3 means nothing there: no result, and no guess
    assert not Labelled(brain, read).enhancing().any()


def test_ring_is_ten_millimetres_wide():
    brain = np.ones((41, 41, 21), bool)
    labels = np.zeros(brain.shape, int)
    labels[20, 20, 10] = 1
    ring = Labelled(brain, labels, (1.0, 1.0, 2.5)).ring()
    x, y, z = np.indices(brain.shape)
    distance = np.sqrt((x - 20) ** 2 + (y - 20) ** 2 + (2.5 * (z - 10)) ** 2)
    assert np.array_equal(ring, (distance <= 10) & (distance > 0))
    assert not Labelled(brain, labels * 0).ring().any()
    assert binary_dilation(ring).sum() > ring.sum()


def test_each_region_sees_its_own_error(patient):
    prediction, reference, brain, labels = patient
    missed = np.where(labels == 4, 0.7 * reference, reference)
    found = scores(patient, "region", missed)
    assert found["healthy"]["mae"] == found["ring"]["mae"] == 0
    assert found["enhancing"]["mae"] > found["tumour"]["mae"] > 0
    assert (
        list(evaluate_volume(prediction, reference, brain, protocol=find_protocol("region"))) == []
    )


def test_two_and_three_dimensional_values_differ_where_slices_do(patient):
    """One bad slice of many costs the 3-D PSNR more than the mean over slices."""
    bad = patient[1] + np.where(patient[2], 1.0, 0)
    bad[..., 7] += 400 * patient[2][..., 7]
    found = scores(patient, "slices", bad)["brain"]
    assert found["psnr_2d"] > found["psnr"] + 5
