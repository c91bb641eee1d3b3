# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""DAFormer: features of chosen classes stay near those of a frozen pretrained encoder.

The other strategies of DAFormer are no matter of a host: rare class sampling is
:class:`dacal_med.data.RareClassSampling`, the learning rate :func:`dacal_med.engines.warmup_polynomial`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dacal_med.core.features import class_cells, feature_distance
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.core.weights import load_safely
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import Host, LossTerm, OnHost
from dacal_med.engines.hosts.dacs import DACS
from dacal_med.engines.whole_batch import over_batch
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA


@dataclass(frozen=True)
class FeatureDistance:
    """The distance of one forward pass, an extra loss of a term; see :class:`DAFormer` for the settings.

    Attributes:
        targets: ``(B, C, *spatial)`` one-hot labels of the images that the student sees.
    """

    frozen: nn.Module
    layer: str
    targets: Tensor
    classes: Sequence[int]
    weight: float
    min_share: float
    root: str | None = None
    frozen_layer: str = ""
    name: str = "feature_distance"
    sums_over_batch: ClassVar[bool] = True

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[Callable[[], Tensor]]:
        """Watch ``network``; the loss is that of the first pass through its layer inside the context.

        Raises:
            InputError: if a layer does not exist, or the features do not have one shape.
        """
        inside = "network" if isinstance(network, HRDA) else ""
        root = _submodule(network, inside if self.root is None else self.root, "root")
        with (
            _calls_of(root) as images,
            _calls_of(_submodule(root, self.layer, "layer")) as features,
        ):
            # The first call: a network that looks twice, as HRDA, shows the whole image first.
            yield lambda: self._loss(_first(images, "root")[0], _first(features, "layer")[1])

    def _loss(self, image: Tensor, output: Any) -> Tensor:
        with torch.no_grad(), _calls_of(_submodule(self.frozen, self.frozen_layer, "frozen_layer")) as calls:
            try:
                self.frozen(image)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                raise InputError(
                    f"host#frozen: {type(self.frozen).__name__} does not take images of shape {tuple(image.shape)} "
                    f"(B, channels, *spatial), wanted an encoder of the same axes and channels: {str(error)[:200]}"
                ) from error
        features, reference = _features(output, "layer"), _features(_first(calls, "frozen_layer")[1], "frozen_layer")
        if features.shape != reference.shape or features.dim() != image.dim():
            raise InputError(
                f"host: the features of the student's layer {self.layer!r} have shape {tuple(features.shape)}, those "
                f"of the frozen encoder {tuple(reference.shape)}; wanted one shape (B, channels, *cells) with "
                f"{image.dim() - 2} axes"
            )
        mask = class_cells(self.targets, self.classes, features.shape[2:], self.min_share)
        return self.weight * feature_distance(features.float(), reference.float(), mask, over_batch)


@dataclass
class DAFormer(OnHost):
    """Thing-class feature distance of DAFormer (Hoyer, Dai, Van Gool, CVPR 2022, arXiv 2111.14887), on another host.

    To the source term of ``base`` it adds the distance between the student's features and those of a frozen, pretrained
    encoder, in the cells of the feature map that a thing class fills: self-training must not unlearn what pretraining
    knew of them. Both encoders see the same image, in the same forward pass as the loss of the labels.

    Args:
        frozen: maps images ``(B, channels, *spatial)`` to features, or any network with a layer that does.
        layer: dotted name of the student's layer with the features, below ``root``; of a list of outputs the last one.
        thing_classes: class indices, or names if ``class_names`` is given; at least one.
        base: the host below; DACS by default.
        class_names: names by class index.
        checkpoint: file with the weights of ``frozen``, read with ``weights_only=True``; ``None`` takes it as it is.
        feature_weight: factor of the distance, at least 0.
        min_share: share of a cell that the class must fill, in ``(0.5, 1]``.
        root: dotted name of the student's part that takes the image, ``""`` for all of it; ``None`` is all of it too,
            or what is inside HRDA, whose context image both encoders then see.
        frozen_layer: dotted name of the layer of ``frozen`` with the features, ``""`` for its output.

    Raises:
        InputError: for an unknown class, a number out of range, or weights that do not fit.
    """

    frozen: nn.Module = field(repr=False)
    layer: str
    thing_classes: Sequence[int | str]
    base: Host = field(default_factory=DACS)
    class_names: Sequence[str] | None = field(default=None, repr=False)
    checkpoint: str | None = None
    feature_weight: float = 0.005
    min_share: float = 0.75
    root: str | None = None
    frozen_layer: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.feature_weight >= 0.0 or not 0.5 < self.min_share <= 1.0:
            raise InputError(
                f"host: found feature_weight={self.feature_weight}, min_share={self.min_share}; "
                f"wanted at least 0 and (0.5, 1]"
            )
        if not isinstance(self.frozen, nn.Module):
            raise InputError(f"host#frozen: found {type(self.frozen).__name__}, wanted a network")
        self._classes = self._indices()
        if self.checkpoint is not None:
            self._load(Path(self.checkpoint))
        self.frozen.eval().requires_grad_(False)

    @property
    def uses_target(self) -> bool:
        """That of the host below."""
        return self.base.uses_target

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the terms of the host below, the source term with the feature distance.

        Raises:
            InputError: if a thing class is none of the task's.
        """
        classes = batch.source.targets.shape[1]
        if max(self._classes) >= classes:
            raise InputError(f"host#thing_classes: found class {max(self._classes)}, wanted 0 to {classes - 1}")
        self.frozen.to(batch.source.image.device)
        distance = FeatureDistance(
            self.frozen,
            self.layer,
            batch.source.targets,
            self._classes,
            self.feature_weight,
            self.min_share,
            self.root,
            self.frozen_layer,
        )
        terms = self.base.terms(batch, mask, pseudo, hard)
        return [replace(term, extra=distance) if term.batch is batch.source else term for term in terms]

    def _indices(self) -> list[int]:
        names = [] if self.class_names is None else list(self.class_names)
        wanted = list(self.thing_classes)
        unknown = [c for c in wanted if (c not in names if isinstance(c, str) else c < 0)]
        if not wanted or unknown:
            raise InputError(
                f"host#thing_classes: found {unknown or 'none'}, wanted class indices, or names among {names} "
                f"(`class_names`)"
            )
        return [names.index(c) if isinstance(c, str) else int(c) for c in wanted]

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"host#checkpoint: found no file {path}")
        state = load_safely(path, "weights file")
        try:
            self.frozen.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise InputError(f"host#checkpoint: {path} holds another network: {str(error)[:300]}") from error


@contextmanager
def _calls_of(module: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Collect the first input and the output of each call of ``module`` inside the context."""
    calls: list[tuple[Any, Any]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        yield calls
    finally:
        handle.remove()


def _first(calls: Sequence[tuple[Any, Any]], key: str) -> tuple[Any, Any]:
    if not calls:
        raise InputError(f"host#{key}: the layer took no part in the forward pass, wanted one that does")
    return calls[0]


def _submodule(network: nn.Module, name: str, key: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        known = [known for known, _ in network.named_modules() if known][:20]
        raise InputError(f"host#{key}: {type(network).__name__} has no {name!r}; it has {known} ...") from error


def _features(output: Any, key: str) -> Tensor:
    features = output[-1] if isinstance(output, (list, tuple)) and output else output
    if not isinstance(features, Tensor):
        raise InputError(f"host#{key}: the layer gave {type(features).__name__}, wanted a tensor or a list of them")
    return features
