"""The shape of the code: imports point one way, and every idea has one definition."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGES = ("ldm", "guided_diffusion", "UNet_DS_Diff")
FAMILIES = ("guided_diffusion", "UNet_DS_Diff")
MOST_LINES, MOST_LINES_OF_FUNCTION, MOST_ARGUMENTS = 450, 60, 16
ROOMS = (
    "modules",
    "losses",
    "models",
    "data",
    "plots",
    "cost",
    "inference",
    "evaluation",
    "report",
    "phantom",
)
ROOMS += ("training", "benchmark", "callbacks", "diagnosis", "importing", "exporting", "cli")
NOT_OF_A_BENCHMARK = ("cli", "diagnosis", "exporting", "importing", "phantom")
LIBRARY = tuple(f"ldm.{room}" for room in ROOMS)
NETWORKS_MAY = ("torch", "einops", "timm", "numpy", "ldm.modules", "ldm.errors")
NETWORKS_MAY += ("ldm.util.nearest", "ldm.util.shows")
CONFIG = REPO / "ldm/config.py"  # checks what a YAML gives to the trainer, where one is begun
ADAPTER = REPO / "ldm/modules/adapter.py"  # builds the foreign network that a YAML names

# room -> the rooms that it may import; facts (study, config, storage, errors, ...) are everyone's.
MAY = {
    "modules": [],
    "losses": ["modules"],
    "plots": [],
    "cost": ["modules"],
    "models": ["modules", "losses"],
    "data": [],
    "phantom": [],
    "callbacks": ["plots", "models", "data", "evaluation", "inference"],
    "inference": ["data", "models", "modules", "cost", "plots"],
    "evaluation": ["data", "inference", "models", "losses"],
    "report": ["evaluation", "plots", "data"],
    "diagnosis": ["plots", "data", "evaluation", "models", "losses"],
    "training": ["data", "models", "callbacks", "cost"],
    "exporting": ["data", "inference"],
    "importing": ["models", "modules", "losses", "data"],
    "benchmark": [room for room in ROOMS if room not in NOT_OF_A_BENCHMARK],
    "cli": ROOMS,
}
FAMILIES_MAY = ["modules", "losses"]
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


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something that its module has."""
    module, _, own = name.rpartition(".")
    return find_spec(module) is not None and (
        hasattr(import_module(module), own) or find_spec(name) is not None
    )


@pytest.mark.parametrize("package", (*PACKAGES, "scripts", "tests"))
def test_what_is_imported_exists(package):
    # also what only one verb imports, inside a function
    names = {n for path in sources(package) for n in imports(path) if within(n, PACKAGES)}
    assert len(names - set(PACKAGES)) > 3
    assert [name for name in sorted(names) if "." in name and not exists(name)] == []


def refused(package: str, rooms: list[str]) -> list[str]:
    """Return the imports of a package that are neither its own nor of ``rooms``."""
    others = [room for room in LIBRARY if room != package and room[4:] not in rooms]
    others += [family for family in FAMILIES if family != package]
    return [
        f"{path.relative_to(REPO)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if within(name, others)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    """``ldm`` never imports the two families: they meet it only in the ``target`` of a YAML."""
    assert refused(f"ldm.{room}", MAY[room]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_knows_networks_and_losses_only(family):
    assert refused(family, FAMILIES_MAY) == []


def test_every_folder_of_the_library_has_its_place_in_the_table():
    folders = {path.parent.name for path in (REPO / "ldm").glob("*/__init__.py")}
    assert folders == set(ROOMS)


def module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_imports_itself_by_way_of_others():
    """At any depth: an import inside a function hides a circle, it does not open it."""
    files = {module_name(path): path for package in PACKAGES for path in sources(package)}

    def known(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    # names that `ldm` itself shows are imported from where they are defined
    graph = {m: {known(n) for n in imports(path)} - {m, "", "ldm"} for m, path in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_networks_know_torch_and_little_else():
    wrong = [
        f"{path.relative_to(REPO)} imports {name}"
        for path in sources("ldm.modules")
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not within(name, NETWORKS_MAY)
        and not (path == ADAPTER and within(name, ["ldm.util", "ldm.called"]))
    ]
    assert not wrong


def test_lightning_is_what_trains_and_nothing_else():
    """Whoever samples, prepares or judges neither waits for it nor depends on it."""
    wrong = [
        f"{path.relative_to(REPO)} imports {name}"
        for path in sources("ldm")
        if path.parent.name not in ("training", "callbacks") and path != CONFIG
        for name in imports(path)
        if within(name, ["pytorch_lightning", "lightning_fabric"])
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


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        n for n in ast.walk(parse(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )


@pytest.mark.parametrize("package", [*PACKAGES, "scripts"])
def test_files_and_functions_fit_on_a_screen(package):
    too_long = {}
    for path in sources(package):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        too_long |= {str(path): lines} if lines > MOST_LINES else {}
        for function in functions(path):
            lines = function.end_lineno - function.lineno + 1
            if lines > MOST_LINES_OF_FUNCTION:
                too_long[f"{path}: {function.name}"] = lines
    assert too_long == {}


@pytest.mark.parametrize("package", [*PACKAGES, "scripts"])
def test_no_function_takes_too_many_arguments(package):
    counts = {
        f"{path}: {function.name}": len(named)
        for path in sources(package)
        for function in functions(path)
        if (
            named := [
                a
                for a in function.args.posonlyargs + function.args.args + function.args.kwonlyargs
                if a.arg not in ("self", "cls")
            ]
        )
    }
    assert {where: n for where, n in counts.items() if n > MOST_ARGUMENTS} == {}
