"""Where ``dsdiff`` starts: makes sure that ``ldm`` is this project's before anything of it runs.

Latent-diffusion and its descendants have a package of that name too. A checkout of theirs that lies
before this one on the path hides it; Python alone would say ``No module named 'ldm.cli'``, or run
theirs. So this module stands outside the package, and imports nothing of it before it has looked.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

OWN = Path(__file__).resolve().parent / "ldm"


def main() -> int:
    """Run ``dsdiff`` with the arguments of the process; return its exit code."""
    found = ldm_folder()
    if found != OWN:
        told = f"is {ascii(str(found))}" if found else "is not there"
        print(
            f"dsdiff: error INSTALL-SHADOWED: the package 'ldm' {told}, but dsdiff is installed in "
            f"{ascii(str(OWN))}: take the other folder off PYTHONPATH, run the command elsewhere, "
            "or install dsdiff into an environment of its own",
            file=sys.stderr,
        )
        return 2
    from ldm.cli.main import main as run

    return run()


def ldm_folder() -> Path | None:
    """Return the folder that ``import ldm`` would read; nothing is imported."""
    spec = find_spec("ldm")
    places = list(spec.submodule_search_locations or [spec.origin]) if spec else []
    return Path(places[0]).resolve() if places and places[0] else None


if __name__ == "__main__":
    sys.exit(main())
