# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a tissue map looks like to two scanners: CT in Hounsfield units, and MR with another order of contrast.

CT values are those of a portal-venous abdomen. The MR magnitudes follow no single sequence; what matters is that their
order differs from CT's (fat is brighter than liver and muscle, bone and flowing blood are dark, the spleen stands out
from the liver), and that each image has its own gain, gamma and bias field. Noise is Gaussian for CT and Rician for MR
(Gudbjartsson and Patz, Magn Reson Med 34 (1995) 910). Both are blurred by a point spread, which makes the partial
volumes. The gap is a real one: a small U-Net that reaches Dice 0.89 on unseen CT reaches 0.35 to 0.4 on MR.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from dacal_med.data.phantom_anatomy import Tissue
from dacal_med.data.phantom_shapes import bias_field, rician

# Mean and standard deviation over cases, in HU.
_HOUNSFIELD: dict[Tissue, tuple[float, float]] = {
    Tissue.AIR: (-1000, 0),
    Tissue.FAT: (-100, 6),
    Tissue.MUSCLE: (52, 6),
    Tissue.LUNG: (-820, 25),
    Tissue.BONE: (560, 70),
    Tissue.MARROW: (240, 30),
    Tissue.VESSEL: (160, 14),
    Tissue.BOWEL: (32, 10),
    Tissue.GAS: (-900, 30),
    Tissue.STOMACH: (22, 10),
    Tissue.LIVER: (108, 9),
    Tissue.SPLEEN: (124, 9),
    Tissue.LEFT_CORTEX: (190, 12),
    Tissue.LEFT_MEDULLA: (168, 12),
}
# Mean and standard deviation over cases, as shares of the brightest signal.
_MAGNITUDE: dict[Tissue, tuple[float, float]] = {
    Tissue.AIR: (0.0, 0.0),
    Tissue.FAT: (0.54, 0.04),
    Tissue.MUSCLE: (0.22, 0.02),
    Tissue.LUNG: (0.06, 0.01),
    Tissue.BONE: (0.08, 0.02),
    Tissue.MARROW: (0.45, 0.05),
    Tissue.VESSEL: (0.10, 0.03),
    Tissue.BOWEL: (0.34, 0.05),
    Tissue.GAS: (0.02, 0.0),
    Tissue.STOMACH: (0.28, 0.05),
    Tissue.LIVER: (0.40, 0.03),
    Tissue.SPLEEN: (0.72, 0.04),
    Tissue.LEFT_CORTEX: (0.88, 0.04),
    Tissue.LEFT_MEDULLA: (0.75, 0.04),
}
# Both kidneys look alike, so one draw serves both.
_SAME_AS = {Tissue.RIGHT_CORTEX: Tissue.LEFT_CORTEX, Tissue.RIGHT_MEDULLA: Tissue.LEFT_MEDULLA}


def render_ct(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Render a tissue map as CT.

    Args:
        tissue: a :class:`Tissue` per voxel, ``(*spatial)``.
        rng: the only source of randomness.

    Returns:
        Hounsfield units, int16 ``(*spatial)``, within -1024 to 3071.
    """
    image = _draw(tissue, _HOUNSFIELD, rng)
    soft = image > -200
    image += np.where(soft, _texture(image.shape, rng) * 7.0, 0.0)
    image = _blur(image, rng)
    image += rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(9, 16)
    return np.asarray(np.clip(np.rint(image), -1024, 3071), dtype=np.int16)


def render_mr(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Render a tissue map as MR.

    Args:
        tissue: a :class:`Tissue` per voxel, ``(*spatial)``.
        rng: the only source of randomness.

    Returns:
        Magnitudes in arbitrary units, float32 ``(*spatial)``, from 0 to about 1200.
    """
    image = np.clip(_draw(tissue, _MAGNITUDE, rng), 0.0, 1.0) ** np.float32(np.exp(rng.normal(0.0, 0.12)))
    image *= 1.0 + 0.06 * _texture(image.shape, rng)
    image = _blur(image, rng) * bias_field(image.shape, 0.15, 0.3, rng)
    magnitude = rician(image, rng.uniform(0.02, 0.04), rng)
    return np.asarray(magnitude * rng.uniform(600, 1000), dtype=np.float32)


def _draw(tissue: np.ndarray, table: dict[Tissue, tuple[float, float]], rng: np.random.Generator) -> np.ndarray:
    """Give every tissue one value of its own for this case."""
    values = np.zeros(len(Tissue), dtype=np.float32)
    for kind, (mean, deviation) in table.items():
        values[kind] = rng.normal(mean, deviation)
    for kind, twin in _SAME_AS.items():
        values[kind] = values[twin]
    return np.asarray(values[tissue])


def _blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(gaussian_filter(image, rng.uniform(0.45, 0.7), mode="nearest", truncate=3.0), dtype=np.float32)


def _texture(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Grainy but correlated noise of unit standard deviation."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.8, truncate=3.0)
    return np.asarray(noise / noise.std(), dtype=np.float32)
