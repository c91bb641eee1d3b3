# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Datalists, their checking, the phantom and the paired source/target loader."""

from __future__ import annotations

from dacal_med.data.caching import Caching, make_dataset
from dacal_med.data.checking import check_data
from dacal_med.data.class_counts import read_class_counts
from dacal_med.data.datalist import Datalist, load_datalist
from dacal_med.data.fingerprint import describe_data
from dacal_med.data.loading_process import loading_processes
from dacal_med.data.paired import PairedDataset, PairedLoader
from dacal_med.data.phantom import ensure_phantom
from dacal_med.data.rare_classes import RareClassSampling
from dacal_med.data.split import hold_out, oracle_fold, oracle_folds

__all__ = [
    "Caching",
    "Datalist",
    "PairedDataset",
    "PairedLoader",
    "RareClassSampling",
    "check_data",
    "describe_data",
    "ensure_phantom",
    "hold_out",
    "load_datalist",
    "loading_processes",
    "make_dataset",
    "oracle_fold",
    "oracle_folds",
    "read_class_counts",
]
