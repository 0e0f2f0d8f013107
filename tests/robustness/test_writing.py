"""All writing goes through ldm.storage and ldm.folders: no other line makes or removes a file."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
STORAGE = ("ldm/storage.py", "ldm/folders.py", "ldm/claims.py")
SOURCES = sorted(
    path
    for package in ("ldm", "guided_diffusion", "UNet_DS_Diff", "scripts")
    for path in (REPO / package).rglob("*.py")
    if str(path.relative_to(REPO)) not in STORAGE
)
WRITES = {"write_text", "write_bytes", "savefig", "save", "save_file", "to_filename", "touch"}
WRITES |= {"unlink", "rmdir", "rename", "renames", "mkdir", "makedirs", "symlink_to"}
WRITES |= {"hardlink_to", "rmtree", "copy2", "copyfile", "copytree", "move", "truncate", "link"}
WRITES |= {"removedirs", "symlink", "mkfifo", "dump", "tofile", "savez", "to_csv", "chmod"}
SAFE = ("atomic_path", "atomic_folder", "appending", "TemporaryDirectory")
# the memory of this process in proc(5), nowhere, and methods of ours that go through storage
ALLOWED = {
    ("ldm/cost/network.py", "PROCESS_RESET.write_text"),
    ("ldm/cli/streams.py", "Path(os.devnull).open"),
    ("ldm/callbacks/run.py", "self.save"),
    ("ldm/callbacks/pulse.py", "(self.folder / str(self.rank)).touch"),  # a temporary folder
    ("ldm/inference/volume_writer.py", "volume.save"),
}


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def is_writing(call: ast.Call) -> bool:
    """Return whether a call makes, changes or removes a file, going by its name."""
    name = name_of(call)
    last = name.rpartition(".")[2]
    words = [
        a.value
        for a in (*call.args, *(k.value for k in call.keywords))
        if isinstance(a, ast.Constant) and isinstance(a.value, str)
    ]
    if last == "open" and not name.startswith(("os.", "Image.", "self.")):
        return any(set(word) & set("wax+") and set(word) <= set("rwaxbt+") for word in words)
    if last == "replace":  # of pathlib with one argument, of a text with two
        return name == "os.replace" or (len(call.args) == 1 and not call.keywords and "." in name)
    return last in WRITES


def into_memory(call: ast.Call) -> bool:
    return any(ast.unparse(a) in ("stream", "buffer", "content") for a in call.args)


def unsafe_writes(path: Path) -> list[str]:
    """Return the calls that write outside of a block of ldm.storage."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call)
            and name_of(item.context_expr).rpartition(".")[2] in SAFE
            for item in node.items
        ):
            safe |= {id(inner) for inner in ast.walk(node)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and is_writing(n)]
    place = str(path.relative_to(REPO))
    return [
        f"{place}:{call.lineno} {name_of(call)}"
        for call in found
        if id(call) not in safe and (place, name_of(call)) not in ALLOWED and not into_memory(call)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "p.write_text('x')",
        "open(p, 'w')",
        "p.open('ab')",
        "np.save(p, a)",
        "os.replace(a, b)",
        "p.replace(q)",
        "shutil.rmtree(p)",
        "p.unlink()",
        "nib.save(image, p)",
        "p.open(mode='x')",
    ],
)
def test_this_test_knows_what_writes(text):
    assert is_writing(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    "text",
    [
        "open(p)",
        "p.open('rb')",
        "s.replace('a', 'b')",
        "replace(x)",
        "replace(cell, number=1)",
        "subject.open('seg')",
    ],
)
def test_this_test_knows_what_does_not(text):
    assert not is_writing(ast.parse(text, mode="eval").body)


def test_nothing_else_writes():
    assert len(SOURCES) > 100
    assert [call for path in SOURCES for call in unsafe_writes(path)] == []
