"""The acceptance cases of reliability: one table of what is done, what is asked, and which test.

``pytest -m robustness`` runs these tests and writes ``robustness.json``; ``python
scripts/describe_reliability.py robustness.json`` makes the tables of docs/reliability.md of both. A
case without a test counts as not tried. Each test makes its fault happen, and looks that it has.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One case.

    Args:
        id: group and number.
        fault: what is done.
        asked: exit code, and what the user reads or keeps.
        tests: files and functions below ``tests``, as ``test_nifti.py::test_tiny_volumes``.
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


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}.py::test_{name}" for name in names)


def _nifti(*names: str) -> tuple[str, ...]:
    return _of("test_nifti", *names)


def _inputs(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_inputs", *names)


def _values(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_values", *names)


def _kept(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_nothing_is_lost", *names)


def _claims(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_claims", *names)


def _files(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_checkpoints", *names)


def _bound(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_a_run_is_its_config", *names)


def _training(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_training_survives", *names)


def _sampling(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_sampling_survives", *names)


def _gates(*names: str) -> tuple[str, ...]:
    return _of("robustness/test_gates", *names)


def _sample(*names: str) -> tuple[str, ...]:
    return _of("workflow/test_sample", *names)


def _train(*names: str) -> tuple[str, ...]:
    return _of("workflow/test_train", *names)


def _wrong(*names: str) -> tuple[str, ...]:
    return _of("workflow/test_errors", *names)


def _config(*names: str) -> tuple[str, ...]:
    return _of("test_config", *names)


SLOTS = _gates("se_01_to_se_07_a_foreign_class_is_refused_in_every_slot")
SEEDED = _of("test_storage", "a_seed_is_the_same_in_every_process_and_on_every_machine")
KILLS = "robustness/test_kills"

INPUTS = [
    Case(
        "DI-01",
        "NaN or infinity in a volume",
        "3 DATA-NONFINITE, count and first voxel; `--nonfinite zero` is recorded",
        _inputs("di_01_nan_set_to_zero_is_recorded")
        + _nifti("non_finite_voxels_are_counted_and_located_as_stored"),
    ),
    Case(
        "DI-02",
        "a constant or empty channel",
        "3 DATA-CONSTANT",
        _of("test_prepare", "a_subject_that_cannot_be_used_says_why")
        + _of("test_normalise", "no_spread_is_refused"),
    ),
    Case(
        "DI-03",
        "contrasts of different shape",
        "3 DATA-SHAPE with both",
        _wrong("contrasts_of_different_shape"),
    ),
    Case(
        "DI-04",
        "contrasts shifted, turned or mirrored",
        "3 DATA-AFFINE with millimetres",
        _nifti("contrasts_on_different_grids_are_told_apart"),
    ),
    Case(
        "DI-05",
        "a fourth axis of length 1",
        "0, dropped and logged",
        _nifti("a_fourth_axis_of_length_one_is_dropped"),
    ),
    Case("DI-06", "4-D, 5-D, 2-D", "3 DATA-NDIM", _nifti("only_three_axes")),
    Case(
        "DI-07",
        "a contrast is missing",
        "3 DATA-MISSING with the expected file",
        _inputs("di_07_di_24_a_file_that_cannot_be_opened_is_told_with_its_case")
        + _wrong("missing_flair")
        + _of("test_prepare", "a_missing_contrast_is_a_mask"),
    ),
    Case(
        "DI-08",
        "48 orientations, oblique",
        "0, voxel for voxel the same",
        _nifti("all_48_orientations_are_one_canonical_volume")
        + _of("test_prepare", "preparing_commutes_with_reorienting_bit_by_bit")
        + _sample("lps_and_ras_input_give_one_brain"),
    ),
    Case(
        "DI-09",
        "thick slices that no training patient had",
        "0, a warning, zooms kept",
        _inputs("di_09_a_spacing_that_no_patient_of_the_training_had_is_told"),
    ),
    Case("DI-10", "a cut .nii.gz", "3 DATA-CORRUPT", _nifti("every_truncation_is_caught")),
    Case(
        "DI-11",
        "a flipped bit, a lost page",
        "3 DATA-CORRUPT wherever voxels change",
        _nifti(
            "every_bit_flip_that_changes_voxels_or_geometry_is_caught", "a_zeroed_page_is_caught"
        ),
    ),
    Case(
        "DI-12",
        "gzip trailer missing or wrong, garbage, two members",
        "3 DATA-CORRUPT",
        _nifti("the_end_of_the_gzip_stream_is_checked"),
    ),
    Case(
        "DI-13",
        "a changed file without a checksum of its own",
        "3 DATA-DIGEST where a manifest names it",
        _inputs("tr_09_di_13_a_file_is_compared_with_the_manifest_that_names_it"),
    ),
    Case(
        "DI-14",
        "no NIfTI: renamed, PNG, empty, folder, pipe, socket, device",
        "3 DATA-FORMAT, no hang",
        _inputs(
            "di_14_what_is_no_regular_file_is_refused_before_it_is_opened",
            "di_14_a_pipe_hangs_no_verb",
            "di_14_a_pipe_among_slices_hangs_no_layout",
        )
        + _nifti("what_is_no_nifti_file", "a_pipe_is_refused_instead_of_waited_for"),
    ),
    Case(
        "DI-15",
        "dimensions beyond the file",
        "3 DATA-TOO-LARGE before any memory",
        _nifti("a_small_file_cannot_fill_the_memory"),
    ),
    Case(
        "DI-16",
        "a gzip bomb",
        "3 DATA-TOO-LARGE",
        _nifti("a_small_file_cannot_fill_the_memory"),
    ),
    Case(
        "DI-17",
        "header fields that cannot be",
        "3 DATA-HEADER",
        _nifti(
            "a_wrong_header_is_named_before_anything_is_read",
            "any_header_is_read_or_refused_with_a_stable_code",
        ),
    ),
    Case(
        "DI-18",
        "slope 0, NaN, infinite",
        "not scaled, or 3 DATA-SCALE",
        _nifti(
            "a_slope_of_zero_or_nan_means_unscaled",
            "a_wrong_header_is_named_before_anything_is_read",
        ),
    ),
    Case(
        "DI-19",
        "scaled, big-endian, NIfTI-2, pairs",
        "the values of nibabel; a pair is refused",
        _nifti(
            "slope_intercept_big_endian_nifti2_and_extremes_of_uint16",
            "every_real_type_is_read_as_nibabel_reads_it",
            "a_header_and_image_pair_is_refused_with_the_remedy",
        ),
    ),
    Case(
        "DI-20",
        "odd zooms, no form, two forms, shear",
        "3 DATA-AFFINE, or a warning; which form won is recorded",
        _inputs("di_20_which_form_of_the_header_won_is_recorded")
        + _nifti(
            "a_wrong_header_is_named_before_anything_is_read",
            "sform_wins_over_a_different_qform_and_says_so",
            "sheared_axes_are_kept_with_a_warning",
        ),
    ),
    Case(
        "DI-21",
        "ids that collide or escape",
        "3 DATA-ID",
        _of(
            "test_layouts",
            "ids_that_look_alike_stay_apart",
            "one_id_in_two_folders_or_differing_in_case_only_is_refused",
            "an_id_that_cannot_name_an_output_is_refused",
        ),
    ),
    Case(
        "DI-22",
        "names within names",
        "exact match, or 3 DATA-AMBIGUOUS",
        _of(
            "test_layouts",
            "nothing_is_matched_by_substring",
            "two_files_of_one_contrast_are_ambiguous",
        ),
    ),
    Case(
        "DI-23",
        "tiny and odd sizes",
        "0, every voxel in its place",
        _nifti("tiny_volumes")
        + _of(
            "test_prepare",
            "odd_and_tiny_sizes",
            "fit_size_is_symmetric_and_a_pad_is_undone_by_a_crop",
        ),
    ),
    Case(
        "DI-24",
        "unreadable, vanished, a link to nothing",
        "3 DATA-IO with case and reason",
        _inputs("di_07_di_24_a_file_that_cannot_be_opened_is_told_with_its_case")
        + _nifti("what_the_system_refuses_is_named"),
    ),
    Case(
        "DI-25",
        "large, negative, heavy-tailed intensities",
        "0, finite and in order",
        _of("test_prepare", "negative_intensities_and_a_large_scale_are_data")
        + _of("test_normalise", "any_intensities_are_refused_or_normalised_in_order"),
    ),
]

CONFIGURATION = [
    Case(
        "CF-01",
        "an unknown or misspelt key",
        "2 CONFIG-UNKNOWN with the nearest name",
        _config("a_misspelt_key_is_refused_with_the_nearest_name"),
    ),
    Case(
        "CF-02",
        "left open, interpolation, duplicate key, tabs, no mapping, BOM",
        "2 CONFIG-PARSE with the line",
        _config(
            "what_is_no_plain_mapping_is_refused_with_its_line",
            "a_byte_order_mark_is_no_part_of_the_first_key",
            "a_value_left_open_is_named",
        ),
    ),
    Case(
        "CF-03",
        "a value of the wrong type, or that cannot be meant",
        "2 CONFIG-VALUE, nothing is made",
        _values(
            "cf_03_a_value_that_cannot_be_meant",
            "cf_03_every_shipped_number_has_a_range_and_lies_in_it",
            "cf_03_a_range_says_what_it_takes",
        )
        + _config("a_value_of_the_wrong_type_is_refused_with_its_path"),
    ),
    Case(
        "CF-04",
        "`no`, `1e-4`, `08`, `12:30`, `0123`",
        "typed, or 2 CONFIG-VALUE",
        _values(
            "cf_04_what_yaml_reads_as_another_number_is_refused",
            "cf_04_nor_is_it_taken_on_the_command_line",
            "cf_04_a_word_that_yaml_takes_for_a_switch_is_no_name_and_no_number",
            "cf_04_what_is_quoted_or_grouped_is_read_as_it_is_meant",
        )
        + _config("numbers_that_yaml_1_1_hides_are_typed"),
    ),
    Case(
        "CF-05",
        "settings that exclude each other",
        "2 CONFIG-SHAPE before any data",
        _wrong("wrong_configuration")
        + _of(
            "test_latent_diffusion",
            "backbone_is_told_its_channels_and_a_contradiction_is_refused",
            "every_option_is_checked",
        ),
    ),
    Case(
        "CF-06",
        "overrides; the saved configuration again",
        "0, identical",
        _config("files_merge_left_to_right_then_overrides", "a_saved_config_is_read_back_identical")
        + _of("test_shipped_configs", "dry_run_prints_a_config_that_gives_itself"),
    ),
    Case(
        "CF-07",
        "a target that is missing or misspelt",
        "2 CONFIG-TARGET",
        _config("the_ways_a_target_can_fail_are_told_apart"),
    ),
    Case(
        "CF-08",
        "`--dry-run` of every shipped configuration",
        "0",
        _of("test_shipped_configs", "tiny_backbone_builds", "processes_build_behind_a_backbone"),
    ),
    Case(
        "CF-09",
        "counts of steps, possible and not",
        "distinct and in range, or 2",
        _values("cf_09_steps_that_the_schedule_does_not_have")
        + _of(
            "test_schedule",
            "every_count_of_steps_has_distinct_timesteps",
            "a_count_of_steps_out_of_range_is_refused",
        ),
    ),
]

CHECKPOINTS = [
    Case(
        "CK-01",
        "300 truncations of the newest",
        "the generation before, both named; 4 if there is none",
        _files(
            "ck_01_every_truncation_falls_back_to_the_generation_before",
            "ck_01_the_only_generation_that_is_cut_is_refused",
        )
        + _bound("ck_01_both_generations_are_named")
        + _train("damaged_checkpoint_falls_back_to_the_one_before"),
    ),
    Case(
        "CK-02",
        "1000 flipped bits, 300 lost pages",
        "none is silent",
        _files("ck_02_no_flipped_bit_and_no_lost_page_is_silent"),
    ),
    Case(
        "CK-03",
        "empty, HTML, Git LFS pointer, another format",
        "4 CKPT-FORMAT: what it looks like",
        _files("ck_03_the_message_says_what_it_looks_like"),
    ),
    Case(
        "CK-04",
        "keys, shapes or a configuration that do not belong",
        "4 CKPT-MISMATCH",
        _bound(
            "ck_04_an_edited_configuration_is_refused",
            "ck_04_where_the_data_are_may_be_edited",
            "ck_04_a_checkpoint_that_lost_a_part",
            "ck_04_a_checkpoint_that_lost_a_weight",
        ),
    ),
    Case(
        "CK-05",
        "a later format; an earlier one",
        "4 CKPT-VERSION; read",
        _bound("ck_05_a_checkpoint_of_a_later_version")
        + _of("test_latent_diffusion", "a_saved_run_of_before_is_read_by_its_old_names"),
    ),
    Case(
        "CK-06",
        "NaN among the weights",
        "4 CKPT-NONFINITE",
        _bound("ck_06_weights_that_are_nan_are_found_before_any_step"),
    ),
    Case(
        "CK-07",
        "a pickle payload anywhere",
        "10, it does not run",
        _files(
            "ck_07_a_payload_anywhere_in_a_checkpoint_does_not_run",
            "ck_07_no_verb_runs_a_payload",
        )
        + _of("test_importing", "payload_is_refused_and_does_not_run"),
    ),
    Case(
        "CK-08",
        "a bomb, too many entries, `../` in names",
        "10 or 4, nothing is written",
        _files("ck_08_archives_that_are_weapons"),
    ),
    Case(
        "CK-09",
        "no checkpoint; `--resume` of an empty folder",
        "4 CKPT-MISSING, no fresh start",
        _files("ck_09_an_empty_folder_is_never_begun_anew") + _wrong("missing_checkpoint"),
    ),
    Case(
        "CK-10",
        "half precision, DDP and compiled prefixes",
        "0, equal outputs",
        _files("ck_10_half_precision_is_read_as_it_is")
        + _of("test_importing", "prefixes", "half_precision_is_widened"),
    ),
    Case(
        "CK-11",
        "SIGKILL at six points of a save",
        "one interval is lost at most",
        _files("ck_11_a_kill_anywhere_in_a_save_loses_one_interval_at_most"),
    ),
    Case(
        "CK-12",
        "a full or forbidden disk in a save",
        "a warning, tried again; 5 after the third",
        _training(
            "ck_12_a_failed_save_is_told_and_tried_again",
            "ck_12_the_third_failure_ends_the_training_and_the_old_save_stays",
            "ck_12_the_last_save_must_succeed",
        ),
    ),
    Case(
        "CK-13",
        "a save that fails",
        "both generations are kept",
        _files("ck_13_a_save_that_fails_keeps_both_generations"),
    ),
    Case(
        "CK-14",
        "the newest is a link to nothing, empty, a folder",
        "the generation before",
        _files("ck_14_a_newest_generation_that_is_none"),
    ),
    Case(
        "CK-15",
        "averaged or last weights",
        "the sidecar says which",
        _bound("ck_15_the_sidecar_says_which_weights"),
    ),
    Case(
        "CK-16",
        "umask; no folder for temporary files",
        "0644 under 022; no matter",
        _files("ck_16_neither_the_umask_nor_the_folder_for_temporary_files_matters")
        + _of("test_storage", "a_new_file_has_the_rights_that_the_user_asks_for"),
    ),
]

TRAINING = [
    Case(
        "TR-01",
        "SIGKILL at random moments, again and again",
        "bitwise the uninterrupted run",
        _of(KILLS, "tr_01_a_training_that_is_killed_again_and_again"),
    ),
    Case(
        "TR-02",
        "SIGTERM, SIGINT, SIGUSR1, twice",
        "143, 130, goes on; nothing lost",
        _train("signal_saves_and_the_run_resumes_exactly")
        + _training(
            "tr_02_ctrl_c_answers_at_once_and_saves_before_any_validation",
            "tr_02_a_second_ctrl_c_says_what_is_lost",
        ),
    ),
    Case(
        "TR-03",
        "NaN in loss or gradient",
        "6 before the step, with its cases",
        _training("tr_03_a_nan_gradient_names_step_and_cases")
        + _train("nan_stops_before_the_weights"),
    ),
    Case(
        "TR-04",
        "overflow of the fp16 scaler",
        "left out and told; 6 at the 21st in a row",
        _training(
            "tr_04_steps_that_overflow_in_fp16_are_left_out_until_the_scale_fits",
            "tr_04_a_gradient_that_overflows_at_every_scale_ends_the_training",
        ),
    ),
    Case(
        "TR-05",
        "a worker is killed, fails, stops",
        "8 within 30 s, no process left",
        _of(
            "robustness/test_workers",
            "tr_05_a_worker_that_is_gone_ends_the_training",
            "tr_05_an_oserror_of_a_worker_is_no_error_of_the_output",
            "tr_05_the_limit_is_half_a_minute_where_processes_are_forked",
        ),
    ),
    Case("TR-06", "one rank of several is killed, fails, stops", "all end, 8 or 143"),
    Case(
        "TR-07",
        "memory is exhausted",
        "7, the checkpoint is whole",
        _sampling("sa_09_tr_07_memory_that_is_exhausted"),
    ),
    Case(
        "TR-08",
        "one patient, none, no validation",
        "0; none: 3; no hang",
        _of("robustness/test_training_data", "tr_08_few_patients")
        + _of("test_split", "nothing_to_train_on_is_an_error"),
    ),
    Case(
        "TR-09",
        "a damaged cache entry; a damaged patient",
        "made again; 3 with its name",
        _of(
            "robustness/test_cache",
            "tr_09_a_damaged_entry_is_made_again",
            "tr_09_a_copied_entry_is_read_once_and_kept",
        )
        + _wrong("truncated_nifti")
        + _inputs("tr_09_di_13_a_file_is_compared_with_the_manifest_that_names_it"),
    ),
    Case(
        "TR-10",
        "two runs in one folder; a lock of a dead process",
        "11; taken over",
        _wrong("busy_run_folder")
        + _of("test_storage", "a_folder_has_one_owner_until_that_owner_is_gone"),
    ),
    Case(
        "TR-11",
        "data changed between runs",
        "4 unless `--allow-data-change`",
        _bound(
            "tr_11_other_files_are_refused_unless_the_user_says_so",
            "tr_11_other_patients_are_refused",
        ),
    ),
    Case(
        "TR-12",
        "`--resume` with other settings",
        "a list of those taken, else 4 CKPT-MISMATCH",
        _bound(
            "tr_12_a_change_that_makes_another_run_is_refused",
            "tr_12_what_a_resumed_run_takes_is_applied",
        ),
    ),
    Case(
        "TR-13",
        "output closed, terminal lost, disk of the log full",
        "training goes on",
        _training(
            "tr_13_output_that_nobody_takes_ends_no_training",
            "tr_13_a_pipe_that_closes_at_the_first_line",
            "tr_13_a_lost_terminal_saves_and_goes_on",
        ),
    ),
    Case("TR-14", "one and two processes, one global batch", "the same gradients"),
    Case(
        "TR-15",
        "resumed at any step",
        "bitwise",
        _train("resumed_equals_uninterrupted"),
    ),
    Case(
        "TR-16",
        "the same seed twice; 0 and 2 workers",
        "bitwise",
        _of("robustness/test_training_data", "tr_16_seed_and_workers_decide_nothing_else"),
    ),
]

SAMPLING = [
    Case(
        "SA-01",
        "SIGKILL at random moments, again and again",
        "byte for byte the uninterrupted volumes",
        _of(KILLS, "sa_01_a_sampler_that_is_killed_again_and_again"),
    ),
    Case(
        "SA-02",
        "a damaged earlier output",
        "made again",
        _kept("sa_02_a_damaged_deviation_is_made_again")
        + _sample("run_again_skips_and_a_damaged_output_is_redone"),
    ),
    Case(
        "SA-03",
        "a sidecar is torn or lost",
        "made again and compared; another volume: 5",
        _kept("sa_03_a_volume_without_sidecar_is_made_again_and_compared")
        + _sample("killed_between_sidecar_and_volume_goes_on"),
    ),
    Case(
        "SA-04",
        "the disk is full at the second patient",
        "5 with the bytes needed, the first is kept",
        _kept("sa_04_a_disk_that_is_full_at_the_second_of_three_says_how_much_is_needed"),
    ),
    Case(
        "SA-05",
        "the output is a file, or read-only",
        "5 before the model is read",
        _sampling("sa_05_an_output_that_cannot_be_is_refused_before_the_model_is_read"),
    ),
    Case(
        "SA-06",
        "one patient is damaged",
        "9, the others are written",
        _sample("a_bad_subject_does_not_stop_the_others"),
    ),
    Case(
        "SA-07",
        "other batch sizes, order, subset",
        "equal up to rounding",
        _sample("independent_of_batch_size_and_order") + SEEDED,
    ),
    Case(
        "SA-08",
        "the network returns NaN",
        "6, no file",
        _sampling("sa_08_a_network_that_returns_nan_writes_nothing"),
    ),
    Case(
        "SA-09",
        "memory is exhausted",
        "7, no file",
        _sampling("sa_09_tr_07_memory_that_is_exhausted"),
    ),
    Case("SA-10", "there is no T1ce", "0", _sample("needs_no_true_t1ce")),
    Case(
        "SA-11",
        "a batch of slices is lost",
        "6 or 8, never filled",
        _sampling("sa_11_a_slice_that_cannot_be_sampled_is_never_filled"),
    ),
    Case(
        "SA-12",
        "two samplers in one folder",
        "11, the first is unharmed",
        _sampling("sa_12_a_second_sampler_in_one_folder_is_told_and_the_first_is_unharmed")
        + _kept("se_x7_foreign_temporary_files_stay"),
    ),
    Case(
        "SA-13",
        "another model or request in one folder",
        "5 unless `--overwrite`",
        _sample("other_settings_are_not_mixed_in"),
    ),
    Case(
        "SA-14",
        "SIGTERM",
        "143, no temporary file, goes on",
        _sampling("sa_14_sigterm_leaves_no_temporary_file_and_the_command_goes_on"),
    ),
]

OUTPUTS = [
    Case(
        "OI-01",
        "geometry of the output",
        "that of the input, exactly",
        _nifti("the_output_takes_the_place_of_its_input", "codes_of_both_forms_are_kept")
        + _sample("output_takes_the_place_of_its_input"),
    ),
    Case(
        "OI-02",
        "an int16 input",
        "float32 output, not squeezed",
        _nifti("an_int16_input_does_not_squeeze_the_output"),
    ),
    Case(
        "OI-03",
        "background",
        "exactly 0",
        _sample("output_takes_the_place_of_its_input"),
    ),
    Case(
        "OI-04",
        "an output exists",
        "5 OUT-EXISTS, kept",
        _nifti("an_existing_output_is_kept_unless_told_otherwise")
        + _kept("oi_04_a_foreign_deviation_is_kept")
        + _claims("oi_04_a_strangers_file_is_neither_replaced_nor_removed"),
    ),
    Case(
        "OI-05",
        "an output would be an input",
        "5 OUT-INPUT, also with `--overwrite`",
        _kept(
            "oi_05_sample_into_the_patients_folder",
            "oi_05_segment_predict_keeps_the_doctors_labels",
        )
        + _claims(
            "oi_05_an_input_is_never_an_output_even_with_overwrite",
            "oi_05_what_stands_in_an_input_folder_is_kept_though_no_layout_names_it",
        ),
    ),
    Case("OI-06", "inputs after every verb", "unchanged", _sample("inputs_are_never_changed")),
    Case(
        "OI-07",
        "nibabel and SimpleITK",
        "equal voxels and geometry",
        _nifti("simpleitk_sees_the_same_voxels_and_geometry"),
    ),
    Case(
        "OI-08",
        "a volume that is not finite",
        "6, nothing is written",
        _nifti("nothing_half_good_is_written"),
    ),
    Case(
        "OI-09",
        "padding and cropping",
        "every voxel returns",
        _of("test_prepare", "every_voxel_returns_to_its_index_in_the_file"),
    ),
    Case(
        "OI-10",
        "the same command twice",
        "equal bytes",
        _nifti("equal_input_gives_equal_bytes"),
    ),
    Case(
        "OI-11",
        "cropped to the brain",
        "the origin moves with it",
        _of(
            "test_prepare",
            "a_prepared_subject_is_the_cropped_brain_in_channels",
            "any_box_of_brain_returns_from_any_orientation_and_axis",
        ),
    ),
    Case(
        "OI-12",
        "the sidecar",
        "model, seed, sampler, Synthetic; no path",
        _sample("sidecar_says_how_it_was_made"),
    ),
]

_benchmark = "workflow/test_benchmark"
BENCHMARK = [
    Case(
        "BN-01",
        "one row fails",
        "9, FAILED with its reason, the others finish",
        _of(
            _benchmark,
            "failed_row_is_shown_and_tried_again",
            "a_failed_patient_is_shown_and_tried_again",
        ),
    ),
    Case(
        "BN-02",
        "rows with other patients",
        "compared by pairs, counted",
        _of(
            "workflow/test_evaluate",
            "rows_are_compared_patient_by_patient",
            "failed_cases_are_shown_and_counted",
        ),
    ),
    Case(
        "BN-03",
        "SIGKILL in training and sampling",
        "the same table",
        _of(_benchmark, "sigkill_twice_gives_the_table_of_an_undisturbed_run"),
    ),
    Case(
        "BN-04",
        "the truth itself; a constant reference; empty masks",
        "infinite or n/a, never dropped",
        _of(
            "robustness/test_evaluation",
            "bn_04_a_constant_reference_ends_no_evaluation",
            "bn_04_a_prediction_that_is_the_truth",
        )
        + _of(
            "test_metrics",
            "undefined_values_are_nan_and_warn_of_nothing",
            "equal_arrays_are_perfect",
        ),
    ),
    Case(
        "BN-05",
        "inputs of metrics",
        "not changed; symmetric where they should be",
        _of(
            "test_metrics",
            "inputs_are_not_modified_and_integers_are_welcome",
            "symmetric_where_the_formula_is",
        ),
    ),
    Case(
        "BN-06",
        "other orders",
        "equal bytes",
        _of("workflow/test_evaluate", "bytes_do_not_depend_on_the_order_of_rows_and_subjects"),
    ),
    Case(
        "BN-07",
        "a test patient was trained on",
        "3 LEAK",
        _of(
            _benchmark,
            "test_patient_in_training_is_a_leak",
            "patient_under_another_name_is_a_leak",
        ),
    ),
    Case(
        "BN-08",
        "costs",
        "device, threads, warm-up",
        _of(_benchmark, "costs_say_batch_precision_and_work"),
    ),
    Case(
        "BN-09",
        "names that are formulas or markup",
        "text in CSV, HTML, Markdown, LaTeX",
        _of(
            "test_report",
            "names_are_text_and_never_markup",
            "markdown_keeps_rows_and_columns_for_any_text",
            "csv_starts_no_formula",
            "latex_keeps_a_cell_a_cell",
        ),
    ),
]

SECURITY = [
    Case("SE-01", "target `os.system`", "10 before any import", SLOTS),
    Case("SE-02", "target `builtins.eval`", "10 before any import", SLOTS),
    Case("SE-03", "target `torch.hub.load`", "10 before any import", SLOTS),
    Case("SE-04", "target `torch.load`", "10 before any import", SLOTS),
    Case("SE-05", "target `logging.os.system`", "10 before any import", SLOTS),
    Case(
        "SE-06",
        "target `instantiate_from_config`",
        "10 before any import",
        SLOTS + _config("refusing_imports_nothing"),
    ),
    Case(
        "SE-07",
        "in every slot",
        "the same gate",
        SLOTS + _config("a_model_folder_cannot_name_another_class_anywhere"),
    ),
    Case(
        "SE-08",
        "a class in the wrong slot, a function",
        "2 CONFIG-TARGET",
        _values("cf_03_a_value_that_cannot_be_meant")
        + _config("a_function_is_no_class_even_if_the_user_names_it"),
    ),
    Case(
        "SE-09",
        "YAML tags, aliases, bombs",
        "10 at once",
        _config("yaml_that_is_a_weapon_is_refused_at_once"),
    ),
    Case(
        "SE-10",
        "the environment in a configuration",
        "10",
        _config("the_environment_never_enters_a_config"),
    ),
    Case(
        "SE-11",
        "an archive as data or model",
        "3 or 4, not unpacked",
        _gates("se_11_an_archive_is_not_unpacked"),
    ),
    Case(
        "SE-12",
        "links in outputs, a race for a name",
        "5, not followed, kept",
        _kept(
            "se_12_a_link_as_lock_empties_nothing",
            "se_12_a_volume_that_came_while_sampling_is_kept",
        )
        + _claims(
            "se_12_a_lock_follows_no_link_and_empties_nothing",
            "se_12_a_folder_of_a_run_that_is_a_link_is_not_followed",
            "se_12_a_lock_that_is_a_text_of_someone_is_refused_and_kept",
            "se_12_a_file_that_came_while_we_wrote_is_kept",
            "se_12_the_same_where_the_file_system_has_no_hard_links",
            "se_12_lines_are_not_appended_through_a_link",
        )
        + _gates("se_12_the_folder_of_tensorboard_is_no_link"),
    ),
    Case(
        "SE-13",
        "names of patients in headers and paths",
        "in no output (the path: in config.yaml and manifest.csv)",
        _gates(
            "se_13_no_text_of_a_header_and_no_path_of_the_data_is_in_what_is_given_away",
            "se_13_a_report_shows_the_end_of_a_path_alone",
        )
        + _nifti("no_text_of_the_input_travels"),
    ),
    Case(
        "SE-14",
        "the report",
        "its own scripts only, a policy, nothing from outside",
        _of("test_report", "page_reads_nothing_from_outside_and_runs_only_its_own_scripts"),
    ),
    Case(
        "SE-15",
        "no network",
        "0, no connection (all tests of verbs run so)",
        _sample("needs_no_true_t1ce") + _train("run_folder_is_complete"),
    ),
    Case(
        "SE-16",
        "torch below 2.10, stolen Lightning",
        "10 UNSAFE-VERSION",
        _gates(
            "se_16_a_torch_whose_weights_only_is_no_protection",
            "se_16_others_are_taken",
            "se_16_a_stolen_release_is_refused",
            "se_16_the_constraints_name_no_refused_version",
        ),
    ),
    Case(
        "SE-17",
        "calls that run foreign code",
        "none in the source",
        _of("test_architecture", "nothing_loads_or_runs_foreign_code"),
    ),
    Case(
        "SE-18",
        "temporary files",
        "0600, no name that can be guessed",
        _gates("se_18_names_of_temporary_files_cannot_be_guessed")
        + _claims("se_18_a_temporary_file_is_private_until_it_has_its_name"),
    ),
]

NUMBERS = [
    Case(
        "NU-01",
        "schedules",
        "fall, variances are kept",
        _of("test_schedule", "noise_only_grows", "the_variance_is_preserved"),
    ),
    Case(
        "NU-02",
        "terminal signal-to-noise ratio",
        "as stated, 1e-6",
        _of("test_schedule", "terminal_snr")
        + _of("test_gaussian", "eps_is_refused_where_the_path_starts_in_pure_noise"),
    ),
    Case(
        "NU-03",
        "round trips of eps, x0, v",
        "1e-12; float32 1e-5",
        _of(
            "test_gaussian",
            "every_parameterisation_gives_back_data_and_noise",
            "round_trips_in_float32",
        ),
    ),
    Case(
        "NU-04",
        "q and its posterior",
        "the product of Gaussians",
        _of(
            "test_gaussian",
            "forward_process_has_the_moments_of_a_gaussian",
            "posterior_is_the_product_of_prior_and_likelihood",
        ),
    ),
    Case(
        "NU-05",
        "orders of convergence of the samplers",
        "1, 2, 2, 3",
        _of("test_samplers", "order_of_convergence_to_the_probability_flow"),
    ),
    Case(
        "NU-06",
        "DDPM",
        "mean and variance, and moments of samples",
        _of(
            "test_samplers",
            "ddpm_propagates_mean_and_variance",
            "ddpm_samples_have_the_moments_of_the_data",
        ),
    ),
    Case(
        "NU-07",
        "samplers that are one",
        "1e-10",
        _of(
            "test_samplers",
            "ddim_with_eta_1_is_ddpm",
            "first_order_steps_are_ddim",
            "every_parameterisation_of_one_model_gives_the_same_sample",
        ),
    ),
    Case(
        "NU-08",
        "grids of timesteps",
        "n distinct, in range",
        _of("test_schedule", "every_count_of_steps_has_distinct_timesteps"),
    ),
    Case(
        "NU-09",
        "guidance 0, 1, between",
        "linear, 1e-12",
        _of(
            "test_guidance",
            "scale_1_is_conditional_and_0_unconditional",
            "guidance_is_linear_in_its_scale",
        ),
    ),
    Case(
        "NU-10",
        "the average of the weights",
        "its closed form",
        _train("ema_follows_its_closed_form")
        + _of("test_importing", "names_that_lose_their_difference_with_the_dots_are_refused"),
    ),
    Case(
        "NU-11",
        "metrics",
        "those of scikit-image; masked: a loop",
        _of(
            "test_metrics",
            "voxel_metrics_equal_scikit_image",
            "ssim_is_the_mean_of_scikit_image_over_slices",
            "masked_ssim_equals_a_loop_over_windows",
        ),
    ),
    Case(
        "NU-12",
        "the scale of latents",
        "applied and inverted once",
        _of("test_first_stage", "scale_is_applied_once_and_inverted_once"),
    ),
    Case(
        "NU-13",
        "losses and their weights",
        "0 for the truth; by hand",
        _of("test_latent_diffusion", "loss_of_the_exact_prediction_is_zero")
        + _of("test_gaussian", "min_snr_weights_by_hand")
        + _of("test_bound", "kl_of_normals_equals_torch"),
    ),
    Case(
        "NU-14",
        "networks",
        "gradient in every parameter, odd sizes",
        _of(
            "test_backbones",
            "shape_and_gradient_in_every_parameter",
            "odd_sizes_are_padded_and_cropped",
        ),
    ),
    Case(
        "NU-15",
        "gradient checkpointing",
        "changes nothing",
        _of("test_backbones", "checkpointing_changes_nothing"),
    ),
]

BEYOND = [
    Case(
        "EX-00",
        "the same damage to nibabel, torch and Lightning",
        "see beside",
        _of(
            "robustness/test_stock",
            "a_compressed_volume",
            "a_checkpoint",
            "a_kill_while_saving_over_the_only_checkpoint",
            "a_loss_that_is_nan",
        ),
    ),
    Case(
        "EX-01",
        "a torn small file",
        "3 with its name, or made again",
        _bound("ex_01_a_torn_list_of_patients", "ex_01_a_torn_digest_is_made_again"),
    ),
    Case(
        "EX-02",
        "a verb in the folder of another",
        "5 OUT-OWNER",
        _kept("ex_02_no_verb_writes_into_a_run", "ex_02_evaluate_keeps_strangers_files")
        + _claims(
            "ex_02_a_verb_refuses_the_folder_of_another",
            "ex_02_a_run_of_an_earlier_version_is_known_by_its_files",
            "ex_02_what_will_be_in_the_way_is_said_before_any_work",
        ),
    ),
    Case(
        "EX-03",
        "an output is the T1 of a table",
        "5 OUT-INPUT",
        _kept("ex_03_the_t1_of_a_table_is_no_output"),
    ),
    Case(
        "EX-04",
        "an option that cannot be meant",
        "2",
        _values("ex_04_an_option_that_cannot_be_meant"),
    ),
    Case(
        "EX-05",
        "the working directory was removed",
        "2 USAGE",
        _training("ex_05_a_removed_working_directory"),
    ),
    Case(
        "EX-09",
        "a file of equal size and time",
        "read anew",
        _of("robustness/test_cache", "ex_09_a_file_of_equal_size_and_time_is_another_file"),
    ),
    Case(
        "EX-11",
        "an odd sidecar beside a prediction",
        "9, a failure of its patient",
        _of(
            "robustness/test_evaluation",
            "ex_11_an_odd_sidecar_is_a_failure_of_its_patient",
            "ex_11_the_verb_says_so_with_exit_9",
            "ex_11_a_class_of_someone_in_a_sidecar_is_refused",
        ),
    ),
    Case(
        "EX-12",
        "headers, settings, small files at random",
        "read, or refused with a code; no hang, nothing silent",
        _of(
            "robustness/test_fuzz",
            "headers",
            "settings",
            "small_files",
        ),
    ),
    Case(
        "EX-13",
        "a package called ldm that is another one",
        "a sentence that names its folder",
    ),
    Case(
        "SE-X1",
        "a package of a trusted name in the working directory",
        "10 UNSAFE-IMPORT; not installed: 2",
        _gates(
            "se_x1_a_package_that_is_not_installed_is_not_taken_from_here",
            "se_x1_nor_where_python_would_look_there_first",
            "se_x1_what_the_user_names_may_lie_there",
        ),
    ),
    Case(
        "SE-X2",
        "a run folder says where to write",
        "2, or not used",
        _bound("se_x2_a_run_folder_names_no_cache") + _values("cf_03_a_value_that_cannot_be_meant"),
    ),
    Case(
        "SE-X7",
        "temporary files of others",
        "kept",
        _kept("se_x7_foreign_temporary_files_stay")
        + _claims(
            "se_x7_only_own_temporary_files_of_dead_processes_are_swept",
            "se_x7_the_sweep_follows_no_link",
        ),
    ),
]
LISTED = [*INPUTS, *CONFIGURATION, *CHECKPOINTS, *TRAINING, *SAMPLING, *OUTPUTS, *BENCHMARK]
LISTED += SECURITY
CASES = [*LISTED, *NUMBERS, *BEYOND]


def cases_of(test: str) -> list[str]:
    """Return the ids of the cases that a test shows.

    Args:
        test: id of pytest, with or without parameters, relative to the folder of the tests.
    """
    plain = test.partition("[")[0]
    return [case.id for case in CASES if plain in case.tests]
