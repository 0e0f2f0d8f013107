"""What few patients tell of where tissue enhances, and how it joins what a network makes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_latent_diffusion import noise, plain, probe
from test_objectives import from_z

from ldm.errors import ConfigError
from ldm.models.diffusion.regression import OneStepRegression
from ldm.models.prior import EnhancementPrior
from ldm.progress import silent

NAMES = ("t1", "t2", "flair")
SIZE = (48, 40)  # Gaussians of half a voxel and of two
LESION = (slice(9, 25), slice(9, 23))
PRIOR = {"target": "ldm.models.prior.EnhancementPrior", "params": {}}


class Slices:
    """Training slices of patients, as a data module has them, and their labels."""

    def __init__(self, items, aspect=1.0):
        self.items, self.aspect = items, aspect

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place][0]

    def labels(self, place):
        return self.items[place][1]


def patient(name, seed, labels=True):
    """A slice with a lesion: what is bright in T2 enhances, and so the labels say."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 0.5, (4, *SIZE)).astype("float32")
    z[2][LESION] += 3
    core = np.zeros(SIZE, bool)
    core[12:22, 12:20] = True
    z[1][core] += 3
    z[3] = z[0] + 2.5 * core
    images = from_z(z)
    images[:, :4] = -1.0  # outside the brain
    told = np.zeros(SIZE, "uint8")
    told[LESION] = 2
    told = torch.from_numpy(np.where(core, 4, told))
    item = {"condition": images[:3], "target": images[3:], "subject": name}
    return item, told[None] if labels is True else labels


def data_of(slices):
    return SimpleNamespace(train_slices=slices, progress=silent)


def fitted(items, **params):
    prior = EnhancementPrior(NAMES, image_size=SIZE, **params)
    prior.fit(data_of(Slices(items)))
    return prior


def certainty(prior, item):
    return prior.certainty(prior.contrasts(item["condition"][None]))[0, 0]


def abnormal(prior, item):
    return prior.abnormal(prior.contrasts(item["condition"][None]))[0, 0]


def all_present(items=1):
    return torch.ones(items, 3, dtype=torch.bool)


def test_it_is_a_ridge_regression_half_of_it_within_each_tumour_and_then_a_line():
    """By scipy and numpy: squares and products of six images; patients and classes weigh alike."""
    items = [patient("a", 0), patient("b", 1)]
    prior = fitted(items)
    products, moments, tissue = np.eye(28) * 0.03 * 2, np.zeros(28), []
    for item, labels in items:
        z = ((item["condition"].double().numpy() + 1) * 6 - 4).clip(-4, 4)
        brain = (item["condition"].numpy() != -1).any(0)

        def smooth(image, width, brain=brain):
            mean = gaussian_filter(image * brain, width, mode="constant", truncate=3)
            return mean / np.maximum(gaussian_filter(brain * 1.0, width, mode="constant"), 1e-3)

        images = [smooth(image, width) for width in (0.5, 5 / 3 * 1.2) for image in z]
        pairs = [a * b for i, a in enumerate(images) for b in images[i:]]
        inside = (smooth((z[2] - 1).clip(0, 3), 1.5) > 0.15) & brain
        x = np.stack([np.ones(SIZE), *images, *pairs])[:, inside]
        told = labels[0].numpy()[inside]
        y, tumour = (told == 4) * 1.0, told > 0
        weights = np.where(y == 1, 0.5 / y[tumour].mean(), 0.5 / (1 - y[tumour].mean())) * tumour
        weights /= weights.sum()
        centred = x - (x * weights).sum(1, keepdims=True)
        products += 0.5 * centred * weights @ centred.T + 0.5 * x @ x.T / len(y)
        moments += 0.5 * centred * weights @ y + 0.5 * x @ y / len(y)
        tissue.append((x, y))
    direction = np.linalg.solve(products, moments)
    score = np.concatenate([direction @ x for x, _ in tissue])
    y = np.concatenate([y for _, y in tissue])
    weights = np.concatenate([np.full(len(y), 1 / len(y)) for _, y in tissue])
    slope, intercept = np.polyfit(score, y, 1, w=np.sqrt(weights))
    expected = slope * direction
    expected[0] += intercept
    np.testing.assert_allclose(prior.coefficients, expected, atol=0.02 * abs(expected).max())


def test_it_finds_in_another_patient_what_it_was_told_of():
    item, labels = patient("c", 7)
    p = certainty(fitted([patient("a", 0), patient("b", 1)]), item)
    assert p[labels[0] == 4].mean() > 0.5
    assert p[labels[0] == 2].mean() < 0.2


