# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Amplitude mixing against the definition, on the full (not the halved) spectrum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.transforms.fourier import RandFourierAmplitudeMix


def image(seed: int, *shape: int) -> torch.Tensor:
    """Values far from 0 and 1, so that clipping does not hide an error."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32) * 0.1 + 0.45


def by_definition(ours: np.ndarray, reference: np.ndarray, beta: float, share: float) -> np.ndarray:
    """Yang and Soatto's equation 3 with the complex spectrum and a centred window, channel by channel."""
    axes = tuple(range(1, ours.ndim))
    mine, other = (np.fft.fftshift(np.fft.fftn(a.astype(np.float64), axes=axes), axes=axes) for a in (ours, reference))
    amplitude = np.abs(mine)
    window = np.ix_(
        range(ours.shape[0]),
        *[[k for k in range(n) if abs(k - n // 2) <= beta * n] for n in ours.shape[1:]],
    )
    amplitude[window] = (1 - share) * amplitude[window] + share * np.abs(other)[window]
    mixed = amplitude * np.exp(1j * np.angle(mine))
    return np.fft.ifftn(np.fft.ifftshift(mixed, axes=axes), axes=axes).real


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    beta=st.sampled_from([0.0, 0.05, 0.15, 0.3, 0.5]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_follows_the_definition(shape: list[int], beta: float, share: float, seed: int) -> None:
    ours, reference = image(seed, 2, *shape), image(seed + 1, 2, *shape)
    mixed = RandFourierAmplitudeMix([reference], 1.0, beta, share)(ours)
    wanted = np.clip(by_definition(ours.numpy(), reference.numpy(), beta, share), 0, 1)
    assert mixed.numpy() == pytest.approx(wanted, abs=2e-5)


def test_beta_zero_moves_the_mean_alone() -> None:
    ours, reference = image(0, 1, 8, 8), image(1, 1, 8, 8) + 0.2
    mixed = RandFourierAmplitudeMix([reference], 1.0, 0.0, 1.0)(ours)
    assert torch.allclose(mixed - ours, (reference.mean() - ours.mean()).expand_as(ours), atol=1e-5)


def test_mixing_with_itself_changes_nothing() -> None:
    ours = image(3, 1, 7, 8, 9)
    assert torch.allclose(RandFourierAmplitudeMix([ours], 1.0, 0.5, 1.0)(ours), ours, atol=1e-5)


def test_references_of_another_size_are_resized() -> None:
    flat = torch.full((1, 11, 3, 20), 0.9)
    mixed = RandFourierAmplitudeMix([flat], 1.0, 0.0, 1.0)(image(0, 1, 6, 7, 8))
    assert float(mixed.mean()) == pytest.approx(0.9, abs=1e-5)


@pytest.mark.parametrize("wrong", [{"beta": 0.6}, {"beta": (0.2, 0.1)}, {"blend": 1.5}])
def test_wrong_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RandFourierAmplitudeMix([image(0, 1, 4, 4)], **wrong)
