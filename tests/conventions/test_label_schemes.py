"""One patient in every numbering of labels: the same regions, and what is not told is no guess."""

import json

import nibabel as nib
import numpy as np
import pytest
from builders import RAS, head_image, write_nifti

from ldm.cli.main import main
from ldm.data.contrasts import read_labels
from ldm.data.layouts import detect_layout
from ldm.data.layouts.dataset_json import label_scheme
from ldm.diagnosis.data import diagnose_data
from ldm.errors import ConfigError, DataError
from ldm.label_scheme import NOT_TOLD, SCHEMES, UNKNOWN, read_scheme, scheme_of_json
from ldm.regions import CAVITY, REGION_SETS, region_masks
from ldm.study import KNOWN

TUMOUR = REGION_SETS["tumour"]
SHAPE = (12, 14, 10)
BRATS2012 = {"necrosis": 1, "oedema": 2, "nonenhancing": 3, "enhancing": 4}


def parts(cavity: bool = False) -> dict[str, np.ndarray]:
    """Return a tumour as boxes."""
    found = {name: np.zeros(SHAPE, bool) for name in ("oedema", "enhancing", "necrosis", "cavity")}
    found["oedema"][3:9, 3:8, 2:8] = True
    found["enhancing"][4:7, 4:7, 3:6] = True
    found["necrosis"][5, 5, 4] = True
    if cavity:
        found["cavity"][9:11, 6:8, 4:6] = True
    return found


def labelled(numbers: dict[str, int], cavity: bool = False) -> np.ndarray:
    """Return the tumour in a numbering."""
    array = np.zeros(SHAPE, np.uint8)
    for name, mask in parts(cavity).items():
        array[mask] = numbers.get(name, 0)
    return array


def expected() -> dict[str, np.ndarray]:
    own = parts()
    core = own["necrosis"] | own["enhancing"]
    return {"et": own["enhancing"] & ~own["necrosis"], "tc": core, "wt": core | own["oedema"]}


def write_images(folder, subject, separator="_", names=("t1", "t1ce", "t2", "flair"), bright=True):
    for seed, name in enumerate(names):
        image = head_image(SHAPE, seed)
        if bright and name in ("t1ce", "t1c", "0001"):
            image[expected()["et"]] = 3000
        (folder / subject).mkdir(parents=True, exist_ok=True)
        write_nifti(folder / subject / f"{subject}{separator}{name}.nii.gz", image, RAS)


def regions(root, subject="p", **options) -> dict[str, np.ndarray]:
    layout, subjects = detect_layout(root, **options)
    return region_masks(read_labels(subjects[subject], layout)[0], TUMOUR)


def same(found: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(found[name], mask) for name, mask in expected().items())


