# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights of encoders, from files or the hub's cache, under whatever names they were published.

Understood are the names of ``transformers`` (before and since version 5, with or without the classifier around), of the
SegFormer authors' ``mit_b*.pth`` and of torchvision's and timm's ResNets.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from dacal_med.core.weights import load_safely
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path

FILES = ("model.safetensors", "pytorch_model.bin")
_SHOWN = 4

# Parts of a checkpoint that are no encoder: classifiers and decoders.
_FOREIGN = re.compile(r"^(classifier|decode_head|auxiliary_head|head|fc|(encoder\.)?(mean|std)$)\b")
# What may stand before the names; the last two are those of a network of this package.
_PREFIX = re.compile(r"^(module|model|segformer|resnet|backbone|encoder\.body|body)\.")
# The names of `transformers` since version 5 come last.
_MIT_NAMES = (
    # The SegFormer authors' own, numbered from 1.
    (r"^patch_embed(\d)\.proj\.", r"encoder.patch_embeddings.{0}.proj."),
    (r"^patch_embed(\d)\.norm\.", r"encoder.patch_embeddings.{0}.layer_norm."),
    (r"^block(\d)\.(\d+)\.", r"encoder.block.{0}.{1}."),
    (r"^norm(\d)\.", r"encoder.layer_norm.{0}."),
)
_MIT_PARTS = {
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.q.": ".attention.q_proj.",
    ".attn.proj.": ".attention.o_proj.",
    ".attn.sr.": ".attention.sequence_reduction.sequence_reduction.",
    ".attn.norm.": ".attention.sequence_reduction.layer_norm.",
    # `transformers` before version 5.
    ".layer_norm_1.": ".layernorm_before.",
    ".layer_norm_2.": ".layernorm_after.",
    ".attention.self.query.": ".attention.q_proj.",
    ".attention.self.key.": ".attention.k_proj.",
    ".attention.self.value.": ".attention.v_proj.",
    ".attention.self.sr.": ".attention.sequence_reduction.sequence_reduction.",
    ".attention.self.layer_norm.": ".attention.sequence_reduction.layer_norm.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".mlp.dense1.": ".mlp.fc1.",
    ".mlp.dense2.": ".mlp.fc2.",
}
_MIT_PLACES = (
    (r"^encoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.block\.(\d)\.", r"stages.\1.blocks."),
    (r"^encoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
)
_RESNET_KINDS = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}


def load_weights(body: nn.Module, weights: str) -> None:
    """Load an encoder's weights in place.

    Args:
        body: a ``SegformerModel`` or ``ResNetModel`` of ``transformers``.
        weights: a file, a folder with ``model.safetensors`` or ``pytorch_model.bin``, or a repository on the hub
            (``"nvidia/mit-b5"``), which is taken from the hub's cache, and downloaded if it is not there.

    Raises:
        InputError: if there is no such file, it cannot be read, or holds another network.
    """
    path = _find(weights)
    state = {translated: value for key, value in _read(path).items() for translated, value in _translate(key, value)}
    wanted = body.state_dict()
    missing = sorted(key for key in wanted if key not in state and not key.endswith("num_batches_tracked"))
    unknown = sorted(key for key in state if key not in wanted)
    other = sorted(
        f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    )
    for problem, keys in (("it lacks", missing), ("it also has", unknown), ("shapes differ:", other)):
        if keys:
            shown = ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
            raise InputError(f"weights: {path} holds another network than {type(body).__name__}: {problem} {shown}")
    body.load_state_dict(state, strict=False)


def _find(weights: str) -> Path:
    path = given_path(weights, "weights", home=True)
    if path.is_file():
        return path
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return path / name
        raise InputError(f"weights: found neither {' nor '.join(FILES)} in {path}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        raise InputError(
            f"weights: found no file {path}, wanted a file, a folder or a repository such as nvidia/mit-b5"
        )
    return _from_hub(weights)


def _from_hub(repository: str) -> Path:
    from huggingface_hub import constants, hf_hub_download  # comes with transformers; slow to import
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    problem: Exception | None = None
    # The cache first, for both names: without network every question to the hub is repeated for minutes.
    for name in FILES:
        try:
            return Path(hf_hub_download(repository, name, local_files_only=True))
        except (HFValidationError, OSError) as error:
            problem = error
    for name in () if constants.HF_HUB_OFFLINE else FILES:
        try:
            return Path(hf_hub_download(repository, name))
        # OSError: no network (LocalEntryNotFoundError), or no way to write in the cache.
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
            problem = error
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                break  # what is wrong is not the name of the file
    reason = (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
    raise InputError(
        f"weights: {repository!r} is no file here, and could not be had from the hub or its cache ({reason}); wanted a "
        f"file, or once on a computer with network: hf download {repository}"
    ) from problem


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError  # comes with transformers
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a readable weights file: {error}") from error
    content = load_safely(path, "weights file")
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"weights: {path} holds a {type(content).__name__}, wanted tensors by name (a state_dict)")
    return content


def _translate(key: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Return a tensor under today's name in ``transformers``; none for one that belongs to no encoder."""
    while _PREFIX.match(key):
        key = _PREFIX.sub("", key)
    if _FOREIGN.match(key):
        return []
    for pattern, name in _MIT_NAMES:
        found = re.match(pattern, key)
        if found is not None:
            numbers = found.groups()
            key = name.format(int(numbers[0]) - 1, *numbers[1:]) + key[found.end() :]
            break
    for old, new in _MIT_PARTS.items():
        key = key.replace(old, new)
    for pattern, place in _MIT_PLACES:
        key = re.sub(pattern, place, key)
    if ".attn.kv." in key:
        return [
            (key.replace(".attn.kv.", f".attention.{p}_proj."), v) for p, v in zip("kv", value.chunk(2), strict=True)
        ]
    return [(_resnet_name(key), value)]


def _resnet_name(key: str) -> str:
    """Return the name in ``transformers`` of a tensor of torchvision's ResNet; other names as they are."""
    stem = re.match(r"^(conv|bn)1\.", key)
    if stem is not None:
        return f"embedder.embedder.{_RESNET_KINDS[stem[1]]}.{key[stem.end() :]}"
    block = re.match(r"^layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.", key)
    if block is None:
        return key
    stage, layer, kind, number, part = block.groups()
    place = "shortcut" if part is not None else f"layer.{int(number) - 1}"
    name = _RESNET_KINDS[kind or part]
    return f"encoder.stages.{int(stage) - 1}.layers.{layer}.{place}.{name}.{key[block.end() :]}"
