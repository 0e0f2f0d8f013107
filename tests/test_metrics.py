"""Metric values against scikit-image, monai, pytorch-msssim, closed forms and plain loops."""

import doctest
import warnings
from math import inf, isnan, log10, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import evaluate_volume
from hypothesis import given
from hypothesis import strategies as st
from skimage import metrics as skimage_metrics

from ldm.errors import ConfigError, DataError
from ldm.evaluation.metrics.detail import changes, hfen
from ldm.evaluation.metrics.similarity import mae, mean_over_slices, ms_ssim, nmi, nrmse, psnr, ssim
from ldm.evaluation.protocol import DEFAULT, MetricProtocol
from ldm.evaluation.scores import Evaluation

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def pair():
    """A noisy prediction and its reference, (40, 36, 5), intensities in [0, 1]."""
    return noisy_pair((40, 36, 5))


def noisy_pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    reference = rng.random(shape)
    return np.clip(reference + rng.normal(0, 0.2, shape), 0, 1), reference


def blob(shape, radius=0.8):
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    return np.linalg.norm(grid, axis=0) < radius


def test_worked_example_of_the_definition_page():
    failed, tried = doctest.testfile(str(REPO / "docs" / "metrics.md"), module_relative=False)
    assert tried > 5
    assert failed == 0


def test_voxel_metrics_equal_scikit_image(pair):
    prediction, reference = pair
    true_first = {"image_true": reference, "image_test": prediction}
    assert psnr(*pair, 1.0) == pytest.approx(
        skimage_metrics.peak_signal_noise_ratio(**true_first, data_range=1.0), abs=1e-7
    )
    for normalisation in ("min-max", "euclidean"):
        assert nrmse(*pair, normalisation=normalisation) == pytest.approx(
            skimage_metrics.normalized_root_mse(**true_first, normalization=normalisation), abs=1e-7
        )


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("data_range", [1.0, 3.0])
def test_ssim_is_the_mean_of_scikit_image_over_slices(axis, data_range):
    prediction, reference = noisy_pair((14, 20, 17))
    slices = zip(np.moveaxis(prediction, axis, 0), np.moveaxis(reference, axis, 0), strict=True)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = np.mean(
        [
            skimage_metrics.structural_similarity(*images, data_range=data_range, **options)
            for images in slices
        ]
    )
    assert ssim(prediction, reference, data_range, axis=axis) == pytest.approx(expected, abs=1e-7)


