# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The published protocol of a bundle: its methods x seeds, compared, beside the numbers that others published."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from dacal_med.command_line import literal
from dacal_med.comparison.benchmark_table import (
    benchmark_markdown,
    benchmark_values,
    known_tasks,
    not_comparable,
)
from dacal_med.comparison.compare import Comparison
from dacal_med.comparison.protocols import DEFAULT, PROTOCOLS, check_folder, find_protocol, protocol_files
from dacal_med.comparison.published import Published, Task, load_published
from dacal_med.data import Datalist, load_datalist
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_bytes, write_json

METHODS = ("source_only", "hard", "dacal")
"""What is run when nothing is named: no adaptation, the host with hard labels as published, and with DA-Cal."""

SEEDS = (0, 1, 2)
MARKDOWN, JSON = "benchmark.md", "benchmark.json"
_NO_CONFIG_FILE = (
    "--config_file: a benchmark runs the bundle's own files; wanted --protocol, or `python -m dacal_med compare`, "
    "which takes any files"
)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of one bundle on one prepared data set.

    The runs are those of a :class:`~dacal_med.comparison.compare.Comparison` of ``configs/train.json`` and, where the
    bundle has it, the overlay ``configs/published.json`` with the published settings and those of the protocol on top,
    so that everything known of comparisons (resuming, several runs at once, ``comparison.md``) holds here.

    Attributes:
        bundle: its folder.
        data_root: folder of a prepared data set, with its ``datalist.json``.
        methods: names as of :func:`~dacal_med.comparison.methods.find_method`.
        seeds: one training each.
        folder: where results go; if ``None``, ``eval/benchmark`` of the bundle, ``eval/benchmark_<protocol>`` for
            another protocol than the default.
        task: among the published ones; found by bundle and data if empty.
        overrides: further keys of the configuration for every run.
        protocol: one of :data:`~dacal_med.comparison.protocols.PROTOCOLS`.
    """

    bundle: Path
    data_root: Path
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = SEEDS
    folder: Path | None = None
    task: str = ""
    overrides: tuple[tuple[str, str], ...] = ()
    protocol: str = DEFAULT

    @property
    def out(self) -> Path:
        """Where results go."""
        name = "benchmark" if self.protocol == DEFAULT else f"benchmark_{self.protocol}"
        return self.bundle / "eval" / name if self.folder is None else self.folder

    def find_task(self, published: Published, datalist: Datalist) -> Task | None:
        """Return the task that the results stand beside, ``None`` if no published numbers are known for it.

        Raises:
            InputError: if the task that was asked for is none.
        """
        if self.task:
            return published.find(self.task)
        return published.of_bundle(self.bundle.resolve().name, datalist.name)

    def run(self, max_parallel: int = 1, command: str = "") -> dict[tuple[str, int], str]:
        """Run what is not done yet, and write ``benchmark.md`` and ``benchmark.json`` beside the comparison's files.

        Args:
            max_parallel: runs side by side.
            command: what the user typed, for the tables.

        Returns:
            Why runs failed, by method and seed.

        Raises:
            InputError: before anything is trained, if bundle, protocol, data, task, a method or a key cannot be used,
                or the folder has runs of another protocol.
            KeyboardInterrupt: after running children have saved; the next call continues.
        """
        published = load_published()
        protocol = find_protocol(self.protocol)
        files = protocol_files(self.bundle, protocol)
        keys = {key for key, _ in self.overrides}
        if "dataset_dir" in keys:
            raise InputError("--dataset_dir: wanted --data-root, which says the same")
        if "config_file" in keys:
            raise InputError(_NO_CONFIG_FILE)
        datalist = load_datalist(self.data_root)
        task = self.find_task(published, datalist)
        check_folder(self.out, protocol)
        told = not_comparable(task, datalist)
        if told:
            # Now, since the table comes after days of training.
            print(f"dacal_med: not comparable: {told}", file=sys.stderr, flush=True)
        comparison = Comparison(
            config_files=files,
            methods=self.methods,
            seeds=self.seeds,
            folder=self.out,
            overrides=(*self.overrides, ("dataset_dir", literal(self.data_root))),
        )
        failures = comparison.run(max_parallel, command)
        result = json.loads((self.out / "comparison.json").read_bytes())
        values = benchmark_values(result, task, datalist)
        values["settings"] = [Path(file).name for file in files]
        values["protocol"] = {"name": protocol.name, "method": protocol.method}
        write_json(self.out / JSON, values)
        write_bytes(self.out / MARKDOWN, benchmark_markdown(values, published.sources, command).encode())
        return failures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``python -m dacal_med benchmark``."""
    parser.add_argument("bundle", nargs="?", type=Path, help="folder of a bundle; comes first")
    parser.add_argument("--list", action="store_true", help="show the tasks with published numbers, and run nothing")
    parser.add_argument("--data-root", type=Path, help="folder of the prepared data set, with its datalist.json")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"default: {' '.join(METHODS)}")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(SEEDS), help=f"default: {' '.join(map(str, SEEDS))}"
    )
    parser.add_argument(
        "--protocol",
        default=DEFAULT,
        help=f"whose published settings, for bundles that have them: {', '.join(PROTOCOLS)} (default: {DEFAULT})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for results (default: eval/benchmark of the bundle, eval/benchmark_<protocol> for others than "
        f"{DEFAULT})",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--task", default="", help="whose numbers to show (default: found by bundle and data)")
    # Refused by name; several files would else be taken for words that belong to nothing.
    parser.add_argument("--config_file", nargs="*", help=argparse.SUPPRESS)


def run_command(
    options: argparse.Namespace, overrides: list[tuple[str, str]], command: str
) -> tuple[str, dict[tuple[str, int], str]]:
    """Do what the command line asks for.

    Args:
        options: of :func:`add_arguments`.
        overrides: of the configuration.
        command: what the user typed.

    Returns:
        What to print, and why runs failed, by method and seed.

    Raises:
        InputError: if the bundle or its data are not given, a configuration file is, or as of :meth:`Benchmark.run`.
    """
    if options.list:
        return known_tasks(load_published()), {}
    if options.config_file is not None:
        raise InputError(_NO_CONFIG_FILE)
    if options.bundle is None or options.data_root is None:
        raise InputError("benchmark: wanted the folder of a bundle, first, and --data-root; --list shows the tasks")
    benchmark = Benchmark(
        bundle=options.bundle,
        data_root=options.data_root,
        methods=tuple(options.methods),
        seeds=tuple(options.seeds),
        folder=options.out,
        task=options.task,
        overrides=tuple(overrides),
        protocol=options.protocol,
    )
    failures = benchmark.run(options.jobs, command)
    return (benchmark.out / MARKDOWN).read_text(encoding="utf-8"), failures
