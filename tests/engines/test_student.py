# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The losses of a term by hand."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import UNet
from torch import nn

from dacal_med.core.batch import LabelledBatch, from_labels, soft_cross_entropy
from dacal_med.engines.hosts import LossTerm
from dacal_med.engines.student import term_losses
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA
from tests.engines.builders import tiny_network, tiny_trainer


def batch(dims=2):
    shape = [8] * dims
    targets = torch.randn(2, 3, *shape).softmax(1)
    return LabelledBatch(torch.randn(2, 1, *shape), targets, torch.rand(2, 1, *shape))


def test_a_plain_network_has_the_loss_of_its_logits():
    network, data = nn.Conv2d(1, 3, 1), batch()
    losses = term_losses(network, SimpleInferer(), LossTerm("mix", data, 0.5), soft_cross_entropy)
    expected = 0.5 * soft_cross_entropy(network(data.image), data.targets, data.weights)
    assert set(losses) == {"mix"}
    assert float(losses["mix"].detach()) == float(expected.detach())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_detail_takes_its_share_with_the_labels_of_its_window(dims):
    network = HRDA((nn.Conv2d, nn.Conv3d)[dims - 2](1, 3, 1), 3, 1, dims)
    data = batch(dims)
    torch.manual_seed(5)
    found = term_losses(network, SimpleInferer(), LossTerm("mix", data, 2.0), soft_cross_entropy)["mix"]
    torch.manual_seed(5)
    with network.auxiliary_outputs() as parts:
        fused = network(data.image)
    where = (slice(None), slice(None), *parts[0].window)
    whole = soft_cross_entropy(fused, data.targets, data.weights)
    detail = soft_cross_entropy(network.network(data.image[where]), data.targets[where], data.weights[where])
    torch.testing.assert_close(found, 2.0 * (0.9 * whole + 0.1 * detail))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_a_network_of_other_classes_is_named_before_its_first_step(dims, warmup_epochs):
    """With warm-up the student meets the data first, without it the teacher."""

    def four_classes(spatial_dims):
        network = tiny_network(spatial_dims)
        network.model.append((nn.Conv2d, nn.Conv3d)[spatial_dims - 2](3, 4, 1))
        return network

    trainer = tiny_trainer(dims, labeller="hard", make_network=four_classes, warmup_epochs=warmup_epochs)
    before = [p.clone() for p in trainer.network.parameters()]
    message = r"network_def: found \(2, 4, .*wanted logits \(2, 3, .*: it has 4 classes and the data has 3"
    with pytest.raises(InputError, match=message):
        trainer.run()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_a_network_whose_output_is_smaller_than_its_image_is_named():
    with pytest.raises(
        InputError, match=r"found \(2, 3, 4, 4\) for images \(2, 1, 8, 8\), wanted logits \(2, 3, 8, 8\)$"
    ):
        term_losses(nn.Conv2d(1, 3, 2, 2), SimpleInferer(), LossTerm("mix", batch(), 1.0), soft_cross_entropy)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (UNet(2, 1, 3, (4, 8, 8), (2, 2)), r"roi_size: UNet does not take images of shape \(1, 1, 6, 6\)"),
        (nn.Conv2d(4, 3, 1), "Conv2d does not take images .* to have 4 channels"),
    ],
)
def test_images_that_the_network_does_not_take_are_named(network, message):
    labels = torch.zeros(1, 1, 6, 6, dtype=torch.long)
    term = LossTerm("source", from_labels(torch.randn(1, 1, 6, 6), labels, 3))
    with pytest.raises(InputError, match=message):
        term_losses(network, SimpleInferer(), term, soft_cross_entropy)
