"""BIDS with derivatives: tissue is no tumour, and another space holds no candidates."""

import json

import pytest

from ldm.data.layouts import detect_layout
from ldm.errors import ConfigError

RAW = [f"sub-01/anat/sub-01_{s}.nii.gz" for s in ("T1w", "ce-gad_T1w", "T2w", "FLAIR")]


def touch(root, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root, layout=None) -> dict[str, str]:
    files = detect_layout(root, layout)[1]["sub-01"].files
    return {contrast: file.path.name for contrast, file in files.items()}


@pytest.mark.parametrize(
    "name",
    [
        "fmriprep/sub-01/anat/sub-01_dseg",
        "fmriprep-23.1.4/sub-01/anat/sub-01_desc-aseg_dseg",
        "fmriprep/sub-01/anat/sub-01_desc-aparcaseg_dseg",
        "smriprep/sub-01/anat/sub-01_dseg",
        "freesurfer/sub-01/anat/sub-01_desc-aseg_dseg",
        "FastSurfer/sub-01/anat/sub-01_dseg",
        "cat12/sub-01/anat/sub-01_dseg",
        "synthseg/sub-01/anat/sub-01_dseg",
        "ours/sub-01/anat/sub-01_atlas-AAL_dseg",
        "ours/sub-01/anat/sub-01_label-hippocampus_mask",
        "ours/sub-01/anat/sub-01_label-WM_mask",
        "ours/sub-01/anat/sub-01_desc-carveme_dseg",
        "a-new-pipeline/sub-01/anat/sub-01_dseg",
        "tissue_seg/sub-01/anat/sub-01_dseg",
        "ours/sub-01/anat/sub-01_label-putamen_mask",
        "ours/sub-01/anat/sub-01_label-ICV_mask",
        "ours/sub-01/anat/sub-01_desc-head_mask",
        "ours/sub-01/anat/sub-01_desc-coregistered_mask",
        "ours/sub-01/anat/sub-01_desc-zscore_dseg",
        "ours/sub-01/anat/sub-01_label-ganglion_mask",
        "ours/sub-01/anat/sub-01_desc-contrastEnhanced_dseg",
        "coregistered/sub-01/anat/sub-01_dseg",
        "experts/sub-01/anat/sub-01_desc-subfields_dseg",
        "sub-01_dseg",  # in no folder that says whose it is
        "experts/sub-01/anat/sub-01_space-MNI152NLin2009cAsym_label-lesion_mask",
    ],
)
def test_a_map_of_tissue_or_of_another_space_is_no_tumour(tmp_path, name):
    touch(tmp_path, *RAW, f"derivatives/{name}.nii.gz")
    assert set(found(tmp_path)) == {"t1", "t1ce", "t2", "flair"}


@pytest.mark.parametrize(
    "name",
    [
        "experts/sub-01/anat/sub-01_label-tumor_mask",
        "experts/sub-01/anat/sub-01_desc-lesion_dseg",
        "ours/sub-01/anat/sub-01_label-tumorCore_mask",
        "ours/sub-01/anat/sub-01_label-core_mask",
        "ours/sub-01/anat/sub-01_desc-enhancing_mask",
        "experts/sub-01/anat/sub-01_dseg",
        "manual_masks/sub-01/anat/sub-01_dseg",
        "hd-glio-auto/sub-01/anat/sub-01_dseg",
        "sub-01/anat/sub-01_dseg",
        "ours/sub-01/anat/sub-01_label-L_desc-T1lesion_mask",
        "experts/sub-01/anat/sub-01_space-T1w_label-lesion_mask",
        "fmriprep/sub-01/anat/sub-01_label-lesion_mask",
        "experts/sub-01/anat/sub-01_space-orig_desc-tumor_dseg",
    ],
)
def test_a_mask_that_says_so_is_found_beside_all_outputs_of_a_pipeline(tmp_path, name):
    prepared = "derivatives/fmriprep/sub-01/anat/sub-01"
    endings = ("_dseg", "_desc-aseg_dseg", "_desc-aparcaseg_dseg", "_desc-brain_mask")
    endings += ("_space-MNI152NLin2009cAsym_dseg", "_space-MNI152NLin2009cAsym_desc-brain_mask")
    endings += (
        "_space-MNI152NLin2009cAsym_desc-preproc_T1w",
        "_desc-preproc_T1w",
        "_label-GM_probseg",
    )
    touch(tmp_path, *RAW, *(f"{prepared}{e}.nii.gz" for e in endings), f"derivatives/{name}.nii.gz")
    files = found(tmp_path)
    assert files["seg"] == f"{name.rpartition('/')[2]}.nii.gz"
    assert files["brain"] == "sub-01_desc-brain_mask.nii.gz"
    assert files["t1"] == "sub-01_T1w.nii.gz"


