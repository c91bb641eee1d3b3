# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A network's student step and prediction as it is, with channels last, compiled by torch.compile, and with both.

The U-Net of bundles/dacal_ct2mr in 2D and 3D; images are synthetic. A step is forward, cross-entropy, backward and
AdamW; a prediction is forward in eval mode without gradients. Times are medians of torch.utils.benchmark with their
interquartile range, after a first call, whose seconds (compilation) stand beside them. Ratios are to the row "as it
is". The last column says whether a forward-mode product, which the meta-step needs, goes through the network in that
form. OMP_NUM_THREADS sets the threads.

    OMP_NUM_THREADS=2 python scripts/benchmark_layouts.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.benchmark import Timer

from dacal_med.comparison.facts import describe_machine
from dacal_med.io.files import check_writable, write_json

CLASSES = 5
FORMS = ("as it is", "channels last", "compiled", "compiled, channels last")


@dataclass(frozen=True)
class Case:
    """A network and its images."""

    name: str
    size: tuple[int, ...]
    batch_size: int = 2


CASES = (Case("U-Net 2D", (256, 256)), Case("U-Net 3D", (64, 48, 40)))
SMALL = (Case("U-Net 2D", (32, 32)), Case("U-Net 3D", (16, 16, 16)))


@dataclass(frozen=True)
class Result:
    """One row; seconds."""

    case: str
    form: str
    step: float
    step_iqr: float
    first_step: float
    predict: float
    predict_iqr: float
    forward_mode: bool


def build(case: Case) -> nn.Module:
    """Return the network of a case."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"channels": [8, 16, 32, 64], "strides": [2, 2, 2], "num_res_units": 2}
    return UNet(spatial_dims=len(case.size), in_channels=1, out_channels=CLASSES, **shape)


def forward_mode_works(network: nn.Module, image: Tensor) -> bool:
    """Return whether a directional derivative by the parameters can be had."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    direction = {name: torch.ones_like(p) for name, p in parameters.items()}
    try:
        jvp(lambda p: functional_call(network, p, (image,)), (parameters,), (direction,))
    except Exception as error:  # whatever the compiler raises: the table says that it did
        print(f"  forward mode: {type(error).__name__}: {str(error).splitlines()[0][:100]}", flush=True)
        return False
    return True


def timed(function: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return the median of a call and its interquartile range."""
    measured = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    found = measured.blocked_autorange(min_run_time=seconds)
    return float(found.median), float(found.iqr)


def measure(case: Case, form: str, seconds: float) -> Result:
    """Measure a network in one form."""
    network = build(case)
    image = torch.randn(case.batch_size, 1, *case.size)
    truth = torch.randint(0, CLASSES, (case.batch_size, *case.size))
    if "channels last" in form:
        layout = torch.channels_last if len(case.size) == 2 else torch.channels_last_3d
        network, image = network.to(memory_format=layout), image.to(memory_format=layout)  # type: ignore[call-overload]
    if form.startswith("compiled"):
        torch._dynamo.reset()
        network = torch.compile(network)  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loss = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(network(image), truth).backward()
        optimizer.step()

    began = time.perf_counter()
    step()
    first = time.perf_counter() - began
    step_times = timed(step, seconds)
    forward_mode = forward_mode_works(network, image)
    network.eval()
    with torch.no_grad():
        network(image)
        predict_times = timed(lambda: network(image), seconds)
    return Result(case.name, form, *step_times, first, *predict_times, forward_mode)


def table(results: Sequence[Result]) -> str:
    """Return results as a table in Markdown."""
    lines = [
        "| network | form | step, ms | ratio | first step, s | prediction, ms | ratio | forward mode |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {row.case: row for row in results if row.form == FORMS[0]}
    for row in results:
        step = f"{1000 * row.step:.1f} ± {1000 * row.step_iqr:.1f} | {row.step / plain[row.case].step:.2f}"
        predict = f"{1000 * row.predict:.1f} ± {1000 * row.predict_iqr:.1f}"
        ratio = f"{row.predict / plain[row.case].predict:.2f}"
        works = "yes" if row.forward_mode else "no"
        lines.append(f"| {row.case} | {row.form} | {step} | {row.first_step:.1f} | {predict} | {ratio} | {works} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="at least this long for each time; default: 10")
    parser.add_argument("--forms", nargs="+", choices=FORMS[1:], default=list(FORMS[1:]), help="beside the plain one")
    parser.add_argument("--small", action="store_true", help="small images: to try it, not to report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args(arguments)
    if options.json:
        check_writable(options.json.parent)
    cases = SMALL if options.small else CASES
    began = describe_machine()
    results = []
    for case in cases:
        for form in (FORMS[0], *options.forms):
            results.append(measure(case, form, options.seconds))
            print(json.dumps(asdict(results[-1])), flush=True)
    print(f"\n{began}\n\n{table(results)}")
    if options.json:
        write_json(options.json, {"machine": began, "rows": [asdict(row) for row in results]})


if __name__ == "__main__":
    main()
