# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What is usual for a trained model: the reference that a site's trust numbers are compared with.

Histograms come from the unlabelled target images that the model was adapted to; how far whole cases are misjudged comes
from the held-out source cases, whose labels may be used, as they are and in the changed appearances of the training,
which resemble the target. The evaluation images (`target_val`) are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor, nn

from dacal_med.bundle import read_config
from dacal_med.command_line import literal
from dacal_med.core.tensors import plain
from dacal_med.deploy.runtime.trust import SCHEMA, TrustAccumulator
from dacal_med.deploy.runtime.trust_effects import fit_shift
from dacal_med.deploy.runtime.trust_histograms import BINS, leave_one_out, shares, threshold
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.handlers.weights import load_weights
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json
from dacal_med.transforms.labels import IGNORE_INDEX

APPEARANCES = 2
"""Changed appearances of each held-out source case, besides the case as it is."""

_MIN_TARGETS = 2


class TrainedModel:
    """A trained bundle: its configuration with the weights, and how it sees its data.

    Args:
        config_files: the bundle's ``train.json`` and overlays.
        model_file: the deployed network's weights.
        dataset_dir: folder with ``datalist.json``.
        seed: that of the training run, which says which source cases were held out.
        overrides: further keys of the configuration that the training run changed, e.g. ``{"roi_size": [32, 48, 32]}``.
            Working spacing and window are taken from the ``.json`` beside the weights, where there is one.

    Raises:
        InputError: if files are missing or do not fit one another.
    """

    def __init__(
        self,
        config_files: str | Path | Sequence[str | Path],
        model_file: str | Path,
        dataset_dir: str | Path,
        seed: int,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        files = [config_files] if isinstance(config_files, str | Path) else list(config_files)
        self.config = ConfigParser(read_config(files))
        task_file = Path(model_file).with_suffix(".json")
        task = read_config(task_file) if task_file.is_file() else {}
        known: dict[str, Any] = {key: task[key] for key in ("spacing", "roi_size") if key in task}
        root = Path(files[0]).resolve().parent.parent
        given = {"bundle_root": literal(root), "dataset_dir": literal(dataset_dir), "seed": seed}
        # Each image is seen once or twice; to choose a cache, headers of all lists are read, those of target_val too.
        self.config.update({**known, **given, **(overrides or {}), "cache": "none"})
        self.seed = seed
        self.model_file = Path(model_file)
        self.class_names: list[str] = self.get("class_names")
        self.background: int | None = self.get("background")
        self.device: torch.device = self.get("device")
        self.inferer = self.get("validate#inferer")
        self.network: nn.Module = self.get("network")
        load_weights(self.network, model_file)
        self.network.eval()

    def get(self, key: str) -> Any:
        """Return what the configuration holds under ``key``, instantiated."""
        return self.config.get_parsed_content(key)

    def preprocessing(self, labelled: bool, intensity: str) -> Compose:
        """Return how a whole image is read: that of the evaluation, without padding or random parts.

        Args:
            labelled: with its label.
            intensity: ``"source_intensity"`` or ``"target_intensity"``.
        """
        load = [self.get("load"), self.get("load_label")] if labelled else [self.get("load")]
        return Compose([*load, *self.get("geometry_labelled" if labelled else "geometry"), self.get(intensity)])

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return the probabilities ``(C, *spatial)`` of an image ``(channels, *spatial)``, on the CPU."""
        batch = plain(image)[None].float().to(self.device)
        return predict_probabilities(self.inferer, self.network, batch)[0].cpu()


def build_reference(
    config_files: str | Path | Sequence[str | Path],
    model_file: str | Path,
    dataset_dir: str | Path,
    seed: int,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the reference of a trained model; see :class:`TrainedModel` for the arguments.

    Returns:
        JSON-ready: histograms of intensity and confidence with their distances, shifts of the held-out cases by class.

    Raises:
        InputError: if files are missing or do not fit one another, or there are fewer than two target images.
    """
    return reference_of(TrainedModel(config_files, model_file, dataset_dir, seed, overrides))


def write_reference(path: str | Path, reference: Mapping[str, Any]) -> None:
    """Write a reference, e.g. to ``configs/trust.json`` of an export, whole or not at all.

    Raises:
        InputError: if the file cannot be written.
    """
    write_json(path, reference)


def reference_of(model: TrainedModel) -> dict[str, Any]:
    """Build the reference of a model that is loaded; see :func:`build_reference`."""
    targets = model.get("datalist").target_train
    if len(targets) < _MIN_TARGETS:
        raise InputError(f"target_train: found {len(targets)} image(s), wanted {_MIN_TARGETS} or more for a reference")
    confidence, intensity = _histograms(model, targets, "target_intensity")
    return {
        "schema": SCHEMA,
        "class_names": list(model.class_names),
        "background": model.background,
        "bins": BINS,
        "intensity": _usual(intensity),
        "confidence": _usual(confidence),
        "shifts": held_out_shifts(model),
        "made_from": {
            "target_images": len(targets),
            "held_out_source_cases": len(model.get("source_split")[1]),
            "appearances": 1 + (APPEARANCES if model.get("appearance") else 0),
            "seed": model.seed,
            "model_sha256": hashlib.sha256(model.model_file.read_bytes()).hexdigest(),
        },
    }


def held_out_shifts(model: TrainedModel) -> dict[str, list[list[tuple[float, float]]]]:
    """Return by class and held-out source case the shifts ``(a, d)`` of its appearances; a case without the class none.

    Args:
        model: its configuration says what is held out.
    """
    result: dict[str, list[list[tuple[float, float]]]] = {
        name: [] for k, name in enumerate(model.class_names) if k != model.background
    }
    for views in _held_out(model):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in result}
        for image, label in views:
            for name, pair in case_shifts(model, model.predict(image), label).items():
                found[name].append(pair)
        for name, pairs in found.items():
            if pairs:
                result[name].append(pairs)
    return result


