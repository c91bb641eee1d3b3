# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A label in the place of its image is accepted whatever the order of its axes, and refused for a true reason."""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import Compose, LoadImaged, Orientationd
from PIL import Image as Pillow

from dacal_med.data import check_data, load_datalist
from dacal_med.io.errors import InputError
from dacal_med.io.image import Header, Image, check_place, on_grid_of, usable_affine
from dacal_med.io.reading import read_image
from tests.deploy.runtime.builders import oblique

SHAPE = (5, 6, 7)


def turned(array: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> Image:
    """The same voxels in the same places, in a file with other axes."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, old in enumerate(order):
        matrix[old, new] = -1 if flips[new] else 1
        matrix[old, 3] = array.shape[old] - 1 if flips[new] else 0
    moved = array.transpose(order)[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    return Image(moved[None], Header(moved.shape, 1, affine @ matrix, "nifti"))


AXES = st.tuples(st.sampled_from(list(itertools.permutations(range(3)))), st.tuples(*[st.integers(0, 1)] * 3))


@given(axes=AXES, seed=st.integers(0, 9))
def test_axes_in_any_order_are_the_same_place(axes: tuple, seed: int):
    array = np.random.default_rng(seed).integers(0, 5, SHAPE)
    image = Header(SHAPE, 1, oblique(), "nifti")
    label = turned(array, oblique(), *axes)
    check_place(image, "image", label.header, "label")
    np.testing.assert_array_equal(on_grid_of(image, label)[0], array)


@given(axes=AXES, axis=st.integers(0, 2))
def test_another_place_is_told_by_its_true_distance(axes: tuple, axis: int):
    moved = oblique()
    moved[axis, 3] += 1.25
    label = turned(np.zeros(SHAPE), moved, *axes)
    with pytest.raises(InputError, match=r"label: lies up to 1\.25 mm away from its image image"):
        check_place(Header(SHAPE, 1, oblique(), "nifti"), "image", label.header, "label")


def test_another_size_is_told():
    label = turned(np.zeros((5, 6, 8)), oblique(), (2, 0, 1), (0, 0, 0))
    with pytest.raises(InputError, match=r"label: found shape \(8, 5, 6\); wanted \(5, 6, 7\), that of image"):
        check_place(Header(SHAPE, 1, oblique(), "nifti"), "image", label.header, "label")


@pytest.mark.parametrize("axes", [((0, 1, 2), (1, 1, 0)), ((2, 0, 1), (0, 1, 1))], ids=["flipped", "permuted"])
def test_training_puts_a_turned_label_on_its_image(tmp_path: Path, axes: tuple):
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    label = turned((values % 2).astype(np.uint8), oblique(), *axes)
    nib.save(nib.Nifti1Image(values, oblique()), tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(label.array[0], label.header.affine), tmp_path / "l.nii")
    content = {"labels": {"0": "background", "1": "odd"}, "source": [{"image": "i.nii", "label": "l.nii"}]}
    (tmp_path / "datalist.json").write_text(json.dumps({**content, "target_train": [{"image": "i.nii"}]}))
    datalist = load_datalist(tmp_path)
    assert check_data(datalist, 3, 1, progress=False).label_voxels == {"background": 105, "odd": 105}
    options = {"reader": "dacal_med.io.Reader", "ensure_channel_first": True}
    load = [LoadImaged("image", **options), LoadImaged("label", as_label=True, **options)]
    item = Compose([*load, Orientationd(["image", "label"], "RAS", labels=None)])(dict(datalist.source[0]))
    np.testing.assert_array_equal(item["image"] % 2, item["label"])


def gray_png(numbers: np.ndarray, depth: int) -> bytes:
    """A gray PNG of few bits, as optimizers leave them; written by hand, since Pillow writes 8."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - depth :]).tobytes() for row in numbers]
    header = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_large_numbers_of_a_tiff_are_not_negative(tmp_path: Path):
    numbers = np.array([[1, 2**32 - 1, 2**31]], np.uint32)
    tifffile.imwrite(tmp_path / "l.tif", numbers)
    np.testing.assert_array_equal(read_image(tmp_path / "l.tif").array[0], numbers.T)


def test_labels_of_pgm_that_pillow_would_spread_are_refused(tmp_path: Path):
    (tmp_path / "l.pgm").write_bytes(b"P5 2 1 3\n\0\3")
    with pytest.raises(InputError, match=r"l\.pgm: found gray values up to 3; wanted a label up to 255 or 65535"):
        read_image(tmp_path / "l.pgm", as_label=True)


def test_labels_keep_the_numbers_of_their_palette(tmp_path: Path):
    numbers = np.arange(12).reshape(3, 4).astype(np.uint8) % 3
    indexed = Pillow.fromarray(numbers, "P")
    indexed.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [0] * 759)
    indexed.save(tmp_path / "p.png")
    Pillow.fromarray(numbers > 0).save(tmp_path / "b.png")
    Pillow.fromarray(numbers[..., None].repeat(3, 2)).save(tmp_path / "g.png")
    (tmp_path / "d.png").write_bytes(gray_png(numbers, depth=2))
    for name, wanted in (("p", numbers), ("b", numbers > 0), ("g", numbers), ("d", numbers)):
        load = LoadImaged("label", reader="dacal_med.io.Reader", as_label=True, ensure_channel_first=True)
        found = load({"label": str(tmp_path / f"{name}.png")})["label"]
        np.testing.assert_array_equal(found[0], wanted.T)


@pytest.mark.parametrize(
    ("affine", "said"),
    [
        (np.diag([1.0, 0.0, 1.0, 1.0]), "voxel sizes"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "voxel sizes"),
        (np.diag([1.0, 1e6, 1.0, 1.0]), "from 1e-06 to 10000 mm"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "axes lie in one plane"),
    ],
)
def test_affines_that_place_nothing(affine: np.ndarray, said: str):
    with pytest.raises(InputError, match=f"it: found .*{said}"):
        usable_affine(affine, "it")