def test_ssim_of_volumes_equals_scikit_image():
    pair = noisy_pair((14, 20, 17))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = skimage_metrics.structural_similarity(*pair, data_range=1.0, **options)
    assert ssim(*pair, 1.0, dims=3) == pytest.approx(expected, abs=1e-7)
    assert ssim(*pair, 1.0, dims=3) != pytest.approx(ssim(*pair, 1.0), abs=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_ssim_of_an_image_in_an_empty_field_equals_scikit_image(dims):
    """Only the part with content is computed; the empty windows count with a similarity of 1."""
    pair = [np.pad(volume, ((20, 3), (0, 25), (12, 12))) for volume in noisy_pair((16, 14, 13))]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    slices = [pair] if dims == 3 else zip(*(np.moveaxis(v, -1, 0) for v in pair), strict=True)
    expected = [
        skimage_metrics.structural_similarity(*s, data_range=1.0, **options) for s in slices
    ]
    assert ssim(*pair, 1.0, dims=dims) == pytest.approx(np.mean(expected), abs=1e-9)


def test_nmi_equals_scikit_image_and_does_not_see_grey_values(pair):
    prediction, reference = pair
    mask = np.random.default_rng(3).random(reference.shape) < 0.5
    expected = skimage_metrics.normalized_mutual_information(prediction[mask], reference[mask])
    assert nmi(*pair, mask) == pytest.approx(expected, abs=1e-9)
    assert nmi(1000 - 300 * prediction, reference, mask) == pytest.approx(expected, rel=1e-3)
    assert nmi(reference, reference) == pytest.approx(2)
    noise = np.random.default_rng(9).random((60, 60, 60))
    assert nmi(noise, np.random.default_rng(8).random(noise.shape)) < 1.01
    assert isnan(nmi(np.ones(5), np.ones(5)))
    assert isnan(nmi([np.nan, 1.0], [0.0, 1.0]))


def test_mean_over_slices_equals_a_loop(pair):
    mask = np.random.default_rng(3).random(pair[0].shape) < 0.5
    mask[:, :, 1] = False  # a slice without a value does not count
    values = [nrmse(*(v[:, :, i] for v in pair), mask[:, :, i]) for i in (0, 2, 3, 4)]
    assert mean_over_slices(nrmse, *pair, mask) == pytest.approx(np.mean(values))
    assert isnan(mean_over_slices(nrmse, *pair, mask & False))


def test_masked_ssim_equals_a_loop_over_windows():
    prediction, reference = noisy_pair((17, 19), seed=1)
    mask = np.random.default_rng(2).random((17, 19)) < 0.4
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for row, column in np.argwhere(mask):
        if not (5 <= row < 12 and 5 <= column < 14):
            continue  # its window leaves the slice
        x, y = (a[row - 5 : row + 6, column - 5 : column + 6] for a in (prediction, reference))
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        variance_x = (window * (x - mean_x) ** 2).sum()
        variance_y = (window * (y - mean_y) ** 2).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        values.append(luminance * (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4))
    assert len(values) > 10
    assert ssim(prediction, reference, 1.0, mask) == pytest.approx(np.mean(values), abs=1e-9)


def test_masked_voxel_metrics_equal_a_loop(pair):
    prediction, reference = pair
    mask = np.random.default_rng(3).random(reference.shape) < 0.3
    errors, true = [], []
    for place in np.argwhere(mask):
        errors.append(prediction[tuple(place)] - reference[tuple(place)])
        true.append(reference[tuple(place)])
    mse = sum(e * e for e in errors) / len(errors)
    assert psnr(*pair, 1.0, mask) == pytest.approx(-10 * log10(mse))
    assert nrmse(*pair, mask) == pytest.approx(sqrt(mse) / (max(true) - min(true)))
    assert mae(*pair, mask) == pytest.approx(sum(map(abs, errors)) / len(errors))


@pytest.mark.parametrize("axis", [0, -1])
def test_ms_ssim_equals_monai_and_pytorch_msssim(axis):
    pytorch_msssim = pytest.importorskip("pytorch_msssim")
    from monai.metrics import MultiScaleSSIMMetric

    # sides divisible by 16: pytorch-msssim pads an odd side with zeros between the scales
    prediction, reference = noisy_pair((3, 176, 192))
    batch = [torch.from_numpy(volume).float()[:, None] for volume in (prediction, reference)]
    value = ms_ssim(
        np.moveaxis(prediction, 0, axis), np.moveaxis(reference, 0, axis), 1.0, axis=axis
    )
    monai = MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0, reduction="none")(*batch)
    assert value == pytest.approx(monai.mean().item(), abs=1e-5)  # in single precision
    peer = pytorch_msssim.ms_ssim(*(volume.double() for volume in batch), data_range=1.0)
    assert value == pytest.approx(peer.item(), abs=1e-5)  # whose window is in single precision