# ---- numberings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "numbers"),
    [
        ("brats2012", BRATS2012),
        ("brats2017", {"necrosis": 1, "oedema": 2, "enhancing": 4}),
        ("brats2023", {"necrosis": 1, "oedema": 2, "enhancing": 3}),
        ("brats2024", {"necrosis": 1, "oedema": 2, "enhancing": 3, "cavity": 4}),
        ("ped2024", {"necrosis": 2, "oedema": 4, "enhancing": 1}),
        ("decathlon", {"necrosis": 2, "oedema": 1, "enhancing": 3}),
    ],
)
def test_every_numbering_gives_the_same_regions(scheme, numbers):
    read = SCHEMES[scheme].inside(labelled(numbers, cavity="cavity" in numbers))
    assert same(region_masks(read, TUMOUR))
    assert (read == CAVITY).any() == ("cavity" in numbers)


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (
            {
                "background": 0,
                "whole tumor": [1, 2, 3],
                "tumor core": [2, 3],
                "enhancing tumor": [3],
            },
            {"necrosis": 2, "oedema": 1, "enhancing": 3},
        ),
        (
            {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": 3},
            {"necrosis": 1, "oedema": 2, "enhancing": 3},
        ),
        (
            {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
            {"necrosis": 2, "oedema": 1, "enhancing": 3},
        ),
        (
            {"background": 0, "NCR": 1, "SNFH": 2, "ET": 3, "RC": 4},
            {"necrosis": 1, "oedema": 2, "enhancing": 3, "cavity": 4},
        ),
        (
            {"background": 0, "enhancing": 1, "nonenhancing": 2, "cystic component": 3, "edema": 4},
            {"necrosis": 2, "oedema": 4, "enhancing": 1},
        ),
    ],
)
def test_dataset_json_says_what_labels_mean(tmp_path, labels, numbers):
    for place in range(4):
        (tmp_path / "imagesTr").mkdir(exist_ok=True)
        image = head_image(SHAPE, place)
        write_nifti(tmp_path / f"imagesTr/p_{place:04d}.nii.gz", image, RAS)
    (tmp_path / "labelsTr").mkdir()
    write_nifti(tmp_path / "labelsTr/p.nii.gz", labelled(numbers), RAS)
    names = {str(i): name for i, name in enumerate(("T1", "T1ce", "T2", "FLAIR"))}
    described = {"channel_names": names, "labels": labels}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert same(regions(tmp_path))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("Surrounding Non-enhancing FLAIR Hyperintensity", "oedema"),
        ("Non-Enhancing Tumor Core (NETC)", "nonenhancing"),
        ("unenhanced tumour", "nonenhancing"),
        ("non-CE tumor", "nonenhancing"),
        ("non-contrast-enhancing tumor", "nonenhancing"),
        ("no contrast enhancement", "nonenhancing"),
        ("tumor without enhancement", "nonenhancing"),
        ("non rehaussée", "nonenhancing"),
        ("ohne KM-Aufnahme", "nonenhancing"),
        ("non-necrotic enhancing tumor", "enhancing"),
        ("rehaussement", "enhancing"),
        ("Oedème", "oedema"),
        ("nécrose", "necrosis"),
        ("cavité", "cavity"),
        ("CE_tumor", "enhancing"),
        ("Gd-enhancing tumor core", "enhancing"),
        ("KM-Anreicherung", "enhancing"),
        ("infiltration", "oedema"),
        ("Ödem", "oedema"),
        ("tumor core", "necrosis"),
        ("resection_cavity", "cavity"),
    ],
)
def test_a_name_of_a_label_is_one_part(name, part):
    assert scheme_of_json({"background": 0, name: "3"}, "x").parts == {part: (3,)}


def test_a_core_that_enhances_is_no_core_of_the_regions():
    """Whatever the order in which regions are listed."""
    regions = {"whole tumor": [1, 2, 3], "enhancing tumor core": [3], "tumor core": [2, 3]}
    listed = list(regions.items())
    for order in (listed, listed[::-1]):
        parts = scheme_of_json({"background": 0, **dict(order)}, "x").parts
        assert parts == {"necrosis": (2,), "oedema": (1,), "enhancing": (3,)}


def test_a_cavity_is_no_oedema_though_the_whole_tumour_holds_it():
    regions = {"whole": [1, 2, 3, 4], "core": [1, 3], "enhancing": [3], "resection cavity": [4]}
    parts = scheme_of_json({"background": 0, **regions}, "x").parts
    assert (parts["oedema"], parts["cavity"]) == ((2,), (4,))


@pytest.mark.parametrize(
    "labels",
    [
        {"class A": 1, "class B": 2},
        {"viable tumor": 1, "edema": 2},
        {"inactive tumor": 1, "edema": 2},
        {"lesion": 1, "enhancing": 2},
        {"whole tumor": 1, "tumor core": 2, "enhancing tumor": 3},
    ],
)
def test_names_that_may_mean_either_are_not_told(labels):
    assert scheme_of_json({"background": 0, **labels}, "x") is None


@pytest.mark.parametrize("number", [-1, 0, 256, 1.5, None, [], [1, "two"]])
def test_what_is_no_label_is_not_told(tmp_path, number):
    labels = {"background": 0, "edema": 1, "enhancing": number}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert label_scheme(tmp_path) == NOT_TOLD


