# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The rules of CONTRIBUTING.md that a reader of the sources could check, checked."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.deploy.runtime.builders import without_training

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dacal_med"
RANKS = {
    "io": 0,
    "kinds": 0,
    "command_line": 1,
    "core": 1,
    "networks": 2,
    "transforms": 2,
    "reporting": 2,
    "data": 3,
    "engines": 4,
    "preparation": 4,
    "explanations": 5,
    "handlers": 5,
    "bundle": 6,
    "comparison": 7,
    "deploy.runtime": 8,
    "deploy.export": 9,
    "deploy.report": 9,
    "cli": 10,
    "__main__": 11,
}
# What a clinical site runs, and what else of the package that may import.
SITE, SITE_MAY_IMPORT = (
    ("dacal_med/io", "dacal_med/networks", "dacal_med/deploy/runtime"),
    {"io", "core", "networks", "command_line"},
)
MAX_LINES = 400
HEADER = "# Copyright (c) dacal_med contributors\n# SPDX-License-Identifier: Apache-2.0\n"
# `core` is shared by medicine and driving and must know neither.
WORDS = {
    *("organ", "lesion", "patient", "tumour", "tumor", "clinical", "hospital"),
    *("street", "road", "city", "car", "vehicle", "pedestrian"),
}
ABBREVIATIONS = {"CT", "MR", "HU"}
# What `pip install dacal-med` brings, by the names that are imported.
SITE_PACKAGES = {"torch", "monai", "numpy", "nibabel", "nrrd", "pydicom", "PIL", "ignite", "fire"}
# Imported only where they are used: DICOM SEG, encoders of street scenes with their weights, MetaImage, HDF5.
SITE_EXTRAS = {"highdicom", "transformers", "huggingface_hub", "safetensors", "SimpleITK", "h5py"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def sources(*folders: str) -> list[Path]:
    found = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in folders}
    assert all(found.values()), found
    return [path for paths in found.values() for path in paths]


def wrong_files(rule: Callable[[Path], object], *folders: str) -> dict[str, object]:
    """Return by file what breaks a rule; a rule returns what is wrong, and something empty where nothing is."""
    return {str(path.relative_to(ROOT)): wrong for path in sources(*folders) if (wrong := rule(path))}


def room_of(path: Path) -> str | None:
    """Return the room of a file of the package; ``None`` for the ``__init__`` around rooms."""
    room = room_in(path.relative_to(PACKAGE).with_suffix("").parts)
    return None if room.endswith("__init__") else room


