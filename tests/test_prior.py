"""What few patients tell of where tissue enhances, and how it joins what a network makes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import fsolve
from scipy.special import expit
from test_latent_diffusion import noise, plain, probe
from test_objectives import from_z

from ldm.errors import ConfigError
from ldm.models.diffusion.regression import OneStepRegression
from ldm.models.prior import EnhancementPrior
from ldm.models.prior_regression import AbnormalTissue
from ldm.progress import silent

NAMES = ("t1", "t2", "flair")
SIZE = (48, 40)  # Gaussians of half a voxel and of two
LESION = (..., slice(9, 25), slice(9, 23))
PRIOR = {"target": "ldm.models.prior.EnhancementPrior", "params": {}}


class Slices:
    """Training patients, as a data module has them: each a few slices and their labels."""

    def __init__(self, patients, aspect=1.0):
        self.patients = patients
        self.subjects = [SimpleNamespace(aspect=aspect)] * len(patients)

    def volume(self, number):
        images, labels = self.patients[number]
        return images.numpy(), labels, self.subjects[number].aspect


def patient(seed, labels=True, contrast=1.0, slices=1):
    """A lesion whose part that is bright in T2 enhances, and so the labels (S, H, W) say."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 0.5, (slices, 4, *SIZE)).astype("float32")
    z[:, 2][LESION] += 3
    core = np.zeros((slices, *SIZE), bool)
    core[:, 12:22, 12:20] = True
    z[:, 1][core] += 3 * contrast
    z[:, 3] = z[:, 0] + 2.5 * core
    images = from_z(z)
    images[..., :4, :] = -1.0  # outside the brain
    told = np.zeros((slices, *SIZE), "uint8")
    told[LESION] = 2
    return images, np.where(core, 4, told).astype("uint8") if labels is True else labels


def data_of(slices):
    return SimpleNamespace(train_slices=slices, progress=silent)


def fitted(patients, conditions=NAMES, target="t1ce", **params):
    prior = EnhancementPrior(conditions, target, image_size=SIZE, **params)
    prior.fit(data_of(Slices(patients)))
    return prior


def maps(prior, images):
    """A and p (H, W) of the first slice."""
    return prior.maps(images[:, :3])[0]


def all_present(items=1):
    return torch.ones(items, 3, dtype=torch.bool)


def expected_fit(patients):
    """The score of the docstring, by numpy and scipy, and (score, told, voxels, brain) of each."""
    products, moments, tissue = np.eye(28) * 0.03 * len(patients), np.zeros(28), []
    for images, labels in patients:
        z = ((images[0, :3].double().numpy() + 1) * 6 - 4).clip(-4, 4)
        brain = (images[0, :3].numpy() != -1).any(0)

        def smooth(image, width, brain=brain):
            mean = gaussian_filter(image * brain, width, mode="constant", truncate=3)
            return mean / np.maximum(gaussian_filter(brain * 1.0, width, mode="constant"), 1e-3)

        blurred = [smooth(image, width) for width in (0.5, 2) for image in z]
        pairs = [a * b for i, a in enumerate(blurred) for b in blurred[i:]]
        inside = (smooth((z[2] - 1).clip(0, 3), 1.5) > 0.15) & brain
        x = np.stack([np.ones(SIZE), *blurred, *pairs])[:, inside]
        y, tumour = (labels[0][inside] == 4) * 1.0, labels[0][inside] > 0
        weights = np.where(y == 1, 0.5 / y[tumour].mean(), 0.5 / (1 - y[tumour].mean())) * tumour
        weights /= weights.sum()
        centred = x - (x * weights).sum(1, keepdims=True)
        products += 0.5 * centred * weights @ centred.T + 0.5 * x @ x.T / len(y)
        moments += 0.5 * centred * weights @ y + 0.5 * x @ y / len(y)
        tissue.append((x, y, brain.sum()))
    direction = np.linalg.solve(products, moments)
    return direction, [(direction @ x, y, len(y), brain) for x, y, brain in tissue]


