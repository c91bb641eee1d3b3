# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Multi-resolution prediction against HRDA's definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.bilevel import BilevelStep
from dacal_med.deploy.export.convert import _program
from dacal_med.engines.teacher import Teacher
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA
from dacal_med.networks.hrda import HasAuxiliaryOutputs


class Twice(nn.Module):
    """Logits ``(x, -x)``, by which one sees where they come from; remembers the shapes that it was shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        return torch.cat([image, -image], dim=1)


def wrapped(dims=2, attention=None, network=None, classes=2, **options):
    hrda = HRDA(Twice() if network is None else network, classes, 1, dims, **options).double()
    if attention is not None:
        with torch.no_grad():
            hrda.attention.layers[-1].bias.fill_(float(torch.logit(torch.tensor(attention, dtype=torch.float64))))
    return hrda


def test_evaluation_fuses_both_scales_by_hand():
    """Context of 2 x 2 means, upsampled linearly, and the image itself, which has a quarter."""
    image = torch.arange(16, dtype=torch.float64).view(1, 1, 4, 4)
    hrda = wrapped(attention=0.25).eval()
    means = torch.tensor([[2.5, 4.5], [10.5, 12.5]], dtype=torch.float64).view(1, 1, 2, 2)
    rows = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    coarse = rows @ means @ rows.T
    torch.testing.assert_close(hrda(image)[:, :1], 0.75 * coarse + 0.25 * image)
    assert torch.equal(hrda(image), hrda(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_training_fuses_inside_the_window_alone(dims):
    image = torch.randn(2, 1, *[8] * dims, dtype=torch.float64)
    hrda = wrapped(dims, attention=0.25)
    with hrda.auxiliary_outputs() as parts:
        fused = hrda(image)
    (part,) = parts
    where = (slice(None), slice(None), *part.window)
    assert part.weight == 0.1
    assert torch.equal(part.logits[:, :1], image[where])
    context = nn.functional.interpolate(image, scale_factor=0.5, mode="area")
    attention = torch.zeros_like(context)
    attention[(slice(None), slice(None), *(slice(p.start // 2, p.stop // 2) for p in part.window))] = 0.25
    inserted = torch.zeros_like(image)
    inserted[where] = image[where]
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    coarse, upsampled = (
        nn.functional.interpolate(values, scale_factor=2, mode=mode)
        for values in ((1 - attention) * context, attention)
    )
    torch.testing.assert_close(fused[:, :1], coarse + upsampled * inserted)
    assert hrda.network.seen == [(2, 1, *[4] * dims)] * 2


@settings(deadline=None, max_examples=25)
@given(sides=st.lists(st.integers(1, 5), min_size=2, max_size=3), scale=st.integers(2, 3), seed=st.integers(0, 99))
def test_context_and_detail_are_of_one_size_on_the_contexts_grid(sides, scale, seed):
    torch.manual_seed(seed)
    size = [n * scale for n in sides]
    hrda = wrapped(len(size), scale=scale)
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    with hrda.auxiliary_outputs() as parts:
        assert hrda(image).shape == (1, 2, *size)
    assert hrda.network.seen == [(1, 1, *sides)] * 2
    for window, n, length in zip(parts[0].window, size, sides, strict=True):
        assert window.stop - window.start == length
        assert window.start % scale == 0
        assert 0 <= window.start <= n - length
    hrda.eval()
    with hrda.auxiliary_outputs() as parts:
        assert hrda(image).shape == (1, 2, *size)
    assert parts == []


def test_every_window_is_drawn_and_the_seed_decides():
    hrda, image = wrapped(), torch.zeros(1, 1, 8, 8, dtype=torch.float64)

    def starts():
        found = []
        for _ in range(80):
            with hrda.auxiliary_outputs() as parts:
                hrda(image)
            found.append(tuple(part.start for part in parts[0].window))
        return found

    torch.manual_seed(0)
    first = starts()
    torch.manual_seed(0)
    assert first == starts()
    assert set(first) == {(a, b) for a in (0, 2, 4) for b in (0, 2, 4)}


def test_windows_slide_over_all_of_the_image_in_evaluation():
    """A detail that is the image itself, wherever windows overlap, and nothing of the context."""
    hrda = wrapped(3, attention=1.0 - 1e-12).eval()
    image = torch.randn(1, 1, 8, 8, 4, dtype=torch.float64)
    torch.testing.assert_close(hrda(image)[:, :1], image)
    assert hrda.network.seen[0] == (1, 1, 4, 4, 2)
    assert all(shape[2:] == (4, 4, 2) for shape in hrda.network.seen)


def unet(dims, dropout=0.0):
    return UNet(dims, 1, 3, (4, 8), (2,), num_res_units=1, dropout=dropout)


def meta_gradient(method, dims, dropout):
    torch.manual_seed(1)
    hrda = wrapped(dims, network=unet(dims, dropout), classes=3)
    for p in hrda.attention.parameters():
        nn.init.normal_(p, std=0.3)
    shape = (2, 1, *[8] * dims)
    image, weights = torch.randn(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    logits = torch.randn(2, 3, *shape[2:], dtype=torch.float64, requires_grad=True)
    truth = torch.randn(2, 3, *shape[2:], dtype=torch.float64).softmax(1)
    step = BilevelStep(hrda, torch.optim.SGD(hrda.parameters(), lr=0.5), method=method)
    torch.manual_seed(2)
    result = step(
        LabelledBatch(image, logits.softmax(1), weights),
        lambda forward: soft_cross_entropy(forward(-image), truth, weights),
        [logits],
    )
    assert result.method == method
    return result.gradients[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_bilevel_step_goes_through_it(dims, dropout):
    """Forward mode against double backward, with the same crop and the same dropout in both passes."""
    expected, found = (meta_gradient(method, dims, dropout) for method in ("double_backward", "forward"))
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.norm()))


def test_the_teacher_is_deterministic_and_the_attention_learns():
    hrda = wrapped(network=unet(2), classes=3)
    teacher = Teacher(hrda)
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(teacher.network(image), teacher.network(image))
    hrda(image).square().mean().backward()
    assert hrda.attention.layers[-1].weight.grad.abs().sum() > 0
    assert isinstance(hrda, HasAuxiliaryOutputs)
    assert not isinstance(unet(2), HasAuxiliaryOutputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 1}, "scale=1"),
        ({"detail_weight": 1.0}, "detail_weight=1"),
        ({"overlap": 1.0}, "overlap=1"),
        ({"window_batch_size": 0}, "window_batch_size=0"),
        ({"dims": 4}, "found 4, wanted one of"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        wrapped(**options)


def test_images_and_networks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"found images of \[8, 7\], wanted 2 axes, each a multiple of 2"):
        wrapped()(torch.zeros(1, 1, 8, 7, dtype=torch.float64))
    with pytest.raises(InputError, match=r"found images of \[8, 8, 8\], wanted 2 axes"):
        wrapped()(torch.zeros(1, 1, 8, 8, 8, dtype=torch.float64))
    with pytest.raises(InputError, match=r"gave \(1, 2, 4, 4\) for \(1, 1, 4, 4\), wanted logits \(1, 3, 4, 4\)"):
        wrapped(classes=3)(torch.zeros(1, 1, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize(("dims", "scale", "overlap", "windows"), [(2, 2, 0.5, 3), (3, 3, 0.0, 3), (2, 3, 0.4, 5)])
def test_windows_are_as_many_for_every_size(dims, scale, overlap, windows):
    """A detail that is the image, wherever windows lie, and nothing of the context."""
    fused = HRDA(nn.Identity(), 1, 1, dims, scale, overlap=overlap, window_batch_size=100).double().eval()
    fused.attention.forward = lambda logits, image: torch.ones_like(logits)  # type: ignore[method-assign]
    seen = []
    fused.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    for side in (scale, 4 * scale, 7 * scale):
        image = torch.rand(1, 1, *[side] * (dims - 1), 2 * scale, dtype=torch.float64)
        torch.testing.assert_close(fused(image), image)
    assert seen == [1, windows**dims] * 3


def test_a_trace_and_a_graph_serve_other_sizes():
    torch.manual_seed(0)
    network = HRDA(nn.Conv2d(3, 4, 3, padding=1), 4, 3, 2).eval()
    nn.init.normal_(network.attention.layers[-1].weight)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    example = torch.zeros(2, 3, 32, 32)
    traced, program = torch.jit.trace(network, example), _program(network, example).module()
    for shape in ((1, 3, 32, 32), (3, 3, 24, 50)):
        image = torch.rand(shape)
        for converted in (traced, program):
            torch.testing.assert_close(converted(image), network(image))