def test_without_labels_the_truth_teaches_it():
    """No label map, lesions of which no label says more, or a core of which nothing is known."""
    item, labels = patient("c", 7)
    core = labels[0] == 4
    lesions = torch.ones(1, *SIZE, dtype=torch.uint8)
    unknown = torch.where(labels == 4, 255, 2).to(torch.uint8)
    for told in (None, lesions, unknown):
        p = certainty(fitted([patient("a", 0, told), patient("b", 1, told)]), item)
        assert p[core].mean() > 0.3 + p[LESION][~core[LESION]].mean()


def test_labels_count_before_what_the_truth_shows():
    """A patient whose tumour, as labelled, has no enhancing part."""
    item, labels = patient("a", 0)
    oedema = torch.where(labels == 4, 2, labels).to(torch.uint8)
    assert fitted([(item, oedema)]).coefficients.abs().max() < 1e-6


def test_patients_count_alike_however_many_slices_they_have():
    a, b = patient("a", 0), patient("b", 1)
    torch.testing.assert_close(
        fitted([a, b, a, a]).coefficients, fitted([a, b]).coefficients, rtol=1e-4, atol=1e-6
    )


def test_the_image_moves_in_abnormal_tissue_alone():
    """By strength p - shrink (image - T1), in units of z; a factor above 1 inverts nothing."""
    prior = fitted([patient("a", 0)], strength=2.0, shrink=0.25)
    item, _ = patient("b", 1)
    contrasts, image = item["condition"][None], item["condition"][None, :1] + 0.1
    image = torch.where(contrasts[:, :1] == -1, -1.0, image)
    made = prior(image, contrasts, all_present())
    p, a = certainty(prior, item), abnormal(prior, item)
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
        item, labels = patient("a", 0)
        flair = from_z(np.full(SIZE, excess, "float32"))
        item["condition"][2, 4:] = flair[4:]
        prior = fitted([(item, labels)])
        image = item["condition"][None, :1] + 0.1
        assert torch.equal(prior(image, item["condition"][None], all_present()), image)
        assert "no prior of enhancement" in caplog.text
        caplog.clear()


def test_the_texture_of_a_sample_stays():
    """Waves of two voxels are not taken back, a shift of the whole tumour is."""
    prior = fitted([patient("a", 0)], strength=0.0, shrink=0.5)
    contrasts = patient("b", 1)[0]["condition"][None]
    waves = 0.1 * (-1.0) ** torch.arange(SIZE[1]).expand(1, 1, *SIZE)
    prior.widths = (2.0, 4.0)
    inside = (..., slice(16, 22), slice(14, 22))
    for added, left in ((waves, 1.0), (torch.full_like(waves, 0.1), 0.5)):
        image = contrasts[:, :1] + added
        made = prior(image, contrasts, all_present(), sampled=True) - contrasts[:, :1]
        torch.testing.assert_close(made[inside], left * added[inside], rtol=0.05, atol=0)


def test_an_item_that_lacks_a_contrast_stays_as_it_is():
    prior = fitted([patient("a", 0)])
    item, _ = patient("b", 1)
    contrasts = item["condition"].expand(2, 3, *SIZE)
    presence = torch.tensor([[True, True, True], [True, False, True]])
    made = prior(contrasts[:, :1], contrasts, presence)
    assert torch.equal(made[1], contrasts[1, :1])
    assert not torch.equal(made[0], contrasts[0, :1])


@pytest.mark.parametrize(
    ("conditions", "target"),
    [(NAMES, "pd"), (("t2", "flair"), "t1ce"), (("t1", "dwi"), "t1ce"), (NAMES, "any")],
)
def test_nothing_changes_where_the_target_enhances_no_condition(conditions, target):
    prior = EnhancementPrior(conditions, target, image_size=SIZE)
    prior.fit(data_of(Slices([])))
    prior.coefficients.fill_(0.1)  # 0 would change nothing in any case
    images = torch.rand(1, len(conditions), *SIZE)
    presence = torch.ones(1, len(conditions), dtype=torch.bool)
    assert torch.equal(prior(images[:, :1], images, presence), images[:, :1])


