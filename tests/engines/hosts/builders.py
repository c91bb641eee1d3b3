# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One iteration's data by hand: an image of four voxels in two classes, one of them ignored."""

from __future__ import annotations

import torch

from dacal_med.core.batch import from_labels
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch


def example():
    labels = torch.tensor([[0, 1], [1, 255]]).view(1, 1, 2, 2)
    source = from_labels(torch.full((1, 1, 2, 2), 5.0), labels, 2)
    batch = DomainBatch(source, labels, torch.full((1, 1, 2, 2), -5.0), None)
    mask = torch.tensor([[False, True], [True, False]]).view(1, 1, 2, 2)
    soft = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    hard = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    weight, quality = torch.full((1, 1, 2, 2), 0.4), torch.tensor([0.4])
    return batch, mask, PseudoLabels(soft, weight, quality), PseudoLabels(hard, weight, quality)


def blank(size: tuple[int, ...], batch_size: int = 2, classes: int = 3) -> tuple[DomainBatch, PseudoLabels]:
    """Random images of any size with uniform pseudo-labels."""
    shape = (batch_size, 1, *size)
    labels = torch.randint(0, classes, shape)
    batch = DomainBatch(from_labels(torch.randn(shape), labels, classes), labels, torch.randn(shape), None)
    uniform = torch.full((batch_size, classes, *size), 1.0 / classes)
    return batch, PseudoLabels(uniform, torch.full(shape, 0.5), torch.full((batch_size,), 0.5))
