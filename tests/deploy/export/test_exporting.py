# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med export``: the same bytes twice, and what is refused."""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets import UNet

from dacal_med import __version__
from dacal_med.cli import main
from dacal_med.data.datalist import load_cases
from dacal_med.deploy.export import exporting, folder, packages
from dacal_med.deploy.export.archives import normalised
from dacal_med.deploy.export.checking import check_formats, compare, load_network
from dacal_med.deploy.export.deployed import build_network, load_deployed, without_files, without_pretraining
from dacal_med.deploy.export.packages import bill_of_materials, closure, needed, packages_of, requirements
from dacal_med.deploy.export.volumes import accepted_sizes
from dacal_med.deploy.runtime import checksums
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA, segmentation_network
from tests.bundles.builders import TINY_MIT
from tests.conftest import ROOT
from tests.deploy.export.builders import FIRST, convert_here, exported, words


@pytest.fixture
def run(run_of) -> Path:
    """The weights of a tiny run."""
    return run_of(FIRST.name)


@pytest.fixture
def here(monkeypatch) -> None:
    """Convert in this process."""
    monkeypatch.setattr(exporting, "convert", convert_here)


def test_the_command_writes_the_same_bytes_twice(run, tmp_path, capsys):
    out = tmp_path / "site"
    line = ["export", "--bundle", str(FIRST.folder), "--out", str(out), "--model_file", str(run)]
    options = [word for key, value in words(FIRST) for word in (f"--{key}", value)]
    assert main([*line, "--dataset_dir", str(run.parent / "data"), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("100.0000%") == 12
    again = Path(shutil.copytree(out, tmp_path / "again"))
    for name in ("model.ts", "model.pt2", "model.onnx"):
        (again / "models" / name).unlink()
    folder.convert(again)
    names = [path.relative_to(out) for path in (out / "models").iterdir()]
    assert filecmp.cmpfiles(out, again, names, shallow=False) == (names, [], [])


def test_a_folder_that_is_there_is_kept_unless_asked(run, tmp_path, here):
    out = tmp_path / "site"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="found a folder that is not empty"):
        exported(FIRST, run, out).run()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert (out / "mine.txt").read_text() == "keep"
    exported(FIRST, run, out, force=True).run()
    assert not (out / "mine.txt").exists()
    assert checksums.verify(out) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_format_that_differs_stops_the_export_and_leaves_nothing(run, tmp_path, monkeypatch):
    def wrong(folder: Path) -> None:
        convert_here(folder)
        network = torch.jit.load(str(folder / "models" / "model.ts"))
        with torch.no_grad():
            next(network.parameters()).add_(0.05)
        torch.jit.save(network, str(folder / "models" / "model.ts"))

    monkeypatch.setattr(exporting, "convert", wrong)
    with pytest.raises(
        InputError, match=r"export of model.ts failed: on images of \[1, 1, 16, 16\] found the same label"
    ):
        exported(FIRST, run, tmp_path / "site").run()
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_be_loaded_is_named(site, tmp_path):
    broken = Path(shutil.copytree(site, tmp_path / "site"))
    (broken / "models" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"export of model.onnx failed: it cannot be loaded again"):
        check_formats(broken, load_network(site), [torch.rand(1, 1, 16, 16)])


def test_agreement_is_judged_by_labels_and_probabilities():
    wanted = torch.tensor([0.4, 0.6]).view(1, 2, 1).repeat(1, 1, 20000)
    found = wanted.clone()
    found[0, :, :2] = torch.tensor([0.50001, 0.49999])[:, None]
    assert not compare("x", wanted, found, (1,)).good  # labels agree on 99.99 %, probabilities do not
    assert compare("x", wanted, found, (1,)).same_labels == pytest.approx(0.9999)
    assert compare("x", wanted, wanted + 0.9e-4, (1,)).good
    assert not compare("x", wanted, wanted * float("nan"), (1,)).good
    assert not compare("x", wanted, wanted[..., :-1], (1,)).good


def test_the_command_says_what_is_missing(tmp_path, capsys):
    line = ["export", "--bundle", str(FIRST.folder), "--out", str(tmp_path / "site")]
    assert main([*line, "--model_file", str(tmp_path / "absent.pt")]) == 2
    assert f"no weights at {tmp_path / 'absent.pt'}" in capsys.readouterr().err
    assert main([*line, "--model_file", str(tmp_path / "absent.pt"), "--roi_siz", "[8, 8]"]) == 2


def test_misspelt_overrides_and_other_networks(run):
    with pytest.raises(InputError, match="did you mean 'roi_size'"):
        load_deployed(FIRST.folder, run, [*words(FIRST), ("roi_siz", "[8, 8]")])
    with pytest.raises(InputError, match="holds another network"):
        load_deployed(FIRST.folder, run)


def test_scores_of_other_classes(run, tmp_path):
    wrong = tmp_path / "metrics.json"
    wrong.write_text('{"after": {"per_class": {"background": {}, "liver": {}}}}')
    with pytest.raises(InputError, match=r"metrics.json: found no scores of the classes background, mitochondria"):
        exported(FIRST, run, tmp_path / "site", metrics_file=wrong).run()
    wrong.write_text("{}")
    with pytest.raises(InputError, match=r"metrics.json: found no scores"):
        exported(FIRST, run, tmp_path / "site", metrics_file=wrong).run()


def test_without_scores_and_datalist_the_card_says_so(run, tmp_path, here):
    alone = tmp_path / "run"
    alone.mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(run.parent / name, alone)
    (alone / "metrics.json").write_text('{"before": null, "after": null}')  # of a run without labelled target cases
    images = run.parent / "data" / "b" / "images"
    exported(FIRST, alone / "model.pt", tmp_path / "site", dataset_dir=images).run()
    card = (tmp_path / "site" / "docs" / "README.md").read_text()
    assert "Neither Dice nor calibration of this network is known." in card
    assert "There is no `configs/trust.json`" in card
    assert not (tmp_path / "site" / "configs" / "trust.json").exists()


@pytest.mark.parametrize("name", ["dacal_med.data.Phantom", "dacal_med.networkss.HRDA", "dacal_med"])
def test_networks_that_need_training_code_are_refused(name):
    for definition in ({"_target_": name}, f"${name}.x()", {"_target_": "Sequential", "layer": {"_target_": name}}):
        with pytest.raises(InputError, match=rf"inference.json: network_def needs {name}(\.x)?, wanted"):
            build_network({"network_def": definition}, Path("inference.json"))


def test_what_trained_is_what_a_site_builds_without_pretrained_weights():
    torch.manual_seed(0)
    options = {"name": "daformer", "encoder": "mit_b0", "encoder_options": TINY_MIT, "head_options": {"channels": 8}}
    trained = HRDA(segmentation_network(**options, num_classes=5), 5, 3, 2).eval()
    torch.nn.init.normal_(trained.attention.layers[-1].weight)
    streets = {"_target_": "dacal_med.networks.segmentation_network", **options, "num_classes": 5}
    fused = {"_target_": "dacal_med.networks.HRDA", "num_classes": 5, "in_channels": 3, "spatial_dims": 2}
    found = without_pretraining({**fused, "network": {**streets, "weights": "imagenet"}})
    assert found == {**fused, "network": streets}
    built = build_network({"network_def": found}, Path("inference.json")).eval()
    assert type(built) is HRDA
    built.load_state_dict(trained.state_dict())
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(built(image), trained(image))


@pytest.mark.parametrize("definition", ["$torch.nn.Identity()", {"_target_": "UNet", "weights": [4, "@n"]}])
def test_other_networks_stay_as_they_are(definition):
    assert without_pretraining(definition) == definition


def test_loading_and_the_channel_axis_are_two_transforms():
    loading = {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True}
    found = without_files({"_target_": "Compose", "transforms": [loading, "@intensity"]})
    assert found["transforms"] == [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        "@intensity",
    ]


@pytest.mark.parametrize(("strides", "step"), [([1, 1], 1), ([2], 2), ([2, 2, 2], 8)])
def test_sizes_fit_the_grid_of_the_network(strides, step):
    channels = [2] * (len(strides) + 1)
    network = UNet(2, 1, 2, channels=channels, strides=strides).eval()
    roi = (16, 24)
    sizes = accepted_sizes(network, 1, roi)
    assert sizes[0] == roi and len(set(sizes)) == 3
    assert all(n % step == 0 for size in sizes for n in size)
    assert sizes[1] == (16 + step, 24 + 2 * step)
    with pytest.raises(InputError, match="cannot take its own window"):
        accepted_sizes(UNet(2, 1, 2, channels=[2, 2], strides=[2]), 1, (15, 16))


def test_archives_keep_their_content_and_lose_what_differs(tmp_path):
    tensors = {"a": torch.arange(5.0), "b": torch.ones(3, 4, dtype=torch.int16)}
    torch.save(tensors, tmp_path / "model.pt")
    once = normalised((tmp_path / "model.pt").read_bytes())
    assert normalised(once) == once
    (tmp_path / "model.pt").write_bytes(once)
    found = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    start = once.index(b"data/0FB") + len(b"data/0")
    assert (start + 4 + int.from_bytes(once[start + 2 : start + 4], "little")) % 64 == 0


def test_packages_are_listed_in_exact_versions_and_the_same_way_twice():
    network = torch.nn.Linear(1, 1)
    needs = ("monai", "nibabel", "torch")
    bill = bill_of_materials(network, "model", "1", needs)
    assert bill == bill_of_materials(network, "model", "1", needs)
    names = {component["name"]: component for component in bill["components"]}
    assert names["torch"]["version"] == torch.__version__.partition("+")[0]
    assert names["monai"]["purl"].startswith("pkg:pypi/monai@")
    references = {component["bom-ref"] for component in bill["components"]} | {"model"}
    assert {ref for entry in bill["dependencies"] for ref in (entry["ref"], *entry["dependsOn"])} <= references
    assert names["dacal-med"]["version"] == __version__
    lines = requirements(network, "wheels/own.whl", needs).splitlines()
    assert lines[1] == "./wheels/own.whl" and f"torch=={names['torch']['version']}" in lines
    assert closure(("no-such-package",)) == {}
    assert "numpy" in closure(("nibabel",))["nibabel"]
    assert needed(["a>=1", "B_c; extra == 'x'", "d.e; python_version > '3'"]) == {"a", "d-e"}


def test_packages_are_those_of_the_layers():
    streets = packages_of(segmentation_network(encoder="mit_b0", encoder_options=TINY_MIT))
    assert {"monai", "torch", "transformers"} <= set(streets)
    assert "dacal-med" not in streets
    assert packages_of(torch.nn.Linear(1, 1)) == ("torch",)


def test_without_the_extra_only_the_export_is_missing(run, tmp_path, monkeypatch):
    """The other commands do not import what writes and checks ONNX."""
    code = "import sys, dacal_med.cli; print(sorted({'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(InputError, match=r"found no onnxscript, .*pip install 'dacal-med\[export\]'"):
        exported(FIRST, run, tmp_path / "site").run()
    assert list(tmp_path.iterdir()) == []


def test_cases_listed_twice_are_refused(tmp_path):
    for name in ("a.png", "a_label.png"):
        (tmp_path / name).write_bytes(b"")
    entry = '{"image": "a.png", "label": "a_label.png"}'
    path = tmp_path / "datalist.json"
    path.write_text(f'{{"labels": {{"0": "background", "1": "x"}}, "cases": [{entry}, {entry}]}}')
    with pytest.raises(InputError, match=r"'cases' lists .*a.png more than once"):
        load_cases(tmp_path)
