# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures as a viewer shows them: palettes and orientation applied; labels keep the numbers of their palette."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageOps

from dacal_med.io.errors import InputError
from dacal_med.io.image import Array, Header, Opened, told

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".ppm.gz", ".pgm.gz")
TIFF_SUFFIXES = (".tif", ".tiff")
_ORIENTATION, _DESCRIPTION = 0x0112, 270
# Of TIFF: bits and number of samples, what they are, which of them are no colors, and whether they have a sign.
_BITS, _SAMPLES, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 277, 262, 338, 339
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # samples of a pixel by photometric interpretation
_GRAY = ("L", "I", "F", "I;16", "I;16B", "I;16L", "I;16S", "I;16BS")
_IMAGEJ_PAGES = re.compile(r"^images=(\d+)$", re.MULTILINE)


def open_picture(path: Path, name: str, *, as_label: bool = False, page: int | None = None) -> Opened:
    """Open a picture.

    Args:
        path: PNG, JPEG, TIFF, BMP, GIF or PPM, the last also gzipped.
        name: what messages call it.
        as_label: give the numbers of a palette or of single bits instead of their colors, and one channel where three
            are equal.
        page: which page of a stack, from 0; None for a file that is no stack.

    Returns:
        One channel or three, ``(channels, width, height)``. A picture of 8 bits stays one of 8 bits, one of 16 bits has
        16.

    Raises:
        InputError: it cannot be read, is a stack, is transparent somewhere, or of a kind whose values are not certain.
    """
    if page is None and count_pages(path, name) != 1:
        raise InputError(f"{name}: found a stack of {count_pages(path, name)} pictures; wanted one picture a file")
    with _opened(path, name, page) as picture:
        # Pillow gives the size of a TIFF after its turn, and turns it itself.
        turned = picture.format != "TIFF" and _turn(picture) in (5, 6, 7, 8)
        size = picture.size[::-1] if turned else picture.size
        mode = _mode(picture, name, as_label)
        notes = (
            ("it has 16 bits a sample: the upper 8 are read",) if mode in ("RGB", "L") and _bits(picture) == 16 else ()
        )
        channels = 3 if mode == "RGB" else 1
        if as_label and mode == "RGB":  # known only once the colors are read
            channels = len(_voxels(path, name, as_label=True, page=page))
    return Opened(
        Header((int(size[0]), int(size[1])), channels, None, "picture", notes=notes),
        lambda: _voxels(path, name, as_label=as_label, page=page),
    )


def open_stack(path: Path, name: str, *, as_label: bool = False) -> Opened:
    """Open the pages of a TIFF as a volume ``(1, columns, rows, pages)`` of 1 mm voxels.

    Args:
        path: the file.
        name: what messages call it.
        as_label: see :func:`open_picture`.

    Raises:
        InputError: as :func:`open_picture`, colors, or pages of several sizes.
    """
    pages = [open_picture(path, name, as_label=as_label, page=page) for page in range(count_pages(path, name))]
    shapes = sorted({page.header.shape for page in pages})
    if len(shapes) > 1:
        raise InputError(f"{name}: found pages of {shapes[0]} and {shapes[1]} pixels; wanted pages of one size")
    if any(page.header.channels != 1 for page in pages):
        raise InputError(f"{name}: found pages in color; wanted a gray value, or a label, per voxel")
    header = Header((*shapes[0], len(pages)), 1, np.eye(4), "stack", notes=("TIFF has no millimeters: voxels of 1 mm",))
    return Opened(header, lambda: np.stack([page.voxels() for page in pages], axis=-1))


def count_pages(path: Path, name: str = "") -> int:
    """Return the number of pages of a TIFF, or of frames of a GIF or PNG; a camera's JPEG has one.

    Raises:
        InputError: no picture, or an ImageJ stack of which other readers see the first page alone.
    """
    with _opened(path, name or str(path)) as picture:
        pages = int(getattr(picture, "n_frames", 1))
        tags = getattr(picture, "tag_v2", {})
        described = _IMAGEJ_PAGES.search(str(tags.get(_DESCRIPTION, "")))
        if described and pages == 1 < int(described[1]):
            raise InputError(
                f"{name or path}: found an ImageJ file of {described[1]} images with one page; wanted a TIFF with a "
                "page for each"
            )
        return 1 if picture.format == "MPO" else pages  # what follows are previews


def is_plain(path: Path, name: str) -> bool:
    """Whether every reader sees a picture alike: gray or RGB without palette, transparency or a turn to be applied."""
    with _opened(path, name) as picture:
        return _turn(picture) == 1 and _mode(picture, name, as_label=False) in ("", picture.mode)


