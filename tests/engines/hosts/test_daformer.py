# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Thing-class feature distance in one forward pass of the student, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from dacal_med.core.batch import from_labels, soft_cross_entropy
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import DACS, DAFormer, Host, MeanTeacher, make_host
from dacal_med.engines.student import term_losses
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA
from tests.engines.hosts.builders import blank

NAMES = ["background", "lung", "nodule"]


class Student(nn.Module):
    """Features at half resolution, logits at full resolution."""

    def __init__(self, dims=2, channels=4):
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.encoder = convolution(1, channels, 2, stride=2)
        self.head = convolution(channels, 3, 1)

    def forward(self, image):
        return nn.functional.interpolate(self.head(self.encoder(image)), size=image.shape[2:])


def encoder(dims=2, channels=4):
    return nn.Sequential((nn.Conv2d, nn.Conv3d)[dims - 2](1, channels, 2, stride=2)).double()


def scene(dims=2):
    """A corner of four voxels an axis is class 2, the rest background."""
    labels = torch.zeros(2, 1, *[8] * dims, dtype=torch.long)
    labels[(slice(None), slice(None), *[slice(0, 4)] * dims)] = 2
    image = torch.randn(labels.shape, dtype=torch.float64)
    return DomainBatch(from_labels(image, labels, 3), labels, image.clone(), None)


def losses_of(student, host, batch):
    (term,) = host.terms(batch, None, None, None)
    return term_losses(student, SimpleInferer(), term, soft_cross_entropy)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_distance_is_that_of_the_features_where_things_are(dims):
    student, frozen, batch = Student(dims).double(), encoder(dims), scene(dims)
    losses = losses_of(student, DAFormer(frozen, "encoder", ["nodule"], class_names=NAMES), batch)
    assert list(losses) == ["source", "feature_distance"]
    corner = (slice(None), slice(None), *[slice(0, 2)] * dims)
    difference = (student.encoder(batch.source.image) - frozen(batch.source.image))[corner]
    expected = 0.005 * difference.square().sum(1).sqrt().mean()
    torch.testing.assert_close(losses["feature_distance"].double(), expected, rtol=1e-5, atol=0.0)
    losses["feature_distance"].backward()
    assert student.encoder.weight.grad.abs().sum() > 0
    assert student.head.weight.grad is None
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert not frozen.training
    assert not student.encoder._forward_hooks


def test_only_the_source_term_has_it_and_the_rest_is_the_host_below():
    batch, pseudo = blank((8, 8))
    host = make_host("daformer", frozen=encoder(), layer="encoder", thing_classes=[1], complement="same")
    assert host.base == DACS(complement="same")
    assert isinstance(host, Host)
    assert host.uses_target
    terms = host.terms(batch, host.mask_generator(batch.source_labels), pseudo, pseudo)
    assert [(t.name, t.extra is not None) for t in terms] == [("source", True), ("mix", False), ("complement", False)]
    below = {"name": "daformer", "base": "mean_teacher"}
    stacked = make_host("mic", base=below, frozen=encoder(), layer="encoder", thing_classes=[1])
    assert stacked.base.base == MeanTeacher()
    assert [t.name for t in stacked.terms(batch, None, pseudo, pseudo)] == ["source", "consistency", "masked"]


def test_layers_inside_the_frozen_network_and_lists_of_features():
    batch = scene()
    student, whole = Student().double(), Student().double()
    found = losses_of(student, DAFormer(whole, "encoder", [2], frozen_layer="encoder"), batch)

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = whole.encoder

        def forward(self, image):
            return [image, self.encoder(image)]

    again = losses_of(student, DAFormer(Pyramid(), "encoder", [2]), batch)
    assert float(again["feature_distance"].detach()) == float(found["feature_distance"].detach()) > 0


def test_under_hrda_both_encoders_see_the_context():
    batch = scene()
    student, frozen = HRDA(Student().double(), 3, 1, 2).double(), encoder()
    found = losses_of(student, DAFormer(frozen, "encoder", [2]), batch)["feature_distance"]
    context = nn.functional.avg_pool2d(batch.source.image, 2)
    difference = (student.network.encoder(context) - frozen(context))[:, :, :1, :1]
    torch.testing.assert_close(found.double(), 0.005 * difference.square().sum(1).sqrt().mean(), rtol=1e-5, atol=0.0)
    named = losses_of(student, DAFormer(frozen, "encoder", [2], root="network"), batch)["feature_distance"]
    assert torch.equal(named, found)


def test_weights_are_read_from_a_file(tmp_path):
    trained, fresh = encoder(), encoder()
    torch.save(trained.state_dict(), tmp_path / "encoder.pt")
    host = DAFormer(fresh, "encoder", [1], checkpoint=str(tmp_path / "encoder.pt"))
    assert torch.equal(host.frozen[0].weight, trained[0].weight)
    with pytest.raises(InputError, match=r"host#checkpoint: found no file .*absent\.pt"):
        DAFormer(fresh, "encoder", [1], checkpoint=str(tmp_path / "absent.pt"))
    with pytest.raises(InputError, match="holds another network"):
        DAFormer(encoder(channels=5), "encoder", [1], checkpoint=str(tmp_path / "encoder.pt"))
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match="is not a readable weights file"):
        DAFormer(fresh, "encoder", [1], checkpoint=str(tmp_path / "text.pt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"thing_classes": ["heart"], "class_names": NAMES},
            r"found \['heart'\], wanted class indices, or names among",
        ),
        ({"thing_classes": ["lung"]}, r"found \['lung'\]"),
        ({"thing_classes": []}, "thing_classes: found none"),
        ({"thing_classes": [-1]}, r"found \[-1\]"),
        ({"feature_weight": -1.0}, "feature_weight=-1"),
        ({"min_share": 0.5}, "min_share=0"),
        ({"base": "dacs"}, "host#base: found str"),
        ({"frozen": "resnet"}, "host#frozen: found str"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DAFormer(**{"frozen": encoder(), "layer": "encoder", "thing_classes": [1], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thing_classes": [3]}, "found class 3, wanted 0 to 2"),
        ({"layer": "encodr"}, r"host#layer: Student has no 'encodr'; it has \['encoder', 'head'\]"),
        ({"root": "network"}, "host#root: Student has no 'network'"),
        ({"frozen_layer": "7"}, "host#frozen_layer: Sequential has no '7'"),
        ({"frozen": nn.Conv3d(1, 4, 2)}, r"host#frozen: Conv3d does not take images of shape \(2, 1, 8, 8\)"),
        ({"frozen": nn.Conv2d(3, 4, 2).double()}, "host#frozen: Conv2d does not take images"),
        ({"frozen": encoder(channels=5)}, r"\(2, 4, 4, 4\), those of the frozen encoder \(2, 5, 4, 4\)"),
    ],
)
def test_what_does_not_fit_the_student_is_refused_in_the_first_iteration(options, message):
    host = DAFormer(**{"frozen": encoder(), "layer": "encoder", "thing_classes": [1], **options})
    with pytest.raises(InputError, match=message):
        losses_of(Student().double(), host, scene())
