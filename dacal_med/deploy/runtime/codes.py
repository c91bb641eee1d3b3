# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Coded concepts for the classes of a segmentation, as DICOM wants them.

The codes come from the tables of PS3.16 that pydicom carries; here stands only which of them a class name means. A
bundle's ``metadata.json`` may say it itself, under ``segment_codes``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dacal_med.io.errors import InputError


@dataclass(frozen=True)
class Concept:
    """What a segment shows.

    Attributes:
        category: e.g. anatomical structure.
        type: e.g. kidney.
        side: left or right, None where the type says it or it has none.
    """

    category: Code
    type: Code
    side: Code | None = None


# Class name, in lower case and without a side, to (category, type) by their keywords in PS3.16.
_ANATOMY = "AnatomicalStructure"
_ABNORMAL = "MorphologicallyAbnormalStructure"
_KNOWN = {
    **dict.fromkeys(("liver",), (_ANATOMY, "Liver")),
    **dict.fromkeys(("spleen",), (_ANATOMY, "Spleen")),
    **dict.fromkeys(("kidney", "kidneys"), (_ANATOMY, "Kidney")),
    **dict.fromkeys(("pancreas",), (_ANATOMY, "Pancreas")),
    **dict.fromkeys(("gallbladder", "gall bladder"), (_ANATOMY, "Gallbladder")),
    **dict.fromkeys(("stomach",), (_ANATOMY, "Stomach")),
    **dict.fromkeys(("esophagus", "oesophagus"), (_ANATOMY, "Esophagus")),
    **dict.fromkeys(("duodenum",), (_ANATOMY, "Duodenum")),
    **dict.fromkeys(("aorta",), (_ANATOMY, "Aorta")),
    **dict.fromkeys(("inferior vena cava", "postcava"), (_ANATOMY, "InferiorVenaCava")),
    **dict.fromkeys(("portal vein",), (_ANATOMY, "PortalVein")),
    **dict.fromkeys(("adrenal gland",), (_ANATOMY, "AdrenalGland")),
    **dict.fromkeys(("bladder", "urinary bladder"), (_ANATOMY, "Bladder")),
    **dict.fromkeys(("lung",), (_ANATOMY, "Lung")),
    **dict.fromkeys(("brain",), (_ANATOMY, "Brain")),
    **dict.fromkeys(("hippocampus",), (_ANATOMY, "Hippocampus")),
    **dict.fromkeys(("prostate",), (_ANATOMY, "Prostate")),
    **dict.fromkeys(("pulmonary artery",), (_ANATOMY, "PulmonaryArtery")),
    **dict.fromkeys(
        ("tumour", "tumor", "gtv", "tumour core", "tumor core", "enhancing tumour"), (_ABNORMAL, "Neoplasm")
    ),
    **dict.fromkeys(("enhancing tumor", "gross tumour volume", "gross tumor volume"), (_ABNORMAL, "Neoplasm")),
    **dict.fromkeys(("lesion",), (_ABNORMAL, "Lesion")),
    **dict.fromkeys(("edema", "oedema"), (_ABNORMAL, "Edema")),
    **dict.fromkeys(("necrosis",), (_ABNORMAL, "Necrosis")),
}
DEFAULT = Concept(codes.SCT.AnatomicalStructure, codes.SCT.Tissue)
"""Of a class that the table does not know: tissue. The segment's label tells which."""


def concept(name: str, own: Mapping[str, Any] | None = None) -> Concept:
    """Return the concept of a class.

    Args:
        name: of the class, e.g. "left kidney".
        own: the bundle's ``segment_codes``: class name to an object with ``category`` and ``type``, each
            ``[value, scheme, meaning]``, and optionally ``side`` ("left" or "right").

    Raises:
        InputError: the bundle's entry is malformed.
    """
    if own is not None and name in own:
        return _own(name, own[name])
    words = re.sub(r"[_\s-]+", " ", name.lower()).strip()
    side = next((side for side in ("left", "right") if side in words.split()), None)
    bare = " ".join(word for word in words.split() if word != side)
    # A ventricle's side is part of what it is; only pairs are given one.
    known = _KNOWN.get(bare)
    if known is None:
        return DEFAULT
    return Concept(getattr(codes.SCT, known[0]), getattr(codes.SCT, known[1]), _side(side))


def _side(side: str | None) -> Code | None:
    return None if side is None else {"left": codes.SCT.Left, "right": codes.SCT.Right}[side]


def _own(name: str, entry: Any) -> Concept:
    try:
        category, kind = (Code(*map(str, entry[key][:3])) for key in ("category", "type"))
        return Concept(category, kind, _side(entry.get("side")))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"metadata.json: segment_codes of {name!r} is {entry!r}; wanted "
            '{"category": [value, scheme, meaning], "type": [value, scheme, meaning], "side": "left"}'
        ) from error
