"""Physics of the phantom: relaxation times at 3 T, signal equations, gadolinium, the scanner.

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
- Noeth et al. 2020, NMR Biomed 33:e4242: gadolinium shortens T1 by 838 +- 210 ms in enhancing
  glioblastoma and by 32 +- 35 ms in normal tissue. With the T1 and r1 below, this is 0.1 to 0.4 mM.
- Shen et al. 2015, Invest Radiol 50:330: r1 of gadobutrol in whole blood at 3 T, 4.5 +- 0.3 /mM/s.

Tumour, oedema and gliosis vary widely between studies and patients: their values are round numbers
from within the published spread (T1 1.2-2 s, T2 110-250 ms at 3 T), and patients vary around them.
So are all diffusion coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ldm.data.phantom.geometry import SmoothField

CONTRASTS = ("t1", "t1ce", "t2", "flair")
DIFFUSION = "dwi"
B_VALUE, DWI_TR, DWI_TE = 1.0, 6000.0, 80.0  # 1e3 s/mm2, ms
RELAXIVITY = 4.5e-3  # r1 of gadobutrol in blood at 3 T, 1/(mM ms); Shen 2015

Values = float | np.ndarray


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
    "white_matter": Tissue(
        850, 72, 47, 0.69, adc=0.70
    ),  # Wansapura, Stanisz, Wright; water Oros-Peusquens
    "grey_matter": Tissue(1450, 95, 52, 0.83, adc=0.85),  # between Wansapura and Wright; T2 Stanisz
    # Wright (putamen, caudate); T2 between GM and pallidum
    "deep_grey": Tissue(1340, 78, 45, 0.80, adc=0.75),
    "pallidum": Tissue(
        1080, 39, 26, 0.76, adc=0.75
    ),  # T2 and T2* Gelman; T1 chosen between WM and putamen
    "csf": Tissue(
        4300, 1900, 1000, 1.00, 0.0, adc=3.0
    ),  # PMC10696635; T2* matters little at a short TE
    "blood": Tissue(1900, 275, 40, 0.80, 0.0, 0.1),  # Stanisz; water and flow void chosen
    "choroid": Tissue(1700, 180, 60, 0.88, adc=1.3),  # chosen: blood-rich tissue bathed in CSF
    "gliosis": Tissue(1200, 115, 70, 0.80, 0.05, adc=1.0),  # age-related white matter lesions
    "oedema": Tissue(1550, 165, 100, 0.86, 0.06, adc=1.5),
    "tumour": Tissue(
        1600, 135, 80, 0.87, 0.10, adc=1.1
    ),  # solid part: the enhancing rim, if it enhances
    "necrosis": Tissue(2400, 270, 150, 0.94, 0.10, adc=2.2),
}
INDEX = {name: i for i, name in enumerate(TISSUES)}


def spin_echo(pd: Values, t1: Values, t2: Values, tr: float, te: float) -> Values:
    """Spin echo: PD (1 - exp(-TR/T1)) exp(-TE/T2), times in ms."""
    return pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(
    pd: Values, t1: Values, t2: Values, tr: float, te: float, ti: float
) -> Values:
    """Inversion-recovery spin echo, signed: PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2)."""
    return pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def spoiled_gradient_echo(
    pd: Values, t1: Values, t2_star: Values, tr: float, te: float, flip: float
) -> Values:
    """Steady state of a spoiled gradient echo (Ernst and Anderson 1966); ``flip`` in degrees."""
    e1, alpha = np.exp(-tr / t1), np.radians(flip)
    return pd * np.sin(alpha) * (1 - e1) / (1 - np.cos(alpha) * e1) * np.exp(-te / t2_star)


def diffusion_weighted(spin_echo: Values, adc: Values) -> Values:
    """Spin echo after diffusion gradients of :data:`B_VALUE` (Stejskal and Tanner 1965)."""
    return spin_echo * np.exp(-B_VALUE * adc)


def null_time(t1: float, tr: float) -> float:
    """Return the inversion time in ms at which tissue with ``t1`` gives no signal."""
    return t1 * (np.log(2) - np.log1p(np.exp(-tr / t1)))


def shortened_t1(t1: Values, gadolinium: Values) -> Values:
    """Return T1 in ms at a gadolinium concentration in mM: 1/T1' = 1/T1 + r1 C."""
    return 1 / (1 / t1 + RELAXIVITY * gadolinium)


