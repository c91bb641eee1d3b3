# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med prepare folders`` with one malformed file or option: exit status 2, one line, no data set."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from dacal_med.cli import main
from dacal_med.data import check_data, load_datalist
from tests.fuzz.images import good_array, nifti_files, nrrd_files, picture_files
from tests.fuzz.outcomes import contents, in_time
from tests.preparation.builders import save

SIZE = good_array().shape
LABELS = "0=background,1=organ"


def hdf5_files() -> dict[str, tuple[str, bytes]]:
    """Damaged and unsuitable HDF5 files."""

    def written(edit) -> bytes:
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            edit(file)
        return stream.getvalue()

    whole = written(lambda file: file.create_dataset("main", data=good_array().transpose(2, 1, 0)))
    sized = {"no number": [np.nan] * 3, "two": [1.0, 1.0], "below 0": [-1.0, 1.0, 1.0], "text": "wide"}

    def with_size(size):
        def edit(file):
            file["main"] = good_array().transpose(2, 1, 0)
            file["main"].attrs["element_size_um"] = size

        return written(edit)

    files = {f"cut after {cut} bytes": whole[:cut] for cut in (0, 8, 100, 900, len(whole) - 50)}
    files |= {f"a voxel size of {name}": with_size(size) for name, size in sized.items()}
    files["no array"] = written(lambda file: None)
    files["text in it"] = written(lambda file: file.create_dataset("main", data="text"))
    files["complex"] = written(lambda file: file.create_dataset("main", data=np.zeros((7, 8, 9), complex)))
    files["an empty array"] = written(lambda file: file.create_dataset("main", shape=(0, 8, 9), dtype="u1"))
    files["no dimension"] = written(lambda file: file.create_dataset("main", data=3))
    files["a link to nowhere"] = written(lambda file: file.__setitem__("main", h5py.SoftLink("/nothing")))
    return {f"h5: {name}": (".h5", data) for name, data in files.items()}


FILES = {**hdf5_files()}
FILES |= {name: file for name, file in nifti_files().items() if "axes" in name or "cut" in name or "affine" in name}
FILES |= {name: file for name, file in nrrd_files().items() if "cut" in name or "direction" in name or "size" in name}
FILES |= {name: file for name, file in picture_files().items() if file[0] == ".tif" or "cut" in name}
OPTIONS: dict[str, tuple[str, ...]] = {
    "no labels": ("--labels", ""),
    "labels without names": ("--labels", "0,1"),
    "labels without background": ("--labels", "1=organ"),
    "labels twice": ("--labels", "0=background,0-3=organ"),
    "a range backwards": ("--labels", "0=background,9-3=organ"),
    "a long label": ("--labels", f"0=background,{'9' * 5000}=organ"),
    "a label beyond 64 bits": ("--labels", f"0=background,1-{2**70}=organ"),
    "values of the target": ("--target-values", "x"),
    "no expression": ("--match", "("),
    "an expression that finds nothing": ("--match", "zzz"),
    "an expression for patients that finds nothing": ("--patient", "zzz"),
    "no number as seed": ("--seed", "x"),
    "an unknown option": ("--sede", "1"),
    "an unknown choice": ("--stacks", "piles"),
}


def folders(root: Path) -> None:
    for number in range(2):
        save(root / "source" / f"s{number}.nii.gz", good_array() + np.int16(number))
        save(root / "labels" / f"s{number}.nii.gz", (good_array() > 300).astype(np.uint8))
        save(root / "target" / f"t{number}.nii.gz", good_array() - np.int16(number))


def prepare(root: Path, *options: str) -> int:
    words = ["--source", "source", "--source-labels", "labels", "--target", "target"]
    words = [str(root / word) if not word.startswith("--") else word for word in words]
    try:
        with in_time():
            return main(["prepare", "folders", *words, "--labels", LABELS, "--out", str(root / "out"), *options])
    except SystemExit as stopped:  # argparse
        return int(stopped.code or 0)


def check_outcome(root: Path, status: int, before: dict[str, str], told: str) -> None:
    for folder, files in ((root / name, before) for name in ("source", "labels", "target")):
        assert {f"{folder.name}/{name}": digest for name, digest in contents(folder).items()}.items() <= files.items()
    out = root / "out"
    if status == 0:
        assert check_data(load_datalist(out), 3, 1, progress=False).images == 4
        return
    assert status == 2
    assert "Traceback" not in told
    assert told.strip()
    assert not (out / "datalist.json").exists()
    # What is there of converted cases is whole, so that the command can continue.
    assert not [path for path in out.rglob("*") if path.name.endswith((".tmp", ".part"))]


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("role", ["target", "labels"])
@pytest.mark.filterwarnings("ignore")
def test_a_malformed_file(what, role, tmp_path, capsys):
    folders(tmp_path)
    stem = "t0" if role == "target" else "s0"
    suffix, content = FILES[what]
    (tmp_path / role / f"{stem}.nii.gz").unlink()
    (tmp_path / role / f"{stem}{suffix}").write_bytes(content)
    before = contents(tmp_path)
    status = prepare(tmp_path)
    told = capsys.readouterr().err
    check_outcome(tmp_path, status, before, told)
    if status == 2:
        assert str(tmp_path) in told


@pytest.mark.parametrize("what", OPTIONS)
def test_a_malformed_option(what, tmp_path, capsys):
    folders(tmp_path)
    before = contents(tmp_path)
    status = prepare(tmp_path, *OPTIONS[what])
    assert status == 2
    check_outcome(tmp_path, status, before, capsys.readouterr().err)
