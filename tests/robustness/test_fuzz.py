"""EX-12: headers, settings and small files at random: read, or refused with a code; never a hang.

Fifty of each kind by default, a thousand with ``-m slow``. What is drawn is a function of the seed.
"""

import contextlib
import io
import json
import random
import shutil
import signal
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from builders import RAS, head_image, write_nifti

from ldm.checkpoint import newest_checkpoint, read_run_config
from ldm.claims import claim
from ldm.cli.train import describe
from ldm.config import config_root, load_config
from ldm.curves import read_curves
from ldm.data.layouts import detect_layout
from ldm.data.nifti import read_volume
from ldm.data.seen import read_seen
from ldm.errors import MAX_LINE, DataError, DsdiffError, as_known_error
from ldm.evaluation.case import judged_study
from ldm.inference.outputs import is_written
from ldm.storage import CONFIG_FILE

COUNTS = [50, pytest.param(1000, marks=pytest.mark.slow)]
LIMIT = 30  # seconds for one of them


@contextlib.contextmanager
def in_time(what: object):
    """Fail where something takes longer than the limit."""

    def late(*_: object) -> None:
        raise AssertionError(f"it hangs: {what}")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(what: object, act) -> object:
    """Return what ``act()`` returns, or the refusal; anything but a refusal with a code fails."""
    with in_time(what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return act()
        except DsdiffError as refusal:
            assert refusal.code and "\n" not in str(refusal) and len(str(refusal)) <= MAX_LINE
            return refusal
        except AssertionError:
            raise
        except Exception as error:
            known = as_known_error(error)
            assert known, f"INTERNAL {type(error).__name__}: {error} of {what}"
            return known


# --- headers --------------------------------------------------------------------------------------


def draw_header(rng: random.Random, whole: bytes) -> bytes:
    """Return a file with some bytes, or whole fields, of its header changed."""
    content = bytearray(whole)
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            content[rng.randrange(352)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        return bytes(content)
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    fields = [n for n in header.keys() if header[n].dtype.kind in "if"]  # noqa: SIM118
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(fields)
        odd = (0, 1, -1, 2, 7, 8, 255, 32767, -32768, 1e-30, 1e30, float("nan"), float("inf"))
        field = np.atleast_1d(header[name]).astype(np.float64)
        field.flat[rng.randrange(field.size)] = rng.choice(odd)
        with np.errstate(all="ignore"):
            kind = header[name].dtype
            if kind.kind == "i":
                field = np.clip(np.nan_to_num(field), *(np.iinfo(kind).min, np.iinfo(kind).max))
            header[name] = field.astype(kind).reshape(header[name].shape)
    return header.binaryblock + bytes(content[348:])


@pytest.mark.parametrize("count", COUNTS)
def test_headers(tmp_path, count):
    """What is read has the values that nibabel reads; the rest is refused."""
    path, rng = tmp_path / "a.nii", random.Random(count)
    whole = write_nifti(path, head_image((5, 4, 3))).read_bytes()
    refused = 0
    for number in range(count):
        path.write_bytes(draw_header(rng, whole))
        found = outcome(f"header {number}", lambda: read_volume(path))
        if isinstance(found, DsdiffError):
            assert isinstance(found, DataError)
            refused += 1
            continue
        assert np.isfinite(found.array).all() and np.isfinite(found.geometry.affine).all()
        assert abs(np.linalg.det(found.geometry.affine[:3, :3])) > 0
        stored = found.geometry.from_canonical(found.array)
        with np.errstate(all="ignore"):
            known = np.asarray(nib.load(path).dataobj, np.float64).reshape(stored.shape)
        np.testing.assert_allclose(stored, known.astype(np.float32), rtol=1e-6)
    assert 0 < refused < count  # both ways are tried


# --- settings -------------------------------------------------------------------------------------

ODD = ["null", "-1", "0", "1", "2", "3", "7", "0.5", "-0.5", "1e-30", "1e400", ".nan", ".inf", "''"]
ODD += ["x", "[]", "{}", "true", "no", "[1]", "[1,2]", "[0,0]", "[3,3,3,3,3]", "[[1]]", "{a: 1}"]
ODD += [
    "12:30",
    "0123",
    "1_0",
    "'1'",
    "[x]",
    "[null]",
    "{target: x}",
    "{target: os.system}",
    "\u2028",
]
ODD += ["[" * 60 + "]" * 60, "${seed}", "${a.b}", "${oc.env:HOME}", "../x", "t1", "[t1,t1]", "auto"]
TINY = "backbone/unet_tiny.yaml"
SMALL = ["data.params.image_size=16", "data.params.root=nowhere"]


def leaves(node, path=()):
    """Yield the key path of every value of a configuration, and of every mapping and list."""
    if path:
        yield ".".join(path)
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, str(key)))


def shipped() -> list[tuple[str, str]]:
    """Return (file, key path) of everything that a shipped configuration of a training says."""
    folders = ("backbone", "process", "objective", "preprocessing")
    found = []
    for folder in folders:
        for path in sorted((config_root() / folder).rglob("*.yaml")):
            name = path.relative_to(config_root()).as_posix()
            own = yaml.safe_load(path.read_text())
            found += [(name, key) for key in leaves(own) if key.partition(".")[0] != "base"]
    base = yaml.safe_load((config_root() / "base.yaml").read_text())
    return found + [(TINY, key) for key in leaves(base)]


