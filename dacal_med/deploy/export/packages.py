# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Which packages an exported folder runs with, in exact versions: ``requirements.txt`` and a CycloneDX list."""

from __future__ import annotations

import importlib.metadata as metadata
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement
from torch import nn

from dacal_med.io.errors import InputError

REQUIRED = ("torch", "monai", "numpy", "nibabel", "pynrrd", "pydicom", "pillow", "pytorch-ignite", "fire")
"""What inference at the site imports besides the packages of the network's layers."""
OPTIONAL = ("highdicom", "simpleitk", "onnxruntime")
"""DICOM output, DICOM series geometry and ONNX, listed where they are installed."""

CONVERTERS = ("onnx", "onnxruntime", "onnxscript")
"""What writes and checks ONNX, from the extra ``export``."""

_SPDX = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*")


def require_converters() -> None:
    """Check that the packages of the extra ``export`` are there, before anything is done.

    Raises:
        InputError: naming those that are not.
    """
    missing = [name for name in CONVERTERS if find_spec(name) is None]
    if missing:
        raise InputError(f"found no {', '.join(missing)}, which formats need; wanted `pip install 'dacal-med[export]'`")


def closure(roots: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the installed packages that some packages need, by name, with what each needs itself.

    Args:
        roots: names of packages; those that are not installed are left out.

    Returns:
        Names as on PyPI (lower case, ``-``), sorted, each with the sorted names that it needs.
    """
    needed: dict[str, list[str]] = {}
    waiting = [canonical(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        requirements = [Requirement(line) for line in lines]
        wanted = {canonical(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
        needed[name] = sorted(wanted)
        waiting += needed[name]
    return {name: [n for n in needed[name] if n in needed] for name in sorted(needed)}


def canonical(name: str) -> str:
    """Return a package's name as PyPI normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version(name: str) -> str:
    """Return the installed version of a package without a local label such as ``+cpu``, which PyPI does not have."""
    return metadata.version(name).partition("+")[0]


def packages_of(network: nn.Module) -> tuple[str, ...]:
    """Return the packages whose layers a network is made of, sorted; without this one, whose code a site gets."""
    modules = {type(layer).__module__.partition(".")[0] for layer in network.modules()}
    installed = metadata.packages_distributions()
    return tuple(sorted({canonical(p) for name in modules for p in installed.get(name, [])} - {"dacal-med"}))


def requirements(network: nn.Module) -> str:
    """Return what a site installs for a network, each package in the version that the export was checked with."""
    lines = [f"{name}=={version(name)}" for name in closure((*REQUIRED, *packages_of(network)))]
    return (
        "# pip install -r requirements.txt; the versions that this export was checked with\n" + "\n".join(lines) + "\n"
    )


def bill_of_materials(network: nn.Module, name: str, model_version: str, code_version: str) -> dict[str, Any]:
    """Return a CycloneDX 1.6 list of what an exported folder runs with.

    The same versions give the same list: no time, no serial number.

    Args:
        network: of the model.
        name: of the model.
        model_version: of the model.
        code_version: of the code that is copied into the folder.

    Returns:
        JSON-ready.
    """
    wanted = dict.fromkeys(canonical(n) for n in (*REQUIRED, *packages_of(network), *OPTIONAL))
    packages = closure(tuple(wanted))
    roots = [n for n in wanted if n in packages]
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": name,
        "version": model_version,
    }
    code = {
        "type": "library",
        "bom-ref": "dacal_site",
        "name": "dacal_site",
        "version": code_version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    dependencies = {"model": ["dacal_site"], "dacal_site": roots}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": model},
        "components": [code, *(_component(package) for package in packages)],
        "dependencies": [
            *(
                {"ref": ref, "dependsOn": [_purl(n) if n in packages else n for n in needs]}
                for ref, needs in dependencies.items()
            ),
            *({"ref": _purl(ref), "dependsOn": [_purl(n) for n in needs]} for ref, needs in packages.items()),
        ],
    }


def _component(name: str) -> dict[str, Any]:
    purl = _purl(name)
    component = {"type": "library", "bom-ref": purl, "name": name, "version": version(name), "purl": purl}
    licence = _licence(metadata.metadata(name))  # type: ignore[arg-type]
    return {**component, "licenses": licence} if licence else component


def _licence(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what a package says of its licence: an SPDX expression, else its classifiers, else nothing."""
    expression = fields.get("License-Expression", "")
    if expression and _SPDX.fullmatch(expression):
        return [{"expression": expression}]
    classifiers = fields.get_all("Classifier", []) if hasattr(fields, "get_all") else []
    names = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License :: OSI Approved :: ")]
    return [{"license": {"name": found}} for found in sorted(set(names))]


def _purl(name: str) -> str:
    return f"pkg:pypi/{name}@{version(name)}"
