# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Masked image consistency against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.engines.hosts import DACS, MaskedConsistency, SourceOnly
from dacal_med.engines.hosts.strong import gaussian_blur
from dacal_med.io.errors import InputError
from tests.engines.hosts.builders import blank, example


def test_the_papers_numbers_are_the_defaults():
    host = MaskedConsistency()
    assert (host.mask_ratio, host.masked_weight) == (0.7, 1.0)
    # The published code: 64 for HRDA's crops of 1024, 32 for crops of half the resolution.
    assert host._blocks((1024, 1024)) == [64, 64]
    assert host._blocks((512, 512)) == [32, 32]
    assert host._blocks((96, 64, 5)) == [6, 6, 5]
    assert host._blocks((4, 4)) == [1, 1]


def test_the_labels_of_the_whole_image_supervise_the_masked_one():
    batch, mask, soft, hard = example()
    *below, masked = MaskedConsistency(DACS(), mask_ratio=1.0, fill=9.0).terms(batch, mask, soft, hard)
    assert [t.name for t in below] == ["source", "mix"]
    assert (masked.name, masked.truth, masked.weight) == ("masked", False, 1.0)
    assert masked.batch.image.eq(9.0).all()
    assert masked.batch.targets is soft.probabilities
    assert masked.batch.weights is soft.weights
    shown = MaskedConsistency(mask_ratio=0.0).terms(batch, mask, soft, hard)[-1]
    assert torch.equal(shown.batch.image, batch.target_image)
    assert [t.name for t in MaskedConsistency().terms(batch, None, None, None)] == ["source"]
    alone = MaskedConsistency(SourceOnly())
    assert alone.uses_target
    assert [t.name for t in alone.terms(batch, mask, soft, hard)] == ["source", "masked"]


@settings(deadline=None, max_examples=25)
@given(size=st.lists(st.integers(3, 12), min_size=2, max_size=3), block=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_voxel_is_the_images_or_the_filling_by_blocks(size, block, seed):
    torch.manual_seed(seed)
    batch, pseudo = blank(tuple(size))
    host = MaskedConsistency(block_size=block)
    torch.manual_seed(seed)
    image = host.terms(batch, torch.zeros_like(batch.source_labels).bool(), pseudo, pseudo)[-1].batch.image
    torch.manual_seed(seed)
    blocks = [-(-n // block) for n in size]
    draws = torch.cat([torch.rand(1, 1, *blocks, generator=g) for g in batch.generators("masked")])
    for place in torch.cartesian_prod(*[torch.arange(n) for n in size]):
        for sample in range(2):
            where = (sample, 0, *place.tolist())
            hidden = draws[(sample, 0, *(place // block).tolist())] < 0.7
            expected = batch.target_image[sample, 0].mean() if hidden else batch.target_image[where]
            assert float(image[where]) == pytest.approx(float(expected), abs=1e-6)


def test_a_block_that_does_not_fit_is_refused_in_the_first_iteration():
    batch, _ = blank((8, 6, 4))
    with pytest.raises(InputError, match="found 2 numbers, wanted 3, one for each axis"):
        MaskedConsistency(block_size=[2, 2]).terms(batch, None, None, None)
    with pytest.raises(InputError, match=r"found \[5, 5, 5\] for images of \[8, 6, 4\]"):
        MaskedConsistency(block_size=5).terms(batch, None, None, None)
    MaskedConsistency(block_size=[8, 6, 4]).terms(batch, None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_ratio": 1.5}, "mask_ratio=1.5"),
        ({"block_share": 0.0}, "block_share=0.0"),
        ({"masked_weight": -1.0}, "masked_weight=-1.0"),
        ({"fill": "black"}, "host#fill: found 'black', wanted 'mean' or a number"),
        ({"fill": None}, "host#fill: found None, wanted 'mean' or a number"),
        ({"base": "dacs"}, "host#base: found str"),
        ({"block_size": 0.5}, "host#block_size: found 0.5, wanted a whole number of voxels"),
        ({"block_size": [2.5, 2.5]}, r"host#block_size: found \[2.5, 2.5\]"),
        ({"block_size": "8"}, "host#block_size: found '8'"),
        ({"masked_appearance": 0.2}, "host#masked_appearance: found 0.2, wanted options or null"),
        ({"masked_appearance": {"strength": 0.2}}, "host#masked_appearance: does not take these options"),
        ({"masked_appearance": {"jitter_strength": 2.0}}, "wanted three numbers"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MaskedConsistency(**options)


def test_half_of_the_weight_may_go_to_masked_source_images_with_their_labels():
    batch, mask, soft, hard = example()
    host = MaskedConsistency(SourceOnly(), mask_ratio=1.0, fill=9.0, masked_weight=0.8, masked_source=True)
    _, target, source = host.terms(batch, mask, soft, hard)
    assert [(t.name, t.truth, t.weight) for t in (target, source)] == [
        ("masked", False, 0.4),
        ("masked_source", True, 0.4),
    ]
    assert source.batch.image.eq(9.0).all()
    assert source.batch.targets is batch.source.targets
    assert source.batch.weights is batch.source.weights


def test_the_appearance_changes_before_blocks_are_hidden():
    domains, _ = blank((16, 16))
    domains = replace(domains, target_image=torch.rand(2, 1, 16, 16), seeds=(3, 4))
    _, pseudo = blank((16, 16))
    blur = {"blur_probability": 1.0, "blur_sigma": (1.0, 1.0)}
    options = {"fill": -1.0, "block_size": 4}
    empty = torch.zeros_like(domains.source_labels).bool()

    def masked(**appearance):
        host = MaskedConsistency(masked_appearance=appearance or None, **options)
        return host.terms(domains, empty, pseudo, pseudo)[-1].batch.image

    plain, blurred = masked(), masked(**blur)
    hidden = plain == -1.0
    assert torch.equal(hidden, blurred == -1.0)
    wanted = torch.stack([gaussian_blur(image, 1.0) for image in domains.target_image])
    assert torch.equal(blurred, torch.where(hidden, -1.0, wanted))
    with pytest.raises(InputError, match=r"jitter_strength: found 0\.2 for images of 1 channel"):
        MaskedConsistency(masked_appearance={"jitter_strength": 0.2}).terms(domains, None, None, None)
