# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Plain tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dacal_med.core.tensors import plain


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor, lambda t: t.numpy()])
def test_everything_becomes_a_plain_tensor_of_the_same_memory(kind):
    tensor = torch.arange(6.0).view(2, 3)
    found = plain(kind(tensor))
    assert type(found) is torch.Tensor
    assert torch.equal(found, tensor)
    assert found.data_ptr() == tensor.data_ptr()


def test_keeps_the_graph_and_the_dtype():
    leaf = torch.ones(2, requires_grad=True)
    assert plain(MetaTensor(leaf) * 2).requires_grad
    assert plain(np.zeros(2, dtype=np.uint8)).dtype == torch.uint8