def test_it_is_a_ridge_regression_half_of_it_within_each_tumour_and_then_a_line():
    """By scipy and numpy: squares and products of six images; patients and classes weigh alike."""
    patients = [patient(0), patient(1)]
    direction, tissue = expected_fit(patients)
    score, y = (np.concatenate([part[i] for part in tissue]) for i in (0, 1))
    weights = np.concatenate([np.full(count, 1 / count) for *_, count, _ in tissue])
    slope, intercept = np.polyfit(score, y, 1, w=np.sqrt(weights))
    expected = slope * direction
    expected[0] += intercept
    found = fitted(patients).coefficients
    np.testing.assert_allclose(found, expected, atol=0.02 * abs(expected).max())


@pytest.mark.parametrize("turned", [False, True], ids=["the new ones", "those of the start"])
def test_patients_in_whom_nothing_enhances_leave_the_curve_of_the_others(turned):
    """They count in the regression, and have no curve of which there is a mean."""
    rng = np.random.default_rng(0)

    def fitted(enhances: bool) -> EnhancementPrior:
        prior = EnhancementPrior(("t1", "t2", "flair"), relative=True, pools=True)
        terms = torch.from_numpy(rng.normal(size=(28, 500)))
        terms[0] = 1.0
        enhancing = (terms[1] > 0.5).double() * enhances
        tissue = AbnormalTissue(terms, enhancing, torch.ones(500).double(), 500, 5000)
        assert prior.fit_to([tissue]) == enhances
        return prior

    found, nothing = fitted(True), fitted(False)
    curve = found.intercept_and_slope.clone()
    joined, other = (found, nothing) if turned else (nothing, found)
    joined.join({name: value.clone() for name, value in other.state_dict().items()})
    assert joined.patients == 2 and joined.coefficients.any()
    torch.testing.assert_close(joined.intercept_and_slope, curve)


def test_or_a_logistic_curve_of_the_score_over_its_deviation_in_the_patient():
    """Where the slope of its likelihood is 0; of little tissue the deviation is the usual one."""
    patients = [patient(0), patient(1, contrast=0.3), patient(2, contrast=0.6)]
    prior = fitted(patients, relative=True)
    direction, tissue = expected_fit(patients)
    np.testing.assert_allclose(prior.coefficients, direction, atol=0.02 * abs(direction).max())
    typical = np.mean([score.std() for score, *_ in tissue])
    assert prior.deviation == pytest.approx(typical, rel=0.02)
    scores = [
        score / np.sqrt((n * score.var() + 0.005 * brain * typical**2) / (n + 0.005 * brain))
        for score, _, n, brain in tissue
    ]
    weights = np.concatenate([np.full(n, 1 / n) for *_, n, _ in tissue])
    x, y = np.concatenate(scores), np.concatenate([told for _, told, *_ in tissue])

    def slopes(line):
        excess = weights * (expit(line[0] + line[1] * x) - y)
        return excess.sum(), excess @ x + 1e-3 * 3 * line[1]

    expected = fsolve(slopes, [-1.0, 1.0])
    np.testing.assert_allclose(prior.intercept_and_slope, expected, rtol=0.05)


def test_how_far_contrasts_of_a_patient_go_apart_does_not_matter():
    """The curve is of the score in units of the patient: half a score everywhere is the same p."""
    prior = fitted([patient(0), patient(1)], relative=True)
    score = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(30, 30, dtype=torch.bool)
    p, of_half = (prior.certainty(k * score, inside, inside) for k in (1.0, 0.5))
    torch.testing.assert_close(of_half, p, atol=0.02, rtol=0)
    p, of_half = (prior.certainty(k * score, inside, 10**6 * inside) for k in (1.0, 0.5))
    assert (of_half - p).abs().max() > 0.2  # a tumour that is small in its brain


