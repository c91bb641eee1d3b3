# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Is an exported folder accepted by the tools of others? Runs their own code on it and prints a table.

MONAI Label and the MONAI Deploy App SDK want packages that this project does not need, so that they are unpacked beside
it, most of what they depend on left out:

    pip install --no-deps --target OUTSIDE monai-deploy-app-sdk==4.0.0 monailabel==0.8.5 expiring_dict==1.1.2 typeguard
    pip install --target OUTSIDE pydantic-settings
    python scripts/check_ecosystem.py --site site/ --image IMAGE --outside OUTSIDE

IMAGE is one that the model is meant for (NIfTI). What STAND_INS names is replaced by empty classes: of the Deploy SDK
its bundle operator is run (reading the TorchScript file, pre- and postprocessing, inference), not its graph; of MONAI
Label its task for bundles (listing, network, transforms), not its server. Without --outside the two are left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import onnxruntime
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.transforms import LoadImage

SCHEMA = Path(__file__).resolve().parents[1] / "tests" / "bundles" / "metadata_schema.json"
STAND_INS = ("holoscan", "tritonclient", "itk", "shapely", "torchvision")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, required=True, help="an exported folder")
    parser.add_argument("--image", type=Path, required=True, help="an image that the model is meant for")
    parser.add_argument("--outside", type=Path, help="where MONAI Label and the MONAI Deploy App SDK were unpacked")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    site, image = options.site.resolve(), options.image.resolve()
    checks: dict[str, Callable[[], str]] = {
        "model zoo: metadata schema": lambda: zoo_metadata(site),
        "model zoo: network in and out": lambda: zoo_network(site),
        "model zoo: ckpt_export, torch.jit.load": lambda: zoo_export(site),
        "MONAI: workflow properties": lambda: workflow_properties(site),
        "ONNX Runtime: dynamic sizes": lambda: onnx_sizes(site),
    }
    if options.outside is not None:
        reach(options.outside.resolve())
        checks["MONAI Deploy: bundle operator"] = lambda: deploy(site, image)
        checks["MONAI Label: list, load"] = lambda: label(site)
    failed = False
    for name, check in checks.items():
        try:
            print(f"{name:<40} ok      {check()}", flush=True)
        except Exception as error:
            failed = True
            print(f"{name:<40} FAILED  {type(error).__name__}: {error}", flush=True)
    return int(failed)


def zoo_metadata(site: Path) -> str:
    verify_metadata(meta_file=str(site / "configs" / "metadata.json"), filepath=str(SCHEMA))
    return ""


def zoo_network(site: Path) -> str:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(site / "configs" / "metadata.json"),
        config_file=str(site / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(site),
    )
    return ""


def zoo_export(site: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ts"
        ckpt_export(
            net_id="network_def",
            filepath=str(path),
            ckpt_file=str(site / "models" / "model.pt"),
            meta_file=str(site / "configs" / "metadata.json"),
            config_file=str(site / "configs" / "inference.json"),
            bundle_root=str(site),
        )
        torch.jit.load(str(path))
    torch.jit.load(str(site / "models" / "model.ts"))
    return ""


def workflow_properties(site: Path) -> str:
    workflow = ConfigWorkflow(
        config_file=str(site / "configs" / "inference.json"),
        meta_file=str(site / "configs" / "metadata.json"),
        logging_file=str(site / "configs" / "logging.conf"),
        workflow_type="infer",
        bundle_root=str(site),
        dataset_dir=str(site),
    )
    workflow.initialize()
    missing = workflow.check_properties()
    if missing:
        raise ValueError(f"missing {missing}")
    return ""


def onnx_sizes(site: Path) -> str:
    form = json.loads((site / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    session = onnxruntime.InferenceSession(site / "models" / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = [[b, form["num_channels"], *(b * n for n in form["spatial_shape"])] for b in (1, 2)]
    for shape in shapes:
        (result,) = session.run(["pred"], {"image": np.zeros(shape, dtype=np.float32)})
        if list(result.shape[2:]) != shape[2:] or result.shape[0] != shape[0]:
            raise ValueError(f"found {list(result.shape)} for {shape}")
    return f"{shapes}, onnxruntime {onnxruntime.__version__}"


def reach(folder: Path) -> None:
    """Let what was unpacked in a folder be imported; the SDK lies inside MONAI's own package."""
    sys.path.append(str(folder))
    monai.__path__.append(str(folder / "monai"))
    sys.meta_path.insert(0, _StandIns())


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives empty modules whose names are empty classes."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in STAND_INS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__init__": lambda self, *args, **kwargs: None})
        setattr(self, name, value)
        return value


def deploy(site: Path, image: Path) -> str:
    operators = importlib.import_module("monai.deploy.operators.monai_bundle_inference_operator")
    core = importlib.import_module("monai.deploy.core")
    mapping = operators.IOMapping("image", core.Image, core.IOType.IN_MEMORY)
    result = operators.IOMapping("pred", core.Image, core.IOType.IN_MEMORY)
    context = types.SimpleNamespace(models=None)
    operator = operators.MonaiBundleInferenceOperator(
        None,
        app_context=context,
        input_mapping=[mapping],
        output_mapping=[result],
        bundle_path=site / "models" / "model.ts",
    )
    operator.app_context = context
    array = LoadImage(ensure_channel_first=False)(image)
    # As the SDK's own operator for DICOM series gives it: the axes reversed, no channels.
    spacing = np.linalg.norm(np.asarray(array.affine)[:3, :3], axis=0)
    keys = ("row_pixel_spacing", "col_pixel_spacing", "depth_pixel_spacing")
    meta = {**dict(zip(keys, spacing.tolist(), strict=True)), "nifti_affine_transform": np.asarray(array.affine)}
    data = core.Image(np.asarray(array).T, meta)
    sent: dict[str, Any] = {}
    operator.compute(
        types.SimpleNamespace(receive=lambda name: data),
        types.SimpleNamespace(emit=lambda value, name: sent.update({name: value})),
        None,
    )
    labels = sent["pred"].asnumpy()
    if labels.shape != np.asarray(array).T.shape:
        raise ValueError(f"found a segmentation of {labels.shape} for an image of {np.asarray(array).T.shape}")
    return f"segmentation of {labels.shape}, labels {np.unique(labels).tolist()}"


def label(site: Path) -> str:
    module = importlib.import_module("monailabel.tasks.infer.bundle")
    task = module.BundleInferTask(str(site), {"preload": "false"})
    if not task.is_valid():
        raise ValueError("not valid")
    # Not a whole inference: its task adds `image_path`, on which Spacingd of MONAI 1.6.1 fails for any NIfTI.
    network = task._get_network("cpu", {})
    form = json.loads((site / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    shape = [1, form["num_channels"], *form["spatial_shape"]]
    with torch.no_grad():
        found = network(torch.zeros(shape))
    transforms = len(task.pre_transforms()), len(task.post_transforms())
    return f"labels {list(task.labels)}, {transforms} transforms, network gives {list(found.shape)}"


if __name__ == "__main__":
    sys.exit(main())