def test_the_folder_of_a_pipeline_is_read_in_the_space_of_the_images(tmp_path):
    root = tmp_path / "fmriprep"
    names = [
        f"{space}desc-{d}" for space in ("", "space-MNI_") for d in ("preproc_T1w", "brain_mask")
    ]
    touch(root, *(f"sub-01/anat/sub-01_{n}.nii.gz" for n in [*names, "dseg", "space-MNI_dseg"]))
    assert found(root) == {
        "t1": "sub-01_desc-preproc_T1w.nii.gz",
        "brain": "sub-01_desc-brain_mask.nii.gz",
    }
    choice = {"target": "ldm.data.layouts.BIDS", "params": {"select": {"space": "MNI"}}}
    (root / "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz").unlink()
    for told in (choice, json.dumps(choice)):  # as --layout takes it
        assert found(root, told) == {
            "t1": "sub-01_space-MNI_desc-preproc_T1w.nii.gz",
            "brain": "sub-01_space-MNI_desc-brain_mask.nii.gz",
        }
    with pytest.raises(ConfigError, match='layout is {"target": give'):
        found(root, '{"target"')


@pytest.mark.parametrize("place", ["derivatives/study", "derivatives", "sourcedata/a/derivatives"])
def test_what_lies_above_a_data_set_says_nothing_about_its_labels(tmp_path, place):
    touch(tmp_path / place, *RAW, "sub-01/anat/sub-01_dseg.nii.gz")
    assert set(found(tmp_path / place)) == {"t1", "t1ce", "t2", "flair", "seg"}


def test_the_user_names_a_mask(tmp_path):
    touch(tmp_path, *RAW, "derivatives/ours/sub-01/anat/sub-01_desc-final_dseg.nii.gz")
    assert "seg" not in found(tmp_path)
    choice = {"target": "ldm.data.layouts.BIDS", "params": {"select": {"desc": "final"}}}
    assert found(tmp_path, choice)["seg"] == "sub-01_desc-final_dseg.nii.gz"


def test_a_map_beside_derived_images_is_that_of_their_pipeline(tmp_path):
    """In whatever folder they were copied to."""
    names = ("desc-preproc_T1w", "dseg", "desc-brain_mask")
    touch(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names))
    assert set(found(tmp_path)) == {"t1", "brain"}
    touch(tmp_path, "sub-01/anat/sub-01_label-tumor_dseg.nii.gz")
    assert found(tmp_path)["seg"] == "sub-01_label-tumor_dseg.nii.gz"


@pytest.mark.parametrize(
    ("native", "enhanced"),
    [
        ("T1w", "ce-GADOLINIUM_T1w"),
        ("ce-none_T1w", "ce-gadavist_T1w"),
        ("ce-pre_T1w", "ce-post_T1w"),
        ("acq-preContrast_T1w", "acq-postContrast_T1w"),
        ("acq-mprage_T1w", "acq-mprageGd_T1w"),
        ("acq-postop_T1w", "acq-postop_ce-1_T1w"),
    ],
)
def test_entities_say_whether_an_agent_was_given(tmp_path, native, enhanced):
    """As descriptions of series do: a label such as ``none`` names no agent."""
    names = [f"sub-01_{name}.nii.gz" for name in (native, enhanced)]
    touch(tmp_path, *(f"sub-01/anat/{name}" for name in names))
    assert found(tmp_path) == {"t1": names[0], "t1ce": names[1]}


def test_a_mask_of_isles_is_a_lesion(tmp_path):
    name = "sub-01_msk.nii.gz"
    touch(tmp_path, *RAW, f"derivatives/sub-01/{name}")
    assert found(tmp_path)["seg"] == name