def tried(file: str, override: str) -> object:
    """Check a configuration and, of the smallest network, build it and call it once."""
    files = [f"configs/{name}" for name in dict.fromkeys((TINY, file))]
    if file.startswith("backbone/"):
        files = [f"configs/{file}"]
    config = load_config(files, [*SMALL, override])
    if file == TINY or not file.startswith("backbone/"):
        with contextlib.redirect_stdout(io.StringIO()):
            describe(config)
    return config


@pytest.mark.parametrize("count", COUNTS)
def test_settings(count):
    """Every shipped parameter in turn, with a value that it may not have."""
    rng, places = random.Random(count), shipped()
    assert len(places) > 300
    rng.shuffle(places)
    refused = 0
    for number in range(count):
        file, key = places[number % len(places)]
        override = f"{key}={rng.choice(ODD)}"
        found = outcome(f"{file} {override}", lambda f=file, o=override: tried(f, o))
        refused += isinstance(found, DsdiffError)
    assert 0 < refused < count


# --- small files ----------------------------------------------------------------------------------


def damaged(rng: random.Random, text: bytes) -> bytes:
    """Return a small file that was cut, written over, or says something else."""
    content, way = bytearray(text), rng.randrange(7)
    if way == 0:
        return bytes(content[: rng.randrange(len(content) + 1)])
    if way == 1:
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content)
    if way == 2:
        place = rng.randrange(len(content))
        content[place:place] = rng.choice(
            (b"\0", b"\xff\xfe", b"\n\n", b"{", b"[", b'"', b"\xe2\x80")
        )
        return bytes(content)
    if way == 3:
        return rng.choice((b"", b"[]", b"{}", b"null", b"5", b'"x"', b"[[[[", b"NaN", b"\0" * 64))
    if way == 4:
        depth = rng.choice((100, 5000))
        return b'{"a": ' * depth + b"1" + b"}" * depth
    if way == 5:
        lines = text.splitlines(keepends=True)
        rng.shuffle(lines)
        return b"".join(lines)
    return changed_value(rng, text)


def changed_value(rng: random.Random, text: bytes) -> bytes:
    """Return a JSON or YAML file with one value of another kind; another text as it is."""
    odd = [None, 0, -1, 1e300, float("nan"), "", "x", [], {}, [1], {"a": 1}, True, [[[]]], "../x"]
    try:
        tree = yaml.safe_load(text)
        holders = [tree]
        for node in holders:
            inner = node.values() if isinstance(node, dict) else node
            holders += [value for value in inner if isinstance(value, dict | list) and value]
        node = rng.choice(holders)
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node[key] = rng.choice(odd)
    except (yaml.YAMLError, AttributeError, TypeError, IndexError):
        return text + text
    as_json = text.lstrip()[:1] == b"{"
    return (json.dumps(tree) if as_json else yaml.safe_dump(tree)).encode()


@pytest.fixture
def small_files(tmp_path, run_folder, brats_folder):
    """(file, what reads it) of everything small that a user, or a stranger, may give."""
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    table = tmp_path / "rows.csv"
    names = ("t1", "t2", "flair", "t1ce")
    rows = [[f"p{n}", *(f"{brats_folder}/p{n}/p{n}_{c}.nii.gz" for c in names)] for n in range(4)]
    table.write_text("\n".join(",".join(row) for row in [["id", *names], *rows]))
    nnunet = tmp_path / "nnunet"
    (nnunet / "imagesTr").mkdir(parents=True)
    for channel in range(4):
        write_nifti(nnunet / f"imagesTr/a_000{channel}.nii.gz", head_image(), RAS)
    described = {"channel_names": dict(enumerate(names)), "labels": {"background": 0, "tumor": 1}}
    (nnunet / "dataset.json").write_text(json.dumps(described))
    out = tmp_path / "out"
    out.mkdir()
    sidecar = out / "a_t1ce.json"
    sidecar.write_text(
        json.dumps({"Synthetic": True, "target": "t1ce", "sha256": "0", "inputs": {}})
    )
    own = {"Synthetic": True}

    def locked() -> None:
        with claim(run, "train", adopt=True) as own_claim:
            own_claim.written()

    return [
        (run / CONFIG_FILE, lambda: read_run_config(run)),
        (run / "subjects.json", lambda: read_seen(run)),
        (run / "metrics.csv", lambda: read_curves(run)),
        (run / ".lock", locked),
        (run / "checkpoints/last.ckpt", lambda: newest_checkpoint(run)),
        (table, lambda: detect_layout(table)[1]),
        (nnunet / "dataset.json", lambda: detect_layout(nnunet)[1]),
        (sidecar, lambda: judged_study([out])),
        (sidecar, lambda: is_written(out / "a_t1ce.nii.gz", sidecar, own, overwrite=False)),
    ]


@pytest.mark.parametrize("count", COUNTS)
def test_small_files(small_files, count):
    rng, refused = random.Random(count), 0
    wholes = [path.read_bytes() for path, _ in small_files]
    for number in range(count):
        place = number % len(small_files)
        (path, read), whole = small_files[place], wholes[place]
        content = damaged(rng, whole)
        path.write_bytes(content)
        found = outcome(f"{path.name} {content[:200]!r}", read)
        refused += isinstance(found, DsdiffError)
        path.write_bytes(whole)
    assert 0 < refused < count
