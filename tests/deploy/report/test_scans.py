# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Voxels of cases: finding images and labels, and turning them upright."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from dacal_med.deploy.report.predictions import read_predictions
from dacal_med.deploy.report.scans import Images, Labels, read_scan
from dacal_med.io.errors import InputError
from dacal_med.io.image import Header
from tests.deploy.report.builders import AFFINE, save, site_folder

HEADER = Header((12, 10, 6), 1, AFFINE, "nifti")


def test_a_case_is_read_with_its_image_and_label(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    images = Images(tmp_path / "images", cases)
    scan = read_scan(cases[1], images, Labels(tmp_path / "labels", images))
    assert scan.segmentation.shape == (12, 10, 6)
    assert scan.image.max() == 120  # the second image
    assert np.array_equal(scan.label, np.roll(scan.segmentation, 1, axis=0))
    assert scan.confidence[4, 4, 2] == pytest.approx(0.6)
    assert scan.spacing == (1.0, 1.0, 2.0)


def test_pictures_are_turned_upright(tmp_path):
    out = site_folder(tmp_path, [0.9], dims=2, failed=False)
    marked = np.zeros((12, 10), np.uint8)
    marked[0, 0] = 1  # left, top
    save(out / "case_0001_seg.png", marked)
    cases = read_predictions(out)
    scan = read_scan(cases[0], Images(tmp_path / "images", cases), None)
    assert scan.segmentation[0, -1] == 1  # left, the end of the axis that goes up
    assert scan.confidence.max() == pytest.approx(0.98, abs=1 / 255)
    assert scan.label is None


def test_volumes_are_turned_to_the_patient_and_sliced_as_acquired(tmp_path):
    out = site_folder(tmp_path, [0.9], failed=False)
    array = np.zeros((6, 12, 10), np.uint8)
    array[0, 0, 0] = 1
    # Axes of the file: coarse to the left, then to the back, then down.
    affine = np.diag([-2.0, -1.0, -1.0, 1.0])
    for kind in ("seg", "confidence"):
        nib.save(nib.Nifti1Image(array, affine), out / f"case_0001_{kind}.nii.gz")
    cases = read_predictions(out)
    scan = read_scan(cases[0], Images(None, cases), None)
    assert scan.spacing == (1.0, 1.0, 2.0)
    assert np.argwhere(scan.segmentation).tolist() == [[11, 9, 5]]


def test_labels_are_found_by_a_datalist(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    entries = [{"image": f"images/scan{k}.nii.gz", "label": f"labels/scan{k}.nii.gz"} for k in (1, 2, 3)]
    for k in (1, 2, 3):  # values as the data set has them
        path = tmp_path / "labels" / f"scan{k}.nii.gz"
        array = np.asarray(nib.load(path).dataobj) * 7
        array[0, 0, 0] = 9
        nib.save(nib.Nifti1Image(array, AFFINE), path)
    shutil.copytree(tmp_path / "images", tmp_path / "source")
    source = [{"image": f"source/scan{k}.nii.gz", "label": f"labels/scan{k}.nii.gz"} for k in (1, 2)]
    content = {"labels": {"0": "background", "7": "organ", "9": "ignore"}, "source": source, "target_val": entries}
    (tmp_path / "datalist.json").write_text(json.dumps({**content, "target_train": [{"image": "source/scan3.nii.gz"}]}))
    images = Images(tmp_path / "images", cases)
    for place in (tmp_path, tmp_path / "datalist.json"):
        label = Labels(place, images).read("case_0002", HEADER)
        assert set(np.unique(label)) == {0, 1, 255}
        assert label[0, 0, 0] == 255
    plain = tmp_path / "list.json"
    plain.write_text(json.dumps(entries))
    assert Labels(plain, images).file("case_0003") == tmp_path / "labels" / "scan3.nii.gz"


def test_a_label_in_turned_axes_is_shown_on_its_image(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    images = Images(tmp_path / "images", cases)
    path = tmp_path / "labels" / "scan1.nii.gz"
    before = read_scan(cases[0], images, Labels(tmp_path / "labels", images)).label
    label = nib.load(path)
    nib.save(label.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]])), path)
    assert nib.load(path).shape != label.shape
    np.testing.assert_array_equal(read_scan(cases[0], images, Labels(tmp_path / "labels", images)).label, before)
    nib.save(nib.Nifti1Image(label.dataobj, np.diag([1, 1, 1, 1.0]) @ label.affine + np.eye(4)[:, [3, 0, 1, 2]]), path)
    with pytest.raises(InputError, match="label of case_0001: lies up to"):
        read_scan(cases[0], images, Labels(tmp_path / "labels", images))


def test_labels_named_like_cases_need_no_images(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    (tmp_path / "labels" / "scan1.nii.gz").rename(tmp_path / "labels" / "case_0001_label.nii.gz")
    labels = Labels(tmp_path / "labels", Images(None, cases))
    assert labels.read("case_0001", HEADER).sum() > 0
    assert labels.read("case_0002", HEADER) is None


def test_another_size_is_told(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    save(tmp_path / "labels" / "scan1.nii.gz", np.zeros((3, 3, 3), np.uint8))
    images = Images(tmp_path / "images", cases)
    with pytest.raises(InputError, match=r"label of case_0001: found shape \(3, 3, 3\); wanted \(12, 10, 6\)"):
        read_scan(cases[0], images, Labels(tmp_path / "labels", images))


def test_a_value_that_is_no_class_is_told(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    save(tmp_path / "labels" / "scan1.nii.gz", np.full((12, 10, 6), 0.5))
    images = Images(tmp_path / "images", cases)
    with pytest.raises(InputError, match=r"found the value\(s\) \[0.5\]"):
        Labels(tmp_path / "labels", images).read("case_0001", HEADER)


def test_what_is_not_there_is_told(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--labels: found no label"):
        Labels(tmp_path / "empty", Images(None, cases))
    (tmp_path / "list.json").write_text("{}")
    with pytest.raises(InputError, match="nor a list"):
        Labels(tmp_path / "list.json", Images(None, cases))
    (tmp_path / "out" / "case_0001_seg.nii.gz").unlink()
    with pytest.raises(InputError, match="case_0001: found no file of its segmentation"):
        read_scan(cases[0], Images(None, cases), None)