def test_a_dataset_json_that_says_nothing_usable_is_no_guess(tmp_path, caplog):
    for place in range(2):
        (tmp_path / "imagesTr").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"imagesTr/p_{place:04d}.nii.gz", head_image(SHAPE, place), RAS)
    (tmp_path / "labelsTr").mkdir()
    write_nifti(tmp_path / "labelsTr/p.nii.gz", labelled({"oedema": 1, "enhancing": 2}), RAS)
    described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"a": 1, "b": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=r"DATA-LABEL.*data.params.labels=\{"):
        regions(tmp_path)
    known = KNOWN.with_labels({"oedema": 1, "enhancing": 2})
    assert regions(tmp_path, contrasts=known)["et"].any()


# ---- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "subject", "numbers", "fits"),
    [
        ("_", "p", {"necrosis": 1, "oedema": 2, "enhancing": 4}, True),
        ("_", "p", {"necrosis": 1, "oedema": 2, "enhancing": 3}, False),
        ("-", "BraTS-GLI-00001-000", {"necrosis": 1, "oedema": 2, "enhancing": 3}, True),
        ("-", "BraTS-SSA-00001-000", {"necrosis": 1, "oedema": 2, "enhancing": 3}, True),
        (
            "-",
            "BraTS-MET-00001-000",
            {"necrosis": 1, "oedema": 2, "enhancing": 3, "cavity": 4},
            True,
        ),
        ("-", "BraTS-PED-00001-000", {"necrosis": 2, "oedema": 4, "enhancing": 1}, False),
    ],
)
def test_the_naming_says_the_year(tmp_path, separator, subject, numbers, fits):
    new, old = ("t1n", "t1c", "t2w", "t2f"), ("t1", "t1ce", "t2", "flair")
    write_images(tmp_path, subject, separator, old if separator == "_" else new)
    array = labelled(numbers, cavity="cavity" in numbers)
    write_nifti(tmp_path / subject / f"{subject}{separator}seg.nii.gz", array, RAS)
    found = diagnose_data(tmp_path).of_kind("labels")
    if fits:
        assert same(regions(tmp_path, subject))
        assert all(f.severity == "note" for f in found)
        return
    assert any("unknown" in f.message and "data.params.labels" in f.message for f in found)
    with pytest.raises(DataError, match="DATA-LABEL"):
        regions(tmp_path, subject)
    assert same(regions(tmp_path, subject, contrasts=KNOWN.with_labels(numbers)))


def test_a_resection_cavity_is_no_enhancing_tumour(tmp_path):
    """BraTS 2024: 4 is the cavity, in a patient with enhancement and in one without."""
    for subject, enhancing in (("BraTS-GLI-00001-100", 3), ("BraTS-GLI-00002-100", 2)):
        numbers = {"necrosis": 1, "oedema": 2, "enhancing": enhancing, "cavity": 4}
        write_images(tmp_path, subject, "-", ("t1n", "t1c"), bright=enhancing == 3)
        array = labelled(numbers, cavity=True)
        write_nifti(tmp_path / subject / f"{subject}-seg.nii.gz", array, RAS)
        found = regions(tmp_path, subject)
        assert found["et"].sum() == (expected()["et"].sum() if enhancing == 3 else 0)
        assert not (found["wt"] & parts(cavity=True)["cavity"]).any()


def test_two_schemes_in_one_folder_are_found(tmp_path):
    for subject, enhancing in (("a", 4), ("b", 4), ("c", 3)):
        write_images(tmp_path, subject)
        array = labelled({"necrosis": 1, "oedema": 2, "enhancing": enhancing})
        write_nifti(tmp_path / subject / f"{subject}_seg.nii.gz", array, RAS)
    found = [f for f in diagnose_data(tmp_path).of_kind("labels") if f.severity != "note"]
    assert {f.subject for f in found} == {"c"}
    assert any("mixed (1 2 4 in 2; 1 2 3 in 1 subjects)" in f.message for f in found)


def test_a_scheme_that_t1ce_contradicts_is_found(tmp_path):
    """Paediatric numbers under names of BraTS 2021: oedema would enhance."""
    write_images(tmp_path, "p")
    array = labelled({"necrosis": 2, "oedema": 4, "enhancing": 1})
    write_nifti(tmp_path / "p/p_seg.nii.gz", array, RAS)
    (finding,) = [f for f in diagnose_data(tmp_path).of_kind("labels") if f.severity != "note"]
    assert finding.message.startswith("label 1 is the brightest part of the tumour in T1ce")


