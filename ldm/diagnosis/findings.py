"""What a diagnosis says of a data set: findings, each with what it means for a training."""

from __future__ import annotations

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
    """

    severity: str
    kind: str
    message: str
    subject: str | None = None


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Return findings by severity, then kind and subject."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind, f.subject or ""))


def together(findings: list[Finding]) -> list[tuple[Finding, list[str]]]:
    """Return each thing that was seen once, in order, with all subjects that it concerns."""
    whom: dict[Finding, list[str]] = {}
    for finding in findings:
        known = whom.setdefault(replace(finding, subject=None), [])
        known += [finding.subject] if finding.subject else []
    return list(whom.items())
