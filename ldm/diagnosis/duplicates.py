"""Files that occur twice, by digest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ldm.data.volume_file import VolumeFile
from ldm.errors import DataError


def equal_files(
    files: Mapping[str, Iterable[VolumeFile]],
) -> list[list[tuple[str, VolumeFile]]]:
    """Return groups of (subject, file) with the same content, of files by subject.

    Only files of one size are read.
    """
    sizes, digests = defaultdict(list), defaultdict(list)
    for subject, volumes in files.items():
        for file in volumes:
            with suppress(DataError):  # which is a finding of its own
                _, size, *_ = file.state(subject)
                sizes[size].append((subject, file))
    for group in sizes.values():
        for subject, file in group if len(group) > 1 else ():
            digests[file.sha256(subject)].append((subject, file))
    return [group for group in digests.values() if len(group) > 1]
