"""Write the tables of docs/reliability.md: ``python scripts/describe_reliability.py [JSON]``.

The file is what ``pytest -m robustness`` writes (default: robustness.json). A case that no test has
tried stays in the table and says so. Beside a group stands the exact lower bound, at 95 %, of the
share of faults that are survived (Clopper and Pearson 1934).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import beta

from ldm.report.tables import markdown_table
from ldm.storage import write_file

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: made by scripts/describe_reliability.py -->\n", "<!-- end -->\n"
NOT_LISTED = ("Numbers", "Beyond the list")  # of the 119

Row = dict[str, Any]


def is_whole(row: Row) -> bool:
    """Return whether every try of a case was survived, and there was one."""
    return bool(row["tried"]) and row["survived"] == row["tried"]


def lower_bound(survived: int, tried: int) -> float:
    """Return the exact lower bound, at 95 %, of a share of which so many were seen."""
    return float(beta.ppf(0.05, survived, tried - survived + 1)) if survived else 0.0


def groups(rows: Sequence[Row]) -> str:
    """Return the table of the groups."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        survived, tried, silent = (
            sum(row[key] for row in own) for key in ("survived", "tried", "silent_wrong")
        )
        whole = sum(map(is_whole, own))
        bound = f"{lower_bound(survived, tried):.3f}" if tried else ""
        lines.append([group, f"{whole} / {len(own)}", f"{survived} / {tried}", bound, str(silent)])
    head = ["group", "cases", "survived / tried", "at least (95 %)", "silently wrong"]
    return markdown_table(head, lines)


def cases(rows: Sequence[Row], group: str) -> str:
    """Return the table of the cases of a group."""
    lines = []
    for row in rows:
        if row["group"] == group:
            tried = f"{row['survived']} / {row['tried']}" if row["tried"] else "not tried"
            told = [row["case"], row["fault"], row["asked"], tried, str(row["silent_wrong"])]
            lines.append(told)
    head = ["case", "what is done", "what is asked", "survived / tried", "silently wrong"]
    return markdown_table(head, lines)


def stock(lines: Sequence[Row]) -> str:
    """Return the table of what other libraries do."""
    head = ["damage", "library as it comes", "what it does", "silently wrong here"]
    return markdown_table(
        head, [[t["damage"], t["library"], t["stock"], str(t["ours"])] for t in lines]
    )


def main(argv: Sequence[str]) -> int:
    """Write the tables into the page."""
    source = Path(argv[0] if argv else "robustness.json")
    told = json.loads(source.read_text(encoding="utf-8"))
    rows = told["cases"]
    listed = [row for row in rows if row["group"] not in NOT_LISTED]
    silent = sum(row["silent_wrong"] for row in rows)
    names = dict.fromkeys(row["group"] for row in rows)
    parts = [
        f"{sum(map(is_whole, listed))} of the {len(listed)} cases that were listed beforehand "
        "(all but the last two groups) survive every try of theirs; "
        f"silently wrong: {silent}.",
        groups(rows),
        f"### The same damage elsewhere\n\n{stock(list(told['stock'].values()))}",
        *(f"### {name}\n\n{cases(rows, name)}" for name in names),
    ]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n\n".join(part.strip() for part in parts)
    write_file(PAGE, f"{before}{BEGIN}\n{tables}\n\n{END}{after}", replace=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
