"""The shape of the code: imports point one way, and every idea has one definition."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGES = ("ldm", "guided_diffusion", "UNet_DS_Diff")
FAMILIES = ("guided_diffusion", "UNet_DS_Diff")
LIBRARY = ("ldm.modules", "ldm.models", "ldm.data", "ldm.evaluation", "ldm.losses", "ldm.cli")
NETWORKS_MAY = ("torch", "einops", "timm", "numpy", "ldm.modules", "ldm.errors")
NETWORKS_MAY += ("ldm.util.nearest", "ldm.util.shows")
ADAPTER = REPO / "ldm/modules/adapter.py"  # builds the foreign network that a YAML names

# package -> what it must not import; `ldm.cli` is the only part that may know all others.
FORBIDDEN = {
    "ldm": FAMILIES,
    "ldm.modules": [p for p in LIBRARY if p != "ldm.modules"],
    "ldm.models": ["ldm.cli", "ldm.data", "ldm.evaluation"],
    "ldm.data": ["ldm.cli", "ldm.models", "ldm.modules", "ldm.evaluation", "ldm.losses"],
    "ldm.losses": ["ldm.cli", "ldm.data", "ldm.evaluation", "ldm.models"],
    "ldm.evaluation": ["ldm.cli"],
    "guided_diffusion": ["UNet_DS_Diff", "ldm.models", "ldm.data", "ldm.cli", "ldm.evaluation"],
    "UNet_DS_Diff": ["guided_diffusion", "ldm.models", "ldm.data", "ldm.cli", "ldm.evaluation"],
}
# The research code this project succeeds held four to six copies of each of these.
SHARED = ("ResBlock", "AttentionBlock", "Downsample", "Upsample", "TimestepEmbedSequential")
SHARED += ("timestep_embedding", "SE_Attention", "CrossAttention", "SpatialTransformer")
SHARED += ("normalization", "zero_module", "conv_nd")


def sources(package: str) -> list[Path]:
    return sorted((REPO / package.replace(".", "/")).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything a file imports, at any depth."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, packages: tuple[str, ...] | list[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in packages)


def test_there_is_code_to_look_at():
    assert len(sources("ldm")) > 20
    assert "ldm.errors.DataError" in set(imports(REPO / "ldm/data/nifti.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package):
    wrong = [
        f"{path.relative_to(REPO)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if within(name, FORBIDDEN[package])
    ]
    assert not wrong


def test_networks_know_torch_and_little_else():
    wrong = [
        f"{path.relative_to(REPO)} imports {name}"
        for path in sources("ldm.modules")
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not within(name, NETWORKS_MAY)
        and not (path == ADAPTER and within(name, ["ldm.util"]))
    ]
    assert not wrong


def test_every_public_name_is_defined_once():
    places = defaultdict(list)
    for package in PACKAGES:
        for path in sources(package):
            for node in parse(path).body:
                named = isinstance(node, ast.ClassDef | ast.FunctionDef)
                is_verb = path.parent.name == "cli"  # each verb has its add_arguments and run
                if named and not is_verb and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(REPO)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
    assert [name for name in SHARED if name not in places] == []


def test_nothing_loads_or_runs_foreign_code():
    """``instantiate_from_config`` behind its trust gate is the only way code gets named by data."""
    banned = {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"}
    banned |= {"torch.hub.load", "yaml.unsafe_load", "yaml.full_load"}
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(parse(path)):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                assert called not in banned, f"{path}:{node.lineno} calls {called}"
                if called == "torch.load":
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_readable(package):
    lengths = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in sources(package)}
    assert not {path: lines for path, lines in lengths.items() if lines > 800}
