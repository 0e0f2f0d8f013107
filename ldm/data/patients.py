"""Whose examination a subject is: several of one patient are never on both sides of a split."""

from __future__ import annotations

import re

from ldm.errors import bad_value

# What follows the patient in an id, by the conventions of public data sets. Some need a number in
# what is before (w39 alone is a patient of Ivy GAP, Site_20010203 may be a site).
EXAMINATIONS = [
    r"(?P<patient>sub-[^_]+)_.+",  # BIDS
    r"(?P<patient>\d{3}_S_\d{4})_.+",  # ADNI
    r"(?P<patient>BraTS-[A-Z-]+-\d{4,5})-\d{1,3}",  # BraTS 2023 and later
    r"(?P<patient>BraTSReg_\d+)_\w+",
    r"(?P<patient>brats_(?:2013|tcia)_pat\d+)_\d+",  # BraTS 2013-2016
    r"(?P<patient>(?:UPENN-GBM|UCSD-PTGBM|RHUH)-\d+)_\d+",
    r"(?P<patient>\d{6})[A-D]",  # UCSF-BMSR
    r"(?P<patient>training\d+|test\d+)_\d+",  # ISBI 2015
    r"(?P<patient>OAS\d+)_MR.*",  # OASIS-3
    r"(?P<patient>.*\d.*)[_.-](?:19|20)\d\d([_.-]?)(?:0[1-9]|1[0-2])\2(?:0[1-9]|[12]\d|3[01])"
    r"(?:[T_-]?\d{4,6}|[T_-]\d\d[:-]\d\d[:-]\d\d|[_-]\d)?",
    r"(?P<patient>.*\d.*)[_.-](?:0[1-9]|[12]\d|3[01])(?:0[1-9]|[12]\d|3[01])(?:19|20)\d\d",
    r"(?P<patient>.*\d.*)[_.-](?:\d{1,2}|(?:19|20)\d\d)[_.-]?(?:jan|feb|mar|apr|ma[iy]|jun|jul|"
    r"aug|sep|o[ck]t|nov|de[cz])[a-z]*[_.-]?(?:\d\d|(?:19|20)\d\d)",
    r"(?P<patient>.*\d.*)[_.-](?:0?[1-9]|[12]\d|3[01])([_.-])(?:0?[1-9]|[12]\d|3[01])\2(?:19|20)\d\d",
    r"(?P<patient>.*\d.*)[ _.-](?:w|m|d|y|mo)-?\d{1,4}",
    r"(?P<patient>.*\d.*)[ _.-]\d{1,3} ?(?:h|d|m|w|y|mo|hours?|days?|months?|wk|weeks?|yr|years?)",
    r"(?P<patient>.+?)[ _.-](?:t|tp|v|mr|ses|fu)-?\d+[dwmy]?",
    r"(?P<patient>.+?)[ _.-](?:time[ _-]?(?:point)?|visit|session|scan|exam|study|mri|event|"
    r"cycle|pod|run|week|wk|month|day|year|yr|sess|acq|op|visit[ae]|besuch|zeitpunkt|kontrolle|verlauf)"
    r"[ _-]?(?:\d+(?:[_-]\d+)?|[a-d])",
    r"(?P<patient>.+?)[ _.-](?:baseline|bl|initial|screening|first|second|last|pre|post|fu|"
    r"fup|follow[ _-]?up|rec|recurrence|relapse|progression|nadir|early|late|acute|chronic)"
    r"(?:[_-]?\d{1,2})?",
    r"(?P<patient>.+?)[ _.-](?:pre|post|intra)[ _-]?(?:op|operative|surgery|treatment|rt)\d?",
]
KNOWN = [re.compile(pattern, re.IGNORECASE) for pattern in EXAMINATIONS]


def patient_of(subject: str, pattern: str | None = None) -> str:
    """Return the patient of a subject: of ``sub-01_ses-02`` it is ``sub-01``.

    Args:
        pattern: a regular expression whose first group is the patient, instead of the conventions
            of the field; an id that it does not match is a patient of its own.
    """
    if pattern is not None:
        match = patient_pattern(pattern).fullmatch(subject)
        return match[1] if match else subject
    match = next(filter(None, (known.fullmatch(subject) for known in KNOWN)), None)
    return patient_of(match["patient"]) if match else subject  # of a visit, perhaps, on a date


def is_examination(name: str) -> bool:
    """Return whether a name alone is one of an examination, such as ``week-044``."""
    return patient_of(f"patient0_{name}") == "patient0"


def patient_pattern(pattern: str) -> re.Pattern[str]:
    """Return ``data.params.patient``, compiled.

    Raises:
        ConfigError: CONFIG-VALUE, it is no regular expression, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise bad_value(
            f"data.params.patient is {pattern!r}, no regular expression: {error}"
        ) from error
    if not compiled.groups:
        raise bad_value(
            f"data.params.patient is {pattern!r}: put what names the patient in brackets, such as "
            r"(.+)_\d+"
        )
    return compiled


def folded_patient(patient: str) -> str:
    """Return a patient's name as it is compared: case does not tell patients apart."""
    return patient.casefold()
