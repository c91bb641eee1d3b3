# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The deployed network of a bundle, and the configurations that describe it away from the bundle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged
from torch import nn

from dacal_med import __version__
from dacal_med.bundle import check_overrides
from dacal_med.command_line import literal
from dacal_med.handlers.weights import load_weights
from dacal_med.io.errors import InputError

# What a run that trained the network decided, beside the weights; `inference.json` of a bundle reads it from a file.
_OF_THE_TASK = ("num_classes", "spacing", "roi_size", "outputs")
# Keys of `inference.json` that describe a run over a folder and not the network.
_OF_THE_RUN = (
    *("task_file", "task", "model_file", "dataset_dir", "file_patterns", "datalist", "bundle_root"),
    *("network", "dataset", "dataloader", "handlers", "evaluator", "run", "initialize", "evaluate", "check_paths"),
)


@dataclass(frozen=True)
class Deployed:
    """A trained network and what describes it.

    Attributes:
        network: on the CPU, in eval mode.
        config: ``network_def``, preprocessing, inferer and postprocessing with MONAI targets only, in which everything
            that training decided is written out: what MONAI Deploy reads from the TorchScript file.
        inference: the bundle's ``inference.json`` with the same things written out.
        metadata: of the bundle, with the classes of this network.
        class_names: by channel.
        bundle: its folder.
        overrides: what the training run changed of its configuration.
    """

    network: nn.Module
    config: dict[str, Any]
    inference: dict[str, Any]
    metadata: dict[str, Any]
    class_names: tuple[str, ...]
    bundle: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> dict[str, Any]:
        """What training decided."""
        return {"class_names": list(self.class_names), **{key: self.config[key] for key in _OF_THE_TASK}}

    @property
    def roi_size(self) -> tuple[int, ...]:
        """The window, in voxels."""
        return tuple(int(n) for n in self.config["roi_size"])


def load_deployed(bundle: Path, model_file: Path, overrides: Sequence[tuple[str, str]] = ()) -> Deployed:
    """Load the deployed network of a bundle.

    Args:
        bundle: the bundle's folder.
        model_file: weights that the bundle's training wrote; the file of the same name that ends in ``.json`` says for
            which classes, spacing and window.
        overrides: ``(key, value)`` as on the command line of the training run, e.g. ``network_def#channels``.

    Returns:
        The network and its description.

    Raises:
        InputError: if a file is missing or malformed, an override's key is unknown, the network needs more than MONAI,
            or the weights are another network's.
    """
    inference = read_json(bundle / "configs" / "inference.json")
    metadata = read_json(bundle / "configs" / "metadata.json")
    if not model_file.is_file():
        raise InputError(f"no weights at {model_file}; train first, or give --model_file")
    task_file = model_file.with_suffix(".json")
    task = read_json(task_file) if task_file.is_file() else {}
    train_file = bundle / "configs" / "train.json"
    files = [str(path) for path in (train_file, bundle / "configs" / "inference.json") if path.is_file()]
    check_overrides(["--config_file", str(files), *(word for key, value in overrides for word in (f"--{key}", value))])
    values = values_of(overrides)
    parser = ConfigParser(inference)
    # The training run has keys that inference lacks; the bundle's guess of its folder looks at the working directory.
    parser.update({key: value for key, value in values.items() if key.split("#")[0] in inference})
    parser.update({"bundle_root": literal(bundle), "model_file": literal(model_file)})
    parser["network_def"] = without_pretraining(parser["network_def"])
    parser.parse()
    written_out = {key: plainly(parser.get_parsed_content(key)) for key in _OF_THE_TASK}
    inference = {**deepcopy(cast(dict[str, Any], parser.config)), **written_out}
    names = _class_names(task, metadata, int(written_out["num_classes"]), task_file)
    config = {key: value for key, value in inference.items() if key not in _OF_THE_RUN}
    # A folder of its own, since there is no bundle around: MONAI Deploy strips what saves.
    config["output_dir"] = "predictions"
    config["network_def"] = resolved(config["network_def"], config)
    for key in ("preprocessing", "postprocessing"):
        config[key] = without_files(config[key])
    network = build_network(config, bundle / "configs" / "inference.json")
    load_weights(network, model_file)
    return Deployed(
        network=network.eval(),
        config=config,
        inference=inference,
        metadata=_described(metadata, names, written_out["roi_size"]),
        class_names=names,
        bundle=bundle,
        overrides=values,
    )


