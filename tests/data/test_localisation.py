"""Localisation data: checks, lazily read masks, resizing of boxes and masks."""

from dataclasses import replace

import numpy as np
import pytest

from tenfold.data.catalog import DATA, load_localisation
from tenfold.data.images import ArrayImages
from tenfold.data.localisation import (
    ArrayMasks,
    CueTruth,
    LocalisationData,
    LocalisationSplit,
    ResizedMasks,
    check_superclasses,
    nearest_pixels,
    scale_boxes,
)
from tenfold.metrics.localisation.boxes import resize_box
from tenfold.types import Preprocessing

SIDE = 8


def boxes_of(*boxes: list[list[int]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(each, dtype=np.int64) for each in boxes)


def split(num: int = 3, **changes) -> LocalisationSplit:
    truth = {
        "images": ArrayImages(np.zeros((num, SIDE, SIDE, 3), dtype=np.uint8)),
        "labels": np.arange(num, dtype=np.int64) % 2,
        "boxes": boxes_of(*[[[0, 1, 3, 4], [2, 2, SIDE, SIDE]]] * num),
        "masks": np.tile(np.array([0, 1, 255, 0], dtype=np.uint8), (num, SIDE, SIDE // 4)),
    }
    return LocalisationSplit(**(truth | changes))


def data(**changes) -> LocalisationData:
    parts = {
        "name": "toy",
        "classes": ("even", "odd"),
        "train": split(boxes=None, masks=None),
        "val": split(),
        "test": split(),
        "image_size": SIDE,
        "fingerprint": "0",
        "superclasses": {0: (0, 1), 1: (0, 1)},
        "cues": cues(),
    }
    return LocalisationData(**(parts | changes))


def cues(num: int = 3, **changes) -> CueTruth:
    truth = {
        "class_attribute_percent": np.array([[0.0, 60.0, 100.0], [10.0, 40.0, 0.0]]),
        "attribute_names": ("a", "b", "c"),
        "part_ids": tuple(np.array([2, 15]) for _ in range(num)),
        "part_xy": tuple(np.zeros((2, 2)) for _ in range(num)),
        "image_wh": np.full((num, 2), 9),
        "foregrounds": ArrayMasks(np.ones((num, SIDE, SIDE), dtype=np.uint8)),
    }
    return CueTruth(**(truth | changes))


def test_masks_in_memory_and_in_a_source_read_alike():
    part = split()
    lazy = replace(part, masks=ArrayMasks(part.masks))
    for each in (part, lazy):
        read = each.read_masks([2, 0])
        assert (read.shape, read.dtype) == ((2, SIDE, SIDE), np.uint8)
        np.testing.assert_array_equal(read, part.masks[[2, 0]])
    read[:] = 7
    assert part.masks.max() == 255  # what is read is a copy
    assert data(test=lazy).splits()["test"] is lazy
    with pytest.raises(ValueError, match="this part has no masks"):
        split(masks=None).read_masks([0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(3, dtype=np.int32)}, r"labels must be int64 of shape \(3,\), .* got int32"),
        ({"boxes": boxes_of([[0, 0, 1, 1]])}, "boxes must be as many as the 3 images, got 1"),
        ({"masks": np.zeros((2, SIDE, SIDE), dtype=np.uint8)}, "masks must be as many as the 3 images, got 2"),
        ({"masks": np.zeros((3, SIDE, 4), dtype=np.uint8)}, r"masks must be uint8 \(N, S, S\), got uint8 \(3, 8, 4\)"),
        (
            {"masks": np.full((3, SIDE, SIDE), 2, dtype=np.uint8)},
            r"masks must hold only 0, 1 and 255 \(ignored\), got 2",
        ),
        ({"boxes": boxes_of(*[[[3, 0, 2, 1]]] * 3)}, r"boxes\[0\] must have 0 <= x0 <= x1"),
        ({"boxes": boxes_of(*[[[0, -1, 2, 1]]] * 3)}, r"boxes\[0\] must have 0 <= x0 <= x1"),
        ({"boxes": (np.zeros((0, 4), dtype=np.int64),) * 3}, r"boxes\[0\] must be int64 \(n, 4\) with n at least 1"),
        ({"boxes": (np.zeros((1, 4)),) * 3}, r"boxes\[0\] must be int64 .*got float64"),
    ],
)
def test_a_part_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        split(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "toy has no classes"),
        ({"classes": ("a", "")}, "the name of class 1 is empty"),
        ({"classes": ("a", "a")}, "names the class 'a' twice"),
        ({"classes": ("one",)}, r"train labels must lie in 0\.\.0, got 0\.\.1"),
        ({"train": split(1)}, "1 of 2 classes have no training image, first: 'odd'"),
        ({"test": split(0, boxes=None)}, "the test part holds no image"),
        ({"val": split(boxes=None, masks=None)}, "the val part has neither boxes nor masks"),
        ({"image_size": SIDE - 1}, "boxes of val image 0 must begin within and end at most at 7"),
        ({"image_size": SIDE + 1}, "val masks must have the side of the images, 9, got 8"),
        ({"superclasses": {0: (0,)}}, "superclasses must map class 1 to a group that holds it, got None"),
        ({"cues": cues(2)}, "cues must be those of the 3 test images, got 2"),
        ({"cues": cues(class_attribute_percent=np.ones((3, 3)))}, "a row for each of 2 classes, got 3"),
    ],
)
def test_a_data_set_is_checked(changes, message):
    assert data().cues is not None
    with pytest.raises(ValueError, match=message):
        data(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attribute_names": ("a",)}, r"must be \(C, A\) with A = 1 names, got \(2, 3\)"),
        ({"class_attribute_percent": np.full((2, 3), 101.0)}, r"percentages must lie in 0\.\.100"),
        ({"class_attribute_percent": np.full((2, 3), np.nan)}, r"percentages must lie in 0\.\.100"),
        ({"image_wh": np.ones((2, 2))}, "must have one length"),
        ({"image_wh": np.zeros((3, 2))}, "image_wh must be at least 1, got 0"),
        ({"part_xy": (np.zeros((1, 2)),) * 3}, r"part_ids\[0\] must be \(V,\) and part_xy \(V, 2\)"),
        ({"part_ids": (np.array([2, 16]),) * 3}, r"part_ids\[0\] must ascend within 1\.\.15, got \[2, 16\]"),
        ({"part_ids": (np.array([3, 3]),) * 3}, r"part_ids\[0\] must ascend"),
    ],
)
def test_cues_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        cues(**changes)


