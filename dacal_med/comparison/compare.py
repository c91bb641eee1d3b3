# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The comparison as a whole: from one bundle configuration to trained, calibrated, measured and tabulated methods."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from dacal_med.bundle import check_overrides, read_config
from dacal_med.command_line import literal
from dacal_med.comparison.aggregate import collect, pooled_tables, read_metrics, run_folder
from dacal_med.comparison.document import write_comparison
from dacal_med.comparison.facts import describe_run
from dacal_med.comparison.methods import FOLDS, Method, find_methods, fit_to_host
from dacal_med.comparison.posthoc import DONE
from dacal_med.comparison.schedule import Job, Outcome, run_jobs
from dacal_med.data import Datalist, oracle_folds
from dacal_med.handlers.checkpoint import KEPT
from dacal_med.handlers.claim import claim, release
from dacal_med.handlers.sums import load_sums, save_sums
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json

SHARED = "source_only"
"""The method whose warm-up and settling the others of a seed start from."""

ORACLE = "target_oracle"
_OWN_KEYS = ("output_dir", "ckpt_dir", "model_file", "seed", "resume", "keep_source_end", "fork_from")
_START = ["$dacal_med.bundle.start()", "$monai.utils.set_determinism(seed=@seed)"]


@dataclass(frozen=True)
class Comparison:
    """What is compared, and where results go.

    Attributes:
        config_files: the bundle's training configuration and overlays.
        methods: names as of :func:`~dacal_med.comparison.methods.find_method`.
        seeds: one training each.
        folder: where results go.
        overrides: further keys of the configuration for every run, as on the command line of ``monai.bundle run``.
        reference: the method that differences are taken to; the hard-label host if empty, with both mixes if it is
            among the methods.
        share_warmup: let the runs of a seed start from the warm-up and settling of ``source_only``, if it is among the
            methods: bit by bit the same as doing it again.
    """

    config_files: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    folder: Path
    overrides: tuple[tuple[str, str], ...] = ()
    reference: str = ""
    share_warmup: bool = True

    def run(self, max_parallel: int = 1, command: str = "") -> dict[tuple[str, int], str]:
        """Train, calibrate and measure what is not done yet, and write the tables.

        Args:
            max_parallel: runs side by side.
            command: what the user typed, for the tables.

        Returns:
            Why runs failed, by method and seed; the others' results are in the tables all the same.

        Raises:
            InputError: before anything is trained, if a method, key, file or the data cannot be used.
            KeyboardInterrupt: after running children have saved; the next call continues.
        """
        methods = find_methods(self.methods)
        reference = self._reference(methods)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"--seeds: found {list(self.seeds)}, wanted at least one, each once")
        config = self._config()
        methods = fit_to_host(methods, config.get("host"))
        datalist: Datalist = config.get_parsed_content("datalist")
        if len(datalist.target_val) < FOLDS:
            raise InputError(
                f"{datalist.root}: 'target_val' has {len(datalist.target_val)} labelled case(s), wanted at least "
                f"{FOLDS}: methods are compared on them, and a spread over cases needs two"
            )
        claim(self.folder, "--out")
        try:
            jobs = self._jobs(methods, config)
            outcomes = run_jobs(list(jobs.values()), max_parallel)
        finally:
            release(self.folder)
        failures = self._failures(methods, jobs, outcomes)
        for seed in self.seeds:
            if ORACLE in {m.name for m in methods} and (ORACLE, seed) not in failures:
                merge_folds(run_folder(self.folder, ORACLE, seed), oracle_folds(datalist, FOLDS))
        result = collect(self.folder, methods, self.seeds, failures, reference)
        facts = describe_run(datalist, self.seeds)
        write_comparison(self.folder, result, pooled_tables(self.folder, result), command, facts)
        return failures

    def _reference(self, methods: Sequence[Method]) -> str:
        names = [method.name for method in methods]
        if self.reference and self.reference not in names:
            raise InputError(f"--reference: found {self.reference!r}, wanted one of the methods: {', '.join(names)}")
        wanted = [self.reference] if self.reference else ["hard_both", "hard", *names]
        return next(name for name in wanted if name in names)

    def _config(self) -> ConfigParser:
        """Return the configuration with the overrides, none of them misspelt."""
        parser = ConfigParser(read_config(self.config_files))
        self._check_keys(find_methods(self.methods))
        check_overrides(["--config_file", str(list(self.config_files)), *self._words()])
        # As `monai.bundle run` reads its command line; the bundle's folder is that of its configuration.
        root = Path(self.config_files[0]).resolve().parent.parent
        parser.update({"bundle_root": literal(root)})
        parser.update({key: DefaultParseValue(value) for key, value in self.overrides})
        return parser

    def _check_keys(self, methods: Sequence[Method]) -> None:
        """Refuse overrides that would reach into every run what the comparison itself sets for each."""
        for key, _ in self.overrides:
            if key in _OWN_KEYS:
                raise InputError(
                    f"--{key}: the comparison sets it for each run; wanted --out, --seeds or --jobs instead"
                )
            for method in methods:
                # An override of all of `host` would drop `host#complement` again.
                if any(f"{own}#".startswith(f"{key}#") or key.startswith(f"{own}#") for own in method.overrides):
                    raise InputError(
                        f"--{key}: method {method.name!r} sets it; an override would make methods alike. "
                        f"Put what all methods share into a configuration file after the bundle's"
                    )

    def _words(self) -> list[str]:
        return [word for key, value in self.overrides for word in (f"--{key}", value)]

    def _jobs(self, methods: Sequence[Method], config: ConfigParser) -> dict[tuple[str, int, str], Job]:
        """Return the jobs by method, seed and part; calibrators of one network are one job of their base."""
        dataset = str(Path(config.get_parsed_content("dataset_dir")).resolve())
        trained = [method for method in methods if method.base is None]
        # First, since the others of its seed wait for it.
        trained.sort(key=lambda method: method.name != SHARED)
        shares = self.share_warmup and trained[0].name == SHARED and "fork_from" in config and _warms_up(config)
        jobs = {}
        for seed in self.seeds:
            for method in trained:
                shared = run_folder(self.folder, SHARED, seed) / "checkpoints" / KEPT if shares else None
                for part, overlay in _parts(method, keep=shares and method.name == SHARED):
                    jobs[method.name, seed, part] = self._training(method, seed, part, overlay, dataset, shared)
        for seed in self.seeds:
            for method in trained:
                names = [m.calibrator for m in methods if m.base == method.name and m.calibrator is not None]
                if names:
                    jobs[method.name, seed, "calibration"] = self._calibration(method, seed, names, dataset)
        return jobs

    def _training(
        self, method: Method, seed: int, part: str, overlay: dict[str, Any], dataset: str, shared: Path | None
    ) -> Job:
        folder = run_folder(self.folder, method.name, seed) / part
        following: tuple[str, ...] = ()
        extra: list[str] = []
        if shared is not None and method.name not in (SHARED, ORACLE):
            following = (f"{SHARED}, seed {seed}",)
            extra = ["--fork_from", literal(shared)]
        name = f"{method.name}, seed {seed}" + (f", {part}" if part else "")
        command, files = self._command(folder, overlay, folder / "model.pt", seed, dataset)
        return Job(name, folder, (*command, *extra), ("--resume", "true"), following=following, inputs=files)

    def _calibration(self, method: Method, seed: int, names: Sequence[str], dataset: str) -> Job:
        base = run_folder(self.folder, method.name, seed)
        overlay = {
            **method.overrides,
            "calibration": {
                "_target_": "dacal_med.comparison.posthoc.PostHocCalibration",
                "folders": {name: literal(run_folder(self.folder, f"{method.name}+{name}", seed)) for name in names},
                "evaluator": "@validate#evaluator",
                "network": "@network",
                "held_out": "@held_out_dataset",
                "target": "@target_dataset",
                "output_dir": "@output_dir",
                "seed": "@seed",
            },
            "initialize": [*_START, "$dacal_med.handlers.load_weights(@network, @model_file)"],
            "run": ["$@calibration.run()"],
        }
        # Named after its calibrators: another set is another job, and what is done stays done.
        folder = base / "calibration" / "_".join(names)
        command, files = self._command(folder, overlay, base / "model.pt", seed, dataset)
        after = (f"{method.name}, seed {seed}",)
        return Job(f"{method.name}, seed {seed}, calibration", folder, command, after=after, done=DONE, inputs=files)

    def _command(
        self, folder: Path, overlay: Mapping[str, Any], model: Path, seed: int, dataset: str
    ) -> tuple[tuple[str, ...], tuple[Path, ...]]:
        """Return the command line of a run and the files that it depends on; writes its overlay."""
        file = folder / "method.json"
        write_json(file, dict(overlay))
        files = [*self.config_files, str(file)]
        line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
        line += ["--output_dir", literal(folder), "--model_file", literal(model)]
        line += ["--dataset_dir", literal(dataset), "--seed", str(seed)]
        line += [word for key, value in self.overrides if key != "dataset_dir" for word in (f"--{key}", value)]
        return tuple(line), tuple(map(Path, files))

    def _failures(
        self, methods: Sequence[Method], jobs: Mapping[tuple[str, int, str], Job], outcomes: Mapping[str, Outcome]
    ) -> dict[tuple[str, int], str]:
        failures = {}
        for method in methods:
            for seed in self.seeds:
                own = [
                    job
                    for (name, job_seed, part), job in jobs.items()
                    if job_seed == seed
                    and name == (method.base or method.name)
                    and (part == "calibration") == (method.base is not None)
                ]
                messages = [outcomes[job.name].message for job in own if not outcomes[job.name].succeeded]
                if messages:
                    failures[method.name, seed] = messages[0]
        return failures


def _warms_up(config: ConfigParser) -> bool:
    """Whether runs learn from the source alone before they adapt; else there is nothing to share, or to wait for."""
    return any(config.get_parsed_content(key) > 0 for key in ("warmup_epochs", "settle_epochs") if key in config)


def _parts(method: Method, keep: bool) -> list[tuple[str, dict[str, Any]]]:
    """Return the trainings that make up a method, as (folder below the run's, overlay)."""
    if method.name != ORACLE:
        return [("", {**method.overrides, **({"keep_source_end": True} if keep else {})})]
    read = "dacal_med.data.load_datalist(@dataset_dir)"
    return [
        (
            f"fold_{fold}",
            {
                **method.overrides,
                "datalist": f"$dacal_med.data.oracle_fold({read}, {fold}, {FOLDS})",
                # Measured on the same grid as the other methods.
                "spacing": f"$list({read}.working_spacing(@spatial_dims))",
            },
        )
        for fold in range(FOLDS)
    ]


def merge_folds(folder: Path, fold_of: Sequence[int]) -> None:
    """Join the folds below ``folder`` into one result over all cases, in the order of ``target_val``.

    Args:
        folder: with a folder for each fold.
        fold_of: in which of them each case was evaluated.
    """
    folds = [folder / f"fold_{fold}" for fold in range(FOLDS)]
    sums = [load_sums(fold / "statistics.pt") for fold in folds]
    places = [(fold_of[:index].count(fold), fold) for index, fold in enumerate(fold_of)]
    cases = [sums[fold].cases[index] for index, fold in places]
    groups = [sums[fold].groups[index] for index, fold in places]
    merged = replace(sums[0], cases=cases, groups=groups)
    metrics = [read_metrics(fold / "metrics.json") for fold in folds]
    save_sums(folder / "statistics.pt", **vars(merged))
    result = {
        "before": None,
        "after": merged.summarise(),
        "seconds": sum(m["seconds"] for m in metrics),
        "peak_memory_mib": max(m["peak_memory_mib"] for m in metrics),
    }
    write_json(folder / "metrics.json", result)


def typed_command(arguments: Sequence[str]) -> str:
    """Return the command line as a user would type it again."""
    return shlex.join(["python", "-m", "dacal_med", *arguments])
