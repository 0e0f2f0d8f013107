"""Outputs, a subject at a time: read ahead, written behind, and what fails stays alone."""

import threading

import pytest

from ldm.data.layouts import Layout, Subject
from ldm.errors import DataError, NonFiniteError, OutputError
from ldm.inference.writing import Writer

SUBJECTS = [Subject(name, {}) for name in "abcde"]


class Recorder(Writer):
    """Writes nothing; ``fails`` says what each stage raises for a subject."""

    def __init__(self, fails=None, there=()):
        self.fails, self.there = fails or {}, there
        self.done, self.made_in, self.read_next = [], set(), threading.Event()

    def _stage(self, name, subject):
        self.done.append((name, subject))
        if error := self.fails.get((name, subject)):
            raise error

    def is_written(self, subject):
        return subject.id in self.there

    def read(self, subject, layout):
        if subject.id == "b":
            self.read_next.set()
        self._stage("read", subject.id)
        return subject.id

    def make(self, read, title):
        if read == "a":  # would wait for ever if nothing were read ahead
            assert self.read_next.wait(timeout=60)
        self.made_in.add(threading.current_thread())
        self._stage("make", read)
        return read, title

    def keep(self, made):
        self._stage("keep", made[0])

    def on_a_device(self):
        raise NotImplementedError


def written(writer):
    reported = []
    done = writer.write_all(SUBJECTS, Layout(), reported.append)
    assert done.failures == reported
    return done


def test_the_next_is_read_while_one_is_made_by_the_thread_that_asked():
    writer = Recorder()
    assert written(writer).new == 5
    assert writer.made_in == {threading.current_thread()}
    for stage in ("read", "make", "keep"):
        assert [s for name, s in writer.done if name == stage] == list("abcde")
    assert writer.done.index(("keep", "a")) < writer.done.index(("make", "c"))  # one behind


def test_a_subject_that_fails_at_any_stage_does_not_stop_the_others():
    errors = {
        ("read", "b"): DataError("DATA-SHAPE", "no", "b"),
        ("make", "d"): NonFiniteError("NONFINITE-SAMPLE", "NaN", "d"),
        ("keep", "e"): DataError("DATA-AFFINE", "oblique", "e"),
    }
    writer = Recorder(errors, there=("c",))
    done = written(writer)
    assert [error.case for error in done.failures] == ["b", "d", "e"]
    assert (done.new, done.old) == (1, 1)
    assert ("make", "b") not in writer.done and ("keep", "d") not in writer.done
    assert all(subject != "c" for _, subject in writer.done)


@pytest.mark.parametrize("stage", ["read", "make", "keep"])
def test_what_cannot_be_written_ends_all(stage):
    """At once but for what is under way: one that is read, and one that is written."""
    writer = Recorder({(stage, "b"): OutputError("OUT-IO", "full")})
    with pytest.raises(OutputError, match="full"):
        written(writer)
    assert ("make", "e") not in writer.done
    assert ("keep", "c") not in writer.done


def test_an_unknown_error_is_no_patient_that_failed():
    with pytest.raises(ZeroDivisionError):
        written(Recorder({("read", "b"): ZeroDivisionError()}))


def test_nobody_is_nothing_to_do():
    assert Recorder().write_all([], Layout(), print).new == 0