def values_of(overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return overrides as typed, ``(key, text)``, by key with the values that ``monai.bundle run`` reads them as."""
    return {key.replace("::", "#"): DefaultParseValue(value) for key, value in overrides}


def build_network(config: Mapping[str, Any], path: Path) -> nn.Module:
    """Return the network of a configuration's ``network_def``, on the CPU, with fresh weights.

    Args:
        config: with ``network_def`` and what it refers to.
        path: where it was read, for messages.

    Raises:
        InputError: if the network needs what a site does not install, or cannot be built.
    """
    foreign = re.search(r"dacal_med(?!\.networks\b)[\w.]*", json.dumps(config["network_def"]))
    if foreign is not None:
        raise InputError(
            f"{path}: network_def needs {foreign[0]}, wanted a network of MONAI, of torch or of dacal_med.networks"
        )
    try:
        network = ConfigParser(dict(config)).get_parsed_content("network_def")
    except Exception as error:
        # MONAI wraps whatever a constructor raises.
        raise InputError(f"{path}: network_def cannot be built: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{path}: network_def is a {type(network).__name__}, wanted a network")
    return network.cpu()


def without_pretraining(definition: Any) -> Any:
    """Return a ``network_def`` whose networks of ``dacal_med.networks`` begin with random weights, as nothing follows.

    Args:
        definition: a part of a configuration.
    """
    if isinstance(definition, list):
        return [without_pretraining(value) for value in definition]
    if not isinstance(definition, Mapping):
        return definition
    ours = str(definition.get("_target_")).startswith("dacal_med.networks.")
    return {key: without_pretraining(value) for key, value in definition.items() if not (ours and key == "weights")}


def resolved(node: Any, config: Mapping[str, Any]) -> Any:
    """Return a part of a configuration with whole-string references to plain values replaced by the values."""
    if isinstance(node, Mapping):
        return {key: resolved(value, config) for key, value in node.items()}
    if isinstance(node, list):
        return [resolved(value, config) for value in node]
    if isinstance(node, str) and node.startswith("@"):
        value = config.get(node[1:], node)
        return node if isinstance(value, str) and value.startswith(("$", "@", "%")) else value
    return node


def without_files(transforms: Mapping[str, Any]) -> dict[str, Any]:
    """Return pre- or postprocessing as MONAI Deploy can build it, which leaves out what loads and saves.

    It gives volumes without channels, so that loading must do nothing else; nor is our reader installed there.

    Args:
        transforms: a ``Compose`` as configured.
    """
    result = []
    for transform in transforms["transforms"]:
        target = str(transform.get("_target_", "")) if isinstance(transform, Mapping) else ""
        if not target.endswith(("LoadImaged", "SaveImaged")):
            result.append(transform)
            continue
        kept = ("reader", "writer", "ensure_channel_first")
        result.append({key: value for key, value in transform.items() if key not in kept})
        if transform.get("ensure_channel_first"):
            result.append({"_target_": "EnsureChannelFirstd", "keys": transform["keys"]})
    return {**transforms, "transforms": result}


def preprocessing_of(config: Mapping[str, Any]) -> Compose:
    """Return the preprocessing of a configuration, on the CPU, reading as training and the site do.

    Args:
        config: as of ``configs/deploy.json``.
    """
    configured: Compose = ConfigParser({**config, "device": "cpu"}).get_parsed_content("preprocessing")
    load = LoadImaged("image", reader="dacal_med.io.Reader")
    return Compose([load if isinstance(step, LoadImaged) else step for step in configured.transforms])


def training_seed(model_file: Path, given: int | None) -> int:
    """Return the seed that a model was trained with, which says which source cases were held out.

    Args:
        model_file: the weights, beside which training records it.
        given: what the command line says; ``None`` for nothing.

    Raises:
        InputError: if it is known from neither, or the two differ.
    """
    beside = model_file.with_suffix(".json")
    recorded = read_json(beside).get("seed") if beside.is_file() else None
    if given is None and not isinstance(recorded, int):
        raise InputError(f"{beside}: found no seed of the training run; wanted one, or --seed")
    if given is not None and recorded not in (None, given):
        raise InputError(f"--seed: found {given}, wanted that of the training run, which is {recorded} in {beside}")
    return int(recorded if given is None else given)  # type: ignore[arg-type]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: if the file is missing or is none.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a JSON {type(content).__name__}, wanted an object")
    return content


def plainly(value: Any) -> Any:
    """Return tuples as lists, for JSON."""
    return [plainly(v) for v in value] if isinstance(value, list | tuple) else value


def _class_names(task: Mapping[str, Any], metadata: Mapping[str, Any], classes: int, path: Path) -> tuple[str, ...]:
    names = task.get("class_names")
    if names is None:
        definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = [definition[key] for key in sorted(definition, key=int)]
    if len(names) != classes:
        raise InputError(
            f"{os.fspath(path)}: found the classes {list(names)}, wanted {classes} names, as num_classes says"
        )
    return tuple(names)


def _described(metadata: Mapping[str, Any], names: Sequence[str], roi_size: Sequence[int]) -> dict[str, Any]:
    """Return the metadata with the classes and window of the network that is deployed."""
    result = deepcopy(dict(metadata))
    form = result["network_data_format"]
    form["inputs"]["image"]["spatial_shape"] = list(roi_size)
    form["outputs"]["pred"].update(
        num_channels=len(names),
        spatial_shape=list(roi_size),
        channel_def={str(k): name for k, name in enumerate(names)},
    )
    result["pred_classes"] = f"{len(names)} channels: " + ", ".join(f"{k} {name}" for k, name in enumerate(names))
    result["dacal_med_version"] = __version__
    # What only training needs.
    result.get("required_packages_version", {}).pop("tensorboard", None)
    return result
