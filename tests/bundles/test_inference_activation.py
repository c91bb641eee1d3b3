# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether inference takes a softmax is what the model's own record says, whatever the numbers are."""

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from tests.bundles.builders import configs


def workflow_of(bundle, folder, dataset, record):
    """The inference of a model with a record beside its weights."""
    (folder / "model.json").write_text(json.dumps(record))
    workflow = ConfigWorkflow(
        config_file=configs("inference", bundle=bundle),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle.folder),
        dataset_dir=dataset,
        output_dir=str(folder / "out"),
        model_file=str(folder / "model.pt"),
        handlers=[],
        **bundle.tiny,
    )
    workflow.initialize()
    return workflow.parser.get_parsed_content


@pytest.mark.parametrize("outputs", ["logits", None, "probabilities"])
def test_softmax_by_the_record(bundle, outputs, phantom_of, tmp_path):
    record = {"num_classes": len(bundle.classes), **({} if outputs is None else {"outputs": outputs})}
    get = workflow_of(bundle, tmp_path, phantom_of(bundle), record)
    transforms = get("postprocessing").transforms
    # Numbers that sum to 1 over channels in every voxel, and may be either.
    given = torch.zeros(len(bundle.classes), *[4] * bundle.spatial_dims)
    given[0], given[1] = 0.75, 0.25
    wanted = given if outputs == "probabilities" else given.softmax(dim=0)
    assert torch.equal(transforms[0]({"pred": MetaTensor(given)})["pred"].as_tensor(), wanted)
    # The bundle's own run takes it in each window, before windows are averaged, and no second time.
    assert [type(t) for t in get("evaluator#postprocessing").transforms] == [type(t) for t in transforms[1:]]
    assert sum(isinstance(transform, SaveImaged) for transform in transforms) == 2
    image = torch.rand(1, bundle.in_channels, *[bundle.roi] * bundle.spatial_dims)
    with torch.no_grad():
        network = get("network").eval()
        found, logits = get("evaluator#network").eval()(image), network(image)
    assert torch.equal(found, logits if outputs == "probabilities" else logits.softmax(dim=1))


def test_another_record_is_refused(bundle, phantom_of, tmp_path):
    get = workflow_of(bundle, tmp_path, phantom_of(bundle), {"num_classes": len(bundle.classes), "outputs": "scores"})
    with pytest.raises(Exception, match="softmax") as caught:
        get("postprocessing")
    assert "KeyError" in repr(caught.value.__cause__) or isinstance(caught.value, KeyError)
