"""The acceptance cases of reliability: what is done, what is asked, and which tests show it.

``pytest -m robustness`` runs these tests and writes ``robustness.json``; ``python
scripts/describe_reliability.py robustness.json`` makes the tables of docs/reliability.md of it. A
test that bears the id of a case in its name, as ``test_ck_11_a_kill_...``, need not be listed. A
case without a test counts as not tried. Each test makes its fault happen, and looks that it has.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Case(NamedTuple):
    """One case.

    Args:
        id: group and number.
        fault: what is done.
        asked: exit code, and what the user reads or keeps.
        tests: files and functions below ``tests``, less those that bear the id in their name.
    """

    id: str
    fault: str
    asked: str
    tests: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """The group of the id; ``SE-X1`` is beyond the list."""
        return "EX" if self.id.startswith("SE-X") else self.id.partition("-")[0]


GROUPS = {
    "DI": "Data input",
    "CF": "Configuration",
    "CK": "Checkpoints",
    "TR": "Training",
    "SA": "Sampling",
    "OI": "Outputs",
    "BN": "Benchmark",
    "SE": "Security",
    "NU": "Numbers",
    "EX": "Beyond the list",
}

INPUTS = [
    Case(
        "DI-01",
        "NaN or infinity in a volume",
        "3 DATA-NONFINITE, count and first voxel; `--nonfinite zero` is recorded",
        ("test_nifti.py::test_non_finite_voxels_are_counted_and_located_as_stored",),
    ),
    Case(
        "DI-02",
        "a constant or empty channel",
        "3 DATA-CONSTANT",
        (
            "test_prepare.py::test_a_subject_that_cannot_be_used_says_why",
            "test_normalise.py::test_no_spread_is_refused",
        ),
    ),
    Case(
        "DI-03",
        "contrasts of different shape",
        "3 DATA-SHAPE with both",
        ("workflow/test_errors.py::test_contrasts_of_different_shape",),
    ),
    Case(
        "DI-04",
        "contrasts shifted, turned or mirrored",
        "3 DATA-AFFINE with millimetres",
        ("test_nifti.py::test_contrasts_on_different_grids_are_told_apart",),
    ),
    Case(
        "DI-05",
        "a fourth axis of length 1",
        "0, dropped and logged",
        ("test_nifti.py::test_a_fourth_axis_of_length_one_is_dropped",),
    ),
    Case("DI-06", "4-D, 5-D, 2-D", "3 DATA-NDIM", ("test_nifti.py::test_only_three_axes",)),
    Case(
        "DI-07",
        "a contrast is missing",
        "3 DATA-MISSING with the expected file",
        (
            "workflow/test_errors.py::test_missing_flair",
            "test_prepare.py::test_a_missing_contrast_is_a_mask",
        ),
    ),
    Case(
        "DI-08",
        "48 orientations, oblique",
        "0, voxel for voxel the same",
        (
            "test_nifti.py::test_all_48_orientations_are_one_canonical_volume",
            "test_prepare.py::test_preparing_commutes_with_reorienting_bit_by_bit",
            "workflow/test_sample.py::test_lps_and_ras_input_give_one_brain",
        ),
    ),
    Case("DI-09", "thick slices that no training patient had", "0, a warning, zooms kept"),
    Case(
        "DI-10",
        "a cut .nii.gz",
        "3 DATA-CORRUPT",
        ("test_nifti.py::test_every_truncation_is_caught",),
    ),
    Case(
        "DI-11",
        "a flipped bit, a lost page",
        "3 DATA-CORRUPT wherever voxels change",
        (
            "test_nifti.py::test_every_bit_flip_that_changes_voxels_or_geometry_is_caught",
            "test_nifti.py::test_a_zeroed_page_is_caught",
        ),
    ),
    Case(
        "DI-12",
        "gzip trailer missing or wrong, garbage, two members",
        "3 DATA-CORRUPT",
        ("test_nifti.py::test_the_end_of_the_gzip_stream_is_checked",),
    ),
    Case(
        "DI-13",
        "a changed file without a checksum of its own",
        "3 DATA-DIGEST where a manifest names it",
    ),
    Case(
        "DI-14",
        "no NIfTI: renamed, PNG, empty, folder, pipe, socket, device",
        "3 DATA-FORMAT, no hang",
        (
            "test_nifti.py::test_what_is_no_nifti_file",
            "test_nifti.py::test_a_pipe_is_refused_instead_of_waited_for",
        ),
    ),
    Case(
        "DI-15",
        "dimensions beyond the file",
        "3 DATA-TOO-LARGE before any memory",
        ("test_nifti.py::test_a_small_file_cannot_fill_the_memory",),
    ),
    Case(
        "DI-16",
        "a gzip bomb",
        "3 DATA-TOO-LARGE",
        ("test_nifti.py::test_a_small_file_cannot_fill_the_memory",),
    ),
    Case(
        "DI-17",
        "header fields that cannot be",
        "3 DATA-HEADER",
        (
            "test_nifti.py::test_a_wrong_header_is_named_before_anything_is_read",
            "test_nifti.py::test_any_header_is_read_or_refused_with_a_stable_code",
        ),
    ),
    Case(
        "DI-18",
        "slope 0, NaN, infinite",
        "not scaled, or 3 DATA-SCALE",
        (
            "test_nifti.py::test_a_slope_of_zero_or_nan_means_unscaled",
            "test_nifti.py::test_a_wrong_header_is_named_before_anything_is_read",
        ),
    ),
    Case(
        "DI-19",
        "scaled, big-endian, NIfTI-2, pairs",
        "the values of nibabel; a pair is refused",
        (
            "test_nifti.py::test_slope_intercept_big_endian_nifti2_and_extremes_of_uint16",
            "test_nifti.py::test_every_real_type_is_read_as_nibabel_reads_it",
            "test_nifti.py::test_a_header_and_image_pair_is_refused_with_the_remedy",
        ),
    ),
    Case(
        "DI-20",
        "odd zooms, no form, two forms, shear",
        "3 DATA-AFFINE, or a warning; which form won is recorded",
        (
            "test_nifti.py::test_a_wrong_header_is_named_before_anything_is_read",
            "test_nifti.py::test_sform_wins_over_a_different_qform_and_says_so",
            "test_nifti.py::test_sheared_axes_are_kept_with_a_warning",
        ),
    ),
    Case(
        "DI-21",
        "ids that collide or escape",
        "3 DATA-ID",
        (
            "test_layouts.py::test_ids_that_look_alike_stay_apart",
            "test_layouts.py::test_one_id_in_two_folders_or_differing_in_case_only_is_refused",
            "test_layouts.py::test_an_id_that_cannot_name_an_output_is_refused_and_no_other",
            "test_layouts.py::test_an_id_that_leaves_its_folder_is_refused_and_no_other",
        ),
    ),
    Case(
        "DI-22",
        "names within names",
        "exact match, or 3 DATA-AMBIGUOUS",
        (
            "test_layouts.py::test_nothing_is_matched_by_substring",
            "test_layouts.py::test_two_files_of_one_contrast_are_ambiguous",
        ),
    ),
    Case(
        "DI-23",
        "tiny and odd sizes",
        "0, every voxel in its place",
        (
            "test_nifti.py::test_tiny_volumes",
            "test_prepare.py::test_odd_and_tiny_sizes",
            "test_prepare.py::test_fit_size_is_symmetric_and_a_pad_is_undone_by_a_crop",
        ),
    ),
    Case(
        "DI-24",
        "unreadable, vanished, a link to nothing",
        "3 DATA-IO with case and reason",
        ("test_nifti.py::test_what_the_system_refuses_is_named",),
    ),
    Case(
        "DI-25",
        "large, negative, heavy-tailed intensities",
        "0, finite and in order",
        (
            "test_prepare.py::test_negative_intensities_and_a_large_scale_are_data",
            "test_normalise.py::test_any_intensities_are_refused_or_normalised_in_order",
        ),
    ),
]

CONFIGURATION = [
    Case(
        "CF-01",
        "an unknown or misspelt key",
        "2 CONFIG-UNKNOWN with the nearest name",
        ("test_config.py::test_a_misspelt_key_is_refused_with_the_nearest_name",),
    ),
    Case(
        "CF-02",
        "left open, interpolation, duplicate key, tabs, no mapping, BOM",
        "2 CONFIG-PARSE with the line",
        (
            "test_config.py::test_what_is_no_plain_mapping_is_refused_with_its_line",
            "test_config.py::test_a_byte_order_mark_is_no_part_of_the_first_key",
            "test_config.py::test_a_value_left_open_is_named",
        ),
    ),
    Case(
        "CF-03",
        "a value of the wrong type, or that cannot be meant",
        "2 CONFIG-VALUE, nothing is made",
        ("test_config.py::test_a_value_of_the_wrong_type_is_refused_with_its_path",),
    ),
    Case(
        "CF-04",
        "`no`, `1e-4`, `08`, `12:30`, `0123`",
        "typed, or 2 CONFIG-VALUE",
        ("test_config.py::test_numbers_that_yaml_1_1_hides_are_typed",),
    ),
    Case(
        "CF-05",
        "settings that exclude each other",
        "2 CONFIG-SHAPE before any data",
        (
            "workflow/test_errors.py::test_wrong_configuration",
            "test_latent_diffusion.py::test_backbone_is_told_its_channels_and_a_contradiction_is_refused",
            "test_latent_diffusion.py::test_every_option_is_checked",
        ),
    ),
    Case(
        "CF-06",
        "overrides; the saved configuration again",
        "0, identical",
        (
            "test_config.py::test_files_merge_left_to_right_then_overrides",
            "test_config.py::test_a_saved_config_is_read_back_identical",
            "test_shipped_configs.py::test_dry_run_prints_a_config_that_gives_itself",
        ),
    ),
    Case(
        "CF-07",
        "a target that is missing or misspelt",
        "2 CONFIG-TARGET",
        ("test_config.py::test_the_ways_a_target_can_fail_are_told_apart",),
    ),
    Case(
        "CF-08",
        "`--dry-run` of every shipped configuration",
        "0",
        (
            "test_shipped_configs.py::test_tiny_backbone_builds",
            "test_shipped_configs.py::test_processes_build_behind_a_backbone",
        ),
    ),
    Case(
        "CF-09",
        "counts of steps, possible and not",
        "distinct and in range, or 2",
        (
            "test_schedule.py::test_every_count_of_steps_has_distinct_timesteps",
            "test_schedule.py::test_a_count_of_steps_out_of_range_is_refused",
        ),
    ),
]

CHECKPOINTS = [
    Case(
        "CK-01",
        "300 truncations of the newest",
        "the generation before, both named; 4 if there is none",
        ("workflow/test_train.py::test_damaged_checkpoint_falls_back_to_the_one_before",),
    ),
    Case("CK-02", "1000 flipped bits, 300 lost pages", "none is silent"),
    Case(
        "CK-03", "empty, HTML, Git LFS pointer, another format", "4 CKPT-FORMAT: what it looks like"
    ),
    Case("CK-04", "keys, shapes or a configuration that do not belong", "4 CKPT-MISMATCH"),
    Case(
        "CK-05",
        "a later format; an earlier one",
        "4 CKPT-VERSION; read",
        ("test_latent_diffusion.py::test_a_saved_run_of_before_is_read_by_its_old_names",),
    ),
    Case("CK-06", "NaN among the weights", "4 CKPT-NONFINITE"),
    Case(
        "CK-07",
        "a pickle payload anywhere",
        "10, it does not run",
        ("test_importing.py::test_payload_is_refused_and_does_not_run",),
    ),
    Case("CK-08", "a bomb, too many entries, `../` in names", "10 or 4, nothing is written"),
    Case(
        "CK-09",
        "no checkpoint; `--resume` of an empty folder",
        "4 CKPT-MISSING, no fresh start",
        ("workflow/test_errors.py::test_missing_checkpoint",),
    ),
    Case(
        "CK-10",
        "half precision, DDP and compiled prefixes",
        "0, equal outputs",
        ("test_importing.py::test_prefixes", "test_importing.py::test_half_precision_is_widened"),
    ),
    Case("CK-11", "SIGKILL at six points of a save", "one interval is lost at most"),
    Case(
        "CK-12", "a full or forbidden disk in a save", "a warning, tried again; 5 after the third"
    ),
    Case("CK-13", "a save that fails", "both generations are kept"),
    Case("CK-14", "the newest is a link to nothing, empty, a folder", "the generation before"),
    Case("CK-15", "averaged or last weights", "the sidecar says which"),
    Case(
        "CK-16",
        "umask; no folder for temporary files",
        "0644 under 022; no matter",
        ("test_storage.py::test_a_new_file_has_the_rights_that_the_user_asks_for",),
    ),
]

TRAINING = [
    Case("TR-01", "SIGKILL at random moments, again and again", "bitwise the uninterrupted run"),
    Case(
        "TR-02",
        "SIGTERM, SIGINT, SIGUSR1, twice",
        "143, 130, goes on; nothing lost",
        ("workflow/test_train.py::test_signal_saves_and_the_run_resumes_exactly",),
    ),
    Case(
        "TR-03",
        "NaN in loss or gradient",
        "6 before the step, with its cases",
        ("workflow/test_train.py::test_nan_stops_before_the_weights",),
    ),
    Case("TR-04", "overflow of the fp16 scaler", "left out and told; 6 at the 21st in a row"),
    Case("TR-05", "a worker is killed, fails, stops", "8 within 30 s, no process left"),
    Case(
        "TR-06",
        "one rank of several is killed, fails, stops, hangs",
        "all end: 8 or 143; where the first fails, its own code",
    ),
    Case("TR-07", "memory is exhausted", "7, the checkpoint is whole"),
    Case(
        "TR-08",
        "one patient, none, no validation",
        "0; none: 3; no hang",
        ("test_split.py::test_nothing_to_train_on_is_an_error",),
    ),
    Case(
        "TR-09",
        "a damaged cache entry; a damaged patient",
        "made again; 3 with its name",
        ("workflow/test_errors.py::test_truncated_nifti",),
    ),
    Case(
        "TR-10",
        "two runs in one folder; a lock of a dead process",
        "11; taken over",
        (
            "workflow/test_errors.py::test_busy_run_folder",
            "test_storage.py::test_a_folder_has_one_owner_until_that_owner_is_gone",
        ),
    ),
    Case("TR-11", "data changed between runs", "4 unless `--allow-data-change`"),
    Case("TR-12", "`--resume` with other settings", "a list of those taken, else 4 CKPT-MISMATCH"),
    Case("TR-13", "output closed, terminal lost, disk of the log full", "training goes on"),
    Case("TR-14", "one and two processes, one global batch", "the same gradients"),
    Case(
        "TR-15",
        "resumed at any step",
        "bitwise",
        ("workflow/test_train.py::test_resumed_equals_uninterrupted",),
    ),
    Case("TR-16", "the same seed twice; 0 and 2 workers", "bitwise"),
]

SAMPLING = [
    Case(
        "SA-01",
        "SIGKILL at random moments, again and again",
        "byte for byte the uninterrupted volumes",
    ),
    Case(
        "SA-02",
        "a damaged earlier output",
        "made again",
        ("workflow/test_sample.py::test_run_again_skips_and_a_damaged_output_is_redone",),
    ),
    Case(
        "SA-03",
        "a sidecar is torn or lost",
        "made again and compared; another volume: 5",
        ("workflow/test_sample.py::test_killed_between_sidecar_and_volume_goes_on",),
    ),
    Case(
        "SA-04",
        "the disk is full at the second patient; too small for all",
        "5 with the bytes needed; the first is kept, or none begun",
    ),
    Case("SA-05", "the output is a file, or read-only", "5 before the model is read"),
    Case(
        "SA-06",
        "one patient is damaged",
        "9, the others are written",
        ("workflow/test_sample.py::test_a_bad_subject_does_not_stop_the_others",),
    ),
    Case(
        "SA-07",
        "other batch sizes, order, subset",
        "equal up to rounding",
        (
            "workflow/test_sample.py::test_independent_of_batch_size_and_order",
            "test_storage.py::test_a_seed_is_the_same_in_every_process_and_on_every_machine",
        ),
    ),
    Case("SA-08", "the network returns NaN or infinity", "6, no file"),
    Case("SA-09", "memory is exhausted", "7, no file"),
    Case("SA-10", "there is no T1ce", "0", ("workflow/test_sample.py::test_needs_no_true_t1ce",)),
    Case("SA-11", "a batch of slices is lost", "6 or 8, never filled"),
    Case(
        "SA-12",
        "two samplers in one folder",
        "11, the first is unharmed",
        ("robustness/test_nothing_is_lost.py::test_se_x7_foreign_temporary_files_stay",),
    ),
    Case(
        "SA-13",
        "another model or request in one folder",
        "5 unless `--overwrite`",
        ("workflow/test_sample.py::test_other_settings_are_not_mixed_in",),
    ),
    Case("SA-14", "SIGTERM", "143, no temporary file, goes on"),
]

OUTPUTS = [
    Case(
        "OI-01",
        "geometry of the output",
        "that of the input, exactly",
        (
            "test_nifti.py::test_the_output_takes_the_place_of_its_input",
            "test_nifti.py::test_codes_of_both_forms_are_kept",
            "workflow/test_sample.py::test_output_takes_the_place_of_its_input",
        ),
    ),
    Case(
        "OI-02",
        "an int16 input",
        "float32 output, not squeezed",
        ("test_nifti.py::test_an_int16_input_does_not_squeeze_the_output",),
    ),
    Case(
        "OI-03",
        "background",
        "exactly 0",
        ("workflow/test_sample.py::test_output_takes_the_place_of_its_input",),
    ),
    Case(
        "OI-04",
        "an output exists",
        "5 OUT-EXISTS, kept",
        ("test_nifti.py::test_an_existing_output_is_kept",),
    ),
    Case("OI-05", "an output would be an input", "5 OUT-INPUT, also with `--overwrite`"),
    Case(
        "OI-06",
        "inputs after every verb",
        "unchanged",
        ("workflow/test_sample.py::test_inputs_are_never_changed",),
    ),
    Case(
        "OI-07",
        "nibabel and SimpleITK",
        "equal voxels and geometry",
        ("test_nifti.py::test_simpleitk_sees_the_same_voxels_and_geometry",),
    ),
    Case(
        "OI-08",
        "a volume that is not finite",
        "6, nothing is written",
        ("test_nifti.py::test_nothing_half_good_is_written",),
    ),
    Case(
        "OI-09",
        "padding and cropping",
        "every voxel returns",
        ("test_prepare.py::test_every_voxel_returns_to_its_index_in_the_file",),
    ),
    Case(
        "OI-10",
        "the same command twice",
        "equal bytes",
        ("test_nifti.py::test_equal_input_gives_equal_bytes",),
    ),
    Case(
        "OI-11",
        "cropped to the brain",
        "the origin moves with it",
        (
            "test_prepare.py::test_a_prepared_subject_is_the_cropped_brain_in_channels",
            "test_prepare.py::test_any_box_of_brain_returns_from_any_orientation_and_axis",
        ),
    ),
    Case(
        "OI-12",
        "the sidecar",
        "model, seed, sampler, Synthetic; no path",
        ("workflow/test_sample.py::test_sidecar_says_how_it_was_made",),
    ),
]

BENCHMARK = [
    Case(
        "BN-01",
        "one row fails",
        "9, FAILED with its reason, the others finish",
        (
            "workflow/test_benchmark.py::test_failed_row_is_shown_and_tried_again",
            "workflow/test_benchmark.py::test_a_failed_patient_is_shown_and_tried_again",
        ),
    ),
    Case(
        "BN-02",
        "rows with other patients",
        "compared by pairs, counted",
        (
            "workflow/test_evaluate.py::test_rows_are_compared_patient_by_patient",
            "workflow/test_evaluate.py::test_failed_cases_are_shown_and_counted",
        ),
    ),
    Case(
        "BN-03",
        "SIGKILL in training and sampling",
        "the same table",
        ("workflow/test_benchmark.py::test_sigkill_twice_gives_the_table_of_an_undisturbed_run",),
    ),
    Case(
        "BN-04",
        "the truth itself; a constant reference; empty masks",
        "infinite or n/a, never dropped",
        (
            "test_metrics.py::test_undefined_values_are_nan_and_warn_of_nothing",
            "test_metrics.py::test_equal_arrays_are_perfect",
        ),
    ),
    Case(
        "BN-05",
        "inputs of metrics",
        "not changed; symmetric where they should be",
        (
            "test_metrics.py::test_inputs_are_not_modified_and_integers_are_welcome",
            "test_metrics.py::test_symmetric_where_the_formula_is",
        ),
    ),
    Case(
        "BN-06",
        "other orders",
        "equal bytes",
        ("workflow/test_evaluate.py::test_bytes_do_not_depend_on_the_order_of_rows_and_subjects",),
    ),
    Case(
        "BN-07",
        "a test patient was trained on",
        "3 LEAK",
        (
            "workflow/test_benchmark.py::test_test_patient_in_training_is_a_leak",
            "workflow/test_benchmark.py::test_patient_under_another_name_is_a_leak",
        ),
    ),
    Case(
        "BN-08",
        "costs",
        "device, threads, warm-up",
        ("workflow/test_benchmark.py::test_costs_say_batch_precision_and_work",),
    ),
    Case(
        "BN-09",
        "names that are formulas or markup",
        "text in CSV, HTML, Markdown, LaTeX",
        (
            "test_report.py::test_names_are_text_and_never_markup",
            "test_report.py::test_markdown_keeps_rows_and_columns_for_any_text",
            "test_report.py::test_csv_starts_no_formula",
            "test_report.py::test_latex_keeps_a_cell_a_cell",
        ),
    ),
]

SECURITY = [
    Case("SE-01", "target `os.system`", "10 before any import"),
    Case(
        "SE-02",
        "target `builtins.eval`",
        "10 before any import",
        (
            "robustness/test_what_gets_in.py::test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot",
        ),
    ),
    Case(
        "SE-03",
        "target `torch.hub.load`",
        "10 before any import",
        (
            "robustness/test_what_gets_in.py::test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot",
        ),
    ),
    Case(
        "SE-04",
        "target `torch.load`",
        "10 before any import",
        (
            "robustness/test_what_gets_in.py::test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot",
        ),
    ),
    Case(
        "SE-05",
        "target `logging.os.system`",
        "10 before any import",
        (
            "robustness/test_what_gets_in.py::test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot",
        ),
    ),
    Case(
        "SE-06",
        "target `instantiate_from_config`",
        "10 before any import",
        (
            "robustness/test_what_gets_in.py::test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot",
            "test_config.py::test_refusing_imports_nothing",
        ),
    ),
    Case(
        "SE-07",
        "in every slot",
        "the same gate",
        (
            "robustness/test_what_gets_in.py::test_se_01_to_se_07_a_foreign_class_is_refused_in_every_slot",
            "test_config.py::test_a_model_folder_cannot_name_another_class_anywhere",
        ),
    ),
    Case(
        "SE-08",
        "a class in the wrong slot, a function",
        "2 CONFIG-TARGET",
        (
            "robustness/test_values.py::test_cf_03_a_value_that_cannot_be_meant",
            "test_config.py::test_a_function_is_no_class_even_if_the_user_names_it",
        ),
    ),
    Case(
        "SE-09",
        "YAML tags, aliases, bombs",
        "10 at once",
        ("test_config.py::test_yaml_that_is_a_weapon_is_refused_at_once",),
    ),
    Case(
        "SE-10",
        "the environment in a configuration",
        "10",
        ("test_config.py::test_the_environment_never_enters_a_config",),
    ),
    Case("SE-11", "an archive as data or model", "3 or 4, not unpacked"),
    Case("SE-12", "links in outputs, a race for a name", "5, not followed, kept"),
    Case(
        "SE-13",
        "names of patients in headers and paths",
        "in no output (the path: in place.json, 0600, and in manifest.csv)",
        ("test_nifti.py::test_no_text_of_the_input_travels",),
    ),
    Case(
        "SE-14",
        "the report",
        "its own scripts only, a policy, nothing from outside",
        ("test_report.py::test_page_reads_nothing_from_outside_and_runs_only_its_own_scripts",),
    ),
    Case(
        "SE-15",
        "no network",
        "0, no connection (all tests of verbs run so)",
        (
            "workflow/test_sample.py::test_needs_no_true_t1ce",
            "workflow/test_train.py::test_run_folder_is_complete",
        ),
    ),
    Case("SE-16", "torch below 2.10, stolen Lightning", "10 UNSAFE-VERSION"),
    Case(
        "SE-17",
        "calls that run foreign code",
        "none in the source",
        ("test_architecture.py::test_nothing_loads_or_runs_foreign_code",),
    ),
    Case("SE-18", "temporary files", "0600, no name that can be guessed"),
]

NUMBERS = [
    Case(
        "NU-01",
        "schedules",
        "fall, variances are kept",
        (
            "test_schedule.py::test_noise_only_grows",
            "test_schedule.py::test_the_variance_is_preserved",
        ),
    ),
    Case(
        "NU-02",
        "terminal signal-to-noise ratio",
        "as stated, 1e-6",
        (
            "test_schedule.py::test_terminal_snr",
            "test_gaussian.py::test_eps_is_refused_where_the_path_starts_in_pure_noise",
        ),
    ),
    Case(
        "NU-03",
        "round trips of eps, x0, v",
        "1e-12; float32 1e-5",
        (
            "test_gaussian.py::test_every_parameterisation_gives_back_the_data",
            "test_gaussian.py::test_round_trips_in_float32",
        ),
    ),
    Case(
        "NU-04",
        "q and its posterior",
        "the product of Gaussians",
        (
            "test_gaussian.py::test_forward_process_has_the_moments_of_a_gaussian",
            "test_gaussian.py::test_posterior_is_the_product_of_prior_and_likelihood",
        ),
    ),
    Case(
        "NU-05",
        "orders of convergence of the samplers",
        "1, 2, 2, 3",
        ("test_samplers.py::test_order_of_convergence_to_the_probability_flow",),
    ),
    Case(
        "NU-06",
        "DDPM",
        "mean and variance, and moments of samples",
        (
            "test_samplers.py::test_ddpm_propagates_mean_and_variance",
            "test_samplers.py::test_ddpm_samples_have_the_moments_of_the_data",
        ),
    ),
    Case(
        "NU-07",
        "samplers that are one",
        "1e-10",
        (
            "test_samplers.py::test_ddim_with_eta_1_is_ddpm",
            "test_samplers.py::test_first_order_steps_are_ddim",
            "test_samplers.py::test_every_parameterisation_of_one_model_gives_the_same_sample",
        ),
    ),
    Case(
        "NU-08",
        "grids of timesteps",
        "n distinct, in range",
        ("test_schedule.py::test_every_count_of_steps_has_distinct_timesteps",),
    ),
    Case(
        "NU-09",
        "guidance 0, 1, between",
        "linear, 1e-12",
        (
            "test_guidance.py::test_scale_1_is_conditional_and_0_unconditional",
            "test_guidance.py::test_guidance_is_linear_in_its_scale",
        ),
    ),
    Case(
        "NU-10",
        "the average of the weights",
        "its closed form",
        (
            "workflow/test_train.py::test_ema_follows_its_closed_form",
            "test_importing.py::test_names_that_lose_their_difference_with_the_dots_are_refused",
        ),
    ),
    Case(
        "NU-11",
        "metrics",
        "those of scikit-image; masked: a loop",
        (
            "test_metrics.py::test_voxel_metrics_equal_scikit_image",
            "test_metrics.py::test_ssim_is_the_mean_of_scikit_image_over_slices",
            "test_metrics.py::test_masked_ssim_equals_a_loop_over_windows",
        ),
    ),
    Case(
        "NU-12",
        "the scale of latents",
        "applied and inverted once",
        ("test_first_stage.py::test_scale_is_applied_once_and_inverted_once",),
    ),
    Case(
        "NU-13",
        "losses and their weights",
        "0 for the truth; by hand",
        (
            "test_latent_diffusion.py::test_loss_of_the_exact_prediction_is_zero",
            "test_gaussian.py::test_min_snr_weights_by_hand",
            "test_bound.py::test_kl_of_normals_equals_torch",
        ),
    ),
    Case(
        "NU-14",
        "networks",
        "gradient in every parameter, odd sizes",
        (
            "test_backbones.py::test_shape_and_gradient_in_every_parameter",
            "test_backbones.py::test_odd_sizes_are_padded_and_cropped",
        ),
    ),
    Case(
        "NU-15",
        "gradient checkpointing",
        "changes nothing",
        ("test_backbones.py::test_checkpointing_changes_nothing",),
    ),
]

BEYOND = [
    Case(
        "EX-00",
        "the same damage to nibabel, torch and Lightning",
        "see beside",
        (
            "robustness/test_stock.py::test_a_compressed_volume",
            "robustness/test_stock.py::test_a_checkpoint",
            "robustness/test_stock.py::test_a_kill_while_saving_over_the_only_checkpoint",
            "robustness/test_stock.py::test_a_loss_that_is_nan",
        ),
    ),
    Case("EX-01", "a torn small file", "3 with its name, or made again"),
    Case("EX-02", "a verb in the folder of another", "5 OUT-OWNER"),
    Case("EX-03", "an output is the T1 of a table", "5 OUT-INPUT"),
    Case("EX-04", "an option that cannot be meant", "2"),
    Case("EX-05", "the working directory was removed", "2 USAGE"),
    Case("EX-09", "a file of equal size and time", "read anew"),
    Case("EX-11", "an odd sidecar beside a prediction", "9, a failure of its patient"),
    Case(
        "EX-12",
        "headers, settings, small files at random",
        "read, or refused with a code; no hang, nothing silent",
        (
            "robustness/test_fuzz.py::test_headers",
            "robustness/test_fuzz.py::test_settings",
            "robustness/test_fuzz.py::test_small_files",
        ),
    ),
    Case("EX-13", "another package `ldm` on the path", "2 INSTALL-SHADOWED with its folder"),
    Case(
        "SE-X1",
        "a package of a trusted name in the working directory",
        "10 UNSAFE-IMPORT; not installed: 2",
    ),
    Case(
        "SE-X2",
        "a run folder says where to write",
        "2, or not used",
        ("robustness/test_values.py::test_cf_03_a_value_that_cannot_be_meant",),
    ),
    Case("SE-X7", "temporary files of others", "kept"),
]

LISTED = [*INPUTS, *CONFIGURATION, *CHECKPOINTS, *TRAINING, *SAMPLING, *OUTPUTS, *BENCHMARK]
LISTED += SECURITY
CASES = [*LISTED, *NUMBERS, *BEYOND]
NAMED = re.compile(rf"test_((?:(?:{'|'.join(GROUPS).lower()})_x?\d+_)+)")


def cases_of(test: str) -> list[str]:
    """Return the ids of the cases that a test shows.

    Args:
        test: file and function, as ``test_nifti.py::test_only_three_axes``.
    """
    named = NAMED.match(test.partition("::")[2])
    ids = re.findall(r"([a-z]+)_(x?\d+)_", named[1]) if named else []
    told = {f"{group}-{number}".upper() for group, number in ids}
    return [case.id for case in CASES if test in case.tests or case.id in told]
