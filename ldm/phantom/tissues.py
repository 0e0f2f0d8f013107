"""Tissues of the phantom: what they are made of, and a map of which fills how much of a voxel.

Where the literature gives a range, the value inside it is our choice; each line of ``TISSUES``
names its sources. They are:

- Wansapura et al. 1999, JMRI 9:531: grey and white matter T1, T2, T2* (T1 1331 and 832 ms).
- Stanisz et al. 2005, MRM 54:507: T1 / T2 of white matter 1084 / 69 ms, grey matter 1820 / 99 ms,
  blood 1932 / 275 ms.
- Wright et al. 2008, MAGMA 21:121: T1 of grey matter 1607, white matter 838, putamen 1332, caudate
  head 1395 ms.
- Gelman et al. 1999, Radiology 210:759: R2 and R2' of pallidum (25.8 and 12.0 1/s), prefrontal
  cortex (14.4 and 3.4 1/s) and white matter (18.0 and 3.9 1/s).
- Oros-Peusquens et al. 2019, Front Neurol 10:1333: water content of white matter 0.69, grey matter
  0.84, relative to cerebrospinal fluid.
- PMC10696635: cerebrospinal fluid T1 4309 ms, T2 1886 ms (subarachnoid), 4454 and 2373 ms (horns).

The T2 of grey matter lies below the published 95 to 110 ms: what counts is its contrast to white
matter in turbo spin echoes, where magnetisation transfer and stimulated echoes reduce it. Tumour,
oedema and gliosis vary widely between studies and patients: their values are round numbers
from within the published spread (T1 1.2-2 s, T2 110-250 ms at 3 T), and patients vary around them.
So are all diffusion coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms, proton density relative to water, and their variation.

    Attributes:
        spread: relative standard deviation of T1 and T2, inside a patient and between patients.
        spin_echo: part of the spin-echo signal that remains in flowing blood (flow void).
        adc: mean apparent diffusion coefficient in 1e-3 mm2/s.
    """

    t1: float
    t2: float
    t2_star: float
    pd: float
    spread: float = 0.025
    spin_echo: float = 1.0
    adc: float = 0.8


TISSUES = {
    "white_matter": Tissue(840, 80, 47, 0.70, adc=0.70),  # Wansapura; water Oros-Peusquens
    "grey_matter": Tissue(1330, 88, 52, 0.82, adc=0.85),  # Wansapura; T2 chosen, see above
    "deep_grey": Tissue(1180, 76, 45, 0.80, adc=0.75),  # ratio to grey matter as in Wright
    "pallidum": Tissue(1080, 55, 26, 0.76, adc=0.75),  # T2* Gelman, T2 above his; T1 chosen
    "csf": Tissue(4300, 1900, 1000, 1.00, 0.0, adc=3.0),  # PMC10696635; T2* hardly matters
    "blood": Tissue(1900, 275, 40, 0.80, 0.0, 0.1),  # Stanisz; water and flow void chosen
    "dura": Tissue(1100, 40, 15, 0.45, 0.0),  # chosen: collagen, with the bone that a mask leaves
    "choroid": Tissue(1700, 180, 60, 0.88, adc=1.3),  # chosen: blood-rich tissue bathed in CSF
    "gliosis": Tissue(1200, 115, 70, 0.80, 0.05, adc=1.0),  # age-related white matter lesions
    "oedema": Tissue(1550, 165, 100, 0.86, 0.06, adc=1.5),
    "tumour": Tissue(1600, 135, 80, 0.87, 0.10, adc=1.1),  # solid: the rim that may enhance
    "necrosis": Tissue(2400, 270, 150, 0.94, 0.10, adc=2.2),
}
INDEX = {name: i for i, name in enumerate(TISSUES)}


class TissueMap:
    """Volume fractions that stay a partition of unity while tissues are painted over each other."""

    def __init__(self, background: str, size: int) -> None:
        self.fractions = np.zeros((len(TISSUES), size), dtype=np.float32)
        self.fractions[INDEX[background]] = 1

    def paint(self, tissue: str, coverage: np.ndarray) -> None:
        """Let ``tissue`` take the part ``coverage`` (N,) of every voxel."""
        self.fractions *= 1 - coverage
        self.fractions[INDEX[tissue]] += coverage

    def convert(self, source: str, tissue: str, coverage: np.ndarray) -> None:
        """Turn the part ``coverage`` (N,) of the ``source`` tissue into ``tissue``."""
        converted = coverage * self.fractions[INDEX[source]]
        self.fractions[INDEX[source]] -= converted
        self.fractions[INDEX[tissue]] += converted