@pytest.mark.parametrize("relative", [False, True])
def test_it_finds_in_another_patient_what_it_was_told_of(relative):
    images, labels = patient(7)
    _, p = maps(fitted([patient(0), patient(1)], relative=relative), images)
    assert p[labels[0] == 4].mean() > 0.5
    assert p[labels[0] == 2].mean() < 0.2


def test_without_labels_the_truth_teaches_it():
    """No label map, lesions of which no label says more, or a core of which nothing is known."""
    images, labels = patient(7)
    core = labels[0] == 4
    lesions = np.ones((1, *SIZE), "uint8")
    unknown = np.where(labels == 4, 255, 2).astype("uint8")
    for told in (None, lesions, unknown):
        _, p = maps(fitted([patient(0, told), patient(1, told)]), images)
        assert p[core].mean() > 0.3 + p[LESION][~core[LESION]].mean()


def test_labels_count_before_what_the_truth_shows():
    """A patient whose tumour, as labelled, has no enhancing part."""
    images, labels = patient(0)
    oedema = np.where(labels == 4, 2, labels).astype("uint8")
    for relative in (False, True):
        assert not fitted([(images, oedema)], relative=relative).coefficients.any()


def test_patients_count_alike_however_many_slices_they_have():
    """Of the first every slice is there three times, too far from each other to be smoothed."""
    (images, labels), other = patient(0), patient(1)
    thrice = images.repeat(3, 1, 1, 1), labels.repeat(3, 0)
    for relative in (False, True):
        often, once = (fitted([p, other], relative=relative) for p in (thrice, (images, labels)))
        for name, found in often.named_buffers():
            torch.testing.assert_close(found, once.get_buffer(name), rtol=1e-3, atol=1e-5)


def test_the_image_moves_in_abnormal_tissue_alone():
    """By strength p - shrink (image - T1), in units of z; a factor above 1 inverts nothing."""
    prior = fitted([patient(0)], strength=2.0, shrink=0.25)
    images, _ = patient(1)
    contrasts, image = images[:, :3], images[:, :1] + 0.1
    image = torch.where(contrasts[:, :1] == -1, -1.0, image)
    made = prior(image, contrasts, all_present())
    a, p = maps(prior, images)
    expected = a * (2.0 * p / 6 - 0.25 * 0.1)
    torch.testing.assert_close((made - image)[0, 0, 4:], expected[4:])
    assert torch.equal(made[a[None, None] == 0], image[a[None, None] == 0])
    assert torch.equal(prior(image, contrasts, all_present(), 0.0), image)
    half = prior(image, contrasts, all_present(), 0.5) - image
    torch.testing.assert_close(half, 0.5 * (made - image))
    twice = prior(image, contrasts, all_present(), 2.0)
    torch.testing.assert_close((twice - made)[0, 0], a * 2.0 * p / 6)


def test_without_abnormal_tissue_or_with_too_much_of_it_there_is_no_prior(caplog):
    """Nothing is bright, or the whole brain, as in the units of another normaliser."""
    for excess in (0.0, 3.0):
        images, labels = patient(0)
        flair = from_z(np.full(SIZE, excess, "float32"))
        images[0, 2, 4:] = flair[4:]
        prior = fitted([(images, labels)])
        image = images[:, :1] + 0.1
        assert torch.equal(prior(image, images[:, :3], all_present()), image)
        assert prior.maps(images[:, :3]) is None
        assert "no prior of enhancement" in caplog.text
        caplog.clear()


def test_the_texture_of_a_sample_stays():
    """Waves of two voxels are not taken back, a shift of the whole tumour is."""
    prior = fitted([patient(0)], strength=0.0, shrink=0.5)
    contrasts = patient(1)[0][:, :3]
    waves = 0.1 * (-1.0) ** torch.arange(SIZE[1]).expand(1, 1, *SIZE)
    prior.widths = (2.0, 4.0)
    inside = (..., slice(16, 22), slice(14, 22))
    for added, left in ((waves, 1.0), (torch.full_like(waves, 0.1), 0.5)):
        image = contrasts[:, :1] + added
        made = prior(image, contrasts, all_present(), sampled=True) - contrasts[:, :1]
        torch.testing.assert_close(made[inside], left * added[inside], rtol=0.05, atol=0)


