# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of phantom: valid data sets whose two domains look different, and whose classes can be seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from dacal_med.data.checking import check_data
from dacal_med.data.datalist import Datalist, load_datalist
from dacal_med.data.phantom import ensure_phantom
from dacal_med.data.phantom_kinds import KINDS
from dacal_med.io.errors import InputError
from dacal_med.io.reading import read_image

SMALL = {"num_source": 1, "num_target_train": 1, "num_target_val": 1}
CHANNELS = {"disc_cup": 3, "vessels": 3}
MODALITY = {"abdomen": "CT", "prostate": "MR", "brain_tumour": "MR", "mitochondria": "gray"}
pytestmark = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "abdomen"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Datalist]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: load_datalist(ensure_phantom(folder / kind, kind=kind, **SMALL)) for kind in KINDS}


def cases(entries: tuple[dict[str, str], ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images ``(channels, *spatial)`` and labels ``(*spatial)``."""
    return [(read_image(e["image"]).array.astype(float), read_image(e["label"]).array[0]) for e in entries]


def test_is_a_valid_data_set_with_every_class_in_every_case(made: dict[str, Datalist], kind: str) -> None:
    datalist = made[kind]
    axes = len(KINDS[kind].image_size)
    summary = check_data(datalist, axes, CHANNELS.get(kind, 1), progress=False)
    assert (summary.images, summary.labels) == (3, 2)
    assert datalist.class_names == tuple(KINDS[kind].labels.values())
    assert datalist.modality == dict.fromkeys(("source", "target"), MODALITY.get(kind, "RGB"))
    assert len(datalist.working_spacing(axes)) == axes
    for image, labels in cases((*datalist.source, *datalist.target_val)):
        shares = np.bincount(labels.ravel().astype(int), minlength=len(KINDS[kind].labels)) / labels.size
        assert shares[0] > 0.7
        assert all(shares[1:] > 5e-4)
        assert image.std() > 0


def test_same_seed_same_voxels(made: dict[str, Datalist], kind: str, tmp_path: Path) -> None:
    again = load_datalist(ensure_phantom(tmp_path / "again", kind=kind, **{**SMALL, "num_target_val": 0}))
    other = load_datalist(ensure_phantom(tmp_path / "other", kind=kind, seed=1, **{**SMALL, "num_target_val": 0}))
    first, same, another = (
        hashlib.sha256(read_image(d.source[0]["image"]).array.tobytes()).hexdigest() for d in (made[kind], again, other)
    )
    assert first == same != another


def test_domains_look_different(made: dict[str, Datalist], kind: str) -> None:
    (source, source_labels), (target, target_labels) = (
        cases(entries)[0] for entries in (made[kind].source, made[kind].target_val)
    )
    if kind == "prostate":  # the coil of the second site lies in the rectum, at the back
        assert np.divide(*halves(target)) > 1.4 * np.divide(*halves(source))
    elif kind == "brain_tumour":  # oedema is brighter than the brain in T2 and darker in T1
        assert np.median(source[0][source_labels == 2]) > 1.2 * np.median(source[source > 0])
        assert np.median(target[0][target_labels == 2]) < 0.9 * np.median(target[target > 0])
    elif kind == "mitochondria":  # the second microscope is softer and flatter
        assert target.std() < 0.8 * source.std()
        assert np.abs(np.diff(target)).mean() < 0.7 * np.abs(np.diff(source)).mean()
    else:  # the second camera is dim
        assert target.mean() < 0.7 * source.mean()


def halves(image: np.ndarray) -> tuple[float, float]:
    """Mean of the back and of the front half of a volume stored right, anterior, superior."""
    middle = image.shape[2] // 2
    return float(image[:, :, :middle].mean()), float(image[:, :, middle:].mean())


def test_another_kind_in_the_folder_is_refused(made: dict[str, Datalist], kind: str) -> None:
    with pytest.raises(InputError, match="holds a phantom made with"):
        ensure_phantom(made[kind].root, kind="abdomen", **SMALL)
    with pytest.raises(InputError, match=r"phantom kind: found 'spleen', wanted one of \['abdomen'"):
        ensure_phantom(made[kind].root, kind="spleen")


def test_wrong_sizes_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sizes of at least 8 voxels"):
        ensure_phantom(tmp_path / "p", kind=kind, image_size=(20,))
    with pytest.raises(ValueError, match="spacing"):
        ensure_phantom(tmp_path / "p", kind=kind, spacing_mm=3.0 if len(KINDS[kind].image_size) == 2 else -1.0)
