# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med <command>``: thin, each command's work is in its own room."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dacal_med.bundle import check_value
from dacal_med.comparison import benchmark
from dacal_med.comparison.compare import Comparison, typed_command
from dacal_med.comparison.methods import DEFAULTS
from dacal_med.deploy.export import command as export
from dacal_med.deploy.export import trust_command
from dacal_med.deploy.report import command as site_report
from dacal_med.explanations import explained
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.preparation import command as preparation


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command line without the program; that of the process by default.

    Returns:
        The exit status: 0, 1 if some runs failed, 2 for bad input, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # Its recipes have options of their own, and no overrides of a configuration.
        if arguments[:1] == ["prepare"]:
            return preparation.run(arguments[1:])
        if arguments[:1] == ["report"]:
            return site_report.run(arguments[1:])
        if arguments[:1] == ["trust-reference"]:
            trust, rest = trust_command.parser().parse_known_args(arguments[1:])
            return trust_command.run(_usable(trust), _overrides(rest))
        if arguments[:1] == ["export"]:
            options, rest = export.export_parser().parse_known_args(arguments[1:])
            return export.run_export(_usable(options), _overrides(rest))
        if arguments[:1] == ["calibrate"]:
            return export.run_calibrate(_usable(export.calibrate_parser().parse_args(arguments[1:])))
        options, rest = _parser().parse_known_args(arguments)
        _usable(options)
        if options.command == "benchmark":
            return _benchmark(options, _overrides(rest), typed_command(arguments))
        return _compare(options, _overrides(rest), typed_command(arguments))
    except KeyboardInterrupt:
        print("\ninterrupted: the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        message = explained(error)
        if message is None:
            raise
        print(f"\ndacal_med: {message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dacal_med", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="make a data set from public data as downloaded", add_help=False)
    commands.add_parser("export", help="make a folder for a clinical site from a trained bundle", add_help=False)
    commands.add_parser("calibrate", help="refit an export's confidence on a site's labelled cases", add_help=False)
    commands.add_parser("report", help="a site's predictions as one HTML file", add_help=False)
    commands.add_parser("trust-reference", help="what is usual for a trained model, for its site", add_help=False)
    compare = commands.add_parser(
        "compare",
        help="train and measure methods x seeds from one bundle configuration",
        description="Trains and evaluates each method with each seed from one bundle configuration and writes "
        "comparison.json, comparison.md and plots. The same command continues where it was interrupted. Every other "
        "--key value overrides a key of the configuration in all runs, as for `monai.bundle run`.",
        allow_abbrev=False,
    )
    compare.add_argument("--config_file", nargs="+", required=True, help="the bundle's train.json, and overlays")
    compare.add_argument(
        "--methods", nargs="+", default=list(DEFAULTS), help=f"what to compare (default: {' '.join(DEFAULTS)})"
    )
    compare.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    compare.add_argument("--out", type=Path, required=True, help="folder for results")
    compare.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    compare.add_argument("--reference", default="", help="method that differences are taken to (default: hard labels)")
    compare.add_argument(
        "--no-share", action="store_true", help="warm up anew in every run instead of once for each seed"
    )
    benchmark.add_arguments(
        commands.add_parser(
            "benchmark",
            help="run a bundle's published protocol beside the published numbers",
            description="Trains and evaluates methods x seeds of a bundle from prepared data, with the settings of its "
            "configs/published.json where it has one, and writes benchmark.md: the results beside published numbers, "
            "with their sources. The same command continues where it was interrupted. Every other --key value "
            "overrides a key of the configuration in all runs.",
            allow_abbrev=False,
        )
    )
    return parser


def _usable(options: argparse.Namespace) -> argparse.Namespace:
    """Return a command's options once each path among them can be looked for, ``~`` as somebody's home.

    Raises:
        InputError: naming the option.
    """
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, given_path(value, name, home=True))
    return options


def _benchmark(options: argparse.Namespace, overrides: list[tuple[str, str]], command: str) -> int:
    text, failures = benchmark.run_command(options, overrides, command)
    print(text, flush=True)
    return _told(failures)


def _compare(options: argparse.Namespace, overrides: list[tuple[str, str]], command: str) -> int:
    comparison = Comparison(
        config_files=tuple(options.config_file),
        methods=tuple(options.methods),
        seeds=tuple(options.seeds),
        folder=options.out,
        overrides=tuple(overrides),
        reference=options.reference,
        share_warmup=not options.no_share,
    )
    failures = comparison.run(options.jobs, command)
    print((options.out / "comparison.md").read_text(encoding="utf-8"), flush=True)
    return _told(failures)


def _told(failures: Mapping[tuple[str, int], str]) -> int:
    """Print why runs failed; returns the exit status."""
    for (method, seed), message in failures.items():
        print(f"dacal_med: {method}, seed {seed} failed: {message}", file=sys.stderr)
    return 1 if failures else 0


def _overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return ``--key value`` and ``--key=value`` as pairs.

    Raises:
        InputError: for anything else, and for a value of None.
    """
    pairs, position = [], 0
    while position < len(words):
        key, equals, value = words[position].partition("=")
        if not key.startswith("--") or len(key) == 2:
            raise InputError(f"command line: found {words[position]!r}, wanted --key value")
        if not equals:
            position += 1
            if position == len(words):
                raise InputError(f"command line: found {key} without a value")
            value = words[position]
        check_value(key[2:], value)
        pairs.append((key[2:], value))
        position += 1
    return pairs
