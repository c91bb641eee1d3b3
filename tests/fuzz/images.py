# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Malformed NIfTI, NRRD and picture files, made from good ones by rules; the same bytes in every run."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from PIL import Image

SHAPE = (9, 8, 7)
AFFINE = np.diag([-1.5, 2.0, 3.0, 1.0])
FIELDS: dict[str, tuple[int, str]] = {  # of a NIfTI-1 header: offset and format
    "sizeof_hdr": (0, "<i"),
    **{f"dim{k}": (40 + 2 * k, "<h") for k in range(8)},
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    **{f"pixdim{k}": (76 + 4 * k, "<f") for k in range(4)},
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "xyzt_units": (123, "<B"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "quatern_b": (256, "<f"),
    "qoffset_x": (268, "<f"),
    **{f"srow{k}": (280 + 4 * k, "<f") for k in range(12)},
    "magic": (344, "<4s"),
}
NAN, INF = float("nan"), float("inf")
HEADERS: dict[str, dict[str, int | float | bytes]] = {
    "no size of header": {"sizeof_hdr": 0},
    "size of header below 0": {"sizeof_hdr": -1},
    "size of header of the other byte order": {"sizeof_hdr": 1543569408},
    "size of header of NIfTI-2": {"sizeof_hdr": 540},
    "no axes": {"dim0": 0},
    "one axis": {"dim0": 1},
    "two axes": {"dim0": 2},
    "four axes, the last empty": {"dim0": 4, "dim4": 0},
    "eight axes": {"dim0": 8},
    "axes below 0": {"dim0": -3},
    "many axes": {"dim0": 32767},
    "an empty axis": {"dim1": 0},
    "an axis below 0": {"dim2": -8},
    "a single slice": {"dim3": 1},
    "an axis that is too long": {"dim1": 32767},
    "axes of petabytes": {"dim1": 32767, "dim2": 32767, "dim3": 32767},
    "axes of gigabytes": {"dim1": 2000, "dim2": 1000, "dim3": 1000},
    "a second volume that is missing": {"dim0": 4, "dim4": 2},
    "five axes": {"dim0": 5, "dim4": 1, "dim5": 1},
    "no type": {"datatype": 0},
    "bits": {"datatype": 1, "bitpix": 1},
    "an unknown type": {"datatype": 999},
    "a type below 0": {"datatype": -4},
    "colours": {"datatype": 128, "bitpix": 24},
    "complex numbers": {"datatype": 32, "bitpix": 64},
    "quadruple precision": {"datatype": 1536, "bitpix": 128},
    "a wider type than the data": {"datatype": 64, "bitpix": 64},
    "another number of bits than the type's": {"bitpix": 8},
    "voxels before the header's end": {"vox_offset": 0.0},
    "voxels below 0": {"vox_offset": -352.0},
    "voxels beyond the end": {"vox_offset": 1e9},
    "voxels at no number": {"vox_offset": NAN},
    "voxels at infinity": {"vox_offset": INF},
    "a slope that is no number": {"scl_slope": NAN, "scl_inter": 3.0},
    "an infinite slope": {"scl_slope": INF},
    "a slope of 0": {"scl_slope": 0.0},
    "a slope that overflows": {"scl_slope": 3e38},
    "an intercept that is no number": {"scl_slope": 1.0, "scl_inter": NAN},
    "an infinite intercept": {"scl_slope": 1.0, "scl_inter": INF},
    "a voxel size of 0": {"pixdim1": 0.0, "sform_code": 0, "qform_code": 1},
    "a voxel size below 0": {"pixdim2": -2.0, "sform_code": 0, "qform_code": 1},
    "a voxel size that is no number": {"pixdim3": NAN, "sform_code": 0, "qform_code": 1},
    "an infinite voxel size": {"pixdim1": INF, "sform_code": 0, "qform_code": 1},
    "voxel sizes of nothing but 0": {f"pixdim{k}": 0.0 for k in range(4)} | {"sform_code": 0, "qform_code": 0},
    "a handedness of 5": {"pixdim0": 5.0, "sform_code": 0, "qform_code": 1},
    "a quaternion beyond 1": {"quatern_b": 3.0, "sform_code": 0, "qform_code": 1},
    "a quaternion that is no number": {"quatern_b": NAN, "sform_code": 0, "qform_code": 1},
    "an offset that is no number": {"qoffset_x": NAN, "sform_code": 0, "qform_code": 1},
    "no codes of a form": {"sform_code": 0, "qform_code": 0},
    "an unknown code of a form": {"sform_code": 77},
    "a code of a form below 0": {"sform_code": -1, "qform_code": -1},
    "an affine of zeros": {f"srow{k}": 0.0 for k in range(12)},
    "an affine with a row of zeros": {f"srow{k}": 0.0 for k in range(4)},
    "an affine with no number": {"srow0": NAN},
    "an infinite affine": {"srow5": INF},
    "an origin that is no number": {"srow3": NAN},
    "an infinite origin": {"srow7": INF},
    "parallel axes": {"srow0": 1.0, "srow1": 1.0, "srow4": 1.0, "srow5": 1.0},
    "a tiny affine": {f"srow{k}": 1e-30 for k in (0, 5, 10)},
    "a huge affine": {f"srow{k}": 1e30 for k in (0, 5, 10)},
    "unknown units": {"xyzt_units": 255},
    "no magic": {"magic": b"\0\0\0\0"},
    "the magic of a pair of files": {"magic": b"ni1\0"},
    "the magic of NIfTI-2": {"magic": b"n+2\0"},
    "nothing but 0xff": {"magic": b"\xff\xff\xff\xff", "dim0": -1, "datatype": -1},
}


def good_array() -> np.ndarray:
    """Noise with structure, int16."""
    return np.random.default_rng(5).integers(-200, 900, SHAPE).astype(np.int16)


def good_nifti() -> bytes:
    """A complete, uncompressed NIfTI file."""
    return nib.Nifti1Image(good_array(), AFFINE).to_bytes()


def with_fields(values: dict[str, int | float | bytes], base: bytes | None = None) -> bytes:
    """A NIfTI file whose header has other values."""
    content = bytearray(good_nifti() if base is None else base)
    for name, value in values.items():
        offset, form = FIELDS[name]
        struct.pack_into(form, content, offset, value)
    return bytes(content)


def damaged_streams(content: bytes, packed: bytes) -> Iterator[tuple[str, bytes]]:
    """What transfers and disks do to a compressed file."""
    for share in (
        0,
        1,
        9,
        10,
        18,
        len(packed) // 3,
        len(packed) // 2,
        len(packed) - 9,
        len(packed) - 8,
        len(packed) - 1,
    ):
        yield f"cut after {share} bytes", packed[:share]
    for position in (0, 2, 3, 12, len(packed) // 4, len(packed) // 2, len(packed) - 6, len(packed) - 2):
        changed = bytearray(packed)
        changed[position] ^= 0x55
        yield f"byte {position} changed", bytes(changed)
    yield "not compressed at all", content
    yield "compressed twice", gzip.compress(packed, mtime=0)
    yield "another stream behind it", packed + gzip.compress(b"more", mtime=0)
    yield "text behind it", packed + b"more"
    yield "zeros behind it", packed + bytes(64)
    yield "a page of HTML", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "a pointer of git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    yield "zeros", bytes(4000)
    yield "compressed text", gzip.compress(b"no image " * 100, mtime=0)
    yield "compressed nothing", gzip.compress(b"", mtime=0)
    yield "a compressed header alone", gzip.compress(content[:352], mtime=0)
    yield "a compressed half", gzip.compress(content[: len(content) // 2], mtime=0)


def nifti_files() -> dict[str, tuple[str, bytes]]:
    """By name of what is wrong: suffix and content."""
    content = good_nifti()
    files = {f"nii: {name}": (".nii", with_fields(values)) for name, values in HEADERS.items()}
    for name in ("axes of petabytes", "axes of gigabytes", "an axis that is too long", "an affine of zeros", "no type"):
        files[f"nii.gz: {name}"] = (".nii.gz", gzip.compress(with_fields(HEADERS[name]), mtime=0))
    packed = gzip.compress(content, mtime=0)
    files |= {f"nii.gz: {name}": (".nii.gz", data) for name, data in damaged_streams(content, packed)}
    for cut in (0, 4, 40, 347, 348, 352, 400, len(content) - 1):
        files[f"nii: cut after {cut} bytes"] = (".nii", content[:cut])
    files["nii: compressed under the name of what is not"] = (".nii", packed)
    files["nii: bytes behind it"] = (".nii", content + bytes(100))
    return files


def nrrd_files() -> dict[str, tuple[str, bytes]]:
    """The same for NRRD."""
    lines = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "9 8 7",
        "space directions": "(1.5,0,0) (0,2,0) (0,0,3)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
    }
    voxels = good_array().tobytes(order="F")

    def write(changes: dict[str, str | None], magic: str = "NRRD0004", data: bytes = voxels) -> bytes:
        merged = {**lines, **changes}
        header = "".join(f"{key}: {value}\n" for key, value in merged.items() if value is not None)
        return f"{magic}\n{header}\n".encode() + data

    variants: dict[str, bytes] = {
        "no magic": write({}, magic="NOTNRRD"),
        "an unknown version": write({}, magic="NRRD0099"),
        "no type": write({"type": None}),
        "an unknown type": write({"type": "quaternion"}),
        "a block type": write({"type": "block"}),
        "no sizes": write({"sizes": None}),
        "two sizes": write({"sizes": "9 8"}),
        "a size below 0": write({"sizes": "9 -8 7"}),
        "a size of 0": write({"sizes": "9 0 7"}),
        "sizes that are words": write({"sizes": "nine eight seven"}),
        "sizes of petabytes": write({"sizes": "90000 80000 70000"}),
        "no dimension": write({"dimension": None}),
        "a dimension of 0": write({"dimension": "0"}),
        "a dimension of 7": write({"dimension": "7"}),
        "no space": write({"space": None}),
        "an unknown space": write({"space": "somewhere"}),
        "another space": write({"space": "scanner-xyz"}),
        "no directions": write({"space directions": None}),
        "directions of zeros": write({"space directions": "(0,0,0) (0,0,0) (0,0,0)"}),
        "directions that are no numbers": write({"space directions": "(nan,0,0) (0,nan,0) (0,0,nan)"}),
        "infinite directions": write({"space directions": "(inf,0,0) (0,2,0) (0,0,3)"}),
        "parallel directions": write({"space directions": "(1,0,0) (1,0,0) (0,0,3)"}),
        "two directions": write({"space directions": "(1.5,0,0) (0,2,0)"}),
        "directions of words": write({"space directions": "right up front"}),
        "no origin": write({"space origin": None}),
        "an origin that is no number": write({"space origin": "(nan,0,0)"}),
        "an unknown encoding": write({"encoding": "morse"}),
        "compressed voxels that are not": write({"encoding": "gzip"}),
        "text voxels that are not": write({"encoding": "ascii"}),
        "an unknown byte order": write({"endian": "middle"}),
        "voxels in a file that is missing": write({"data file": "nothing.raw"}, data=b""),
        "voxels cut": write({}, data=voxels[:-5]),
        "no voxels": write({}, data=b""),
        "more voxels": write({}, data=voxels + bytes(10)),
        "a header without end": write({}).split(b"\n\n")[0],
        "nothing": b"",
        "a line that is no field": write({}).replace(b"endian: little\n", b"endian little\n"),
        "bytes that are no text": write({}).replace(b"domain", b"\xff\xfe\xfd", 1),
    }
    return {f"nrrd: {name}": (".nrrd", data) for name, data in variants.items()}


def picture_files() -> dict[str, tuple[str, bytes]]:
    """The same for pictures."""
    grey = (good_array()[:, :, 0] % 251).astype(np.uint8)
    pictures = {
        "grey": Image.fromarray(grey),
        "colour": Image.fromarray(np.stack([grey] * 3, axis=-1)),
        "alpha": Image.fromarray(np.stack([grey] * 4, axis=-1)),
        "bits": Image.fromarray(grey > 100),
        "palette": Image.fromarray(grey).convert("P"),
        "numbers": Image.fromarray(grey.astype(np.float32) / 7),
    }

    def encode(name: str, form: str, **options: object) -> bytes:
        stream = io.BytesIO()
        pictures[name].save(stream, form, **options)
        return stream.getvalue()

    png, tif, jpg = encode("grey", "PNG"), encode("grey", "TIFF"), encode("colour", "JPEG")
    huge = bytearray(png)
    struct.pack_into(">II", huge, 16, 200000, 200000)
    pages = io.BytesIO()
    pictures["grey"].save(pages, "TIFF", save_all=True, append_images=[pictures["grey"]] * 2)
    not_finite = np.array(pictures["numbers"])
    not_finite[2, 3] = np.nan
    stream = io.BytesIO()
    Image.fromarray(not_finite).save(stream, "TIFF")
    files: dict[str, tuple[str, bytes]] = {
        "png: colour": (".png", encode("colour", "PNG")),
        "png: alpha": (".png", encode("alpha", "PNG")),
        "png: bits": (".png", encode("bits", "PNG")),
        "png: palette": (".png", encode("palette", "PNG")),
        "png: sizes of gigabytes": (".png", bytes(huge)),
        "png: a JPEG": (".png", jpg),
        "png: nothing": (".png", b""),
        "png: text": (".png", b"no picture"),
        "tif: pages": (".tif", pages.getvalue()),
        "tif: not a number": (".tif", stream.getvalue()),
        "tif: a directory at the end of the world": (".tif", tif[:4] + b"\xff\xff\xff\x7f" + tif[8:]),
        "tif: a directory that is its own next": (".tif", tif[:4] + b"\0\0\0\0" + tif[8:]),
        "bmp: cut": (".bmp", encode("grey", "BMP")[:80]),
        "jpg: colour": (".jpg", jpg),
    }
    for suffix, data in ((".png", png), (".jpg", jpg), (".tif", tif)):
        for share in (4, 12, len(data) // 2, len(data) - 3):
            files[f"{suffix[1:]}: cut after {share} bytes"] = (suffix, data[:share])
        for position in (1, 14, len(data) // 3, len(data) * 2 // 3):
            changed = bytearray(data)
            changed[position] ^= 0x55
            files[f"{suffix[1:]}: byte {position} changed"] = (suffix, bytes(changed))
    return files
