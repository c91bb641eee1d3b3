# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Sizes, shapes and names of the networks; the same numbers as other implementations; exports."""

from __future__ import annotations

import importlib

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dacal_med.core.differentiation import call
from dacal_med.io.errors import InputError
from dacal_med.networks import encoder, segmentation_network
from dacal_med.networks.encoders import IMAGENET_MEAN, IMAGENET_STD
from tests.networks.builders import CLASSES, MIT, PAIRS, RESNET, tiny

# Millions of parameters: SegFormer (2105.15203), table 1a; ResNets as in torchvision, less the classifier.
ENCODER_SIZES = {
    **{"mit_b0": 3.4, "mit_b1": 13.1, "mit_b2": 24.2, "mit_b3": 44.0, "mit_b4": 60.8, "mit_b5": 81.4},
    **{"resnet50": 25.557 - 2.049, "resnet101": 44.549 - 2.049},
}
# DAFormer (2111.14887), table 7.
HEAD_SIZES = {"segformer": 3.2, "daformer": 3.7}


def millions(module):
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", ENCODER_SIZES)
def test_encoders_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        assert millions(encoder(name)) == pytest.approx(ENCODER_SIZES[name], abs=0.1)


@pytest.mark.parametrize("name", HEAD_SIZES)
def test_heads_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        assert millions(segmentation_network(name, "mit_b5").head) == pytest.approx(HEAD_SIZES[name], abs=0.05)


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
@settings(max_examples=5)
@given(batch=st.integers(1, 2), size=st.tuples(st.integers(32, 70), st.integers(32, 70)))
def test_logits_have_the_size_of_the_image(name, backbone, batch, size):
    network = tiny(name, backbone).eval()
    with torch.no_grad():
        logits = network(torch.rand(batch, 3, *size))
    assert logits.shape == (batch, CLASSES, *size)


@pytest.mark.parametrize("name", ["daformer", "segformer", "deeplabv2", "deeplabv3plus"])
@pytest.mark.parametrize("backbone", ["mit_b0", "resnet50"])
def test_any_head_takes_any_encoder(name, backbone):
    assert tiny(name, backbone)(torch.rand(2, 3, 32, 64)).shape == (2, CLASSES, 32, 64)


def test_the_segformer_head_is_that_of_transformers():
    config = SegformerConfig(**{**MIT, "drop_path_rate": 0.0}, num_labels=CLASSES, decoder_hidden_size=8)
    other = SegformerForSemanticSegmentation(config).eval()
    network = tiny("segformer", normalisation="none").eval()
    network.encoder.body.load_state_dict(other.segformer.state_dict())
    head, theirs = network.head, other.decode_head
    with torch.no_grad():
        for norm in (theirs.batch_norm, head.fuse.adn.N):
            norm.running_mean.copy_(torch.linspace(-1, 1, 8))
            norm.running_var.copy_(torch.linspace(1, 2, 8))
        for mine, linear in zip(head.embed, theirs.linear_projections, strict=True):
            mine.weight.copy_(linear.proj.weight[..., None, None])
            mine.bias.copy_(linear.proj.bias)
        # They stack the stages from the coarsest on.
        head.fuse.conv.weight.copy_(theirs.linear_fuse.weight.unflatten(1, (4, 8)).flip(1).flatten(1, 2))
        head.classifier.load_state_dict(theirs.classifier.state_dict())
        image = torch.randn(2, 3, 64, 96)
        wanted = other(image).logits
        torch.testing.assert_close(network.head(network.encoder(image)), wanted)
        up = functional.interpolate(wanted, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(image), up)


def test_math_attention_is_the_fused_one():
    image = torch.rand(1, 3, 64, 64)
    networks = [encoder("mit_b0", attention=kind, options=MIT).eval() for kind in ("math", "sdpa")]
    networks[1].load_state_dict(networks[0].state_dict())
    with torch.no_grad():
        found, wanted = (network(image) for network in networks)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
def test_dilation_fills_the_gaps_of_strides(stride):
    """The algorithme à trous: at the positions that strides keep, dilated features are the same."""
    networks = [encoder("resnet50", output_stride=s, options=RESNET).double().eval() for s in (32, stride)]
    networks[1].load_state_dict(networks[0].state_dict())
    image = torch.rand(1, 3, 128, 64).double()
    with torch.no_grad():
        strided, dilated = (network(image)[-1] for network in networks)
    step = 32 // stride
    assert dilated.shape[2:] == (128 // stride, 64 // stride)
    torch.testing.assert_close(dilated[..., ::step, ::step], strided)


def test_normalisation_happens_inside():
    mean, std = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    inside, outside = (encoder("mit_b0", normalisation=n, options=MIT).eval() for n in ("imagenet", "none"))
    outside.body.load_state_dict(inside.body.state_dict())
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(inside(image)[-1], outside((image - mean) / std)[-1])


@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_a_trace_serves_images_of_other_sizes(name, backbone, tmp_path):
    """TorchScript by tracing, and ONNX with free axes; `torch.jit.script` cannot read `transformers`."""
    network = tiny(name, backbone).eval()
    traced = torch.jit.trace(network, torch.rand(1, 3, 64, 64))
    path = tmp_path / "network.onnx"
    axes = {"image": {0: "batch", 2: "rows", 3: "columns"}}
    torch.onnx.export(
        network, (torch.rand(1, 3, 64, 64),), path, dynamo=False, input_names=["image"], dynamic_axes=axes
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        wanted = network(image)
        torch.testing.assert_close(traced(image), wanted)
    (found,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 64, 64)])
def test_images_that_do_not_fit_are_named(shape):
    with pytest.raises(InputError, match=r"wanted .*rows and columns"):
        tiny().eval()(torch.rand(shape))


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels_are_refused(channels):
    with pytest.raises(InputError, match=rf"found images of {channels} channel\(s\), wanted 3"):
        tiny().eval()(torch.rand(1, channels, 64, 64))


def test_another_call_leaves_statistics_alone():
    network = tiny("deeplabv3plus", "resnet50").train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    call(network, dict(network.named_parameters()), torch.rand(2, 3, 32, 64))
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "deeplab"}, "network_def#name: found 'deeplab', wanted one of ['daformer', 'deeplabv2'"),
        ({"encoder": "mit_b6"}, "encoder: found 'mit_b6', wanted one of ['mit_b0'"),
        ({"in_channels": 1}, "normalisation: found 'imagenet' for 1 channel(s)"),
        ({"normalisation": "imagnet"}, "normalisation: found 'imagnet'"),
        ({"output_stride": 8}, "output_stride: found 8 for mit_b0"),
        ({"attention": "flash"}, "attention: found 'flash'"),
        ({"num_classes": 1}, "network_def#num_classes: found 1"),
        ({"head_options": {"width": 8}}, "network_def#head_options: 'daformer' does not take them"),
        ({"head_options": {"norm": "layer"}}, "head_options#norm: found 'layer'"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(InputError) as caught:
        segmentation_network(**{"encoder": "mit_b0", "encoder_options": MIT, **options})
    assert message in str(caught.value)


def test_without_transformers_the_extra_is_named(monkeypatch):
    original = importlib.import_module

    def absent(name, *arguments):
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return original(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match=r"dacal-med\[driving\]"):
        encoder("mit_b0")
