# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of one training iteration with the bi-level step, as ratios to the plain host's.

An iteration is a real one of AdaptationTrainer: teacher, pseudo-labels, meta-step where due, student step on the source
and both mixes, moving average. The network is the U-Net of bundles/dacal_ct2mr, the images are synthetic and in memory;
loading them is not counted. All rows but "host step" learn the temperature, all but the default in every iteration.
Each measurement has a process of its own, and rounds are interleaved (A, B, C, A, B, C ...).

Time: seconds per iteration, averaged over a cycle of 4 iterations after 2 to warm up; the median of all cycles of all
rounds, with the smallest and the largest. Memory: what iterations add at their peak to what is in use before them
(libraries, networks, optimizer, batch), highest of 4 others; the median of all rounds. On CPU it is resident memory,
VmHWM less VmRSS of /proc (Linux only), while the allocator gives freed memory back at once. On CUDA it is
torch.cuda.max_memory_allocated less torch.cuda.memory_allocated. Ratios are those of the medians.

"higher" and "torchopt" differentiate through their own AdamW step (without weight decay, which moves the step but not
its derivative), second moment included, where ours holds the preconditioner constant. Before they are measured, their
gradient through an SGD step, where all three are the same, is compared with ours. OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ignite.engine import Events
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.optim import Optimizer

from dacal_med.comparison.facts import describe_machine
from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.bilevel import BilevelStep, MetaGradient, OuterLoss
from dacal_med.core.differentiation import call, preserved_random_state
from dacal_med.data.paired import PairedDataset, PairedLoader
from dacal_med.engines import AdaptationTrainer, dice_cross_entropy, make_host, make_labeller, make_temperature_learner
from dacal_med.io.errors import InputError
from dacal_med.io.files import check_writable, write_json

CLASSES = 5
CYCLE = 4
WARM_UP = 2
SIZES = {2: (256, 256), 3: (64, 48, 40)}
QUICK_SIZES = {2: (64, 64), 3: (16, 16, 16)}
AGREEMENT = 1e-9
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


@dataclass(frozen=True)
class Variant:
    """One row: ``every`` 0 is the plain host, ``library`` replaces our meta-gradient."""

    name: str
    every: int = 1
    method: str = "forward"
    last_block: bool = False
    scale: float = 0.5
    library: str | None = None


VARIANTS = (
    Variant("host step", every=0),
    Variant("DA-Cal default (meta-step every 4th iteration)", every=4),
    Variant("DA-Cal, every iteration"),
    Variant("DA-Cal, last block only", last_block=True),
    Variant("DA-Cal, finite difference", method="difference"),
    Variant("DA-Cal, full-resolution temperature", scale=1.0),
    Variant("double backward", method="double_backward"),
    Variant("higher", library="higher"),
    Variant("torchopt", library="torchopt"),
)


@dataclass(frozen=True)
class Settings:
    """What one measurement needs to know; travels to its process as JSON."""

    size: Sequence[int]
    batch_size: int
    cycles: int
    device: str


class LibraryStep(BilevelStep):
    """The meta-gradient by differentiation through a library's own optimizer step."""

    def __init__(self, network: nn.Module, optimizer: Optimizer, library: str) -> None:
        super().__init__(network, optimizer)
        self.losses: Callable[..., tuple[Tensor, Tensor]] = {"higher": self.higher, "torchopt": self.torchopt}[library]

    def __call__(
        self,
        inner: LabelledBatch,
        outer_loss: OuterLoss,
        meta_parameters: Sequence[Tensor],
        penalty: Tensor | None = None,
    ) -> MetaGradient:
        with preserved_random_state(inner.image.device):
            loss, outer = self.losses(inner, outer_loss)
            return self._finish(outer, penalty, meta_parameters, loss.detach(), outer.detach(), "library")

    def higher(self, inner: LabelledBatch, outer_loss: OuterLoss) -> tuple[Tensor, Tensor]:
        """Inner and outer loss by ``higher`` (Grefenstette et al., arXiv 1910.01727)."""
        higher: Any = importlib.import_module("higher")
        # It knows Adam, but not AdamW, which differs in the weight decay alone.
        higher.register_optim(torch.optim.AdamW, higher.optim.DifferentiableAdam)
        with higher.innerloop_ctx(self.network, self.optimizer, override={"weight_decay": [0.0]}) as context:
            network, optimizer = context
            loss = soft_cross_entropy(network(inner.image), inner.targets, inner.weights.detach())
            optimizer.step(loss)
            return loss, outer_loss(network)

    def torchopt(self, inner: LabelledBatch, outer_loss: OuterLoss) -> tuple[Tensor, Tensor]:
        """The same by ``torchopt`` (arXiv 2211.06934); ``eps_root``: no infinite slope at a gradient of 0."""
        torchopt: Any = importlib.import_module("torchopt")
        parameters = tuple(self.parameters.values())
        group = self.optimizer.param_groups[0]
        if isinstance(self.optimizer, torch.optim.SGD):
            rule = torchopt.sgd(group["lr"])
            state = rule.init(parameters)
        else:
            rule = torchopt.adamw(group["lr"], betas=group["betas"], eps=group["eps"], eps_root=1e-30, weight_decay=0.0)
            known = [self.optimizer.state[p] for p in parameters]
            mu, nu = [s["exp_avg"] for s in known], [s["exp_avg_sq"] for s in known]
            count = [s["step"].long().to(p.device) for s, p in zip(known, parameters, strict=True)]
            fresh = rule.init(parameters)
            state = tuple(s._replace(mu=mu, nu=nu, count=count) if hasattr(s, "mu") else s for s in fresh)
        loss = soft_cross_entropy(call(self.network, {}, inner.image), inner.targets, inner.weights.detach())
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        updates, _ = rule.update(gradients, state, params=parameters, inplace=False)
        moved = torchopt.apply_updates(parameters, updates, inplace=False)
        ahead = dict(zip(self.parameters, moved, strict=True))
        return loss, outer_loss(lambda image: call(self.network, ahead, image))


def tiny_gradient(library: str | None, optimizer_type: Callable[..., Optimizer] = torch.optim.SGD) -> Tensor:
    """Return the meta-gradient of a tiny float64 problem, after three real steps of the student."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(2, 1, CLASSES, channels=(4, 8), strides=(2,), num_res_units=1).double()
        image, other, *images, weights, shift = torch.randn(7, 2, 1, 8, 8, dtype=torch.float64)
        logits, truth = torch.randn(2, 2, CLASSES, 8, 8, dtype=torch.float64)
    optimizer = optimizer_type(network.parameters(), lr=1e-2)
    for seen in images:
        optimizer.zero_grad()
        network(seen).square().mean().backward()
        optimizer.step()
    leaf = (0.3 * shift).requires_grad_(True)
    inner = LabelledBatch(image, (3.0 * logits / leaf.exp()).softmax(dim=1), weights.abs())
    targets, ones = truth.softmax(dim=1), torch.ones_like(weights)
    step = BilevelStep(network, optimizer) if library is None else LibraryStep(network, optimizer, library)
    gradient = step(inner, lambda forward: soft_cross_entropy(forward(other), targets, ones), [leaf]).gradients[0]
    assert gradient is not None
    return gradient


def problem_of(library: str) -> str | None:
    """Return why a library cannot be measured, or ``None`` if it can and agrees with ours through an SGD step."""
    if importlib.util.find_spec(library) is None:
        return "not installed (pip install -e '.[benchmark]')"
    try:
        wanted = tiny_gradient(None)
        error = float((tiny_gradient(library) - wanted).norm() / wanted.norm())
    except Exception as exception:
        return f"fails with torch {torch.__version__}: {type(exception).__name__}: {exception}"
    return None if error <= AGREEMENT else f"its gradient is off by {error:.1e}, wanted at most {AGREEMENT:.0e}"


def items(count: int, size: Sequence[int], sign: float) -> list[dict[str, Tensor]]:
    """Noisy images ``(1, *size)`` of bands of all classes along the first axis, with labels."""
    bands = torch.arange(size[0]) * CLASSES // size[0]
    label = bands.view(1, -1, *[1] * (len(size) - 1)).expand(1, *size).to(torch.uint8).contiguous()
    return [{"image": 0.5 + sign * 0.1 * label + 0.1 * torch.randn(1, *size), "label": label} for _ in range(count)]


def build(variant: Variant, settings: Settings, iterations: int) -> AdaptationTrainer:
    """Return the trainer of a row, with the settings of bundles/dacal_ct2mr."""
    torch.manual_seed(0)
    size, count, device = settings.size, settings.batch_size, settings.device
    dataset = PairedDataset(items(2 * count, size, 1.0), items(2 * count, size, -1.0), items(count, size, 1.0))
    loader = PairedLoader(dataset, count, iterations)
    network = UNet(len(size), 1, CLASSES, channels=(8, 16, 32, 64), strides=(2, 2, 2), num_res_units=2).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    # An untrained teacher is sure of nothing: with a threshold the meta-step would have nothing to do.
    options: dict[str, Any] = {"threshold": 0.0, "temperature_network": {"scale": variant.scale}, "device": device}
    labeller = make_labeller("learned" if variant.every else "hard", CLASSES, 1, len(size), **options)
    last_block = ".".join([name for name, _ in network.named_parameters()][-1].split(".")[:2]) + "."
    options = {"look_ahead": last_block if variant.last_block else "all", "every": variant.every, "start": 1}
    meta = make_temperature_learner(labeller, network, optimizer, method=variant.method, **options)
    if meta is not None and variant.library is not None:
        meta.step = LibraryStep(network, optimizer, variant.library)
    host = make_host("dacs", complement="same")
    options = {"truth_loss_function": dice_cross_entropy, "max_gradient_norm": 1.0}
    return AdaptationTrainer(device, 1, loader, network, optimizer, CLASSES, host, labeller, meta, **options)


def memory(device: str, peak: bool) -> float:
    """Return the memory in use, now or at its peak, in MiB."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2.0**20
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) / 2.0**10


def forget_peak(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def keep_freed(most: int) -> None:
    """Let glibc give freed memory back to the system at once where it is larger, and keep what is smaller for later."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, most)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * most)
        libc.malloc_trim(0)


def measure(variant: Variant, settings: Settings, cycles: int) -> tuple[list[float], float]:
    """Return seconds per iteration of each cycle, and the peak memory in MiB that iterations add."""
    trainer = build(variant, settings, WARM_UP + CYCLE * cycles)
    marks: list[tuple[float, float]] = []
    norms: list[float] = []
    before = started = 0.0

    def now() -> float:
        if settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def start() -> None:
        nonlocal before, started
        if len(marks) == WARM_UP:
            forget_peak(settings.device)
            before = memory(settings.device, peak=False)
        started = now()

    def stop() -> None:
        marks.append((started, now()))
        norms.extend(value for key, value in trainer.state.meta.items() if key == "gradient_norm")

    trainer.add_event_handler(Events.ITERATION_STARTED, start)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    trainer.run()
    peak = memory(settings.device, peak=True)
    due = 0 if trainer.meta is None else sum(map(trainer.meta.due, range(len(marks))))
    if len(norms) != due or not all(math.isfinite(norm) and norm > 0.0 for norm in norms):
        raise RuntimeError(f"{variant.name}: {due} meta-steps were due, with gradients: their norms are {norms}")
    seconds = [stopped - started for started, stopped in marks]
    return [sum(seconds[i : i + CYCLE]) / CYCLE for i in range(WARM_UP, len(seconds), CYCLE)], peak - before


def measure_here(names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Measure rows in this process, memory before time; by name."""
    chosen = [v for v in VARIANTS if v.name in names]
    keep_freed(2**13)  # resident memory is to be what a step holds, not what was held before
    peaks = [measure(v, settings, 1)[1] for v in chosen]
    keep_freed(2**25)  # what glibc comes to by itself, and faster
    seconds = [measure(v, settings, settings.cycles)[0] for v in chosen]
    return {v.name: {"seconds": s, "peak_mib": p} for v, s, p in zip(chosen, seconds, peaks, strict=True)}


def measure_in_child(names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Measure rows in one fresh process; by name."""
    request = json.dumps([names, asdict(settings)])
    command = [sys.executable, __file__, "--measure", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{', '.join(names)}: measuring ended with status {done.returncode}\n{done.stderr[-1000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def benchmark(settings: Settings, variants: Sequence[Variant], rounds: int, together: bool) -> list[dict[str, Any]]:
    """Return the rows of one image size, the first of them the host's; ``together`` shares one process."""
    names = [v.name for v in variants]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(rounds):
        for group in [names] if together else [[name] for name in names]:
            print(f"{len(settings.size)}D, round {turn + 1} of {rounds}: {', '.join(group)}", file=sys.stderr)
            for name, result in measure_in_child(group, settings).items():
                found[name].append(result)
    rows: list[dict[str, Any]] = []
    for variant in variants:
        seconds = [value for result in found[variant.name] for value in result["seconds"]]
        row = {"name": variant.name, "dims": len(settings.size), "every": variant.every, "seconds": median(seconds)}
        row |= {"seconds_min": min(seconds), "seconds_max": max(seconds)}
        row |= {"peak_mib": median(result["peak_mib"] for result in found[variant.name])}
        host = rows[0] if rows else row
        row |= {key + "_ratio": row[unit] / host[unit] for key, unit in (("time", "seconds"), ("memory", "peak_mib"))}
        rows.append({**row, "rounds": rounds, **asdict(settings)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as aligned text."""
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'':{width}}  {'time':>6}  {'memory':>6}  {'s/iteration (min-max)':>25}  {'peak MiB':>8}"]
    for row in rows:
        spread = f"{row['seconds']:.4f} ({row['seconds_min']:.4f}-{row['seconds_max']:.4f})"
        ratios = f"{row['time_ratio']:6.2f}  {row['memory_ratio']:6.2f}"
        lines.append(f"{row['name']:{width}}  {ratios}  {spread:>25}  {row['peak_mib']:8.1f}")
    return "\n".join(lines)


def positive(text: str) -> int:
    """Parse a number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number from 1")
    return int(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; mistakes end the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dims", type=int, nargs="+", choices=sorted(SIZES), default=sorted(SIZES), help="default: 2 3")
    add("--size-2d", type=positive, nargs=2, metavar="N", help="image size in 2D; default: 256 256")
    add("--size-3d", type=positive, nargs=3, metavar="N", help="image size in 3D; default: 64 48 40")
    add("--batch-size", type=positive, default=2, metavar="N", help="default: 2")
    add("--rounds", type=positive, metavar="N", help="measurements of each row; default: 3")
    add("--cycles", type=positive, default=1, metavar="N", help="timed cycles per measurement; default: 1")
    add("--device", choices=["cpu", "cuda"], help="default: cuda where there is one, else cpu")
    add("--json", type=Path, metavar="FILE", help="also write the rows to FILE, as a list")
    add("--quick", action="store_true", help="tiny images, 1 round, one process for all rows: to try it, not to report")
    add("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    defaults = QUICK_SIZES if options.quick else SIZES
    options.sizes = {2: options.size_2d or defaults[2], 3: options.size_3d or defaults[3]}
    for dims, size in options.sizes.items():
        if any(n % 8 or n < 16 for n in size):
            parser.error(f"--size-{dims}d: found {' '.join(map(str, size))}, wanted multiples of 8 from 16")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: found 'cuda', but torch sees no CUDA device")
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        parser.error("--device: memory on 'cpu' is read from /proc, which only Linux has")
    if options.json:
        try:
            check_writable(options.json.resolve().parent, needed_mib=1.0)
        except InputError as error:
            parser.error(f"--json: {error}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse(arguments)
    if options.measure is not None:
        names, fields = json.loads(options.measure)
        print(json.dumps(measure_here(names, Settings(**fields))))
        return
    problems = {v.library: problem for v in VARIANTS if v.library and (problem := problem_of(v.library))}
    variants = [v for v in VARIANTS if v.library not in problems]
    about = describe_machine(options.device)
    print(about)
    for name, problem in problems.items():
        print(f"{name}: skipped, {problem}")
    rows = []
    for dims in sorted(set(options.dims)):
        settings = Settings(options.sizes[dims], options.batch_size, options.cycles, options.device)
        found = benchmark(settings, variants, options.rounds, options.quick)
        print(f"\n{dims}D, batch {options.batch_size} of {' x '.join(map(str, settings.size))}, {CLASSES} classes")
        print(table(found), flush=True)
        rows += [{**row, "machine": about} for row in found]
    kind = "torch.cuda.max_memory_allocated" if options.device == "cuda" else "resident memory (VmHWM)"
    print(f"\ntime, memory: ratios to the host step; peak: {kind} above what was in use before the iteration")
    if options.json is not None:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
