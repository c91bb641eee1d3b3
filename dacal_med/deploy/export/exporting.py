# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med export``: a trained bundle becomes a folder for a clinical site."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import Tensor

from dacal_med.command_line import literal
from dacal_med.data.datalist import FILE_NAME, load_datalist
from dacal_med.deploy.export.card import model_card
from dacal_med.deploy.export.checking import Agreement, check_formats, smallest_image
from dacal_med.deploy.export.deployed import Deployed, load_deployed, read_json, training_seed
from dacal_med.deploy.export.folder import building, convert
from dacal_med.deploy.export.layout import (
    CONFIGS,
    DEPLOY,
    DOCS,
    INFERENCE,
    LOGGING,
    METADATA,
    MODELS,
    TRUST,
    WEIGHTS,
    WHEELS,
)
from dacal_med.deploy.export.packages import bill_of_materials, require_converters, requirements
from dacal_med.deploy.export.site_config import as_site_config
from dacal_med.deploy.export.trust_reference import build_reference, write_reference
from dacal_med.deploy.export.volumes import find_images, try_out
from dacal_med.deploy.export.wheel import own_wheel
from dacal_med.deploy.runtime import checksums
from dacal_med.handlers.weights import save_weights
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_bytes, write_json


@dataclass(frozen=True)
class Export:
    """What is to be exported, and from what.

    Attributes:
        bundle: the bundle's folder.
        out: the folder to make.
        model_file: weights; by default the bundle's ``models/model.pt``.
        dataset_dir: the training run's data (a folder with ``datalist.json``), or a folder of images of the target; by
            default what the bundle uses without data, its phantom.
        metrics_file: the training run's ``metrics.json``; by default beside the weights, else in the bundle's ``eval``.
        seed: of the training run, which says which source cases were held out; by default that beside the weights.
        overrides: ``(key, value)`` that the training run was given.
        force: replace ``out`` if it is there.
    """

    bundle: Path
    out: Path
    model_file: Path | None = None
    dataset_dir: Path | None = None
    metrics_file: Path | None = None
    seed: int | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    force: bool = False

    def run(self) -> list[Agreement]:
        """Make the folder.

        Returns:
            How each format agrees with the trained network.

        Raises:
            InputError: if something given is missing or wrong, the network needs training code, or a format does not
                predict what the network does; nothing is left at ``out`` then.
        """
        require_converters()
        model_file = self.model_file or self.bundle / MODELS / WEIGHTS
        deployed = load_deployed(self.bundle, model_file, self.overrides)
        scores = self._scores(model_file, deployed)
        images = find_images(deployed, self.dataset_dir)
        batches = try_out(deployed.network, deployed.config, images)
        with building(self.out, self.force) as folder:
            self._write(folder, deployed)
            convert(folder)
            result = check_formats(folder, deployed.network, batches)
            data = self._training_data(deployed)
            if data is not None:
                train = deployed.bundle / CONFIGS / "train.json"
                seed = training_seed(model_file, self.seed)
                reference = build_reference(str(train), model_file, data, seed, deployed.overrides)
                write_reference(folder / CONFIGS / TRUST, reference)
            self._document(folder, deployed, scores, model_file, batches, data)
            checksums.write(folder)
        return result

    def _write(self, folder: Path, deployed: Deployed) -> None:
        """Write what the formats are converted from."""
        save_weights(deployed.network, folder / MODELS / WEIGHTS)
        write_json(folder / CONFIGS / DEPLOY, deployed.config)
        write_json(folder / CONFIGS / METADATA, deployed.metadata)
        write_json(folder / CONFIGS / INFERENCE, as_site_config(deployed.inference, deployed.task))
        for source, place in ((f"{CONFIGS}/{LOGGING}", CONFIGS), ("LICENSE", ".")):
            if not (deployed.bundle / source).is_file():
                raise InputError(f"{deployed.bundle / source}: not found, wanted in every bundle")
            shutil.copyfile(deployed.bundle / source, folder / place / Path(source).name)
        write_bytes(folder / WHEELS / own_wheel().name, own_wheel().content)

    def _document(
        self,
        folder: Path,
        deployed: Deployed,
        scores: dict[str, Any] | None,
        model_file: Path,
        batches: list[Tensor],
        data: Path | None,
    ) -> None:
        card = model_card(
            deployed,
            scores,
            checksums.digest(model_file),
            None if data is None else load_datalist(data).name,
            [batch.shape for batch in batches],
            smallest_image(folder),
            trust=data is not None,
        )
        (folder / DOCS).mkdir()
        (folder / DOCS / "README.md").write_text(card, encoding="utf-8")
        network, meta, wheel = deployed.network, deployed.metadata, own_wheel()
        write_json(folder / "sbom.cdx.json", bill_of_materials(network, meta["name"], meta["version"], wheel.needs))
        lines = requirements(network, f"{WHEELS}/{wheel.name}", wheel.needs)
        (folder / "requirements.txt").write_text(lines, encoding="utf-8")

    def _scores(self, model_file: Path, deployed: Deployed) -> dict[str, Any] | None:
        places = [model_file.parent / "metrics.json"]
        if self.model_file is None:
            places.append(self.bundle / "eval" / "metrics.json")
        found = self.metrics_file or next((path for path in places if path.is_file()), None)
        if found is None:
            return None
        content = read_json(found)
        scores = content.get("after")
        if scores is None and "after" in content:  # the run had no labelled target cases
            return None
        if not isinstance(scores, dict) or list(scores.get("per_class", {})) != list(deployed.class_names):
            raise InputError(
                f"{found}: found no scores of the classes {', '.join(deployed.class_names)} under 'after', "
                "wanted the metrics.json of the run that trained these weights"
            )
        return scores

    def _training_data(self, deployed: Deployed) -> Path | None:
        """Return the folder with the datalist of the training run, if there is one."""
        if self.dataset_dir is not None:
            return self.dataset_dir if (self.dataset_dir / FILE_NAME).is_file() else None
        train = ConfigParser(ConfigParser.load_config_file(str(deployed.bundle / CONFIGS / "train.json")))
        train.update({"bundle_root": literal(deployed.bundle)})
        return Path(train.get_parsed_content("dataset_dir"))