def room_in(parts: Sequence[str]) -> str:
    """Return the room that dotted names below the package lie in; those of ``deploy`` are rooms of their own."""
    return ".".join(parts[: 2 if parts[0] == "deploy" else 1])


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports(node: ast.AST, package: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted names that run-time code below ``node`` imports, relative ones resolved in ``package``."""
    if isinstance(node, ast.If) and is_type_checking(node.test):
        children: list[ast.AST] = [*node.orelse]
    else:
        children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package[: len(package) - node.level + 1] if node.level else ()
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    for child in children:
        yield from imports(child, package)


def imports_of(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).parent.parts))


def upward_violations(room: str, imported: set[str]) -> list[str]:
    """Return the imports of ``dacal_med`` that ``room`` must not make."""
    wrong = []
    for name in imported:
        parts = name.split(".")
        if parts[0] != "dacal_med":
            continue
        if parts[1:] == ["__version__"]:
            continue
        other = room_in(parts[1:])
        if other not in RANKS:
            wrong.append(f"{name} (name the room, not the package)")
        elif other != room and (
            RANKS[other] >= RANKS[room] or (room == "deploy.runtime" and other not in SITE_MAY_IMPORT)
        ):
            wrong.append(name)
    return sorted(wrong)


def test_every_room_has_a_rank():
    rooms = {room_of(path) for path in sources("dacal_med")} - {None}
    assert rooms <= RANKS.keys(), f"give these rooms a rank here and a line in CONTRIBUTING.md: {rooms - RANKS.keys()}"


def test_imports_go_only_upward():
    def rule(path: Path) -> list[str]:
        room = room_of(path)
        return [] if room is None else upward_violations(room, imports_of(path))

    assert wrong_files(rule, "dacal_med") == {}


def test_the_import_rule_finds_violations():
    source = """
from typing import TYPE_CHECKING
import dacal_med.io.errors
from dacal_med import handlers
from dacal_med.data.paired import PairedDataset
from ..engines import hosts
if TYPE_CHECKING:
    from dacal_med.bundle import start
def late():
    from dacal_med.reporting import tables
"""
    found = set(imports(ast.parse(source), ("dacal_med", "transforms")))
    assert upward_violations("transforms", found) == [
        "dacal_med.data.paired.PairedDataset",
        "dacal_med.engines.hosts",
        "dacal_med.handlers",
        "dacal_med.reporting.tables",
    ]


def test_core_is_plain_pytorch():
    def rule(path: Path) -> set[str]:
        return {name.split(".")[0] for name in imports_of(path)} & {"monai", "ignite"}

    assert wrong_files(rule, "dacal_med/core") == {}


def test_core_knows_no_application():
    def rule(path: Path) -> set[str]:
        words = re.findall(r"[A-Za-z]+", path.read_text(encoding="utf-8"))
        return {word for word in words if word in ABBREVIATIONS or word.lower().removesuffix("s") in WORDS}

    assert wrong_files(rule, "dacal_med/core") == {}


@pytest.fixture(scope="module")
def at_a_site() -> dict[str, set[str]]:
    """What each file that a site runs imports: of the rooms for it, and of what these import, with the packages."""
    found: dict[str, set[str]] = {}
    waiting = sources(*SITE)
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(ROOT))
        if name not in found:
            found[name] = imports_of(path)
            waiting += [file for dotted in found[name] for file in files_of(dotted)]
    return found


def files_of(dotted: str) -> list[Path]:
    """Return the files of the package that are read to import a dotted name: its own, and those of packages above."""
    parts = dotted.split(".")
    places = [ROOT.joinpath(*parts[: k + 1]) for k in range(len(parts))] if parts[0] == "dacal_med" else []
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return [file for file in files if file.is_file()]


def test_a_site_needs_only_what_it_installs(at_a_site):
    assert "dacal_med/core/tensors.py" in at_a_site and "dacal_med/core/weights.py" in at_a_site
    for path, names in at_a_site.items():
        packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"dacal_med"}
        assert packages <= SITE_PACKAGES | SITE_EXTRAS, path


def test_what_a_site_imports_is_light(tmp_path):
    """In a process without what only training installs: all of it, and no extra even where it is installed."""
    files = [path.relative_to(ROOT).with_suffix("") for path in sources(*SITE)]
    ours = ", ".join(".".join(file.parts).removesuffix(".__init__") for file in files)
    monai = "monai.bundle, monai.data, monai.inferers, monai.networks, monai.transforms, monai.utils"
    code = f"import sys, {monai}\nfirst = set(sys.modules)\nimport {ours}\nprint(*(set(sys.modules) - first))"
    environment = {**os.environ, "PYTHONPATH": str(without_training(tmp_path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new = done.stdout.splitlines()[-1].split()  # what is above, libraries say
    found = {name.split(".")[0] for name in new}
    assert {"dacal_med", "pydicom"} <= found
    assert found.isdisjoint({*SITE_EXTRAS, "onnx", "onnxruntime", "onnxscript", "h5py", "SimpleITK", "sklearn"})
    rooms = {room_in(name.split(".")[1:]) for name in new if name.startswith("dacal_med.")}
    assert rooms - {"deploy"} == {"io", "core", "networks", "deploy.runtime", "command_line"}


def test_files_stay_short():
    def rule(path: Path) -> int:
        return max(0, len(path.read_text(encoding="utf-8").splitlines()) - MAX_LINES)

    assert wrong_files(rule, "dacal_med", "scripts") == {}


def test_files_have_licence_and_docstring():
    def rule(path: Path) -> bool:
        text = path.read_text(encoding="utf-8")
        text = text.partition("\n")[2] if text.startswith("#!") else text
        return not (text.startswith(HEADER) and ast.get_docstring(ast.parse(text)))

    assert wrong_files(rule, "dacal_med", "scripts", "tests") == {}


def test_nothing_unpickles():
    def rule(path: Path) -> list[str]:
        modules = {name.split(".")[0] for name in imports_of(path)} & FORBIDDEN_MODULES
        return [*modules, *re.findall(r"weights_only\s*=\s*False", path.read_text(encoding="utf-8"))]

    assert wrong_files(rule, "dacal_med", "scripts") == {}


def test_nothing_asks_for_three_axes():
    def rule(path: Path) -> list[str]:
        return re.findall(r"if .*dims == 3", path.read_text(encoding="utf-8"))

    assert wrong_files(rule, "dacal_med", "scripts") == {}
