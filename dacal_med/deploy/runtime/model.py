# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The exported model: its network, its name and what it was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dacal_med import __version__
from dacal_med.deploy.runtime.checksums import digest
from dacal_med.deploy.runtime.trust import TrustAccumulator
from dacal_med.io.errors import InputError

_CODES = ("CT", "MR", "PT", "US")  # modalities as DICOM and metadata.json both call them


@dataclass(frozen=True)
class Model:
    """A network with its description.

    Attributes:
        network: gives logits ``(B, C, *window)``.
        device: where it computes.
        name: from ``metadata.json``.
        version: from ``metadata.json``.
        sha256: of the file of the weights.
        class_names: by channel.
        modality: that it is made for, as DICOM names it; None where DICOM has no name for it or it is not said.
        segment_codes: the bundle's own coded concepts, by class name.
        reference: what is usual for this model (``configs/trust.json``); None if it was not exported.
        warnings: what every case is told.
    """

    network: nn.Module
    device: torch.device
    name: str
    version: str
    sha256: str
    class_names: tuple[str, ...]
    modality: str | None
    segment_codes: Mapping[str, Any] | None
    reference: Mapping[str, Any] | None
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, root: Path, model_file: Path, network: nn.Module, device: torch.device, force: bool = False) -> Model:
        """Load weights and description.

        Args:
            root: the exported folder.
            model_file: TorchScript (``.ts``), or weights (``.pt``) of ``network``.
            network: as the configuration defines it.
            device: where to compute.
            force: run a model that another version of dacal_med exported; a warning tells so.

        Raises:
            InputError: a file is missing, malformed, of another network, or of another version of dacal_med.
        """
        metadata = _json(root / "configs" / "metadata.json")
        trust = root / "configs" / "trust.json"
        try:
            form = metadata["network_data_format"]
            names = form["outputs"]["pred"]["channel_def"]
            modality = form["inputs"]["image"].get("modality")
            class_names = tuple(str(names[key]) for key in sorted(names, key=int))
            told = other_version(metadata)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{root / 'configs' / 'metadata.json'}: found no {error}; wanted an export's own"
            ) from error
        codes = metadata.get("segment_codes")
        if len(class_names) < 2 or not (codes is None or isinstance(codes, Mapping)):
            raise InputError(
                f"{root / 'configs' / 'metadata.json'}: found {len(class_names)} class(es) in 'channel_def' and a "
                f"{type(codes).__name__} as 'segment_codes'; wanted at least 2 and an object"
            )
        if told and not force:
            raise InputError(f"{told}; wanted pip install -r requirements.txt in {root}, or --force true")
        loaded = _load(model_file, network).to(device).eval()
        model = cls(
            network=loaded,
            device=device,
            name=str(metadata.get("name", root.name)),
            version=str(metadata.get("version", "unknown")),
            sha256=digest(model_file),
            class_names=class_names,
            modality=modality if isinstance(modality, str) and modality in _CODES else None,
            segment_codes=codes,
            reference=_json(trust) if trust.is_file() else None,
            warnings=(told,) if told else (),
        )
        model.trust(1.0, "pixels")  # a reference of another model is told before anything runs
        return model

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def background(self) -> int | None:
        """The class that is no structure: the reference says it, else the name of the first class; None if all are."""
        if self.reference is not None:
            background: int | None = self.reference.get("background")
            return background
        return background_class(self.class_names)

    def trust(self, voxel_volume_mm3: float, unit: str) -> TrustAccumulator:
        """What collects how far to trust one image.

        Raises:
            InputError: the reference is another model's.
        """
        try:
            return TrustAccumulator(self.class_names, voxel_volume_mm3, self.reference, self.background, unit)
        except ValueError as error:
            raise InputError(f"configs/trust.json: {error}") from error

    @torch.no_grad()
    def probabilities(self, windows: Tensor) -> Tensor:
        """Class probabilities ``(B, C, *window)`` of windows, on the CPU.

        Raises:
            InputError: the network gives another number of classes than the metadata names.
        """
        logits = self.network(windows.to(self.device))
        if logits.shape[1] != self.num_classes:
            raise InputError(f"the network gives {logits.shape[1]} channels; metadata.json names {self.num_classes}")
        probabilities: Tensor = logits.float().softmax(dim=1).cpu()
        return probabilities

    def description(self) -> dict[str, str]:
        """Name, version and checksum, for a case's JSON."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}


def _load(file: Path, network: nn.Module) -> nn.Module:
    if not file.is_file():
        raise InputError(f"model_file: {file} not found; wanted the model of the exported folder")
    try:
        if file.suffix == ".ts":
            scripted: nn.Module = torch.jit.load(str(file), map_location="cpu")
            return scripted
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever a damaged archive leads it to
        message = " ".join(str(error).split())[:200]
        raise InputError(f"model_file: {file} cannot be loaded ({type(error).__name__}: {message})") from error
    return network


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); wanted the file of the exported folder") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a {type(content).__name__}; wanted an object")
    return content


def other_version(metadata: Mapping[str, Any]) -> str:
    """Return in words by which other version of dacal_med a model was exported; nothing if it was this one."""
    exported = metadata.get("dacal_med_version", "of unknown version")
    return "" if exported == __version__ else f"exported with dacal_med {exported}, running dacal_med {__version__}"


def background_class(class_names: Sequence[str]) -> int | None:
    """Return the class that is no structure by its name, the first if it is called background; ``None`` if all are."""
    return 0 if class_names[0].lower() == "background" else None
