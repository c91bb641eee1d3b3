# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med report``: a site's predictions as one HTML file."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dacal_med import __version__
from dacal_med.deploy.report.figures import png_uri, shown_slices, slice_figure
from dacal_med.deploy.report.measured import Measured, measure
from dacal_med.deploy.report.page import Picture, Report, page
from dacal_med.deploy.report.predictions import Classes, Prediction, classes_of, read_predictions
from dacal_med.deploy.report.scans import Images, Labels, Scan, read_scan
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_bytes

DESCRIPTION = (
    "Writes one self-contained HTML file about the output folder of a site's inference: expected Dice and volume of "
    "every case, worst first, warnings, confidence, slices; with labels also what was true."
)


def run(arguments: Sequence[str]) -> int:
    """Run ``report`` with the words that follow it.

    Returns:
        The exit status, 0.

    Raises:
        InputError: for folders that do not fit, or an output that cannot be written.
    """
    options = _parser().parse_args(list(arguments))
    report = make_report(options.predictions, options.labels, options.images, options.overlays, options.identify)
    write_bytes(options.out, page(report).encode("utf-8", "replace"))  # JSON can name half a character
    print(f"{options.out}: {len(report.good)} cases, {len(report.failed)} failed, {len(report.measured)} with labels")
    return 0


def make_report(
    predictions: str | Path,
    labels: str | Path | None = None,
    images: str | Path | None = None,
    overlays: int = 12,
    identify: bool = False,
) -> Report:
    """Collect what the page shows.

    Args:
        predictions: output folder of the inference.
        labels: folder of label files or a datalist.
        images: what was segmented, for the slices.
        overlays: for how many cases slices are shown, those with the lowest expected Dice.
        identify: show names as they are.

    Raises:
        InputError: for folders that do not fit.
    """
    cases = read_predictions(predictions, identify)
    classes = classes_of(cases)
    report = Report(cases, list(classes.structures), classes.background, made=_made())
    found = Images(images, cases)
    truth = None if labels is None else Labels(labels, found)
    shown = {p.name for p in report.good[:overlays]}
    measured: dict[str, Measured] = {}
    pictures: dict[str, list[Picture]] = {}
    for case in report.good:
        # Voxels of one case at a time.
        if case.name in shown or (truth is not None and truth.file(case.name) is not None):
            scan = read_scan(case, found, truth)
            result = measure(scan, classes.structures, classes.background)
            if result is not None:
                measured[case.name] = result
            if case.name in shown:
                pictures[case.name] = _pictures(case, scan, classes)
    if truth is not None and not measured:
        raise InputError(
            f"--labels: found no label of any case in {labels}, wanted files named like the cases, or --images with "
            "the folder that was segmented so that labels can be found by the names of the images"
        )
    return replace(report, measured=measured, pictures=pictures)


def _pictures(case: Prediction, scan: Scan, classes: Classes) -> list[Picture]:
    pictures = []
    for what, position in shown_slices(scan, classes.background).items():
        parts = ["image"] * (scan.image is not None) + ["true outline"] * (scan.label is not None)
        parts += ["prediction", "confidence", *(["errors"] if scan.label is not None else [])]
        where = "" if position < 0 else f", slice {position + 1} of {scan.segmentation.shape[-1]}"
        words = f"{case.shown}{where}: {', '.join(parts)} side by side"
        caption = what if position < 0 else f"Slice {position + 1} of {scan.segmentation.shape[-1]}, {what}"
        figure = slice_figure(scan, position, classes.names, classes.background)
        pictures.append(Picture(png_uri(figure), caption, words))
    return pictures


def _made() -> str:
    return f"Report of {datetime.date.today().isoformat()}, dacal_med {__version__}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dacal_med report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--predictions", type=Path, required=True, help="output folder of the inference")
    parser.add_argument("--out", type=Path, required=True, help="the HTML file to write")
    parser.add_argument("--images", type=Path, help="what was segmented, for slices and to find labels by name")
    parser.add_argument("--labels", type=Path, help="folder of label files, or a datalist.json")
    parser.add_argument("--overlays", type=int, default=12, help="cases with slices, worst first (default: 12)")
    parser.add_argument("--identify", action="store_true", help="show names of cases, paths and UIDs as they are")
    return parser
