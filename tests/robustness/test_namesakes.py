"""EX-13: packages of other projects that bear the names of ours, and lie before them on the path.

``ldm`` is that of latent-diffusion too, and ``guided_diffusion`` that of OpenAI.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SETUP = (REPO / "setup.py").read_text(encoding="utf-8")
MODULE, FUNCTION = re.search(r'"dsdiff = (\S+):(\S+)"', SETUP).groups()
# as pip writes it: the folder of the script, not the working directory, is on the path
SCRIPT = f"import sys\nfrom {MODULE} import {FUNCTION}\nsys.exit({FUNCTION}())\n"


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A checkout of another project."""
    (tmp_path / "theirs/ldm").mkdir(parents=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "theirs"


def version(theirs: Path, *python: str, here: Path = REPO, path: tuple = ()) -> tuple[int, str]:
    """Return exit code and all that ``dsdiff --version`` prints with such a PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, REPO)))}
    command = [sys.executable, *(python or [str(theirs.parent / "script.py")]), "--version"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("content", ["raise SystemExit('theirs ran')", "__version__ = '9'", ""])
def test_ex_13_another_ldm_on_the_path_is_named_in_one_line(theirs, content):
    (theirs / "ldm/__init__.py").write_text(content)
    code, said = version(theirs, path=(theirs,))
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("dsdiff: error INSTALL-SHADOWED: ") and str(theirs / "ldm") in said
    assert version(theirs) == (0, f"dsdiff {own_version()}\n")  # off the path again


def test_ex_13_another_ldm_in_the_working_directory(theirs):
    (theirs / "ldm/__init__.py").touch()
    assert version(theirs, here=theirs) == (0, f"dsdiff {own_version()}\n")  # it is not looked for
    code, said = version(theirs, "-m", MODULE, here=theirs)
    assert (code, said.count("\n")) == (2, 1), said
    assert str(theirs / "ldm") in said


def test_ex_13_a_folder_that_is_no_package_hides_nothing(theirs):
    assert version(theirs, path=(theirs,)) == (0, f"dsdiff {own_version()}\n")


def own_version() -> str:
    import ldm

    return ldm.__version__


def test_ex_13_the_module_of_the_script_is_installed_and_imports_nothing_of_ldm_first():
    assert f'py_modules=["{MODULE}"]' in SETUP
    told = f"import sys, {MODULE}; sys.exit('ldm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], cwd=REPO).returncode == 0


def test_ex_13_a_model_folder_never_imports_the_guided_diffusion_of_others(tmp_path):
    package = tmp_path / "theirs/guided_diffusion"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
    told = (
        "from ldm.util import refuse_untrusted_targets\n"
        "name = 'guided_diffusion.unet.UNetModel'\n"
        "refuse_untrusted_targets({'target': name}, {name}, 'config.yaml')"
    )
    environment = {**os.environ, "PYTHONPATH": f"{package.parent}{os.pathsep}{REPO}"}
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "UNSAFE-IMPORT" in done.stderr and str(package.parent) in done.stderr
    assert not (tmp_path / "canary").exists()
