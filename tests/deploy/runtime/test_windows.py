# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Windows that go to the disk give what MONAI's inferer gives in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import Tensor

from dacal_med.deploy.runtime.planes import PlaneFile
from dacal_med.deploy.runtime.windows import Windows, predict
from dacal_med.io.errors import InputError


def predictor(windows: Tensor) -> Tensor:
    """Probabilities that depend on where in its window a voxel lies, so that wrong weights or places show."""
    ramp = torch.linspace(0, 1, windows[0, 0].numel()).reshape(windows.shape[2:])
    logits = torch.cat([windows.sum(1, keepdim=True) * 3, windows[:, :1] - ramp, ramp.expand_as(windows[:, :1])], 1)
    return logits.softmax(1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_blending_is_that_of_monai(tmp_path: Path, data: st.DataObject):
    dims = data.draw(st.sampled_from([2, 3]))
    size = [data.draw(st.integers(3, 14)) for _ in range(dims)]
    roi = [data.draw(st.integers(4, 8)) for _ in range(dims)]
    axis = data.draw(st.integers(0, dims - 1))
    overlap = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75]))
    mode = data.draw(st.sampled_from(["gaussian", "constant"]))
    inferer = SlidingWindowInferer(roi, sw_batch_size=data.draw(st.integers(1, 3)), overlap=overlap, mode=mode)
    image = torch.rand(2, *size)
    with predict(image, predictor, Windows.of(inferer), axis, tmp_path / "p", lambda share: None) as file:
        found = file.read(0, size[axis]).movedim(1, 1 + axis)
    torch.testing.assert_close(found, inferer(image[None], predictor)[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(0), torch.ones(size))


def test_progress_ends_at_one(tmp_path: Path):
    shares: list[float] = []
    windows = Windows((4, 4), batch_size=3)
    predict(torch.rand(1, 9, 9), predictor, windows, 0, tmp_path / "p", shares.append).__exit__(None, None, None)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_what_is_not_finite_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="not finite"):
        predict(torch.rand(1, 4, 4), lambda w: w * torch.nan, Windows((4, 4)), 0, tmp_path / "p", lambda share: None)


def test_another_inferer_is_refused():
    with pytest.raises(InputError, match="found SimpleInferer"):
        Windows.of(SimpleInferer())


def test_a_file_of_planes(tmp_path: Path):
    values = torch.rand(3, 5, 2, 4)
    with PlaneFile(tmp_path / "p", 5, 3, (2, 4)) as file:
        file.write(2, values[:, 2:])
        file.write(0, values[:, :2])
        assert torch.equal(file.read(1, 4), values[:, 1:4])
        with pytest.raises(OSError, match="found"):
            file.read(4, 6)
    assert (tmp_path / "p").stat().st_size == values.numel() * 4