@dataclass(frozen=True)
class Protocol:
    """Sequence settings of one examination, times in ms and the flip angle in degrees.

    T1 and T1ce are spoiled gradient echoes, T2 is a turbo spin echo at its effective TE, and FLAIR
    an inversion-recovery turbo spin echo whose TI nulls cerebrospinal fluid.
    """

    t1_tr: float = 20.0
    t1_te: float = 4.0
    t1_flip: float = 26.0
    t2_tr: float = 5000.0
    t2_te: float = 95.0
    flair_tr: float = 9000.0
    flair_te: float = 110.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Protocol:
        """Draw the settings of a site: each within 12 % of the default."""
        defaults = vars(cls())
        return cls(**{name: value * rng.uniform(0.88, 1.12) for name, value in defaults.items()})


def signals(
    fractions: np.ndarray,
    gadolinium: Mapping[str, np.ndarray],
    texture: np.ndarray,
    individual: np.ndarray,
    protocol: Protocol,
    dwi: bool = False,
) -> dict[str, np.ndarray]:
    """Return the signal of every contrast, without noise, in units of fully relaxed water.

    Args:
        fractions: volume fraction of every tissue (len(TISSUES), N), in the order of ``TISSUES``.
        gadolinium: concentration (N,) in mM inside the tissues that take it up.
        texture: deviation of T1 and T2 (N,) inside this patient, in units of each tissue's spread.
        individual: deviation of this patient's tissues (len(TISSUES),), in the same units.
        protocol: sequence settings.
        dwi: of a trace image, too.
    """
    names = (*CONTRASTS, *([DIFFUSION] if dwi else []))
    total = {name: np.zeros(fractions.shape[1], dtype=np.float32) for name in names}
    p = protocol
    ti = null_time(TISSUES["csf"].t1, p.flair_tr)
    for row, (name, tissue) in enumerate(TISSUES.items()):
        part = fractions[row]
        here = np.flatnonzero(part)
        weight = part[here]
        variation = np.exp(tissue.spread * (texture[here] + individual[row]))
        t1, t2 = tissue.t1 * variation, tissue.t2 * variation
        gre = (p.t1_tr, p.t1_te, p.t1_flip)
        plain = spoiled_gradient_echo(tissue.pd, t1, tissue.t2_star, *gre)
        total["t1"][here] += weight * plain
        if name in gadolinium:
            t1_gd = shortened_t1(t1, gadolinium[name][here])
            plain = spoiled_gradient_echo(tissue.pd, t1_gd, tissue.t2_star, *gre)
        total["t1ce"][here] += weight * plain
        pd = tissue.pd * tissue.spin_echo
        total["t2"][here] += weight * spin_echo(pd, t1, t2, p.t2_tr, p.t2_te)
        flair = inversion_recovery(pd, t1, t2, p.flair_tr, p.flair_te, ti)
        total["flair"][here] += weight * flair
        if dwi:
            echo = spin_echo(pd, t1, t2, DWI_TR, DWI_TE)
            total[DIFFUSION][here] += weight * diffusion_weighted(echo, tissue.adc)
    return {name: np.abs(signal) for name, signal in total.items()}


def scan(
    rng: np.random.Generator, ideal: Mapping[str, np.ndarray], points: np.ndarray
) -> dict[str, np.ndarray]:
    """Turn ideal signals into scanner values: coil shading, Rician noise, an arbitrary gain.

    Args:
        rng: source of the noise.
        ideal: noise-free signals (N,) by contrast.
        points: positions (3, N) in mm.

    Returns:
        Whole numbers >= 1 (float32) by contrast, so that 0 is free to mean background.
    """
    coil = 0.12 * SmoothField(rng, 90.0)(points)
    noise_level = 1 / rng.uniform(25, 50)  # of the median signal
    scanned = {}
    for name, signal in ideal.items():
        shading = np.exp(coil + 0.03 * SmoothField(rng, 70.0)(points))
        median = np.median(signal)
        noise = rng.standard_normal((2, signal.size), dtype=np.float32) * noise_level * median
        magnitude = np.hypot(signal * shading + noise[0], noise[1])  # Rician: |S + complex noise|
        gain = rng.uniform(150, 900) / median
        scanned[name] = np.maximum(np.rint(magnitude * gain), 1).astype(np.float32)
    return scanned