def test_an_item_that_lacks_a_contrast_stays_as_it_is():
    prior = fitted([patient(0)])
    contrasts = patient(1)[0][:, :3].expand(2, 3, *SIZE)
    presence = torch.tensor([[True, True, True], [True, False, True]])
    made = prior(contrasts[:, :1], contrasts, presence)
    assert torch.equal(made[1], contrasts[1, :1])
    assert not torch.equal(made[0], contrasts[0, :1])


def test_an_item_without_brain_stays_as_it_is():
    """Of a slice beyond the brain, or where all that it looks at is hidden."""
    prior = fitted([patient(0)], relative=True)
    contrasts = torch.full((1, 3, *SIZE), -1.0)
    image = torch.rand(1, 1, *SIZE)
    assert torch.equal(prior(image, contrasts, all_present()), image)
    assert prior.maps(contrasts).isfinite().all()


def test_patients_with_next_to_no_abnormal_tissue_do_not_spoil_it():
    """Most have a single bright voxel, whose score has no deviation."""
    images, labels = patient(0, None)
    spot = patient(3, None)[0]
    spot[:, 2][LESION] = spot[:, 0][LESION]
    spot[0, 2, 30, 20] = from_z(torch.tensor(8.0))
    prior = fitted([(images, labels), *[(spot, None)] * 4], relative=True)
    _, p = maps(prior, patient(7)[0])
    core = patient(7)[1][0] == 4
    assert p[core].mean() > 0.3 + p[LESION][~core[LESION]].mean()


@pytest.mark.parametrize(
    ("conditions", "target"),
    [(NAMES, "pd"), (("t2", "flair"), "t1ce"), (("t1", "dwi"), "t1ce"), (NAMES, "any")],
)
def test_nothing_changes_where_the_target_enhances_no_condition(conditions, target):
    prior = EnhancementPrior(conditions, target, image_size=SIZE)
    prior.fit(data_of(Slices([patient(0)])))
    prior.coefficients.fill_(0.1)  # 0 would change nothing in any case
    images = torch.rand(1, len(conditions), *SIZE)
    presence = torch.ones(1, len(conditions), dtype=torch.bool)
    assert torch.equal(prior(images[:, :1], images, presence), images[:, :1])


def test_of_any_target_what_asks_for_t1ce_changes_as_if_that_were_the_only_one():
    """Patients have T1ce among the conditions there, and no target of their own."""
    four = ("t1", "t1ce", "t2", "flair")
    patients = [patient(0), patient(1)]
    prior = fitted([(p[:, [0, 3, 1, 2]], labels) for p, labels in patients], four, "any")
    known = fitted(patients)
    assert torch.equal(prior.coefficients, known.coefficients)
    own = patients[0][0][:, :3]
    condition = own[:, [0, 0, 1, 2]].expand(2, 4, *SIZE).clone()
    condition[:, 1] = -1.0
    presence = torch.tensor([[True, False, True, True]]).expand(2, 4)
    asked = torch.zeros(2, 8)
    asked[0, 1], asked[1, 0] = 1, 1  # T1ce of one item, T1 of the other
    made = prior(condition[:, :1], condition, presence, asked=asked)
    torch.testing.assert_close(made[:1], known(own[:, :1], own, all_present()))
    assert torch.equal(made[1], condition[1, :1])


def test_neighbours_are_no_contrasts_of_the_slice():
    own = patient(1)[0][:, :3]
    prior = fitted([patient(0)])
    wide = EnhancementPrior(NAMES, neighbours=1, image_size=SIZE)
    wide.load_state_dict(prior.state_dict())
    others = torch.rand(1, 3, *SIZE)
    made = wide(own[:, :1], torch.cat([others, own, others], dim=1), all_present())
    assert torch.equal(made, prior(own[:, :1], own, all_present()))


