# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Options of the commands that take up a training run: where it lies, and what it was given."""

from __future__ import annotations

import argparse
from pathlib import Path


def training_run_parser(
    command: str, description: str, out: str, model_default: str | None = None, data_default: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with ``--model_file``, ``--dataset_dir``, ``--seed`` and ``--out``.

    What it does not know overrides keys of the configuration, as the training run did.

    Args:
        command: of ``python -m dacal_med``.
        description: what it does.
        out: help of ``--out``.
        model_default: where the weights are looked for if they are not given; ``None`` demands them.
        data_default: what stands in for data that are not given; ``None`` demands them.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m dacal_med {command}",
        description=f"{description} Give every other --key value that the training run was given.",
        allow_abbrev=False,
    )
    _add_path(parser, "--model_file", "the trained weights", model_default)
    _add_path(parser, "--dataset_dir", "the training run's data, a folder with datalist.json", data_default)
    parser.add_argument(
        "--seed",
        type=int,
        help="of the training run, it says what was held out (default: as recorded beside the weights)",
    )
    parser.add_argument("--out", type=Path, required=True, help=out)
    return parser


def _add_path(parser: argparse.ArgumentParser, name: str, words: str, default: str | None) -> None:
    if default is None:
        parser.add_argument(name, type=Path, required=True, help=words)
    else:
        parser.add_argument(name, type=Path, help=f"{words} (default: {default})")