def case_shifts(model: TrainedModel, probabilities: Tensor, label: Tensor) -> dict[str, tuple[float, float]]:
    """Return the shifts of one labelled case by class, without classes that neither truth nor prediction has.

    Where the class is predicted nowhere, only the shift outside is known and stands for both.

    Args:
        model: its classes.
        probabilities: ``(C, *spatial)``.
        label: ``(1, *spatial)`` true classes, 255 where unknown.
    """
    known = label[0] != IGNORE_INDEX
    truth = label[0][known]
    seen = probabilities[:, known]
    trust = _new_accumulator(model)
    trust.update(seen)
    prediction = seen.argmax(dim=0)
    result = {}
    for k in trust.classes:
        is_class, mask = truth == k, prediction == k
        if bool((is_class | mask).any()):
            inside = fit_shift(trust.inside[k], float((is_class & mask).sum()))
            outside = fit_shift(trust.outside[k], float((is_class & ~mask).sum()))
            # A class cannot be predicted nowhere and everywhere, so that one of the two is known.
            a = outside if inside is None else inside
            d = inside if outside is None else outside
            assert a is not None and d is not None
            result[model.class_names[k]] = (a, d)
    return result


def _held_out(model: TrainedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the views ``(image, label)`` of each held-out source case: as it is, and in changed appearances."""
    cases = model.get("source_split")[1]
    read = model.preprocessing(labelled=True, intensity="source_intensity")
    change = Compose(model.get("appearance")) if model.get("appearance") else None
    if change is not None:
        change.set_random_state(model.seed)
    for entry in cases:
        item = read(dict(entry))
        views = [item]
        if change is not None:
            # Intensities alone change: the label, and what is where, stay.
            views += [change(dict(item)) for _ in range(APPEARANCES)]
        yield [(plain(view["image"]), plain(view["label"]).long()) for view in views]


def _new_accumulator(model: TrainedModel) -> TrustAccumulator:
    return TrustAccumulator(model.class_names, 1.0, background=model.background)


def _histograms(model: TrainedModel, entries: Sequence[Mapping[str, Any]], intensity: str) -> tuple[Any, Any]:
    """Return the confidence histograms ``(cases, bins)`` and intensity histograms ``(cases, channels, bins)``."""
    read = model.preprocessing(labelled=False, intensity=intensity)
    confidences, intensities = [], []
    for entry in entries:
        trust = _new_accumulator(model)
        image = plain(read({"image": entry["image"]})["image"])
        trust.update(model.predict(image), image)
        assert trust.intensity is not None
        confidences.append(shares(trust.confidence[1].numpy()))
        intensities.append(shares(trust.intensity.numpy()))
    return np.stack(confidences), np.stack(intensities)


def _usual(cases: Any) -> dict[str, Any]:
    distances = leave_one_out(cases)
    return {
        "mean": np.round(cases.mean(axis=0), 8).tolist(),
        "distances": sorted(round(value, 6) for value in distances),
        "threshold": round(threshold(distances), 6),
    }