@pytest.mark.parametrize("aspect", [1.0, 0.5])
def test_its_gaussians_reach_through_the_slices_by_their_distance(aspect):
    """As in voxels that are cubes, of which every second slice is there."""
    size, step = (96, 40), round(1 / aspect)
    volume = gaussian_filter(np.random.default_rng(0).normal(0, 60, (61, 3, *size)), (4, 0, 4, 4))
    volume = from_z(volume.astype("float32") + 1).clamp(min=-0.99)
    volume[..., :8, :] = -1.0  # outside the brain
    prior = EnhancementPrior(NAMES, image_size=size, through=True)
    torch.manual_seed(0)
    prior.coefficients.normal_(0, 0.02)
    found = prior.maps(volume[::step], aspect)[30 // step]
    z = ((volume.double().numpy() + 1) * 6 - 4).clip(-4, 4)
    brain = (volume.numpy() != -1).any(1)

    def smooth(image, width):
        mean = gaussian_filter(image * brain, width, mode="constant", truncate=3)
        return (
            mean
            / np.maximum(gaussian_filter(brain * 1.0, width, truncate=3, mode="constant"), 1e-3)
        )[30]

    blurred = [smooth(z[:, i], width) for width in (1, 4) for i in range(3)]
    pairs = [a * b for i, a in enumerate(blurred) for b in blurred[i:]]
    terms = np.stack([np.ones(size), *blurred, *pairs])
    p = np.tensordot(prior.coefficients.numpy(), terms, 1).clip(0, 1)
    a = (smooth((z[:, 2] - 1).clip(0, 3), 3) / 0.3).clip(0, 1)
    for own, expected in zip(found.numpy(), (a, p), strict=True):
        np.testing.assert_allclose(own * brain[30], expected * brain[30], atol=0.02)


def test_it_learns_how_far_apart_slices_lie():
    prior = EnhancementPrior(NAMES, image_size=SIZE, through=True)
    slices = Slices([patient(0)] * 3)
    slices.subjects = [SimpleNamespace(aspect=aspect) for aspect in (0.2, 0.4, 1.0)]
    prior.fit(data_of(slices))
    assert prior.aspect == pytest.approx(0.4)
    images = patient(1, slices=3)[0][:, :3]
    assert torch.equal(prior.maps(images), prior.maps(images, 0.4))
    assert not torch.equal(prior.maps(images), prior.maps(images, 1.0))


def test_volumes_have_it_too():
    prior = EnhancementPrior(NAMES, image_size=(16, 48, 40))
    prior.coefficients.fill_(0.1)
    images = from_z(torch.randn(1, 3, 16, 48, 40))
    made = prior(images[:, :1], images, all_present())
    assert made.shape == (1, 1, 16, 48, 40)
    assert not torch.equal(made, images[:, :1])


def test_it_joins_what_a_model_makes():
    """At any temperature, by the factor that is asked; the training knows nothing of it."""
    model = plain(probe(), prior_config=PRIOR, subtract="t1", image_size=list(SIZE))
    model.prior.fit(data_of(Slices([patient(0)])))
    condition = patient(0)[0][:, :3]

    def made(**asked):
        return model.synthesise(condition, all_present(), noise(1), steps=2, **asked)

    network = made(enhancement=0.0)
    torch.testing.assert_close(made(), model.prior(network, condition, all_present(), sampled=True))
    assert not torch.equal(made(), network)
    with pytest.raises(ConfigError, match="enhancement is 2, but the model has no prior"):
        plain(probe()).network_calls(2, enhancement=2)
    with pytest.raises(ConfigError, match="no prior to scale"):
        plain(probe(), OneStepRegression).network_calls(2, enhancement=2)