def test_of_any_target_what_asks_for_t1ce_changes_as_if_that_were_the_only_one():
    """The slices show each contrast as a target: it is fitted to those that show T1ce."""
    four = ("t1", "t1ce", "t2", "flair")

    class AnyTarget(Slices):
        def __getitem__(self, key):
            place, seed, target = key
            assert (seed, target) == (None, 1)
            item = self.items[place][0]
            hidden = torch.full_like(item["target"], -1.0)
            t1, *others = item["condition"].split(1)
            return {**item, "condition": torch.cat([t1, hidden, *others])}

    items = [patient("a", 0), patient("b", 1)]
    prior = EnhancementPrior(four, "any", image_size=SIZE)
    prior.fit(data_of(AnyTarget(items)))
    known = fitted(items)
    assert torch.equal(prior.coefficients, known.coefficients)
    condition = AnyTarget(items)[(0, None, 1)]["condition"].expand(2, 4, *SIZE)
    presence = torch.tensor([[True, False, True, True]]).expand(2, 4)
    asked = torch.zeros(2, 8)
    asked[0, 1], asked[1, 0] = 1, 1  # T1ce of one item, T1 of the other
    made = prior(condition[:, :1], condition, presence, asked=asked)
    own = items[0][0]["condition"][None]
    torch.testing.assert_close(made[:1], known(own[:, :1], own, all_present()))
    assert torch.equal(made[1], condition[1, :1])


def test_neighbours_are_no_contrasts_of_the_slice():
    item, _ = patient("b", 1)
    prior = fitted([patient("a", 0)])
    wide = EnhancementPrior(NAMES, neighbours=1, image_size=SIZE)
    wide.load_state_dict(prior.state_dict())
    own, others = item["condition"][None], torch.rand(1, 3, *SIZE)
    made = wide(own[:, :1], torch.cat([others, own, others], dim=1), all_present())
    assert torch.equal(made, prior(own[:, :1], own, all_present()))


@pytest.mark.parametrize("aspect", [0.5, 1.0])
def test_a_slice_with_its_slab_is_that_of_the_volume(aspect):
    """Gaussians of 4, 1 and 3 voxels; half as many slices where these lie twice as far apart.

    The slab ends after two deviations of the widest, the Gaussians of a volume after three.
    """
    size = (96, 40)
    flat, deep = (
        EnhancementPrior(NAMES, image_size=shape, through=True) for shape in (size, (29, *size))
    )
    volume = gaussian_filter(np.random.default_rng(0).normal(0, 30, (3, 29, *size)), (0, 3, 3, 3))
    volume = from_z(volume.astype("float32") + 1).clamp(min=-0.99)[None]
    volume[..., :8, :] = -1.0  # outside the brain
    for prior in (flat, deep):
        torch.manual_seed(0)
        prior.coefficients.normal_(0, 0.02)
        prior.aspect.fill_(aspect)
    assert (flat.around, deep.around) == (round(8 * aspect), 0)
    middle = slice(14 - flat.around, 15 + flat.around)
    slab = volume[:, :, middle].transpose(1, 2).flatten(1, 2)  # slice by slice, each all contrasts
    expected = deep(volume[:, :1] + 0.1, volume, all_present())[:, :, 14]
    own = volume[:, :, 14]
    with_slab = flat(own[:, :1] + 0.1, own, all_present(), slab=slab)
    alone = flat(own[:, :1] + 0.1, own, all_present())
    torch.testing.assert_close(with_slab, expected, atol=0.01, rtol=0)
    assert (with_slab - expected).abs().mean() < 0.1 * (alone - expected).abs().mean()


def test_it_learns_how_far_apart_slices_lie():
    prior = EnhancementPrior(NAMES, image_size=SIZE, through=True)
    slices = Slices([patient("a", 0)], aspect=0.4)
    prior.fit(data_of(slices))
    assert prior.aspect == pytest.approx(0.4)
    assert slices.around == prior.around == 2  # of 2 deviations of 2 voxels of 0.4 slices


def test_volumes_have_it_too():
    prior = EnhancementPrior(NAMES, image_size=(16, 48, 40))
    prior.coefficients.fill_(0.1)
    images = from_z(torch.randn(1, 3, 16, 48, 40))
    made = prior(images[:, :1], images, all_present())
    assert made.shape == (1, 1, 16, 48, 40)
    assert not torch.equal(made, images[:, :1])


def test_it_joins_what_a_model_makes():
    """At any temperature, by the factor that is asked; the training knows nothing of it."""
    items = [patient("a", 0)]
    model = plain(probe(), prior_config=PRIOR, subtract="t1", image_size=list(SIZE))
    model.prior.fit(data_of(Slices(items)))
    condition = items[0][0]["condition"][None]

    def made(**asked):
        return model.synthesise(condition, all_present(), noise(1), steps=2, **asked)

    network = made(enhancement=0.0)
    torch.testing.assert_close(made(), model.prior(network, condition, all_present(), sampled=True))
    assert not torch.equal(made(), network)
    with pytest.raises(ConfigError, match="enhancement is 2, but the model has no prior"):
        plain(probe()).network_calls(2, enhancement=2)
    with pytest.raises(ConfigError, match="no prior to scale"):
        plain(probe(), OneStepRegression).network_calls(2, enhancement=2)
