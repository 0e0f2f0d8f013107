"""What the tests of reliability have shown, as ``robustness.json``: the hooks of pytest for it.

A test of the table in :mod:`robustness.cases` is marked ``robustness``. Of a session with ``-m
robustness`` (also ``-m "robustness and not slow"``) the outcomes are written, those of other tests
in the file stay. A failed test counts as silently wrong where the verb answered 0, or nothing was
raised.
"""

import json
from pathlib import Path

import pytest
from robustness.cases import CASES, GROUPS, cases_of

from ldm import __version__

TESTS = Path(__file__).parents[1]
OUTCOMES = pytest.StashKey()
STOCK = pytest.StashKey()  # damage -> what libraries do as they come
LAST_CODE = pytest.StashKey()  # of the verb that a test ran last


def pytest_addoption(parser):
    parser.addoption(
        "--robustness-json",
        type=Path,
        default=Path("robustness.json"),
        metavar="FILE",
        help="outcomes of -m robustness, added to those in it (default: robustness.json)",
    )


def pytest_configure(config):
    """Refuse workers, whose outcomes would not reach the session that writes them."""
    told = "robustness" in (config.option.markexpr or "")
    if told and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("-m robustness writes one file: run it without -n")


def name_of(item) -> str:
    return f"{item.path.relative_to(TESTS).as_posix()}::{getattr(item, 'originalname', item.name)}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    config.stash[OUTCOMES] = {}
    for item in items:
        if item.path.is_relative_to(TESTS) and (ids := cases_of(name_of(item))):
            item.add_marker(pytest.mark.robustness(*ids))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if item.get_closest_marker("robustness") and (report.when == "call" or report.failed):
        silent = report.failed and (
            item.stash.get(LAST_CODE, None) == 0 or "DID NOT RAISE" in report.longreprtext
        )
        told = {"test": name_of(item), "outcome": report.outcome, "silent": bool(silent)}
        item.config.stash[OUTCOMES][item.nodeid] = told


def pytest_sessionfinish(session):
    config = session.config
    outcomes = config.stash.get(OUTCOMES, {})
    if outcomes and "robustness" in (config.option.markexpr or ""):
        path = config.getoption("--robustness-json")
        before = json.loads(path.read_text()) if path.exists() else {}
        told = described({**before.get("tests", {}), **outcomes})
        stock = {**before.get("stock", {}), **config.stash.get(STOCK, {})}
        path.write_text(json.dumps({**told, "stock": stock}, indent=1) + "\n")


def described(outcomes: dict) -> dict:
    """Return what is written: a row a case, and the outcome of each test."""
    rows = []
    for case in CASES:
        found = [told for told in outcomes.values() if case.id in cases_of(told["test"])]
        tried = [told for told in found if told["outcome"] != "skipped"]
        rows.append(
            {
                "case": case.id,
                "group": GROUPS[case.group],
                "fault": case.fault,
                "asked": case.asked,
                "survived": sum(told["outcome"] == "passed" for told in tried),
                "tried": len(tried),
                "silent_wrong": sum(told["silent"] for told in tried),
            }
        )
    return {"version": __version__, "cases": rows, "tests": outcomes}
