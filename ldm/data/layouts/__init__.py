"""Where the files of a subject lie: one small class a layout, one small file a kind.

A hospital adds its own as a subclass of :class:`Layout` that says :meth:`Layout.parse`, named by
``data.params.layout=my_module.MyLayout`` (docs/data.md).
"""

from ldm.data.layouts.base import Entry, Layout, Subject, Tree
from ldm.data.layouts.bids import BIDS
from ldm.data.layouts.brats import BraTS2013, BraTS2021, BraTS2023
from ldm.data.layouts.dataset_json import Decathlon, NnUNet
from ldm.data.layouts.detect import (
    LAYOUTS,
    Choice,
    build_layout,
    detect_layout,
    find_predictions,
    name_patients,
    select_subjects,
    summary,
)
from ldm.data.layouts.dicom import Dicom, DicomSeries
from ldm.data.layouts.flat import Flat
from ldm.data.layouts.folders import ContrastFolders
from ldm.data.layouts.hdf5 import HDF5, HDF5Stack
from ldm.data.layouts.table import SubjectTable
from ldm.data.volume_file import VolumeFile

__all__ = [
    "BIDS",
    "HDF5",
    "LAYOUTS",
    "BraTS2013",
    "BraTS2021",
    "BraTS2023",
    "Choice",
    "ContrastFolders",
    "Decathlon",
    "Dicom",
    "DicomSeries",
    "Entry",
    "Flat",
    "HDF5Stack",
    "Layout",
    "NnUNet",
    "Subject",
    "SubjectTable",
    "Tree",
    "VolumeFile",
    "build_layout",
    "detect_layout",
    "find_predictions",
    "name_patients",
    "select_subjects",
    "summary",
]