def test_superclasses_divide_the_classes():
    check_superclasses({0: (0, 2), 1: (1,), 2: (0, 2)}, 3, "here")
    with pytest.raises(ValueError, match=r"here: superclasses must partition the classes 0\.\.2, but class 0"):
        check_superclasses({0: (0, 2), 1: (0, 1), 2: (0, 2)}, 3, "here")
    with pytest.raises(ValueError, match=r"here: superclasses must partition the classes 0\.\.1, got 5"):
        check_superclasses({0: (0, 5), 1: (1,)}, 2, "here")


def test_boxes_scale_as_the_metric_scales_them():
    boxes = np.array([[499, 0, 500, 375], [10, 20, 333, 217], [0, 0, 0, 0]])
    expected = [resize_box(box, (500, 375), (224, 224)) for box in boxes]
    np.testing.assert_array_equal(scale_boxes(boxes, (500, 375), 224), expected)
    np.testing.assert_array_equal(scale_boxes(boxes, np.tile([500, 375], (3, 1)), 224), expected)


def test_masks_resize_to_the_nearest_pixel():
    # By hand: 5 pixels shown by 3 are 0, 5/3 and 10/3 cut off; 2 pixels shown by 5 are 0, .4, .8, 1.2, 1.6 cut off.
    assert nearest_pixels(5, 3).tolist() == [0, 1, 3]
    assert nearest_pixels(2, 5).tolist() == [0, 0, 0, 1, 1]
    masks = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    resized = ResizedMasks(ArrayMasks(masks), 2)
    np.testing.assert_array_equal(resized.read([1]), [[[16, 18], [24, 26]]])
    assert len(resized) == 2
    with pytest.raises(ValueError, match="size must be at least 1"):
        ResizedMasks(ArrayMasks(masks), 0)


def test_data_without_places_is_refused():
    with pytest.raises(
        ValueError, match=r"data must be one of handwriting, cub_.* got 'coco', which has neither boxes"
    ):
        load_localisation(DATA["coco"].config_class()(name="coco", root="/data"), Preprocessing(image_size=8))
