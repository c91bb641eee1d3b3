# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med trust-reference``: what is usual for a trained model, for the site that gets it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dacal_med.bundle import check_overrides
from dacal_med.deploy.export.arguments import training_run_parser
from dacal_med.deploy.export.deployed import training_seed, values_of
from dacal_med.deploy.export.trust_reference import build_reference, write_reference


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command; what it does not know overrides keys of the configuration."""
    command = training_run_parser(
        "trust-reference",
        "Writes configs/trust.json of an export: histograms of the target_train images, and how far the model "
        "misjudges held-out source cases. target_val is not read.",
        out="the file to write",
    )
    command.add_argument("--config_file", nargs="+", required=True, help="the bundle's train.json, and overlays")
    return command


def run(options: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int:
    """Build and write the reference.

    Args:
        options: as :func:`parser` reads them.
        overrides: keys of the configuration with their values as typed.

    Returns:
        The exit status, 0.

    Raises:
        InputError: an override's key is unknown, or see :func:`~.trust_reference.build_reference`.
    """
    words = [word for key, value in overrides for word in (f"--{key}", value)]
    check_overrides(["--config_file", str([str(file) for file in options.config_file]), *words])
    values = values_of(overrides)
    seed = training_seed(options.model_file, options.seed)
    reference = build_reference(options.config_file, options.model_file, options.dataset_dir, seed, values)
    write_reference(options.out, reference)
    made = reference["made_from"]
    print(
        f"{options.out}: {made['target_images']} target images, {made['held_out_source_cases']} held-out source cases"
    )
    return 0
