"""Physics of the phantom: signal equations, gadolinium, the settings of an examination.

- Shen et al. 2015, Invest Radiol 50:330: r1 of gadobutrol in whole blood at 3 T, 4.5 +- 0.3 /mM/s.
- Noeth et al. 2020, NMR Biomed 33:e4242: gadolinium shortens T1 by 838 +- 210 ms in enhancing
  glioblastoma and by 32 +- 35 ms in normal tissue. With the T1 and r1 of the phantom, this is 0.1
  to 0.4 mM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ldm.phantom.tissues import TISSUES

CONTRASTS = ("t1", "t1ce", "t2", "flair")
DIFFUSION = "dwi"
B_VALUE, DWI_TR, DWI_TE = 1.0, 6000.0, 80.0  # 1e3 s/mm2, ms
RELAXIVITY = 4.5e-3  # r1 of gadobutrol in blood at 3 T, 1/(mM ms); Shen 2015
VOLUME, SLICES = (20.0, 4.0, 26.0), (550.0, 11.0, 90.0)  # TR, TE, flip angle of 3-D and 2-D T1

Values = float | np.ndarray


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
    """Sequence settings of one examination, times in ms and flip angles in degrees.

    T1 and T1ce are spoiled gradient echoes, as 3-D volumes or as thick 2-D slices, often not the
    same in both; T2 is a turbo spin echo at its effective TE, and FLAIR an inversion-recovery turbo
    spin echo whose TI nulls cerebrospinal fluid.

    Attributes:
        t1, t1ce: TR, TE and flip angle.
        t2, flair: TR and effective TE.
        inversion: TI over the time that nulls fluid; scanners are set for another T1 of it.
        thickness: of the slices in mm by contrast, 1 if it is not named.
    """

    t1: tuple[float, ...] = VOLUME
    t1ce: tuple[float, ...] = VOLUME
    t2: tuple[float, ...] = (7500.0, 100.0)
    flair: tuple[float, ...] = (9000.0, 125.0)
    inversion: float = 1.0
    thickness: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Protocol:
        """Draw the settings of a site: each within 12 % of the default."""
        thick = {"t1": 0.5, "t1ce": 0.3, "t2": 0.8, "flair": 0.7, "dwi": 1.0}  # part that is 2-D
        thickness = {name: rng.uniform(3, 6) for name, part in thick.items() if rng.random() < part}
        chosen = {name: SLICES if name in thickness else VOLUME for name in ("t1", "t1ce")}
        settings = {"t2": cls.t2, "flair": cls.flair, **chosen}
        drawn = {k: tuple(v * rng.uniform(0.88, 1.12) for v in s) for k, s in settings.items()}
        return cls(**drawn, inversion=rng.uniform(1.02, 1.15), thickness=thickness)


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
    names = (*CONTRASTS, DIFFUSION) if dwi else CONTRASTS
    total = {name: np.zeros(fractions.shape[1], dtype=np.float32) for name in names}
    ti = protocol.inversion * null_time(TISSUES["csf"].t1, protocol.flair[0])
    for row, (name, tissue) in enumerate(TISSUES.items()):
        here = np.flatnonzero(fractions[row])
        weight = fractions[row, here]
        variation = np.exp(tissue.spread * (texture[here] + individual[row]))
        t1, t2 = tissue.t1 * variation, tissue.t2 * variation
        t1_gd = shortened_t1(t1, gadolinium[name][here]) if name in gadolinium else t1
        pd, t2_star = tissue.pd, tissue.t2_star
        still = pd * tissue.spin_echo
        parts = {
            "t1": spoiled_gradient_echo(pd, t1, t2_star, *protocol.t1),
            "t1ce": spoiled_gradient_echo(pd, t1_gd, t2_star, *protocol.t1ce),
            "t2": spin_echo(still, t1, t2, *protocol.t2),
            "flair": inversion_recovery(still, t1, t2, *protocol.flair, ti),
        }
        if dwi:
            echo = spin_echo(still, t1, t2, DWI_TR, DWI_TE)
            parts[DIFFUSION] = diffusion_weighted(echo, tissue.adc)
        for contrast, signal in parts.items():
            total[contrast][here] += weight * signal
    return {name: np.abs(signal) for name, signal in total.items()}
