# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med export`` and ``calibrate``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dacal_med.deploy.export.arguments import training_run_parser
from dacal_med.deploy.export.calibrating import MIN_CASES, Calibration
from dacal_med.deploy.export.checking import Agreement
from dacal_med.deploy.export.exporting import Export


def export_parser() -> argparse.ArgumentParser:
    """Return the parser of ``export``; what it does not know overrides keys of the configuration."""
    parser = training_run_parser(
        "export",
        "Makes a folder for a clinical site from a trained bundle: the deployed network in four formats, each loaded "
        "again and compared, configurations, the code that inference needs, a model card and checksums.",
        out="the folder to make",
        model_default="the bundle's models/model.pt",
        data_default="the phantom; a folder of target images alone gives no trust reference",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--metrics_file", type=Path, help="the training run's metrics.json (default: beside the weights, or in eval/)"
    )
    parser.add_argument("--force", action="store_true", help="replace a folder that is there")
    return parser


def run_export(options: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int:
    """Export a bundle.

    Args:
        options: as :func:`export_parser` reads them.
        overrides: keys of the configuration with their values as typed.

    Returns:
        The exit status, 0.

    Raises:
        InputError: see :meth:`~dacal_med.deploy.export.exporting.Export.run`.
    """
    agreements = Export(**vars(options), overrides=tuple(overrides)).run()
    print(agreement_table(agreements))
    print(f"\n{options.out}: read docs/README.md", flush=True)
    return 0


def calibrate_parser() -> argparse.ArgumentParser:
    """Return the parser of ``calibrate``."""
    parser = argparse.ArgumentParser(
        prog="python -m dacal_med calibrate",
        description="Refits the confidence of an exported folder on a site's own labelled cases, tells on cases held "
        "out in turn whether calibration got better, and if so writes a new folder.",
        allow_abbrev=False,
    )
    parser.add_argument("--site", type=Path, required=True, help="an exported folder")
    parser.add_argument(
        "--dataset_dir", type=Path, required=True, help=f'folder with datalist.json, "cases": {MIN_CASES} or more'
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--per_class", action="store_true", help="a weight and a bias for each class, not one temperature"
    )
    parser.add_argument("--seed", type=int, default=0, help="which voxels are drawn (default: 0)")
    parser.add_argument("--always", action="store_true", help="write even if calibration did not get better")
    parser.add_argument("--force", action="store_true", help="replace a folder that is there")
    return parser


def run_calibrate(options: argparse.Namespace) -> int:
    """Calibrate an exported folder.

    Args:
        options: as :func:`calibrate_parser` reads them.

    Returns:
        The exit status: 0, or 1 if calibration did not get better and nothing was written.

    Raises:
        InputError: see :meth:`~dacal_med.deploy.export.calibrating.Calibration.run`.
    """
    report = Calibration(**vars(options)).run()
    print(report.table())
    print(f"\n{report.verdict()}", flush=True)
    return 0 if report.written else 1


def agreement_table(agreements: Sequence[Agreement]) -> str:
    """Return how formats agree with the network, one row each."""
    lines = [f"{'format':<12}{'images':<22}{'same labels':>12}{'probabilities':>15}"]
    for a in agreements:
        shape = " x ".join(map(str, a.shape))
        lines.append(f"{a.name:<12}{shape:<22}{a.same_labels:>12.4%}{a.difference:>15.1e}")
    return "\n".join(lines)
