# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Which packages an exported folder runs with, in exact versions: ``requirements.txt`` and a CycloneDX list."""

from __future__ import annotations

import importlib.metadata as metadata
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement
from torch import nn

from dacal_med import __version__
from dacal_med.io.errors import InputError

OPTIONAL = ("highdicom", "simpleitk", "onnxruntime")
"""DICOM output, DICOM series geometry and ONNX, listed where they are installed."""

CONVERTERS = ("onnx", "onnxruntime", "onnxscript", "setuptools")
"""What writes and checks ONNX, and the wheel's metadata; from the extra ``export``."""

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
    found: dict[str, list[str]] = {}
    waiting = [canonical(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found[name] = sorted(needed(lines))
        waiting += found[name]
    return {name: [n for n in found[name] if n in found] for name in sorted(found)}


def needed(lines: Iterable[str]) -> set[str]:
    """Return the names of the packages that a package needs here, without extras, by its ``Requires-Dist``."""
    requirements = map(Requirement, lines)
    return {canonical(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}


def canonical(name: str) -> str:
    """Return a package's name as PyPI normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version(name: str) -> str:
    """Return the installed version of a package without a local label such as ``+cpu``, which PyPI does not have."""
    return metadata.version(name).partition("+")[0]


def packages_of(network: nn.Module) -> tuple[str, ...]:
    """Return the packages whose layers a network is made of, sorted; without this one, which the folder carries."""
    modules = {type(layer).__module__.partition(".")[0] for layer in network.modules()}
    installed = metadata.packages_distributions()
    return tuple(sorted({canonical(p) for name in modules for p in installed.get(name, [])} - {"dacal-med"}))


def requirements(network: nn.Module, wheel: str, needs: Iterable[str]) -> str:
    """Return what a site installs for a network, each package in the version that the export was checked with.

    Args:
        network: of the model.
        wheel: place of the project's own wheel in the folder.
        needs: names of what that needs.
    """
    lines = [f"{name}=={version(name)}" for name in closure((*needs, *packages_of(network)))]
    first = "# pip install -r requirements.txt, in this folder; the versions that this export was checked with"
    return "\n".join([first, f"./{wheel}", *lines, ""])


def bill_of_materials(network: nn.Module, name: str, model_version: str, needs: Iterable[str]) -> dict[str, Any]:
    """Return a CycloneDX 1.6 list of what an exported folder runs with.

    The same versions give the same list: no time, no serial number.

    Args:
        network: of the model.
        name: of the model.
        model_version: of the model.
        needs: names of what the project's own wheel needs.

    Returns:
        JSON-ready.
    """
    wanted = dict.fromkeys(canonical(n) for n in (*needs, *packages_of(network), *OPTIONAL))
    packages = closure(tuple(wanted))
    own = f"pkg:pypi/dacal-med@{__version__}"
    code = {
        "type": "library",
        "bom-ref": own,
        "name": "dacal-med",
        "version": __version__,
        "purl": own,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    model = {"type": "machine-learning-model", "bom-ref": "model", "name": name, "version": model_version}
    dependencies = {"model": [own], own: [_purl(n) for n in wanted if n in packages]}
    dependencies.update({_purl(n): [_purl(other) for other in others] for n, others in packages.items()})
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": model},
        "components": [code, *map(_component, packages)],
        "dependencies": [{"ref": ref, "dependsOn": others} for ref, others in dependencies.items()],
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
