"""How ``--help`` of a verb reads: options in groups, their defaults, and commands to copy."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

MOST_IN_USAGE = 10  # options; of more, the usage names those that are required


class HelpFormatter(argparse.HelpFormatter):
    """Adds the default of an option to its help; keeps the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        lines = text.splitlines()
        return "\n".join(s if s.startswith(" ") else fill(s, width, indent) for s in lines)

    def _get_help_string(self, action: argparse.Action) -> str:
        said, value = action.help or "", action.default
        is_said = "default" in said or not action.option_strings
        if is_said or value is None or value is argparse.SUPPRESS or isinstance(value, bool):
            return said
        several = isinstance(value, list | tuple)
        told = ",".join(map(str, value)) if several else str(value)
        return f"{said} (default: {told})" if told else said

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return (
            "N"
            if action.type in (int, float)
            else super()._get_default_metavar_for_optional(action)
        )

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Add the usage; of many options those that are required."""
        shown = list(actions)
        if sum(bool(action.option_strings) for action in shown) > MOST_IN_USAGE:
            needed = [a for a in shown if a.required or not a.option_strings]
            shown, groups = [*needed, argparse.Action([], "options", metavar="[options]")], []
        super().add_usage(usage, shown, groups, prefix)


class Parser(argparse.ArgumentParser):
    """A parser whose help reads so and that takes no part of an option for it; those of its verbs
    and tasks are of this class too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)


def group(parser: argparse.ArgumentParser, title: str) -> Any:
    """Return the group of options of that title, made where there is none."""
    there = (g for g in parser._action_groups if g.title == title)
    return next(there, None) or parser.add_argument_group(title)


def with_examples(commands: Sequence[str], said: str = "") -> str:
    """Return what stands at the end of a help: a sentence, and commands of the verb."""
    lines = ["examples:" if len(commands) > 1 else "example:", *(f"  {c}" for c in commands)]
    return "\n".join(([said, ""] if said else []) + lines)
