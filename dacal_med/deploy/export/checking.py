# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Every format of an exported folder is loaded again and must predict what the network does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dacal_med.core.weights import load_safely
from dacal_med.deploy.export.deployed import build_network, read_json
from dacal_med.deploy.export.layout import CONFIGS, DEPLOY, FORMATS, INFERENCE, INPUT, MODELS, OUTPUT
from dacal_med.io.errors import InputError

MIN_SAME_LABELS = 0.9999
MAX_DIFFERENCE = 1e-4

Predictor = Callable[[Tensor], Tensor]
"""Maps images to logits."""


@dataclass(frozen=True)
class Agreement:
    """How one format agrees with the network on one batch.

    Attributes:
        name: of the format's file.
        shape: of the batch, ``(batch, channels, *size)``.
        same_labels: share of voxels with the same class.
        difference: largest difference of a probability.
    """

    name: str
    shape: tuple[int, ...]
    same_labels: float
    difference: float

    @property
    def good(self) -> bool:
        """Whether that is as close as an export must be; NaN is not."""
        return self.same_labels >= MIN_SAME_LABELS and self.difference <= MAX_DIFFERENCE


def check_formats(folder: Path, network: Predictor, batches: Sequence[Tensor]) -> list[Agreement]:
    """Load every format of an exported folder and compare it with the network.

    Args:
        folder: the exported folder.
        network: what was to be exported.
        batches: images, ``(batch, channels, *size)``.

    Returns:
        How each format agrees on each batch.

    Raises:
        InputError: naming the format that cannot be loaded or run, or does not agree.
    """
    expected = [_probabilities(network, batch) for batch in batches]
    result = []
    for name in FORMATS:
        try:
            predictor = load_format(folder, name)
        except InputError:
            raise
        except Exception as error:
            # Whatever a runtime raises, the user needs the format's name.
            raise InputError(f"export of {name} failed: it cannot be loaded again: {_short(error)}") from error
        for batch, wanted in zip(batches, expected, strict=True):
            try:
                found = _probabilities(predictor, batch)
            except Exception as error:
                raise InputError(
                    f"export of {name} failed: it cannot run images of {list(batch.shape)}: {_short(error)}"
                ) from error
            agreement = compare(name, wanted, found, batch.shape)
            if not agreement.good:
                raise InputError(
                    f"export of {name} failed: on images of {list(batch.shape)} found the same label on "
                    f"{agreement.same_labels:.4%} of the voxels and probabilities up to {agreement.difference:.2e} "
                    f"apart, wanted at least {MIN_SAME_LABELS:.2%} and at most {MAX_DIFFERENCE:.0e}"
                )
            result.append(agreement)
    return result


def compare(name: str, wanted: Tensor, found: Tensor, shape: Sequence[int]) -> Agreement:
    """Compare the probabilities of a format with those of the network; another shape agrees nowhere."""
    if found.shape != wanted.shape:
        return Agreement(name, tuple(shape), 0.0, float("inf"))
    same = float((found.argmax(dim=1) == wanted.argmax(dim=1)).double().mean())
    return Agreement(name, tuple(shape), same, float((found - wanted).abs().max()))


def load_format(folder: Path, name: str) -> Predictor:
    """Return the network of one format of an exported folder, on the CPU.

    Args:
        folder: the exported folder.
        name: one of :data:`~dacal_med.deploy.export.layout.FORMATS`.
    """
    path = folder / MODELS / name
    if path.suffix == ".pt":
        return load_network(folder)
    if path.suffix == ".ts":
        script: Predictor = torch.jit.load(str(path), map_location="cpu").eval()
        return script
    if path.suffix == ".pt2":
        program: Predictor = torch.export.load(str(path)).module()
        return program
    import onnxruntime  # of an extra, which the other commands do without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop take the cores of what runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run([OUTPUT], {INPUT: image.numpy()})[0])


def smallest_image(folder: Path) -> tuple[int, ...]:
    """Return the smallest size along each axis that ``model.pt2`` takes: a graph holds for the sizes it was drawn for.

    Args:
        folder: the exported folder.
    """
    program = torch.export.load(str(folder / MODELS / "model.pt2"))
    (name,) = program.graph_signature.user_inputs
    (image,) = (node.meta["val"] for node in program.graph.nodes if node.name == name)
    return tuple(int(program.range_constraints[length.node.expr].lower) for length in image.shape[2:])


def load_network(folder: Path) -> nn.Module:
    """Return the network of ``configs/inference.json`` with the weights of ``models/model.pt``, in eval mode.

    Raises:
        InputError: if a file is missing or the two do not fit.
    """
    name = INFERENCE if (folder / CONFIGS / INFERENCE).is_file() else DEPLOY
    network = build_network(read_json(folder / CONFIGS / name), folder / CONFIGS / name)
    path = folder / MODELS / FORMATS[0]
    try:
        network.load_state_dict(load_safely(path, "weights file"))
    except RuntimeError as error:
        raise InputError(f"{path} holds another network than {name}: {_short(error)}") from error
    return network.eval()


@torch.no_grad()
def _probabilities(network: Predictor, batch: Tensor) -> Tensor:
    return network(batch).float().softmax(dim=1)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
