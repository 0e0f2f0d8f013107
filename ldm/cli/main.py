"""``dsdiff VERB``: finds the verb, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ldm import __version__
from ldm.cli.help import Parser, with_examples
from ldm.cli.streams import steady_streams
from ldm.errors import (
    ConfigError,
    DsdiffError,
    as_known_error,
    of_foreign_code,
    on_the_command_line,
    one_line,
)
from ldm.progress import is_part
from ldm.util import user_path

VERBS = {
    "demo": "train, sample and evaluate on synthetic patients; needs no data (start here)",
    "prepare": "find and check subjects, fill the cache, write a manifest with digests",
    "train": "train a backbone from YAML, or resume a run",
    "distill": "train a student of 1 to 4 sampling steps from a trained model",
    "ensemble": "make one model of several runs, whose network is the mean of theirs",
    "import": "turn a checkpoint of a public implementation into a model to sample from",
    "export": "write a model to hand over: weights, model card, nothing of the patients",
    "sample": "write synthetic CE-MRI volumes (NIfTI) from a trained model",
    "brasyn": "make the contrast that each case lacks, as the BraSyn challenge asks for it",
    "evaluate": "compare synthetic volumes with real ones",
    "sweep": "quality and cost of one model against sampling steps, for several samplers",
    "benchmark": "train, sample and evaluate several backbones, and report one row each",
    "segment": "train, apply and judge networks that segment tumours or lesions",
    "diagnose": "say what is wrong with a data set, or why a training is stuck",
    "phantom": "write synthetic patients as BraTS NIfTI",
    "doctor": "check the installation and say what to repair",
}
# of a verb and of its tasks: given before or after the task, it holds
DEBUG = {"action": "store_true", "default": argparse.SUPPRESS, "help": "show the whole traceback"}
MODULES = {"import": "import_model"}  # `import` is a keyword of Python
DESCRIPTION = "Contrast-enhanced MRI from T1, T2 and FLAIR: diffusion with swappable backbones."


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the module of ``verb`` is imported, so that ``--help`` is quick."""
    parser = Parser(prog="dsdiff", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"dsdiff {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in VERBS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("--debug", **DEBUG)
        command.set_defaults(debug=False)
        if name == verb:
            module = importlib.import_module(f"ldm.cli.{MODULES.get(name, name)}")
            module.add_arguments(command)
            command.epilog = with_examples(module.EXAMPLES, command.epilog or "")
            command.set_defaults(run=module.run)
    return parser


class Stderr(logging.Handler):
    """Writes to what ``sys.stderr`` is now: while a bar is shown, that is what lies above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        print(self.format(record), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dsdiff`` with the arguments and return the exit code (see ``ldm.errors``)."""
    # read when torch is imported: threads that spin while they wait make a busy machine crawl
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with steady_streams(), on_the_command_line():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    verb = next((a for a in argv if a in VERBS), None)
    logging.basicConfig(
        format="dsdiff: %(levelname)s %(message)s", level=logging.WARNING, handlers=[Stderr()]
    )
    parser = build_parser(verb)
    args, rest = parser.parse_known_args(argv)
    if any(a.startswith("-") for a in rest) or (rest and not hasattr(args, "config")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # key=value after an option: argparse takes a positional list in one place only
        args.config += rest
    args.typed = shlex.join(["dsdiff", *argv])  # for the reports
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clean up
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
            signal.signal(signal.SIGINT, partial(_interrupt, args.verb))
    try:
        _expand_home(args)
        _require_working_directory()
        _require_unicode([*argv, str(Path.cwd())])
        _download_model(args)
        _require_there(args)
        return args.run(args) or 0
    except KeyboardInterrupt:
        return _interrupted(args.verb)
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        known = as_known_error(error) or of_foreign_code(error)
        is_foreign = known and known.code == "CONFIG-TARGET" and (known.__cause__ or known != error)
        hint = "; --debug shows the traceback" if is_foreign and not args.debug else ""
        report_error(
            args.verb,
            f"{known}{hint}"
            if known
            else f"INTERNAL: {type(error).__name__}: {error}; "
            "a bug, not your fault: run again with --debug and send the traceback and the output "
            "of 'dsdiff doctor' to whom you have this program from",
        )
        return known.exit_code if known else 70


def _interrupt(verb: str, *_: object) -> None:
    """Raise KeyboardInterrupt; within an import of torch, which may abort or hide it, end."""
    torch = sys.modules.get("torch")
    if getattr(getattr(torch, "__spec__", None), "_initializing", False):
        code = _interrupted(verb)
        sys.stderr.flush()
        os._exit(code)  # every file has its name only when it is whole
    raise KeyboardInterrupt


def _interrupted(verb: str) -> int:
    """Say that Ctrl-C has ended a verb; return its exit code."""
    if not is_part():
        print(f"\ndsdiff {verb}: interrupted; the same command goes on", file=sys.stderr)
    return 130


def _expand_home(args: argparse.Namespace) -> None:
    """Put the home folder in place of ``~``, which a shell leaves in ``--output=~/out``.

    Raises:
        ConfigError: CONFIG-VALUE for the home of nobody.
    """
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, user_path(value))


def _require_working_directory() -> None:
    """Refuse to work in a folder that was removed: no relative path means anything there."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "USAGE", "the working directory was removed: cd into one that exists"
        ) from error


def _require_unicode(words: Sequence[str]) -> None:
    """Refuse a name in another encoding: no report, table or model file could hold it."""
    for word in words:
        if any("\udc80" <= letter <= "\udcff" for letter in word):  # a byte that is no UTF-8
            raise ConfigError(
                "USAGE",
                f"'{word}' is not UTF-8: rename it, or give a link to it (ln -s) of another name; "
                "if its letters look right here, the locale is none of UTF-8: LC_ALL=C.UTF-8",
            )


def _download_model(args: argparse.Namespace) -> None:
    """Put the folder of the model in the place of ``hub:owner/name``."""
    if getattr(args, "model", None) is not None:
        from ldm.hub import local_folder

        args.model = local_folder(args.model)


def _require_there(args: argparse.Namespace) -> None:
    """Refuse a mistyped path at once: what reads it imports torch, which takes seconds."""
    from ldm.storage import require_run, require_subjects

    given, real = vars(args), ["--reference takes the folder of the real subjects"]
    for word in given.get("config") or []:
        if "=" not in word:
            from ldm.config import find_config  # knows YAML, which not every verb reads

            find_config(word)
    for name in ("input", "reference", *(["folder"] if given.get("kind") == "data" else [])):
        if given.get(name) is not None:
            require_subjects(given[name], *(real if name == "reference" else []))
    if given.get("model") is not None:
        require_run(given["model"])


def report_error(verb: str, error: DsdiffError | str) -> None:
    """Print one line on stderr."""
    print(one_line(f"dsdiff {verb}: error {error}"), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
