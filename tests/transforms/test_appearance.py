# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What every appearance transform promises, whatever it does to the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose

from dacal_med.transforms.appearance import RandAppearance, as_range
from dacal_med.transforms.fourier import RandFourierAmplitudeMix, RandFourierAmplitudeMixd
from dacal_med.transforms.histogram import RandHistogramMatch, RandHistogramMatchd
from dacal_med.transforms.nonlinear import RandNonlinearIntensity, RandNonlinearIntensityd


def references(channels: int, dims: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand((channels, *[4 + k] * dims), generator=generator) ** 2} for k in range(3)]


ARRAY: dict[str, Callable[..., RandAppearance]] = {
    "bezier": lambda refs, prob=1.0: RandNonlinearIntensity(prob, invert_prob=0.5),
    "piecewise": lambda refs, prob=1.0: RandNonlinearIntensity(prob, curve="piecewise", keep_zero=True),
    "histogram": lambda refs, prob=1.0: RandHistogramMatch(refs, prob),
    "histogram above": lambda refs, prob=1.0: RandHistogramMatch(refs, prob, above=0.1),
    "fourier": lambda refs, prob=1.0: RandFourierAmplitudeMix(refs, prob, beta=(0.0, 0.5)),
}
DICTIONARY: dict[str, Callable[..., Any]] = {
    "nonlinear": lambda refs, keys, **kw: RandNonlinearIntensityd(keys, prob=1.0, **kw),
    "histogram": lambda refs, keys, **kw: RandHistogramMatchd(keys, refs, prob=1.0, **kw),
    "fourier": lambda refs, keys, **kw: RandFourierAmplitudeMixd(keys, refs, prob=1.0, **kw),
}
every = pytest.mark.parametrize("name", list(ARRAY))


@every
@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    scale=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_keeps_shape_and_type_and_stays_in_range(
    name: str, shape: list[int], channels: int, seed: int, dtype: torch.dtype, scale: float
) -> None:
    image = (torch.rand(channels, *shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    before = image.clone()
    transform = ARRAY[name](references(channels, len(shape))).set_random_state(seed)
    changed = transform(image)
    assert changed.shape == image.shape
    assert changed.dtype == dtype
    assert bool(torch.isfinite(changed).all())
    assert float(changed.min()) >= 0.0
    assert float(changed.max()) <= 1.0
    assert torch.equal(image, before), "the input was written to"


@every
def test_seed_decides_everything(name: str) -> None:
    image = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    transform = ARRAY[name](references(1, 3))
    first = [transform.set_random_state(seed)(image) for seed in range(4)]
    again = [transform.set_random_state(seed)(image) for seed in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


@every
def test_metadata_and_arrays(name: str) -> None:
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    image = MetaTensor(torch.rand(1, 5, 6, 7), affine=affine, meta={"filename_or_obj": "x.nii.gz"})
    changed = ARRAY[name](references(1, 3))(image)
    assert isinstance(changed, MetaTensor)
    assert torch.equal(changed.affine, image.affine)
    assert changed.meta["filename_or_obj"] == "x.nii.gz"
    assert ARRAY[name](references(1, 3))(np.random.default_rng(0).random((1, 5, 5, 5))).shape == (1, 5, 5, 5)


@every
def test_probability(name: str) -> None:
    image = torch.rand(1, 6, 6) * 0.9 + 0.05
    never = ARRAY[name](references(1, 2), 0.0)
    assert all(torch.equal(never(image), image) for _ in range(5))
    half = ARRAY[name](references(1, 2), 0.5).set_random_state(0)
    changes = sum(not torch.equal(half(image), image) for _ in range(200))
    assert 60 < changes < 140


@every
def test_repeating_without_randomising(name: str) -> None:
    transform = ARRAY[name](references(1, 2)).set_random_state(4)
    image = torch.rand(1, 6, 6)
    assert torch.equal(transform(image), transform(image, randomize=False))


@every
def test_integers_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="wanted floating point"):
        ARRAY[name](references(1, 2))(torch.zeros(1, 4, 4, dtype=torch.int16))


@pytest.mark.parametrize("name", list(DICTIONARY))
def test_dictionary_form(name: str) -> None:
    refs = references(1, 2)
    image, label = torch.rand(1, 6, 6), torch.ones(1, 6, 6)
    transform = DICTIONARY[name](refs, ["image", "other"])
    item = {"image": image, "other": image.clone(), "label": label}
    changed = Compose([transform]).set_random_state(5)(item)
    assert torch.equal(changed["image"], changed["other"]), "keys share the parameters"
    assert not torch.equal(changed["image"], image)
    assert changed["label"] is label
    assert torch.equal(item["image"], image)
    again = Compose([DICTIONARY[name](refs, "image")]).set_random_state(5)({"image": image})
    assert torch.equal(again["image"], changed["image"])
    with pytest.raises(KeyError, match="absent"):
        DICTIONARY[name](refs, "absent")({"image": image})
    assert set(DICTIONARY[name](refs, "absent", allow_missing_keys=True)({"image": image})) == {"image"}


@pytest.mark.parametrize("make", [RandHistogramMatch, RandFourierAmplitudeMix])
def test_bad_references(make: Callable[..., RandAppearance]) -> None:
    with pytest.raises(ValueError, match="references is empty"):
        make([])
    with pytest.raises(ValueError, match="reference"):
        make(references(3, 2), prob=1.0)(torch.rand(1, 5, 5))


@pytest.mark.parametrize("make", [RandHistogramMatch, RandFourierAmplitudeMix])
def test_every_reference_is_used(make: Callable[..., RandAppearance]) -> None:
    asked: set[int] = set()

    class Spy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> torch.Tensor:
            asked.add(index)
            return torch.rand(1, 5, 5)

    transform = make(Spy(), prob=1.0).set_random_state(0)
    for _ in range(30):
        transform(torch.rand(1, 5, 5))
    assert asked == {0, 1, 2}


@pytest.mark.parametrize("prob", [-0.1, 1.1])
def test_bad_probability(prob: float) -> None:
    with pytest.raises(ValueError, match="prob is"):
        RandNonlinearIntensity(prob)


def test_ranges() -> None:
    assert as_range("x", 0.5, 0, 1) == (0.5, 0.5)
    assert as_range("x", [0, 1], 0, 1) == (0.0, 1.0)
    for wrong in (2.0, (0.6, 0.5), (0.1, 0.2, 0.3), (-0.1, 0.5)):
        with pytest.raises(ValueError, match="x is"):
            as_range("x", wrong, 0, 1)