@contextmanager
def _opened(path: Path, name: str, page: int | None = None) -> Iterator[Any]:
    """Open a picture, and tell whatever goes wrong with it inside."""
    try:
        source: Any = path if path.suffix.lower() != ".gz" else io.BytesIO(gzip.decompress(path.read_bytes()))
        with PIL.Image.open(source) as picture:
            turned = getattr(picture, "tag_v2", {}).get(_ORIENTATION, 1) != 1
        # Pillow maps some files into memory, and turns those not.
        with PIL.Image.open(io.BytesIO(path.read_bytes()) if turned else source) as picture:
            if page is not None and page >= getattr(picture, "n_frames", 1):
                raise InputError(f"{name}: cannot read page {page}: it has {getattr(picture, 'n_frames', 1)}")
            picture.seek(page or 0)
            yield picture
    except InputError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise InputError(f"{name}: cannot be read as a picture ({told(error)}); wanted a complete file") from error


def _turn(picture: Any) -> int:
    """How a picture is to be turned, as EXIF counts; 1 for not at all."""
    return int(picture.getexif().get(_ORIENTATION, 1))


def _mode(picture: Any, name: str, as_label: bool) -> str:
    """What a picture is converted to: "" keeps its values, "1" gives bits as 0 and 1, "P" the numbers of a palette."""
    mode = picture.mode
    if mode == "1" and not (as_label and getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0):
        return "1" if as_label else "L"
    if mode in ("P", "PA") and as_label:
        return "P"
    if mode in ("P", "PA"):
        colors = np.asarray(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return "RGB" if (colors != colors[:, :1]).any() else "L"
    tags = getattr(picture, "tag_v2", {})
    samples, kind = int(tags.get(_SAMPLES, 1)), int(tags.get(_PHOTOMETRIC, -1))
    extra, alpha = samples - _COLORS.get(kind, samples), tuple(tags.get(_EXTRA_SAMPLES, ()))
    signed = mode == "L" and 2 in tuple(tags.get(_SAMPLE_FORMAT, ()))
    if extra > 1 or (extra == 1 and not {*alpha} & {1, 2}) or signed:
        found = "signed values of 8 bits" if signed else f"{samples} samples a pixel, {extra} of them no color"
        raise InputError(f"{name}: found {found}; wanted gray or RGB")
    if mode in ("LA", "La") or (mode in ("RGBA", "LA") and _color_type(picture) == 4):
        return "L"
    if mode in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        return "RGB"
    if mode not in _GRAY or (kind == 0 and (as_label or mode != "L")):
        found = f"{mode}, white as 0" if kind == 0 else mode
        raise InputError(f"{name}: found a picture of the mode {found}; wanted gray or RGB, of 8 or 16 bits")
    return ""


def _bits(picture: Any) -> int:
    """Bits of a stored sample, as far as the format says it: PNG, TIFF."""
    if picture.format == "PNG":
        return _png_header(picture)[0]
    return int(max(getattr(picture, "tag_v2", {}).get(_BITS, (8,))))


def _color_type(picture: Any) -> int:
    return _png_header(picture)[1] if picture.format == "PNG" else -1


def _png_header(picture: Any) -> tuple[int, int]:
    """Bit depth and color type, which Pillow does not tell: bytes 24 and 25 of every PNG."""
    with open(picture.filename, "rb") as stream:
        depth, kind = stream.read(26)[24:]
    return depth, kind


def _steps(picture: Any, name: str) -> int:
    """By what Pillow multiplies the gray values of a label to fill 8 bits.

    Raises:
        InputError: a PGM whose largest value is another than 255 or 65535, which Pillow spreads.
    """
    if picture.format == "PNG" and _color_type(picture) == 0 and _bits(picture) < 8:
        return int(255 // (2 ** _bits(picture) - 1))
    if picture.format == "PPM" and str(picture.tile[0][0]).startswith("ppm"):
        raise InputError(f"{name}: found gray values up to {picture.tile[0][3][1]}; wanted a label up to 255 or 65535")
    return 1


def _voxels(path: Path, name: str, *, as_label: bool, page: int | None) -> Array:
    with _opened(path, name, page) as picture:
        mode = _mode(picture, name, as_label)
        steps = _steps(picture, name) if as_label and mode == "" else 1
        tags = getattr(picture, "tag_v2", {})
        unsigned = picture.mode == "I" and _bits(picture) == 32 and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
        picture.load()
        if not as_label:
            _check_opaque(picture, name)
        turned = ImageOps.exif_transpose(picture)
        if mode == "P":
            array = np.asarray(turned if turned.mode == "P" else turned.getchannel("P"))
        elif mode == "1":
            array = np.asarray(turned).astype(np.uint8)
        else:
            array = np.asarray(turned.convert(mode) if mode and mode != turned.mode else turned)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array.view(np.uint32) if unsigned else array // steps if steps > 1 else array
    if as_label and array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    return (array[..., None] if array.ndim == 2 else array).transpose(2, 1, 0)


def _check_opaque(picture: Any, name: str) -> None:
    """Refuse pixels through which something else is seen: what value they have is not certain."""
    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return
    try:
        opaque = np.asarray(picture.convert("RGBA"))[..., 3].min() == 255
    except ValueError:  # a transparent color that the mode cannot show
        return
    if not opaque:
        raise InputError(f"{name}: found transparent pixels; wanted an opaque picture")
