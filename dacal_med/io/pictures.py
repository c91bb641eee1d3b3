# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures as a viewer shows them: palettes and orientation applied; labels keep the numbers of their palette."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps

from dacal_med.io.errors import InputError
from dacal_med.io.image import Array, Header, Opened, told

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".ppm.gz", ".pgm.gz")
TIFF_SUFFIXES = (".tif", ".tiff")
_ORIENTATION, _DESCRIPTION, _PHOTOMETRIC = 0x0112, 270, 262
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
    with _opened(path, name) as picture:
        if page is None and count_pages(path, name) != 1:
            raise InputError(f"{name}: found a stack of {count_pages(path, name)} pictures; wanted one picture a file")
        _seek(picture, page, name)
        size = picture.size[::-1] if _turn(picture, name) in (5, 6, 7, 8) else picture.size
        mode = _mode(picture, name, as_label)
        channels = 3 if mode == "RGB" else 1
        if as_label and mode == "RGB":  # known only once the colors are read
            channels = len(_voxels(path, name, as_label=True, page=page))
    return Opened(
        Header((int(size[0]), int(size[1])), channels, None, "picture"),
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
        return _turn(picture, name) == 1 and _mode(picture, name, as_label=False) in ("", picture.mode)


def _opened(path: Path, name: str) -> PIL.Image.Image:
    try:
        if path.suffix.lower() == ".gz":
            return PIL.Image.open(io.BytesIO(gzip.decompress(path.read_bytes())))
        return PIL.Image.open(path)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise InputError(f"{name}: cannot be read as a picture ({told(error)}); wanted a complete file") from error


def _seek(picture: PIL.Image.Image, page: int | None, name: str) -> None:
    try:
        picture.seek(page or 0)
    except (EOFError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: cannot read page {page or 0} ({told(error)})") from error


def _turn(picture: PIL.Image.Image, name: str) -> int:
    """How a picture is to be turned, as EXIF counts; 1 for not at all."""
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # decoders raise whatever a cut-off file leads them to
        raise InputError(f"{name}: cannot be read as a picture ({told(error)}); wanted a complete file") from error


def _mode(picture: PIL.Image.Image, name: str, as_label: bool) -> str:
    """What a picture is converted to: "" keeps its values, "1" gives bits as 0 and 1, "P" the numbers of a palette."""
    mode = picture.mode
    if mode == "1":
        return "1" if as_label else "L"
    if mode in ("P", "PA") and as_label:
        return "P"
    if mode in ("P", "PA"):
        colors = np.asarray(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return "RGB" if (colors != colors[:, :1]).any() else "L"
    if mode in ("LA", "La"):
        return "L"
    if mode in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        return "RGB"
    inverted = getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    if mode not in _GRAY or (inverted and mode != "L"):
        kind = f"{mode}, white as 0" if inverted else mode
        raise InputError(f"{name}: found a picture of the mode {kind}; wanted gray or RGB, of 8 or 16 bits")
    return ""


def _voxels(path: Path, name: str, *, as_label: bool, page: int | None) -> Array:
    with _opened(path, name) as picture:
        _seek(picture, page, name)
        mode = _mode(picture, name, as_label)
        try:
            if not as_label:
                _check_opaque(picture, name)
            turned = ImageOps.exif_transpose(picture)
            if mode == "P":
                array = np.asarray(turned if turned.mode == "P" else turned.getchannel("P"))
            elif mode == "1":
                array = np.asarray(turned).astype(np.uint8)
            else:
                array = np.asarray(turned.convert(mode) if mode and mode != turned.mode else turned)
        except InputError:
            raise
        except Exception as error:  # decoders raise whatever a cut-off file leads them to
            raise InputError(f"{name}: cannot be read as a picture ({told(error)}); wanted a complete file") from error
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if as_label and array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    return (array[..., None] if array.ndim == 2 else array).transpose(2, 1, 0)


def _check_opaque(picture: PIL.Image.Image, name: str) -> None:
    """Refuse pixels through which something else is seen: what value they have is not certain."""
    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return
    try:
        opaque = np.asarray(picture.convert("RGBA"))[..., 3].min() == 255
    except ValueError:  # a transparent color that the mode cannot show
        return
    if not opaque:
        raise InputError(f"{name}: found transparent pixels; wanted an opaque picture")
