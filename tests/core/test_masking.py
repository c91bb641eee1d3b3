# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Block masks against their definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.core.masking import block_mask


def test_by_hand():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(1, 1, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    a, b, c, d, e, f = hidden.flatten().tolist()
    expected = [[a, a, b, b, c], [a, a, b, b, c], [d, d, e, e, f]]
    assert block_mask(1, (3, 5), (2, 2), 0.7, generator)[0, 0].tolist() == expected


@settings(deadline=None, max_examples=30)
@given(
    size=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    batch=st.integers(1, 3),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
def test_blocks_are_whole(size, batch, ratio, data):
    blocks = [data.draw(st.integers(1, n)) for n in size]
    mask = block_mask(batch, size, blocks, ratio)
    assert mask.shape == (batch, 1, *size)
    assert mask.dtype == torch.bool
    if ratio in (0.0, 1.0):
        assert mask.eq(bool(ratio)).all()
    for axis, b in enumerate(blocks, start=2):
        for start in range(0, mask.shape[axis], b):
            block = mask.narrow(axis, start, min(b, mask.shape[axis] - start))
            assert (block == block.narrow(axis, 0, 1)).all()


def test_the_share_of_hidden_blocks_is_the_ratio():
    hidden = block_mask(4, (64, 64), (1, 1), 0.7).float().mean()
    assert float(hidden) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("blocks", [(2,), (2, 2, 2), (0, 2), (5, 2)])
def test_blocks_that_do_not_fit_are_refused(blocks):
    with pytest.raises(ValueError, match="block_size: found"):
        block_mask(1, (4, 4), blocks, 0.5)
    with pytest.raises(ValueError, match="ratio: found 2"):
        block_mask(1, (4, 4), (2, 2), 2.0)
