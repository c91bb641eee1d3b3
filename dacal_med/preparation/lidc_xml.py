# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From the XML annotations of LIDC-IDRI to masks.

The rule: a voxel is nodule if at least a given share of the reading sessions in the file drew it, and at least one.
A reader's mask is the union of their nodules of 3 mm or more, which are those with outlines (smaller nodules and
non-nodules have a point each). An outline is a chain of pixels just outside the nodule: what lies within is nodule, the
chain is not. Outlines with ``inclusion`` FALSE are holes of the nodule on that slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy import ndimage
from skimage.draw import polygon_perimeter

from dacal_med.io.errors import InputError

_CT = "LidcReadMessage"  # those of radiographs are IdriReadMessage


def series_of(path: Path) -> str | None:
    """Return the SeriesInstanceUID of the CT that a file annotates; None if it is of something else.

    Raises:
        InputError: no XML.
    """
    root = _root(path)
    found = root.find("{*}ResponseHeader/{*}SeriesInstanceUid")
    if not root.tag.endswith(_CT) or found is None or not found.text:
        return None
    return found.text.strip()


def consensus(path: Path, slices: Sequence[str], size: tuple[int, int], share: Fraction) -> np.ndarray[Any, Any]:
    """Return the voxels that enough readers drew.

    Args:
        path: XML file of the series.
        slices: SOPInstanceUID of each slice, in the order of the volume.
        size: columns and rows of a slice.
        share: of the reading sessions, from 0 to 1; 0 for any one of them.

    Returns:
        ``(columns, rows, slices)`` bool.

    Raises:
        InputError: no XML of a CT, no reading session, an outline on a slice that is not there or beyond its edge.
    """
    sessions = _root(path).findall("{*}readingSession")
    if not sessions:
        raise InputError(f"{path}: found no readingSession; wanted the annotations of a CT of LIDC-IDRI.")
    index = {uid: z for z, uid in enumerate(slices)}
    votes = np.zeros((*size, len(slices)), np.uint8)
    for session in sessions:
        drawn = np.zeros(votes.shape, bool)
        for nodule in session.findall("{*}unblindedReadNodule"):
            _add_nodule(drawn, nodule, index, path)
        votes += drawn
    return np.asarray(votes >= max(1, math.ceil(share * len(sessions))))


def _add_nodule(drawn: np.ndarray[Any, Any], nodule: Any, index: dict[str, int], path: Path) -> None:
    """Draw a nodule of one reader, outlines of holes after the others of their slice."""
    whole: dict[int, np.ndarray[Any, Any]] = {}
    holes: dict[int, np.ndarray[Any, Any]] = {}
    for roi in nodule.findall("{*}roi"):
        points = [(_number(edge, "xCoord", path), _number(edge, "yCoord", path)) for edge in roi.findall("{*}edgeMap")]
        if len(points) < 2:  # the centre of a nodule below 3 mm
            continue
        uid = (roi.findtext("{*}imageSOP_UID") or "").strip()
        if uid not in index:
            raise InputError(f"{path}: found an outline on the slice {uid!r}; wanted slices of its series alone.")
        into = holes if (roi.findtext("{*}inclusion") or "").strip().upper() == "FALSE" else whole
        z = index[uid]
        into[z] = into.get(z, False) | _within(points, drawn.shape[:2], path)
    for z, mask in whole.items():
        drawn[:, :, z] |= mask & ~holes.get(z, np.zeros_like(mask))


def _within(points: Sequence[tuple[int, int]], size: Sequence[int], path: Path) -> np.ndarray[Any, Any]:
    """Return the pixels ``(columns, rows)`` within a closed chain, the chain left out."""
    x, y = np.transpose(points)
    if min(points, default=(0, 0)) < (0, 0) or y.min() < 0 or x.max() >= size[0] or y.max() >= size[1]:
        raise InputError(f"{path}: found an outline from {min(points)} to {max(points)}; wanted pixels below {size}.")
    chain = np.zeros(size, bool)
    chain[polygon_perimeter(x, y, shape=tuple(size))] = True
    return np.asarray(ndimage.binary_fill_holes(chain) & ~chain)


def _number(edge: Any, name: str, path: Path) -> int:
    text = edge.findtext(f"{{*}}{name}")
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: found {name} = {text!r}; wanted a whole number of pixels.") from error


def _root(path: Path) -> Any:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path}: cannot be read as XML ({error}); wanted a complete file.") from error
