"""The two namings of the BraTS challenges: ID, separator, contrast, in any folder."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from ldm.data.layouts.base import Entry, Layout, Tree
from ldm.data.layouts.context import in_context
from ldm.data.layouts.masks import MASK, labels_beside
from ldm.data.layouts.series import agent_said
from ldm.data.layouts.spelling import contrast_spelt, is_processed, unprocessed
from ldm.data.nifti import volume_stem
from ldm.data.volume_file import VolumeFile
from ldm.label_scheme import NOT_TOLD, SCHEMES, LabelScheme
from ldm.study import LABELS, MASK_FILE, MASKS

log = logging.getLogger(__name__)

CORRECTED = re.compile("corrected", re.IGNORECASE)  # by hand: it outweighs what it corrects
STRIPPED = re.compile("[_. -]brain$", re.IGNORECASE)
VISIT = re.compile(  # behind the contrast; early and late may be said of an agent, run of a repeat
    r"(?P<image>.+?)[_. -](?P<visit>(?:visit|ses|session|week|wk|month|day|tp|time[_-]?point|fu|"
    r"follow[_-]?up|besuch|verlauf|zeitpunkt)[_-]?\d+|(?:19|20)\d\d([-_.]?)[01]\d\3[0-3]\d)",
    re.IGNORECASE,
)
VSD = re.compile(r"VSD\.Brain[^.]*\..*?\.(?:MR_(?P<image>[^.]+)|OT)(?:\.|$)", re.IGNORECASE)
NUMBERED = (  # ids that say by which scheme of BraTS labels are numbered, the first that fits
    (r"BraTS-PED", NOT_TOLD),  # numbered twice, under the same names
    (r"BraTS-MEN-RT", LabelScheme({"lesion": (1,)}, "BraTS-MEN-RT")),
    (r"BraTS-[A-Z]", SCHEMES["brats2024"]),
    (r"brats_(2013|tcia)_", SCHEMES["brats2012"]),
    (r"(Sim)?BRATS_[HL]G", NOT_TOLD),
    (r"PatientID_\d+", LabelScheme(SCHEMES["brats2024"].parts, "MU-Glioma-Post")),
)


class NumberedLayout(Layout):
    """A layout of BraTS: in some years the id says how labels are numbered."""

    def scheme_of(self, subject: str) -> LabelScheme:
        """Return what labels mean: what is told, else what the id says."""
        told = super().scheme_of(subject)
        if told is not self.scheme:
            return told
        fitting = (scheme for start, scheme in NUMBERED if re.match(start, subject))
        return next(fitting, told)


class SuffixLayout(NumberedLayout):
    """Files named ID, separator, contrast, ``.nii.gz`` or ``.nii``, in any folder below a root.

    Endings are those of the challenge. Where a subject has no such file of a contrast, the words
    of the field in any case are read too: ``ID_T1GD``, ``ID_FLAIR``, ``ID_tumor_segmentation``.
    Labels may lie in a folder of their own (``images_segm/ID_segm.nii.gz``), as may each contrast
    (``T1/ID_T1.nii.gz``). ``ID_brain_t1c`` is the stripped T1ce of ID, ``ID_t1ce_to_t1`` the
    registered one where there is no other.
    """

    separator: str
    separators: tuple[str, ...]  # before a word of the field, tried in this order
    naming: str  # of the endings, in ldm.study

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        return f"{subject}{self.separator}{self.contrasts.expected(contrast, self.naming)}.nii.gz"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name) or ""
        known = self.contrasts.endings(self.naming)
        fitting = [e for e in known if stem.endswith(self.separator + e)]
        ending = max(fitting, key=len, default=None)  # of an ID_b0_dwi, b0_dwi where that is known
        subject = stem.removesuffix(f"{self.separator}{ending}")
        spelt = self._spelt(stem)
        if not ending or not subject or (spelt and len(spelt[0]) < len(subject)):
            return None  # ID_t2_flair is no FLAIR of ID_t2, ID_t1ce_to_t1 no T1
        if is_processed(stem) and self._is_flat(stem):
            return None  # t1ce_to_t1 in a folder per patient
        return subject, known[ending]

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        exact = list(super().find(tree))
        read = {entry.file.path for entry in exact}
        told = {(entry.subject, entry.contrast) for entry in exact}
        rest = [path for path in tree.volumes if path not in read]
        words = [entry for path in rest if (entry := self._by_words(path))]
        plain = {(e.subject, e.contrast) for e in words if not _is_processed(e)} | told
        words = [e for e in words if not _is_processed(e) or (e.subject, e.contrast) not in plain]
        told |= {(e.subject, LABELS) for e in words if CORRECTED.search(e.file.path.name)}
        words = [
            entry
            for entry in words
            if (entry.subject, entry.contrast) not in told or CORRECTED.search(entry.file.path.name)
        ]
        seen = _contrasts_of(exact, words)
        words = [self._at_visit(entry, seen) for entry in words]
        known = _contrasts_of(exact, words)
        parts = ([e for e in p if not self._is_silent(e, known)] for p in (exact, words))
        placed = _gathered(*([self._placed(e, known) for e in part] for part in parts))
        resolved, remarks = in_context(placed, tree.root, self.contrasts)
        labels, unclear = labels_beside(resolved, tree, self.contrasts)
        self.remarks = [*remarks, *unclear]
        yield from (*resolved, *labels)

    def _at_visit(self, entry: Entry, known: Mapping[str, set[str]]) -> Entry:
        """Return an entry of the time point that its name says, as MSLesSeg has them.

        ``P_T2_FLAIR`` is of P_T2 where that has a T1 or T2, or where P_T1, as P, has nothing but
        such a FLAIR.
        """
        stem, end = volume_stem(entry.file.path.name) or "", f"{self.separator}flair"
        visit = stem[: -len(end)]
        base, _, point = visit.rpartition(self.separator)
        if not stem.lower().endswith(end) or (base, point.lower()) != (entry.subject, "t2"):
            return entry
        of_first, alone = known.get(f"{visit[:-1]}1", set()), {"flair"}
        is_visit = known.get(visit, set()) & {"t1", "t2"} or of_first == known[base] == alone
        return entry._replace(subject=visit) if is_visit else entry

    def _is_silent(self, entry: Entry, known: Mapping[str, set[str]]) -> bool:
        """Whether what is before the contrast is no id.

        ``P/KM_T1`` is the T1ce of a folder per patient, ``t1ce_seg`` a label map of its folder,
        and so are ``seg_t1ce`` and, where P has images, ``P_seg_t1ce``. ``P_T1_FLAIR`` is weighted
        as T1 is, where there is a P, and P_T1 has no other image, as a time point has.
        """
        subject, own = entry.subject, known[entry.subject]
        folder = entry.file.path.parent.name
        if folder == subject:
            return False
        if entry.contrast == LABELS:
            return own == {LABELS} and contrast_spelt(subject, self.contrasts) is not None
        base, _, end = subject.rpartition(self.separator)
        is_of_labels = end.lower() in MASK or self.contrasts.named(end) == LABELS
        if own == {"flair"} and end.lower() == "t1":
            return base in known
        is_of_agent = agent_said(subject) is not None and own == {"t1"}
        return is_of_agent or (is_of_labels and len(own) == 1 and (base or folder) in known)

    def _placed(self, entry: Entry, known: Mapping[str, set[str]]) -> Entry:
        """Return an entry whose owner is the folder of the subject, above that of one contrast.

        ``ID_t1_brain`` is the stripped T1 of ID where there is no other, and no subject ID_t1;
        ``ID_t1ce_seg`` and ``ID_flair_seg`` are of ID where it has no other labels.
        """
        own = known[entry.subject]
        image = self._spelt(entry.subject) if own in ({MASK_FILE}, {LABELS}) else None
        if image and own == {LABELS}:
            of = known.get(image[0], set())
            is_drawn_on = image[1] in ("t1ce", "flair") and of and LABELS not in of
            entry = entry._replace(subject=image[0]) if is_drawn_on else entry
            image = None
        if image and image[1] not in MASKS and image[1] not in known.get(image[0], ()):
            entry = entry._replace(subject=image[0], contrast=image[1])
        folder = entry.file.path.parent
        is_of_one = self.contrasts.named(folder.name) == entry.contrast
        return entry._replace(owner=folder.parent if is_of_one else folder)

    def _by_words(self, path: Path) -> Entry | None:
        stem = volume_stem(path.name) or ""
        if stem.startswith("sub-") or self._is_flat(stem):
            return None  # of BIDS; of a folder per patient
        spelt = self._spelt(stem)
        return Entry(*spelt, VolumeFile(path), path.parent) if spelt else None

    def _is_flat(self, stem: str) -> bool:
        """Whether a name is a contrast alone, that of its folder."""
        return contrast_spelt(unprocessed(stem), self.contrasts) is not None

    def _spelt(self, stem: str) -> tuple[str, str] | None:
        """Return (subject, contrast) of a name, processed or not, or None.

        Of ``ID_T1_visit2`` the subject is ``ID_visit2``.
        """
        spelt = self._by_its_end(unprocessed(stem)) or self._by_its_end(stem)
        visit = None if spelt else VISIT.fullmatch(stem)
        of_visit = self._by_its_end(visit["image"]) if visit else None
        return (f"{of_visit[0]}_{visit['visit']}", of_visit[1]) if visit and of_visit else spelt

    def _by_its_end(self, stem: str) -> tuple[str, str] | None:
        """Return (subject, contrast) by the longest known words at the end of a name, or None."""
        for separator in self.separators:
            parts = stem.split(separator)
            for place in range(1, len(parts)):
                subject = separator.join(parts[:place])
                contrast = contrast_spelt(separator.join(parts[place:]), self.contrasts)
                if contrast and subject and any(map(str.isalnum, parts[place])):  # "0_-" is an id
                    return STRIPPED.sub("", subject) or subject, contrast
        return None


class BraTS2013(NumberedLayout):
    """BraTS 2013-2016: ``ID/VSD.Brain.XX.O.MR_T1c.54513/VSD.Brain.XX.O.MR_T1c.54513.mha``.

    A folder a contrast below that of the subject, or the files in the latter. The labels say ``OT``
    in the place of ``MR_T1c``. A folder whose name comes again (``HG/0001`` and ``LG/0001``) is
    called by the one above too: ``HG_0001``.
    """

    name = "BraTS 2013-2016"
    scheme = SCHEMES["brats2012"]

    def file_name(self, subject: str, contrast: str) -> str:  # noqa: D102
        said = "OT" if contrast == LABELS else f"MR_{contrast}"
        return f"{subject}/VSD.Brain.XX.O.{said}.NUMBER/VSD.Brain.XX.O.{said}.NUMBER.mha"

    def parse(self, path: Path) -> tuple[str, str] | None:  # noqa: D102
        stem = volume_stem(path.name) or ""
        said = VSD.match(stem)
        if not said:
            return None
        contrast = self.contrasts.named(said["image"]) if said["image"] else LABELS
        return (_folder_of(path).name, contrast) if contrast else None

    def find(self, tree: Tree) -> Iterator[Entry]:  # noqa: D102
        found = [e._replace(owner=_folder_of(e.file.path)) for e in super().find(tree)]
        folders: dict[str, set[Path]] = defaultdict(set)
        for entry in found:
            folders[entry.subject].add(entry.owner)
        for entry in found:
            again = len(folders[entry.subject]) > 1 and entry.owner.parent != tree.root
            above = f"{entry.owner.parent.name}_" if again else ""
            yield entry._replace(subject=above + entry.subject)


class BraTS2021(SuffixLayout):
    """BraTS 2017-2021: ``ID_t1.nii.gz``, ``ID_t2``, ``ID_flair``, ``ID_seg``, ...; ``ID_brain``
    where there is a mask of the brain."""

    name = "BraTS 2017-2021"
    scheme = SCHEMES["brats2017"]
    separator, separators = "_", ("_", " ", ".")
    naming = "brats2021"


class BraTS2023(SuffixLayout):
    """BraTS 2023 and later: ``ID-t1n.nii.gz``, ``ID-t1c``, ``ID-t2w``, ``ID-t2f``, ``ID-seg``."""

    name = "BraTS 2023+"
    scheme = SCHEMES["brats2024"]
    separator, separators = "-", ("-",)
    naming = "brats2023"


def _contrasts_of(*parts: Iterable[Entry]) -> Mapping[str, set[str]]:
    """Return subject -> the contrasts that it has."""
    known: dict[str, set[str]] = defaultdict(set)
    for part in parts:
        for entry in part:
            known[entry.subject].add(entry.contrast)
    return known


def _is_processed(entry: Entry) -> bool:
    return is_processed(volume_stem(entry.file.path.name) or "")


def _folder_of(path: Path) -> Path:
    """Return the folder of the subject: that above the folder of one contrast."""
    return path.parent.parent if path.parent.name.startswith("VSD.") else path.parent


def _extended(subject: str, known: Collection[str]) -> str | None:
    """Return the known id that an id extends, as ID_final does ID; None: there is none."""
    starts = (subject[: found.start()] for found in re.finditer("[-_. ]", subject))
    return next((start for start in starts if start in known), None)


def _gathered(exact: Iterable[Entry], words: Iterable[Entry]) -> Iterator[Entry]:
    """Yield entries with every mask at the images that it is of.

    A mask that was found by words and is of no subject with an image is passed over
    (``ID_brain_parenchyma_segmentation``), unless there are masks only, or it is the one label map
    of a folder that is named as its subject (one was published as ``W39_1998.09.19_Segm.nii``). So
    is ``ID_final_seg`` where ID has images, and ID_final has none.
    """
    entries = [*exact, *words]
    places: dict[str, set[Path]] = defaultdict(set)
    for entry in entries:
        if entry.contrast not in MASKS:
            places[entry.subject].add(entry.owner)
    labelled = {entry.subject for entry in entries if entry.contrast == LABELS}
    astray: dict[Path, list[Entry]] = defaultdict(list)
    for entry in entries:
        own = places.get(entry.subject, set())
        if entry.contrast in MASKS and own and entry.owner not in own:
            yield entry._replace(owner=min(own))
        elif entry.contrast not in MASKS or own or not places:
            yield entry
        elif entry not in exact:
            astray[entry.owner].append(entry)
        elif of := _extended(entry.subject, places):
            log.warning("%s is passed over: no image of this id, but of %s", entry.file.name, of)
        else:
            yield entry
    for folder, found in astray.items():
        strangers = (entry for entry in found if not entry.subject.startswith(folder.name))
        maps = [entry for entry in strangers if entry.contrast == LABELS]
        if len(maps) == 1 and folder in places.get(folder.name, ()) and folder.name not in labelled:
            yield maps[0]._replace(subject=folder.name)
