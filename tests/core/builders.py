# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What several tests of the core need."""

from __future__ import annotations

import torch


class Square(torch.autograd.Function):
    """x^2 without a forward-mode derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient
