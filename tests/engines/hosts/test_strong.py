# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Colour jitter and blur of mixes: the same numbers as scikit-image and SciPy, and off where they make no sense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv

from dacal_med.core.batch import LabelledBatch
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import make_host
from dacal_med.engines.hosts.strong import colour_jitter, gaussian_blur, hsv_to_rgb, rgb_to_hsv
from dacal_med.io.errors import InputError


def picture(*size):
    image = torch.rand(3, *size, dtype=torch.float64)
    image[:, 0], image[:, 1], image[0, 2] = 0.0, 0.7, 1.0  # black, grey, a saturated channel
    return image


def test_hsv_is_that_of_scikit_image():
    image = picture(9, 11)
    wanted = np.moveaxis(rgb2hsv(image.numpy(), channel_axis=0), 0, 0)
    np.testing.assert_allclose(rgb_to_hsv(image).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(hsv_to_rgb(torch.from_numpy(wanted)).numpy(), image.numpy(), atol=1e-12)
    turned = wanted.copy()
    turned[0] = (turned[0] + 0.37) % 1.0
    np.testing.assert_allclose(
        hsv_to_rgb(torch.from_numpy(turned)).numpy(), hsv2rgb(turned, channel_axis=0), atol=1e-12
    )


@pytest.mark.parametrize("size", [(30, 24), (14, 12, 13)])
def test_blur_is_scipy_s_and_keeps_flat_images(size):
    image = torch.rand(2, *size, dtype=torch.float64)
    for sigma in (0.15, 0.6, 1.15):
        wanted = np.stack([ndimage.gaussian_filter(x, sigma, mode="mirror", truncate=4.0) for x in image.numpy()])
        np.testing.assert_allclose(gaussian_blur(image, sigma).numpy(), wanted, atol=1e-6)
    flat = torch.full((1, 4, 3), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, 1.15), flat)


def test_jitter_stays_in_range_and_does_what_its_strength_says():
    image = picture(9, 11)
    assert torch.allclose(colour_jitter(image, 0.0), image)
    changed = [colour_jitter(image, 0.2) for _ in range(20)]
    assert all(float(c.min()) >= 0.0 and float(c.max()) <= 1.0 for c in changed)
    # Grey has no hue and no saturation: brightness and contrast alone, at most 0.7 * 1.2 + 0.2.
    grey = torch.stack([c[:, 1, 0] for c in changed])
    assert torch.allclose(grey, grey[:, :1].expand_as(grey))
    assert float((grey - 0.7).abs().max()) <= 0.2 + 0.2 * 0.9 + 1e-12
    assert len({round(float(g[0]), 6) for g in grey}) == 20


def batch(channels=3, dims=2, size=12):
    shape = [2, channels, *[size] * dims]
    labels = torch.randint(0, 3, [2, 1, *[size] * dims])
    targets = torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    source = LabelledBatch(torch.rand(shape), targets, torch.ones(labels.shape))
    target = torch.rand(shape)
    pseudo = PseudoLabels(targets.roll(1, 0), torch.full(labels.shape, 0.5), torch.ones(2))
    return DomainBatch(source, labels, target, None), labels == 1, pseudo


def test_only_mixes_change_and_only_their_images():
    domains, mask, pseudo = batch()
    plain = make_host("dacs", complement="same").terms(domains, mask, pseudo, pseudo)
    options = {"jitter_strength": 0.2, "jitter_probability": 1.0, "blur_probability": 1.0}
    strong = make_host("dacs", complement="same", **options).terms(domains, mask, pseudo, pseudo)
    assert [term.name for term in strong] == ["source", "mix", "complement"]
    assert strong[0].batch is domains.source
    for before, after in zip(plain[1:], strong[1:], strict=True):
        assert not torch.allclose(before.batch.image, after.batch.image)
        assert torch.equal(before.batch.targets, after.batch.targets)
        assert torch.equal(before.batch.weights, after.batch.weights)


def test_off_draws_nothing_and_a_share_of_images_is_left_alone():
    domains, mask, pseudo = batch()
    state = torch.get_rng_state()
    plain = make_host("dacs").terms(domains, mask, pseudo, pseudo)[1].batch.image
    assert torch.equal(torch.get_rng_state(), state)
    host = make_host("dacs", jitter_strength=0.2)
    same = [torch.equal(host.terms(domains, mask, pseudo, pseudo)[1].batch.image[0], plain[0]) for _ in range(60)]
    assert 0.05 < np.mean(same) < 0.4


@pytest.mark.parametrize("dims", [2, 3])
def test_volumes_may_be_blurred_but_not_jittered(dims):
    domains, mask, pseudo = batch(channels=1, dims=dims)
    blurred = make_host("mic", blur_probability=1.0).terms(domains, mask, pseudo, pseudo)
    assert blurred[1].batch.image.shape == domains.target_image.shape
    with pytest.raises(InputError, match=r"jitter_strength: found 0\.2 for images of 1 channel"):
        # Already in the warm-up, before there are pseudo-labels.
        make_host("dacs", jitter_strength=0.2).terms(domains, None, None, None)


@pytest.mark.parametrize(
    "options",
    [{"jitter_strength": 1.5}, {"jitter_probability": -0.1}, {"blur_probability": 2}, {"blur_sigma": [1.0, 0.5]}],
)
def test_wrong_numbers_are_named(options):
    with pytest.raises(InputError, match="wanted three numbers"):
        make_host("dacs", **options)


@pytest.mark.parametrize(
    "host",
    [
        make_host("dacs", complement="same", jitter_strength=0.2, blur_probability=0.5),
        make_host("mic", masked_appearance={"jitter_strength": 0.2, "blur_probability": 0.5}, masked_source=True),
    ],
)
def test_micro_batches_draw_what_the_large_batch_does(host):
    domains, mask, pseudo = batch()
    domains = replace(domains, seeds=(5, 6))
    whole = host.terms(domains, mask, pseudo, pseudo)
    parts = [
        host.terms(part, mask[i : i + 1], labels, labels)
        for i, (part, labels) in enumerate(zip(domains.in_parts(2), pseudo.in_parts(2), strict=True))
    ]
    for term, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(term.batch.image, torch.cat([first.batch.image, second.batch.image])), term.name


def test_what_pastes_must_be_an_object():
    with pytest.raises(InputError, match="host#mask_generator: found 'BoxMask', wanted an object"):
        make_host("dacs", mask_generator="BoxMask")
