"""The table of the cases: complete, and each of its tests exists."""

import re
from collections import Counter
from pathlib import Path

from robustness.cases import CASES, GROUPS, LISTED, cases_of
from robustness.record import described

TESTS = Path(__file__).parents[1]
SIZES = {"DI": 25, "CF": 9, "CK": 16, "TR": 16, "SA": 14, "OI": 12, "BN": 9, "SE": 18}


def test_the_119_cases_and_15_of_the_numbers_are_listed_once():
    assert Counter(case.group for case in LISTED) == SIZES
    assert sum(SIZES.values()) == len(LISTED) == 119
    assert sum(case.group == "NU" for case in CASES) == 15
    assert len({case.id for case in CASES}) == len(CASES)
    assert {case.group for case in CASES} == set(GROUPS)


def test_every_test_of_the_table_exists():
    for case in CASES:
        for test in case.tests:
            file, _, name = test.partition("::")
            text = (TESTS / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), (case.id, test)


def test_a_test_that_bears_the_id_of_a_case_shows_it():
    named = "robustness/test_inputs.py::test_di_07_di_24_a_file_that_cannot_be_opened"
    assert cases_of(named) == ["DI-07", "DI-24"]
    assert cases_of("x.py::test_se_x2_a_run_folder") == ["SE-X2"]
    assert cases_of("x.py::test_di_rectory") == cases_of("x.py::test_sampling_01_x") == []
    twice = [t for c in CASES for t in c.tests if c.id in cases_of(f"x::{t.partition('::')[2]}")]
    assert twice == []


def test_a_case_counts_the_runs_of_its_tests():
    test = "test_nifti.py::test_only_three_axes"
    runs = {"a": ("passed", False), "b": ("failed", True), "c": ("failed", False)}
    outcomes = {n: {"test": test, "outcome": o, "silent": s} for n, (o, s) in runs.items()}
    outcomes["d"] = {"test": test, "outcome": "skipped", "silent": False}
    rows = {row["case"]: row for row in described(outcomes)["cases"]}
    counts = ("survived", "tried", "silent_wrong")
    assert [rows["DI-06"][name] for name in counts] == [1, 3, 1]
    assert [rows["DI-05"][name] for name in counts] == [0, 0, 0]