def test_ms_ssim_equals_convolutions_in_double_precision():
    """Whole windows moved over whole slices with odd sides, most of them empty."""
    prediction, reference = noisy_pair((3, 179, 186), seed=6)
    for volume in (prediction, reference):
        volume[0, 60:] = volume[1, :, :90] = 0
    images = [torch.from_numpy(volume)[:, None] for volume in (prediction, reference)]
    taps = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    expected = 1
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        x, y = images
        mean_x, mean_y = (torch.conv2d(image, window) for image in images)
        variances = [torch.conv2d(v * v, window) - m * m for v, m in ((x, mean_x), (y, mean_y))]
        covariance = torch.conv2d(x * y, window) - mean_x * mean_y
        agreement = (2 * covariance + 9e-4) / (sum(variances) + 9e-4)
        if scale == 4:
            agreement *= (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        expected = expected * agreement.mean((1, 2, 3)).clamp(min=0) ** weight
        images = [torch.nn.functional.avg_pool2d(image, 2) for image in images]
    assert ms_ssim(prediction, reference, 1.0, axis=0) == pytest.approx(
        expected.mean().item(), rel=1e-12
    )


def test_ms_ssim_of_a_small_slice_is_that_of_a_larger_field_of_view():
    prediction, reference = noisy_pair((96, 180, 2))
    wide = [np.pad(volume, ((40, 40), (0, 0), (0, 0))) for volume in (prediction, reference)]
    assert ms_ssim(prediction, reference, 1.0) == pytest.approx(ms_ssim(*wide, 1.0), abs=1e-7)


@given(scale=st.floats(0.1, 1000), seed=st.integers(0, 99))
def test_a_common_unit_does_not_matter(scale, seed):
    prediction, reference = noisy_pair((12, 12, 2), seed)
    scaled = (prediction * scale, reference * scale)
    assert psnr(*scaled, scale) == pytest.approx(psnr(prediction, reference, 1.0))
    assert nrmse(*scaled) == pytest.approx(nrmse(prediction, reference))
    assert changes(*scaled).flicker == pytest.approx(changes(prediction, reference).flicker)
    assert mae(*scaled) == pytest.approx(scale * mae(prediction, reference))
    assert ssim(*scaled, scale) == pytest.approx(ssim(prediction, reference, 1.0))


def test_symmetric_where_the_formula_is(pair):
    swapped = pair[::-1]
    assert psnr(*pair, 1.0) == pytest.approx(psnr(*swapped, 1.0))
    assert mae(*pair) == pytest.approx(mae(*swapped))
    assert ssim(*pair, 1.0) == pytest.approx(ssim(*swapped, 1.0))


def test_equal_arrays_are_perfect(pair):
    _, reference = pair
    assert psnr(reference, reference, 1.0) == inf
    assert nrmse(reference, reference) == 0
    assert mae(reference, reference) == 0
    assert ssim(reference, reference, 1.0) == 1
    assert ms_ssim(reference, reference, 1.0) == 1
    assert changes(reference, reference).flicker == 1


def test_undefined_values_are_nan_and_warn_of_nothing(pair):
    empty = np.zeros(pair[0].shape, bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undefined = [
            psnr(*pair, 1.0, empty),
            nrmse(*pair, empty),
            mae(*pair, empty),
            ssim(*pair, 1.0, empty),
            nrmse(pair[0], np.full_like(pair[1], 0.5)),  # constant reference
            nrmse(pair[0], np.zeros_like(pair[1]), normalisation="euclidean"),
            *(metric(*pair, data_range=0.0) for metric in (psnr, ssim, ms_ssim)),
            changes(*pair, empty).flicker,
            changes(pair[0], np.full_like(pair[1], 0.5)).flicker,
            changes(pair[0][..., 0], pair[1][..., 0]).flicker,  # one slice
            changes(pair[0][..., :1], pair[1][..., :1]).flicker,
        ]
    assert all(map(isnan, undefined))


def test_inputs_are_not_modified_and_integers_are_welcome():
    prediction = np.arange(400, dtype=np.int16).reshape(20, 20)
    reference = prediction[::-1].copy()
    mask = prediction > 100
    for array in (prediction, reference, mask):
        array.flags.writeable = False
    before = [array.tobytes() for array in (prediction, reference, mask)]
    for metric in (psnr, ssim):
        metric(prediction, reference, 399, mask)
    for metric in (nrmse, mae):
        metric(prediction, reference, mask)
    ms_ssim(prediction, reference, 399)
    evaluate_volume(prediction[..., None], reference[..., None], mask[..., None])
    assert [array.tobytes() for array in (prediction, reference, mask)] == before
    assert mae(np.uint8([200]), np.uint8([250])) == 50  # no wrap-around


def test_wrong_input_is_named():
    with pytest.raises(DataError, match=r"DATA-SHAPE: prediction 4x5, reference 4x6"):
        psnr(np.zeros((4, 5)), np.zeros((4, 6)), 1.0)
    with pytest.raises(DataError, match="DATA-SHAPE.*mask 4x6"):
        mae(np.zeros((4, 5)), np.zeros((4, 5)), np.ones((4, 6)))
    with pytest.raises(DataError, match="DATA-SHAPE.*11x11"):
        ssim(np.zeros((40, 9)), np.zeros((40, 9)), 1.0)
    with pytest.raises(DataError, match="DATA-RANGE"):
        ssim(np.full((16, 16), -0.5), np.full((16, 16), 0.5), 1.0)
    with pytest.raises(ConfigError, match="CONFIG-VALUE.*'mean'"):
        nrmse(np.zeros(3), np.ones(3), normalisation="mean")


def stripes(shape, amplitude, axis):
    """+amplitude and -amplitude in turn along ``axis``."""
    return amplitude * (1 - 2 * (np.indices(shape)[axis] % 2))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("amplitude", [0.01, 0.1, 1.0])
def test_flicker_of_stripes_is_their_energy_beside_that_of_the_reference(axis, amplitude):
    """A ramp of slope g: across slices (g - 2a)^2 and (g + 2a)^2 in turn, within them g^2."""
    slope = 0.2
    ramp = slope * np.indices((7, 9, 5)).sum(axis=0)
    striped = ramp + stripes(ramp.shape, amplitude, axis)
    expected = sqrt(1 + (2 * amplitude / slope) ** 2)
    assert changes(striped, ramp, axis=axis).flicker == pytest.approx(expected)
    other = (axis + 1) % 3
    assert (
        changes(striped, ramp, axis=other).flicker < 1
    )  # seen from the side it is texture in the slices


def test_flicker_equals_a_loop_over_pairs(pair):
    mask = np.random.default_rng(3).random(pair[0].shape) < 0.5
    sums = np.zeros((2, 3))  # array, direction
    for place in np.argwhere(mask):
        for direction in range(3):
            following = place + np.eye(3, dtype=int)[direction]
            if (following < mask.shape).all() and mask[tuple(following)]:
                for number, array in enumerate(pair):
                    change = array[tuple(following)] - array[tuple(place)]
                    sums[number, direction] += change**2
    (x_x, x_y, x_z), (y_x, y_y, y_z) = sums
    expected = sqrt((x_z / y_z) / ((x_x + x_y) / (y_x + y_y)))
    assert changes(*pair, mask).flicker == pytest.approx(expected)


def test_flicker_ignores_what_does_not_differ_between_slices(pair):
    """An offset, a gain and the voxels outside of the mask are no flicker; repeated slices are."""
    prediction, reference = pair
    value = changes(prediction, reference).flicker
    assert changes(prediction + 0.3, reference).flicker == pytest.approx(value)
    assert changes(prediction * 1.7, reference).flicker == pytest.approx(value)
    mask = blob(reference.shape)
    assert (
        changes(np.where(mask, *pair[::-1]), reference, ~mask).flicker
        == changes(*pair, ~mask).flicker
    )


def test_flicker_is_found_in_a_blurred_prediction(patient):
    """Blur alone is not called consistent, and does not hide stripes behind a lack of contrast."""
    from scipy.ndimage import gaussian_filter

    _, reference, brain, _ = patient
    blurred = gaussian_filter(reference, 1)
    striped = blurred + stripes(brain.shape, 0.5 * reference[brain].std(), -1)
    alone, both = (evaluate_volume(v, reference, brain)["brain"] for v in (blurred, striped))
    assert both["flicker"] > 1.5 * alone["flicker"]
    assert both["flicker"] > 1


@pytest.fixture(scope="module")
def patient():
    """Prediction, reference, brain and segmentation of one patient in scanner units."""
    brain = blob((32, 30, 12))
    prediction, reference = noisy_pair(brain.shape, seed=4)
    segmentation = np.zeros(brain.shape, np.uint8)
    segmentation[12:20, 12:20, 4:8] = 4
    return (prediction * 700 + 100) * brain, (reference * 700 + 100) * brain, brain, segmentation


def test_regions_follow_their_definition(patient):
    prediction, reference, brain, segmentation = patient
    scores = evaluate_volume(*patient)
    assert list(scores) == ["full", "brain", "tumour", "enhancing", "healthy"]
    low, high = np.percentile(reference[brain], [0.1, 99.9])
    x, y = (np.clip((volume - low) / (high - low), 0, 1) for volume in (prediction, reference))
    tumour = segmentation > 0
    masks = [np.ones_like(brain), brain, tumour, tumour, brain & ~tumour]  # all of it enhances
    for (region, values), mask in zip(scores.items(), masks, strict=True):
        mse = np.mean((x - y)[mask] ** 2)
        assert values["psnr"] == pytest.approx(-10 * log10(mse)), region
        assert values["nrmse"] == pytest.approx(sqrt(mse) / np.ptp(y[mask])), region
        assert values["mae"] == pytest.approx(np.abs(x - y)[mask].mean()), region
        assert ("ms_ssim" in values) == (region in ("full", "brain"))
    assert scores["tumour"]["ssim"] == pytest.approx(ssim(x, y, 1.0, tumour))
    assert scores["brain"]["hfen"] == pytest.approx(hfen(x * brain, y * brain, brain))
    assert scores["brain"]["sharpness"] == pytest.approx(changes(x, y, brain).sharpness)
    assert scores["tumour"]["nmi"] == pytest.approx(nmi(x, y, tumour))
    l2 = nrmse(x, y, tumour, "euclidean")
    assert scores["tumour"]["nrmse_l2"] == pytest.approx(l2)
    assert scores["full"]["ms_ssim"] == scores["brain"]["ms_ssim"]  # the background is 0 already


def test_reference_alone_sets_the_bounds(patient):
    prediction, reference, brain, _ = patient
    assert evaluate_volume(reference * 2 + 50, reference, brain)["brain"]["psnr"] < 20
    in_other_units = evaluate_volume(prediction * 3 + 7, reference * 3 + 7, brain)
    same = evaluate_volume(prediction, reference, brain)
    assert in_other_units["brain"] == pytest.approx(same["brain"], nan_ok=True)


def test_slices_without_brain_do_not_count(patient):
    prediction, reference, brain, segmentation = patient
    empty = ((0, 0), (0, 0), (3, 2))
    longer = evaluate_volume(*(np.pad(volume, empty) for volume in patient))
    scores = evaluate_volume(prediction, reference, brain, segmentation)
    for region, metric in (("full", "ssim"), ("full", "ms_ssim"), ("brain", "ms_ssim")):
        assert longer[region][metric] == pytest.approx(scores[region][metric])
    assert longer["brain"] == pytest.approx(scores["brain"], nan_ok=True)


def test_slice_axis_of_the_protocol(patient):
    turned = evaluate_volume(
        *(np.moveaxis(volume, -1, 0) for volume in patient), protocol=MetricProtocol(axis=0)
    )
    scores = evaluate_volume(*patient)
    assert all(turned[r] == pytest.approx(scores[r], nan_ok=True) for r in scores)


def test_noise_outside_the_brain_only_counts_in_full(patient):
    prediction, reference, brain, segmentation = patient
    noisy = np.where(brain, prediction, 500.0)
    before = evaluate_volume(*patient)
    after = evaluate_volume(noisy, reference, brain, segmentation)
    assert after["full"]["psnr"] < before["full"]["psnr"]
    for region in ("brain", "tumour", "healthy"):
        assert after[region] == pytest.approx(before[region], rel=1e-12, nan_ok=True)


def test_tumour_label_outside_the_brain_does_not_count(patient):
    prediction, reference, brain, segmentation = patient
    spilled = np.where(brain, segmentation, 1)
    scores = evaluate_volume(prediction, reference, brain, spilled)
    assert repr(scores) == repr(evaluate_volume(*patient))


def test_corner_cases_of_a_patient(patient):
    prediction, reference, brain, segmentation = patient
    assert list(evaluate_volume(prediction, reference, brain)) == ["full", "brain"]
    no_tumour = evaluate_volume(prediction, reference, brain, segmentation * 0)
    assert all(map(isnan, no_tumour["tumour"].values()))
    assert no_tumour["healthy"]["psnr"] == no_tumour["brain"]["psnr"]
    perfect = evaluate_volume(reference, reference, brain)["brain"]
    expected = {"psnr": inf, "nrmse": 0, "mae": 0, "ssim": 1, "ms_ssim": 1, "flicker": 1}
    expected |= {"nrmse_l2": 0, "nmi": pytest.approx(2), "hfen": 0, "sharpness": 1}
    assert isnan(perfect.pop("lpips"))  # without weights
    assert perfect == expected
    for undefined in (
        evaluate_volume(prediction, np.where(brain, 300.0, 0), brain),  # constant reference
        evaluate_volume(prediction, reference, np.zeros_like(brain)),  # no brain
    ):
        assert all(isnan(value) for values in undefined.values() for value in values.values())
    with pytest.raises(DataError, match="DATA-SHAPE.*brain"):
        evaluate_volume(prediction, reference, brain[1:])


def test_a_nan_in_the_prediction_is_not_hidden(patient):
    prediction, reference, brain, _ = patient
    damaged = prediction.copy()
    damaged[16, 15, 6] = np.nan
    assert all(map(isnan, evaluate_volume(damaged, reference, brain)["brain"].values()))


def summarise(subjects):
    """The statistics over patients of one row."""
    result = Evaluation(DEFAULT, ["unet"], [f"P{number}" for number in range(len(subjects))])
    for number, scores in enumerate(subjects):
        result.add("unet", f"P{number}", scores)
    return list(result.summary("unet").values())


def test_summary_counts_who_is_missing():
    subjects = [
        {"brain": {"psnr": 20.0}, "tumour": {"psnr": float("nan")}},
        {"brain": {"psnr": 24.0}, "tumour": {"psnr": 10.0}},
        {"brain": {"psnr": 28.0}},
    ]
    brain, tumour = summarise(subjects)
    assert brain[:7] == ("brain", "psnr", 24.0, 4.0, 3, 3, 24.0)
    assert tumour[:3] == ("tumour", "psnr", 10.0)
    assert isnan(tumour.sd)
    assert (tumour.n, tumour.subjects) == (1, 3)
    (infinite,) = summarise([{"brain": {"psnr": inf}}, {"brain": {"psnr": 20.0}}])
    assert infinite.mean == inf
    assert isnan(infinite.sd)


@given(st.permutations([20.1, 22.7, 19.3, 31.9, 25.5, 24.0]))
def test_summary_does_not_depend_on_the_order_of_subjects(values):
    rows = summarise([{"brain": {"psnr": value}} for value in values])
    in_order = summarise([{"brain": {"psnr": value}} for value in sorted(values)])
    assert rows == in_order
    assert rows[0].low < rows[0].mean < rows[0].high
