"""Outputs of a model as a code set."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from regiondh_d2.structures.model_outputs import codes_from_outputs
from regiondh_d2.structures.packed import unpack_codes


def make_output(image_code, scores=None):
    """A model's output with detections of these scores, the r-th of class r at (r, 0, 9, 9)."""
    code = torch.tensor(image_code, dtype=torch.bool)
    output = {"image_code": code, "image_activation": code * 0.5 + 0.25}
    if scores is not None:
        rows = torch.arange(len(scores))
        instances = Instances((9, 9))
        instances.pred_boxes = Boxes([[float(r), 0.0, 9.0, 9.0] for r in rows])
        instances.scores = torch.tensor(scores)
        instances.pred_classes = rows
        instances.pred_codes = rows[:, None] == torch.arange(3)
        output["instances"] = instances
    return output


def test_codes_from_outputs():
    codes = codes_from_outputs(
        [make_output([1, 0, 1], [0.9, 0.2, 0.3]), make_output([0, 0, 1], [0.1, 0.8])],
        image_ids=["a", "b"],
        file_names=["a.jpg", "b.jpg"],
        labels=[[2, 0], []],
        class_names=["x", "y", "z"],
        instance_min_score=0.3,
        dataset="some",
    )
    assert (codes.bits, codes.image_ids, codes.dataset) == (3, ["a", "b"], "some")
    np.testing.assert_array_equal(unpack_codes(codes.codes, 3), [[1, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(codes.activations, [[0.75, 0.25, 0.75], [0.25, 0.25, 0.75]])
    assert codes.activations.dtype == np.float16
    np.testing.assert_array_equal(codes.labels, [[1, 0, 1], [0, 0, 0]])
    found = codes.instances
    np.testing.assert_array_equal(found.image_index, [0, 0, 1])
    np.testing.assert_array_equal(found.classes, [0, 2, 1])
    np.testing.assert_array_equal(found.boxes[:, 0], [0, 2, 1])
    np.testing.assert_array_equal(unpack_codes(found.codes, 3), np.eye(3)[[0, 2, 1]])
    np.testing.assert_allclose(found.scores, [0.9, 0.3, 0.8])


def test_a_region_has_one_row_with_its_best_class():
    output = make_output([1], [0.4, 0.9, 0.5, 0.9, 0.35, 0.2])
    # Regions 7 (detections 0, 1 and 3), 2 (detections 2 and 4) and 5, which is below the score.
    output["instances"].pred_regions = torch.tensor([7, 7, 2, 7, 2, 5])
    output["instances"].pred_codes = torch.tensor([[1, 0], [1, 0], [0, 0], [1, 0], [0, 0], [1, 1]])
    named = {"image_ids": ["a"], "file_names": ["a.jpg"]}
    found = codes_from_outputs([output], **named).objects()
    np.testing.assert_array_equal(found.classes, [1, 2])
    np.testing.assert_allclose(found.scores, [0.9, 0.5])
    np.testing.assert_array_equal(found.boxes[:, 0], [1, 2])
    np.testing.assert_array_equal(unpack_codes(found.codes, 2), [[1, 0], [0, 0]])
    # Codes of classes, as IAH makes them: all of a region stay.
    output["instances"].pred_codes = torch.tensor([[1, 0], [0, 1], [0, 0], [0, 1], [0, 0], [1, 1]])
    found = codes_from_outputs([output], **named).objects()
    np.testing.assert_array_equal(found.classes, [0, 1, 2])


def test_codes_from_outputs_of_image_codes_alone():
    outputs = [make_output([1, 1])]
    names = {"image_ids": ["a"], "file_names": ["a.jpg"]}
    codes = codes_from_outputs(outputs, **names, activations=False)
    assert codes.instances is codes.labels is codes.activations is None
    with pytest.raises(ValueError, match="no image_code"):
        codes_from_outputs([{"instances": 1}], **names)


def test_features_are_kept_where_they_are_wanted():
    outputs = [{**make_output([1, 1]), "image_feature": torch.tensor([0.1, v])} for v in (1.5, 2)]
    names = {"image_ids": ["a", "b"], "file_names": ["a.jpg", "b.jpg"]}
    assert codes_from_outputs(outputs, **names).features is None
    features = codes_from_outputs(outputs, **names, features=True).features
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features, np.array([[0.1, 1.5], [0.1, 2]], np.float16))
    del outputs[1]["image_feature"]
    with pytest.raises(ValueError, match="gave no image_feature: use a model that has features"):
        codes_from_outputs(outputs, **names, features=True)


@pytest.mark.parametrize(
    "code", [[0.3, 0.8, 0.6], [-1.0, 1.0, 1.0], [float("nan"), 1.0, 0.0], [2, 0, 1]]
)
def test_what_is_no_code(code):
    """It would count as a code of ones. 0 and 1 of any type are bits."""
    names = {"image_ids": ["a"], "file_names": ["a.jpg"]}
    output = make_output([1, 0, 1], [0.9])
    for key, changed in (
        ("image_code", output | {"image_code": torch.tensor(code)}),
        ("pred_codes", make_output([1, 0, 1], [0.9])),
    ):
        if key == "pred_codes":
            changed["instances"].pred_codes = torch.tensor([code])
        with pytest.raises(ValueError, match=f"gave {key} with other values than 0 and 1"):
            codes_from_outputs([changed], **names)
    for kind in (torch.float32, torch.int64, torch.uint8):
        same = codes_from_outputs([output | {"image_code": output["image_code"].to(kind)}], **names)
        np.testing.assert_array_equal(unpack_codes(same.codes, 3), [[1, 0, 1]])


def test_codes_of_other_lengths_and_labels_of_no_class():
    names = {"image_ids": ["a", "b"], "file_names": ["a.jpg", "b.jpg"]}
    with pytest.raises(ValueError, match=r"image_code of shapes \(2,\) and \(3,\), not of one"):
        codes_from_outputs([make_output([1, 0, 1]), make_output([1, 0])], **names)
    outputs = [make_output([1]), make_output([0])]
    for label in (-1, 2):
        with pytest.raises(ValueError, match=f"b has label {label}, and there are 2 classes"):
            codes_from_outputs(outputs, **names, labels=[[0], [label]], class_names=["x", "y"])