def test_a_folder_in_which_nothing_is_read_as_enhancing_is_asked_about(tmp_path):
    """HD-GLIO writes 1 for what does not enhance and 2 for what does, under any name."""
    for subject in ("a", "b", "c"):
        write_images(tmp_path, subject)
        array = labelled({"necrosis": 1, "oedema": 1, "enhancing": 2})
        write_nifti(tmp_path / subject / f"{subject}_seg.nii.gz", array, RAS)
    (finding,) = diagnose_data(tmp_path).of_kind("labels")
    assert finding.message.startswith("no subject has label 4, which is read as enhancing tumour")


# ---- the chain -----------------------------------------------------------------------------------


def test_a_prediction_in_another_numbering_is_compared_by_meaning(tmp_path, capsys):
    """nnU-Net renumbers BraTS: the same mask has Dice 1 in every region."""
    for subject in ("BraTS2021_00001", "BraTS2021_00002"):
        write_images(tmp_path / "real", subject)
        array = labelled({"necrosis": 1, "oedema": 2, "enhancing": 4})
        write_nifti(tmp_path / f"real/{subject}/{subject}_seg.nii.gz", array, RAS)
        for place, name in enumerate(("t1", "t1ce", "t2", "flair")):
            (tmp_path / "nn/imagesTr").mkdir(parents=True, exist_ok=True)
            image = nib.load(tmp_path / f"real/{subject}/{subject}_{name}.nii.gz")
            nib.save(image, tmp_path / f"nn/imagesTr/{subject}_{place:04d}.nii.gz")
        (tmp_path / "nn/labelsTr").mkdir(exist_ok=True)
        array = labelled({"necrosis": 2, "oedema": 1, "enhancing": 3})
        write_nifti(tmp_path / f"nn/labelsTr/{subject}.nii.gz", array, RAS)
    regions = {"whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    names = {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
    described = {"channel_names": names, "labels": {"background": 0, **regions}}
    (tmp_path / "nn/dataset.json").write_text(json.dumps(described))
    for prediction, reference in (("real", "nn"), ("nn", "real")):
        told = [
            "--prediction",
            str(tmp_path / prediction),
            "--reference",
            str(tmp_path / reference),
        ]
        output = tmp_path / f"of-{prediction}"
        assert main(["segment", "evaluate", *told, "--output", str(output)]) == 0
        written = json.loads((output / "segmentation.json").read_text())
        dice = [s["value"] for s in written["scores"] if s["measure"] == "dice"]
        assert len(dice) == 6 and set(dice) == {1.0}


def test_a_manifest_keeps_what_labels_mean(tmp_path):
    write_images(tmp_path / "data", "p")
    array = labelled({"necrosis": 2, "oedema": 1, "enhancing": 3})
    write_nifti(tmp_path / "data/p/p_seg.nii.gz", array, RAS)
    told = ["data.params.labels=decathlon", "data.params.val=0", "data.params.train=1.0"]
    out = ["--output", str(tmp_path / "out"), "--config", *told]
    assert main(["prepare", str(tmp_path / "data"), *out]) == 0
    assert same(regions(tmp_path / "out/manifest.csv"))


@pytest.mark.parametrize(
    "told",
    [
        "brats2O17",
        {"necrosis": 1, "edema": 2},
        {"enhancing": "four"},
        {"enhancing": 4, "oedema": 4},
    ],
)
def test_a_scheme_that_cannot_be_meant_is_refused(told):
    with pytest.raises(ConfigError, match="CONFIG-VALUE"):
        read_scheme(told, "data.params.labels")


def test_a_text_is_the_scheme_that_it_came_from():
    for scheme in SCHEMES.values():
        assert read_scheme(str(scheme), "x").parts == scheme.parts
    assert (SCHEMES["brats2017"].inside(np.array([0, 3, 4, 200], np.uint8))).tolist() == [
        0,
        UNKNOWN,
        4,
        UNKNOWN,
    ]
