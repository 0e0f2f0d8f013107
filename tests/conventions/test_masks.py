"""Label maps beside contrasts: never taken for one, read where it is clear what they are."""

import pytest
from test_context import read

FOUR = ("t1", "t1ce", "t2", "flair")
STARTS = ("{i}/", "{i}/{i}_")
CLEAR = """t1ce-label | t1ce_label | T1ce-label | t1ce_seg | t1ce-seg | flair_seg | t1-label
t1-lesion | tumor-label | label | {i}-label | {i}_label | {i}_roi | {i}_t1ce_seg | {i}_t1ce-label
{i}_flair_seg | {i}_tumor_mask | {i}_lesion_mask | seg_t1ce | label_t1 | {i}_seg_t1ce | t1_gd_seg
t1ce_manual_seg"""
UNCLEAR = """t1ce_mask | t1_mask | t1_seg | {i}_mask | {i}_t1_seg | {i}_t1ce_mask | mask_t1
tumor_t1 | {i}_mask_t1 | {i}_lesion_t2 | t2_segmentation"""
OF_ANATOMY = """t1_brain_mask | {i}_brain_mask | bet_mask | t1_synthseg | gm_mask
{i}_ventricles_seg"""


def listed(text):
    return [part.strip() for part in text.replace("\n", "|").split("|")]


def patients(start, *others):
    names = (*(start + c for c in FOUR), *(f"{{i}}/{other}" for other in others))
    return [name.format(i=i) for i in ("P1", "P2") for name in names]


def images(start):
    return {i: {c: f"{start}{c}".format(i=i) for c in FOUR} for i in ("P1", "P2")}


def less_masks(found):
    return {i: {c: f for c, f in own.items() if c in FOUR} for i, own in found.items()}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", listed(CLEAR))
def test_a_label_map_of_any_usual_name_is_read(start, name):
    found = read(*patients(start, name))
    assert less_masks(found) == images(start)
    assert {i: own["seg"] for i, own in found.items()} == {
        i: f"{i}/{name}".format(i=i) for i in ("P1", "P2")
    }


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", listed(UNCLEAR))
def test_what_may_be_a_mask_of_anything_is_named_and_not_read(start, name):
    remarks: list[str] = []
    found = read(*patients(start, name), remarks=remarks)
    assert found == images(start)
    (line,) = remarks
    assert line.startswith(f"P1/{name}.nii.gz (and 1 more) may be of tumour".format(i="P1"))
    assert "in a CSV (columns id,t1,t1ce,...,seg)" in line


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", listed(OF_ANATOMY))
def test_masks_of_the_brain_and_of_tissue_are_no_labels(start, name):
    assert less_masks(found := read(*patients(start, name))) == images(start)
    assert not any("seg" in own for own in found.values())


@pytest.mark.parametrize("start", STARTS)
def test_labels_by_name_go_first_and_two_of_other_names_are_not_chosen_from(start):
    found = read(*patients(start, "t1ce-label", start.removeprefix("{i}/") + "seg"))
    assert {own["seg"] for own in found.values()} == {
        f"{start}seg".format(i=i) for i in ("P1", "P2")
    }
    remarks: list[str] = []
    assert read(*patients(start, "t1ce-label", "t1-label"), remarks=remarks) == images(start)
    assert "because its patient has several" in remarks[0]


def test_a_mask_beside_that_of_the_brain_is_of_the_tumour():
    found = read(*patients("{i}/{i}_", "{i}_mask", "{i}_brain"))
    assert {own["seg"] for own in found.values()} == {"P1/P1_mask", "P2/P2_mask"}


@pytest.mark.parametrize("folder", ["seg", "labels", "mask", "masks", "Segmentations"])
@pytest.mark.parametrize(
    "form", ["{i}/{s}/t1ce", "{i}/{s}/{i}_t1ce", "{s}/{i}_t1ce", "{s}/{i}/t1ce"]
)
def test_what_lies_among_masks_is_none_of_the_images_that_it_is_called_by(folder, form):
    named = "_t1" in form
    start = "{i}/{i}_" if named else "{i}/"
    maps = [form.format(i=i, s=folder) for i in ("P1", "P2")]
    found = read(*patients(start), *maps)
    assert less_masks(found) == images(start)
    assert [own.get("seg") for own in found.values()] == maps


def test_several_maps_among_masks_are_named_and_not_read():
    remarks: list[str] = []
    names = patients("{i}/", "labels/t1ce", "labels/flair")
    assert read(*names, remarks=remarks) == images("{i}/")
    assert "(and 3 more) is passed over: it lies among masks" in remarks[0]


def test_patients_whose_folder_is_called_so_are_patients():
    names = [f"{site}/{c}" for site in ("tumor", "healthy") for c in FOUR]
    assert {i: set(own) for i, own in read(*names).items()} == {
        "tumor": set(FOUR),
        "healthy": set(FOUR),
    }
    assert set(read("tumor_t1", "healthy_t1")) == {"tumor", "healthy"}
    assert set(read("tumor/P1/t1", "tumor/P1/t2", "tumor/P2/t1", "tumor/P2/t2")) == {"P1", "P2"}
    assert set(read("tumor/P1_t1", "tumor/P1_t2", "tumor/P2_t1")) == {"P1", "P2"}
