"""SA of docs/reliability.md: sampling that is stopped or starved writes no false volume."""

import os
import signal
from pathlib import Path

import pytest
import torch
from robustness.forks import Verb

from ldm.inference.synthesis import Synthesiser
from ldm.models.diffusion.ddpm import LatentDiffusion

P1, P2, P3 = (f"Phantom_000{n}" for n in (1, 2, 3))
QUICK = ("--steps", "1")


def volumes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.nii.gz")}


@pytest.mark.parametrize("fault", ["is a file", "is below a file", "cannot be made"])
def test_sa_05_an_output_that_cannot_be_is_refused_before_the_model_is_read(
    dsdiff, tmp_path, run_folder, patients, fault, monkeypatch
):
    monkeypatch.setattr(Synthesiser, "__init__", lambda *a, **k: pytest.fail("it was loaded"))
    out = tmp_path / "out"
    if fault == "cannot be made":
        plain = Path.mkdir

        def mkdir(self, *args, **options):
            if self == out:
                raise OSError(30, os.strerror(30), str(self))  # a disk that is read-only
            plain(self, *args, **options)

        monkeypatch.setattr(Path, "mkdir", mkdir)
    else:
        out.write_text("x")
        out = out if fault == "is a file" else out / "below"
    code, line = dsdiff("sample", run_folder, "--input", patients, "--output", out, *QUICK)
    assert (code, "OUT-" in line) == (5, True), line


@pytest.mark.parametrize("fault", ["nan", "inf", "one voxel"])
def test_sa_08_a_network_that_returns_nan_writes_nothing(
    dsdiff, tmp_path, run_folder, patients, monkeypatch, fault
):
    plain, calls = LatentDiffusion.synthesise, []

    def broken(self, *args, **options):
        images = plain(self, *args, **options)
        calls.append(1)
        if fault == "one voxel":
            images[0, 0, images.shape[2] // 2, images.shape[3] // 2] = float("nan")
            return images
        return images * float(fault)

    monkeypatch.setattr(LatentDiffusion, "synthesise", broken)
    given = ("--input", patients, "--subjects", P1, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert calls
    assert (code, f"NONFINITE-SAMPLE case={P1}" in line) == (6, True), line
    assert volumes(tmp_path / "out") == {}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [["--precision", "32"], ["--precision", "bf16"], ["--temperature", "1"], ["--samples", "3"]],
)
def test_sa_08_a_voxel_that_overflows_in_the_network_is_not_clipped_to_white(
    dsdiff, tmp_path, run_folder, patients, monkeypatch, options
):
    """As at half precision: the range of images hid it."""
    plain = LatentDiffusion.output

    def overflows(self, *args):
        output = plain(self, *args)
        output[:, 0, output.shape[2] // 2, output.shape[3] // 2] = float("inf")
        return output

    monkeypatch.setattr(LatentDiffusion, "output", overflows)
    given = ("--input", patients, "--subjects", P1, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given, *options)
    assert (code, "returned NaN or infinity" in line) == (6, True), line
    if "--precision" in options:  # else as the machine has it
        assert ("--precision=32" in line) == ("bf16" in options)
    assert volumes(tmp_path / "out") == {}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
    ],
    ids=["host", "device", "torch on the host", "threads"],
)
@pytest.mark.parametrize("verb", ["sample", "train"])
def test_sa_09_tr_07_memory_that_is_exhausted(
    dsdiff, tmp_path, run_folder, patients, train, monkeypatch, capsys, error, verb
):
    calls = []

    def starve(self, *args, **options):
        calls.append(1)
        if verb == "train" and len(calls) < 3:
            return plain(self, *args, **options)
        raise error

    name = "synthesise" if verb == "sample" else "batch_loss"
    plain = getattr(LatentDiffusion, name)
    monkeypatch.setattr(LatentDiffusion, name, starve)
    if verb == "sample":
        given = ("--input", patients, "--subjects", P1, "--output", tmp_path / "out", *QUICK)
        code, line = dsdiff("sample", run_folder, *given)
        assert volumes(tmp_path / "out") == {}
    else:
        every = "lightning.callbacks.checkpoint.params.every_n_steps=1"
        code = train(tmp_path / "run", "lightning.trainer.max_steps=4", every)
        line = capsys.readouterr().err
        saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == 2
    assert calls
    assert (code, "MEMORY" in line, "lower the batch size" in line) == (7, True, True), line


def test_sa_11_a_slice_that_cannot_be_sampled_is_never_filled(
    dsdiff, tmp_path, run_folder, patients, monkeypatch
):
    """One batch of several gives no image: the patient has no volume."""
    plain, calls = LatentDiffusion.synthesise, []

    def lost(self, *args, **options):
        calls.append(1)
        images = plain(self, *args, **options)
        return images * float("nan") if len(calls) == 2 else images

    monkeypatch.setattr(LatentDiffusion, "synthesise", lost)
    given = ("--input", patients, "--subjects", P1, P2, "--output", tmp_path / "out", *QUICK)
    code, line = dsdiff("sample", run_folder, *given, "--batch-size", "4")
    assert len(calls) > 2
    assert (code, list(volumes(tmp_path / "out"))) == (9, [f"{P2}_t1ce.nii.gz"]), line


def sampler(run_folder, patients, out, log, before=lambda: None, subjects=(P1, P2, P3)) -> Verb:
    given = ("--input", patients, "--output", out, "--subjects", *subjects, *QUICK)
    return Verb("sample", run_folder, *given, log=log, before=before)


def stop_at_second() -> None:
    """Arrange that a sampler of several patients waits at the second one, and says so."""
    plain, calls = Synthesiser.of, []

    def waiting(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            print("at the second", flush=True)
            signal.pause()
        return plain(self, *args, **options)

    Synthesiser.of = waiting


def test_sa_14_sigterm_leaves_no_temporary_file_and_the_command_goes_on(
    tmp_path, run_folder, patients, dsdiff
):
    out = tmp_path / "out"
    verb = sampler(run_folder, patients, out, tmp_path / "log", stop_at_second)
    verb.await_word("at the second")
    os.kill(verb.pid, signal.SIGTERM)
    assert verb.wait(30) == 143
    first = volumes(out)
    assert list(first) == [f"{P1}_t1ce.nii.gz"] and not list(out.glob(".tmp-*"))
    assert dsdiff("sample", run_folder, "--input", patients, "--output", out, *QUICK) == (0, "")
    assert len(volumes(out)) == 3 and volumes(out).items() >= first.items()


def test_sa_12_a_second_sampler_in_one_folder_is_told_and_the_first_is_unharmed(
    tmp_path, run_folder, patients, dsdiff
):
    out = tmp_path / "out"
    verb = sampler(run_folder, patients, out, tmp_path / "log", stop_at_second)
    verb.await_word("at the second")
    given = ("--input", patients, "--output", out, *QUICK)
    code, line = dsdiff("sample", run_folder, *given)
    assert (code, "RUN-BUSY" in line) == (11, True)
    verb.kill()  # the lock of a process that is gone is free
    assert dsdiff("sample", run_folder, *given) == (0, "")
    assert len(volumes(out)) == 3
