# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Published weights under the names that their owners gave them; anything else is refused."""

from __future__ import annotations

import re

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, SegformerConfig, SegformerForImageClassification

from dacal_med.io.errors import InputError
from dacal_med.networks import encoder, segmentation_network
from tests.networks.builders import HEAD, MIT, RESNET


class Block(nn.Module):
    """One block of the SegFormer authors' network, by its names alone."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Module()
        self.attn.q, self.attn.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.attn.proj = nn.Linear(width, width)
        if reduction > 1:
            self.attn.sr, self.attn.norm = nn.Conv2d(width, width, reduction, reduction), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp.dwconv = nn.Module()
        self.mlp.dwconv.dwconv = nn.Conv2d(4 * width, 4 * width, 3, 1, 1, groups=4 * width)


class Published(nn.Module):
    """Names and shapes of ``mit_b*.pth`` with one block a stage."""

    def __init__(self) -> None:
        super().__init__()
        before = 3
        for number, (width, reduction) in enumerate(zip(MIT["hidden_sizes"], (8, 4, 2, 1), strict=True), start=1):
            patch = nn.Module()
            patch.proj = nn.Conv2d(before, width, 7 if number == 1 else 3)
            patch.norm = nn.LayerNorm(width)
            setattr(self, f"patch_embed{number}", patch)
            setattr(self, f"block{number}", nn.ModuleList([Block(width, reduction)]))
            setattr(self, f"norm{number}", nn.LayerNorm(width))
            before = width
        self.head = nn.Linear(before, 10)


def test_weights_of_the_segformer_authors(tmp_path):
    published = Published()
    torch.save({"state_dict": published.state_dict()}, tmp_path / "mit.pth")
    body = encoder("mit_b0", weights=str(tmp_path / "mit.pth"), options=MIT).body
    block, theirs = body.stages[1].blocks[0], published.block2[0]
    width = MIT["hidden_sizes"][1]
    for mine, wanted in [
        (body.stages[0].patch_embeddings.proj.weight, published.patch_embed1.proj.weight),
        (body.stages[3].patch_embeddings.layer_norm.bias, published.patch_embed4.norm.bias),
        (block.layernorm_after.weight, theirs.norm2.weight),
        (block.attention.q_proj.weight, theirs.attn.q.weight),
        (block.attention.k_proj.weight, theirs.attn.kv.weight[:width]),
        (block.attention.v_proj.bias, theirs.attn.kv.bias[width:]),
        (block.attention.o_proj.weight, theirs.attn.proj.weight),
        (block.attention.sequence_reduction.sequence_reduction.weight, theirs.attn.sr.weight),
        (block.mlp.dwconv.dwconv.weight, theirs.mlp.dwconv.dwconv.weight),
        (block.mlp.fc2.weight, theirs.mlp.fc2.weight),
        (body.stages[2].layer_norm.weight, published.norm3.weight),
    ]:
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_classifier_saved_by_transformers(tmp_path, pickled):
    """`save_pretrained` writes the names of the published repositories, from before version 5."""
    classifier = SegformerForImageClassification(SegformerConfig(**MIT, num_labels=5))
    classifier.save_pretrained(tmp_path)
    if pickled:
        state = classifier.state_dict()
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
    body = encoder("mit_b0", weights=str(tmp_path), options=MIT).body
    for name, value in classifier.segformer.state_dict().items():
        assert torch.equal(body.state_dict()[name], value), name


def torchvision_names(state):
    """The names that torchvision gives the same tensors."""
    kinds = {"convolution": "conv", "normalization": "bn"}
    result = {}
    for key, value in state.items():
        key = re.sub(r"^embedder\.embedder\.(\w+)", lambda m: f"{kinds[m[1]]}1", key)
        key = re.sub(
            r"^encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(\w+)",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.{kinds[m[4]]}{int(m[3]) + 1}",
            key,
        )
        key = re.sub(
            r"^encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(\w+)",
            lambda m: f"layer{int(m[1]) + 1}.{m[2]}.downsample.{int(m[3] == 'normalization')}",
            key,
        )
        result[key] = value
    return result


def test_resnets_of_transformers_and_torchvision(tmp_path):
    classifier = ResNetForImageClassification(ResNetConfig(**RESNET, num_labels=5))
    classifier.save_pretrained(tmp_path / "folder")
    named = torchvision_names(classifier.resnet.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv2.weight", "layer2.0.downsample.1.bias"} <= set(named)
    torch.save({**named, "fc.weight": torch.zeros(5, 32)}, tmp_path / "resnet.pth")
    for weights in (tmp_path / "folder", tmp_path / "resnet.pth"):
        body = encoder("resnet50", weights=str(weights), options=RESNET, output_stride=8).body
        for name, value in classifier.resnet.state_dict().items():
            assert torch.equal(body.state_dict()[name], value), name


def test_the_encoder_of_a_network_of_ours(tmp_path):
    options = {"encoder": "mit_b0", "encoder_options": MIT, "head_options": HEAD["daformer"]}
    network = segmentation_network(**options)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "model.safetensors")
    other = segmentation_network(**options, weights=str(tmp_path / "model.safetensors"))
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, "another network than SegformerModel: it lacks stages.0"),
        ([1, 2], "holds a list, wanted tensors by name"),
        ({"stages": 3}, "holds a dict, wanted tensors by name"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=re.escape(message)):
        encoder("mit_b0", weights=str(tmp_path / "other.pth"), options=MIT)


def test_weights_of_another_size_or_with_more_layers_are_refused(tmp_path):
    for options, message in (
        ({**MIT, "hidden_sizes": [8, 8, 16, 32]}, "shapes differ: stages.3"),
        ({**MIT, "depths": [1, 1, 1, 2]}, "it also has stages.3.blocks.1"),
    ):
        torch.save(encoder("mit_b0", options=options).state_dict(), tmp_path / "other.pth")
        with pytest.raises(InputError, match=re.escape(message)):
            encoder("mit_b0", weights=str(tmp_path / "other.pth"), options=MIT)


@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"is not a readable weights file"):
        encoder("mit_b0", weights=str(tmp_path / name), options=MIT)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"found no file .*absent\.pth"):
        encoder("mit_b0", weights=str(tmp_path / "absent.pth"), options=MIT)
    with pytest.raises(InputError, match=r"found neither model\.safetensors nor pytorch_model\.bin"):
        encoder("mit_b0", weights=str(tmp_path), options=MIT)


NAMES = ["model.safetensors", "pytorch_model.bin"]


class Hub:
    """Stands in for ``hf_hub_download``: files by name in the cache and on the hub, and what was asked for."""

    def __init__(self, monkeypatch, cache=None, hub=None, error=None):
        self.cache, self.hub, self.error = cache or {}, hub or {}, error
        self.asked: list[tuple[str, bool]] = []
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def __call__(self, repository, name, local_files_only=False):
        self.asked.append((name, local_files_only))
        found = self.cache if local_files_only else self.hub
        if name in found:
            return str(found[name])
        if local_files_only:
            raise LocalEntryNotFoundError("Cannot find the requested files in the disk cache")
        raise self.error or EntryNotFoundError(f"404: no {name}")


def refused():
    with pytest.raises(InputError, match=r"'nvidia/mit-b5' is no file here.*hf download nvidia/mit-b5"):
        encoder("mit_b5", weights="imagenet", options=MIT)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network"), OSError("the disk is full")])
def test_without_network_the_hub_is_asked_once(monkeypatch, error):
    hub = Hub(monkeypatch, error=error)
    refused()
    assert hub.asked == [*((name, True) for name in NAMES), (NAMES[0], False)]


def test_offline_by_choice_the_hub_is_not_asked(monkeypatch):
    hub = Hub(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused()
    assert hub.asked == [(name, True) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_comes_before_the_hub(monkeypatch, tmp_path, name):
    path = tmp_path / name
    state = {key: value.contiguous() for key, value in encoder("resnet101", options=RESNET).state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    hub = Hub(monkeypatch, cache={name: path})
    assert encoder("resnet101", weights="microsoft/resnet-101", options=RESNET).channels == RESNET["hidden_sizes"]
    assert all(local for _, local in hub.asked)
    hub = Hub(monkeypatch, hub={name: path})
    encoder("resnet101", weights="microsoft/resnet-101", options=RESNET)
    assert hub.asked[:2] == [(name, True) for name in NAMES] and hub.asked[-1] == (name, False)


def test_a_repository_without_weights_is_told(monkeypatch):
    hub = Hub(monkeypatch)
    refused()
    assert len(hub.asked) == 4
