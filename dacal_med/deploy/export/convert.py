# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Converts the network of an exported folder, as a process: ``python -m dacal_med.deploy.export.convert FOLDER``.

TorchScript numbers classes by what the process scripted before and orders constants by hash, so that only a fresh
process with a fixed hash seed writes the same bytes twice.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.data.torchscript_utils import save_net_with_metadata
from torch import Tensor, nn

from dacal_med.core.weights import load_safely
from dacal_med.deploy.export.archives import normalised
from dacal_med.deploy.export.deployed import build_network, read_json
from dacal_med.deploy.export.layout import CONFIGS, DEPLOY, INPUT, METADATA, MODELS, OUTPUT, WEIGHTS
from dacal_med.deploy.export.onnx_graph import rewrite


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``model.ts``, ``model.pt2`` and ``model.onnx`` beside ``models/model.pt`` of the folder named."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    folder = Path(name)
    config, metadata = (read_json(folder / CONFIGS / file) for file in (DEPLOY, METADATA))
    network = build_network(config, folder / CONFIGS / DEPLOY).eval()
    network.load_state_dict(load_safely(folder / MODELS / WEIGHTS, "weights file"))
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    # Two cases and two windows, so that no size on the way is 1, which would be fixed.
    example = torch.zeros(2, int(config["in_channels"]), *(2 * int(n) for n in config["roi_size"]))
    # MONAI Deploy looks for this name in the TorchScript file.
    extra = {"inference.json": json.dumps(config, indent=2).encode()}
    models = folder / MODELS
    _torchscript(network, example, metadata, extra, models / "model.ts")
    program = _program(network, example)
    (models / "model.onnx").write_bytes(_onnx(program))
    torch.export.save(program, models / "model.pt2")
    for name in ("model.ts", "model.pt2"):
        (models / name).write_bytes(normalised((models / name).read_bytes()))
    return 0


def _torchscript(
    network: nn.Module, example: Tensor, metadata: dict[str, object], extra: dict[str, bytes], path: Path
) -> None:
    try:
        script = torch.jit.script(network)
    except Exception:
        # Networks with code that TorchScript does not know; other sizes than the example's are tried after export.
        with torch.no_grad():
            script = torch.jit.trace(network, example)
    # The versions and the time that MONAI would add are in the metadata already, or differ between two exports.
    save_net_with_metadata(script, str(path), include_config_vals=False, meta_values=metadata, more_extra_files=extra)


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    axes = {0: torch.export.Dim.AUTO, **{k: torch.export.Dim.AUTO for k in range(2, example.dim())}}
    program = torch.export.export(network, (example,), dynamic_shapes=(axes,))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                # They name files of this machine.
                node.meta.pop("stack_trace", None)
    program.example_inputs = None  # as large as the images, of no use to who loads it
    return program


def _onnx(program: torch.export.ExportedProgram) -> bytes:
    exported = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    assert exported is not None
    proto = exported.model_proto
    rewrite(proto)
    for owner in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.functions):
        # How the exporter came to each node, of no use to a runtime.
        del owner.metadata_props[:]
        if owner is not proto:
            owner.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
    return bytes(proto.SerializeToString(deterministic=True))


if __name__ == "__main__":
    sys.exit(main())
