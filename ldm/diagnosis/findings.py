"""What a diagnosis says of a data set: findings, each with what it means for a training."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One thing that was seen.

    Args:
        severity: ``error``: it stops a training or makes its result worthless; ``warning``: it may
            spoil one; ``note``.
        kind: stable name, such as ``labels`` or ``duplicate``.
        message: what was seen, what was expected, what to do.
        subject: whom it concerns; None: the whole data set.
        contrast: of which it was seen; None: of none alone.
    """

    severity: str
    kind: str
    message: str
    subject: str | None = None
    contrast: str | None = None

    @property
    def pattern(self) -> str:
        """The message without what differs between contrasts: their name, and numbers."""
        unnamed = self.message.replace(self.contrast, "~") if self.contrast else self.message
        return re.sub(r"\d[\d.,/]*", "#", unnamed) if self.contrast else unnamed


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Return findings by severity, then kind and subject."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind, f.subject or ""))


def together(findings: list[Finding]) -> list[tuple[Finding, list[str]]]:
    """Return each thing that was seen once, in order, with all subjects that it concerns.

    What was seen in several contrasts of a subject is that of the first, which names the others.
    """
    alike: dict[tuple[str | None, ...], list[Finding]] = {}
    for f in findings:
        alike.setdefault((f.subject, f.severity, f.kind, f.pattern), []).append(f)
    whom: dict[Finding, list[str]] = {}
    for first, *others in alike.values():
        more = ", ".join(f.contrast for f in others if f.contrast)
        message = f"{first.message} (likewise {more})" if more else first.message
        known = whom.setdefault(replace(first, subject=None, message=message), [])
        known += [first.subject] if first.subject else []
    return list(whom.items())
