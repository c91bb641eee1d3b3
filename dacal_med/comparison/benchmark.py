# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The published protocol of a bundle: its methods x seeds, compared, beside the numbers that others published."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from dacal_med.comparison.benchmark_table import (
    benchmark_markdown,
    benchmark_values,
    known_tasks,
)
from dacal_med.comparison.compare import Comparison
from dacal_med.comparison.published import Published, Task, load_published
from dacal_med.data import Datalist, load_datalist
from dacal_med.errors import InputError
from dacal_med.reporting.files import write_bytes, write_json

METHODS = ("source_only", "hard", "dacal")
"""What is run when nothing is named: no adaptation, the host with hard labels as published, and with DA-Cal."""

SEEDS = (0, 1, 2)
PROTOCOL = "published.json"
MARKDOWN, JSON = "benchmark.md", "benchmark.json"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of one bundle on one prepared data set.

    The runs are those of a :class:`~dacal_med.comparison.compare.Comparison` of ``configs/train.json`` and, where the
    bundle has it, the overlay ``configs/published.json`` with the published settings, so that everything known of
    comparisons (resuming, several runs at once, ``comparison.md``) holds here.

    Attributes:
        bundle: its folder.
        data_root: folder of a prepared data set, with its ``datalist.json``.
        methods: names as of :func:`~dacal_med.comparison.methods.find_method`.
        seeds: one training each.
        folder: where results go, ``eval/benchmark`` of the bundle if ``None``.
        task: among the published ones; found by bundle and data if empty.
        overrides: further keys of the configuration for every run.
    """

    bundle: Path
    data_root: Path
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = SEEDS
    folder: Path | None = None
    task: str = ""
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.bundle / "eval" / "benchmark" if self.folder is None else self.folder

    def config_files(self) -> tuple[str, ...]:
        """Return the bundle's training configuration and, if it has one, the overlay of the published settings.

        Raises:
            InputError: if the folder is not that of a bundle.
        """
        configs = self.bundle / "configs"
        if not (configs / "train.json").is_file():
            raise InputError(f"benchmark: found no {configs / 'train.json'}; wanted the folder of a bundle")
        protocol = configs / PROTOCOL
        return (str(configs / "train.json"), *([str(protocol)] if protocol.is_file() else []))

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
            InputError: before anything is trained, if bundle, data, task, a method or a key cannot be used.
            KeyboardInterrupt: after running children have saved; the next call continues.
        """
        published = load_published()
        files = self.config_files()
        if any(key == "dataset_dir" for key, _ in self.overrides):
            raise InputError("--dataset_dir: wanted --data-root, which says the same")
        datalist = load_datalist(self.data_root)
        task = self.find_task(published, datalist)
        comparison = Comparison(
            config_files=files,
            methods=self.methods,
            seeds=self.seeds,
            folder=self.out,
            overrides=(*self.overrides, ("dataset_dir", str(self.data_root))),
        )
        failures = comparison.run(max_parallel, command)
        result = json.loads((self.out / "comparison.json").read_bytes())
        values = benchmark_values(result, task, datalist)
        values["settings"] = [Path(file).name for file in files]
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
    parser.add_argument("--out", type=Path, help="folder for results (default: eval/benchmark of the bundle)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--task", default="", help="whose numbers to show (default: found by bundle and data)")


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
        InputError: if the bundle or its data are not given, or as of :meth:`Benchmark.run`.
    """
    if options.list:
        return known_tasks(load_published()), {}
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
    )
    failures = benchmark.run(options.jobs, command)
    return (benchmark.out / MARKDOWN).read_text(encoding="utf-8"), failures
