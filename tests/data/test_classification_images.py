import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from tenfold.data.images import ArrayImages, FileImages, ResizedImages, SubsetImages, cache_images, resize_image

WAYS = [(resize, how) for resize in ("stretch", "crop") for how in ("bilinear", "bicubic")]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    files = []
    for number, (height, width) in enumerate([(10, 16), (31, 9), (8, 8)]):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(random_image(height, width, number)).save(files[-1])
    return files


# Margins that are odd, whole, half of an odd number (rounded half to even), and images smaller than the size.
@pytest.mark.parametrize(
    "shape", [(48, 64), (65, 40), (40, 65), (33, 34), (32, 32), (32, 50), (7, 9), (9, 7), (100, 3)]
)
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_crop_is_torchvisions_resize_and_centre_crop(shape, how):
    image = random_image(*shape)
    theirs = Compose([Resize(32, InterpolationMode(how)), CenterCrop(32)])(Image.fromarray(image))
    np.testing.assert_array_equal(resize_image(image, 32, "crop", how), np.array(theirs))


def test_stretch_takes_the_interpolation():
    image = random_image(21, 13)
    expected = Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize_image(image, 8, interpolation="bicubic"), np.array(expected))
    assert (resize_image(image, 8, interpolation="bicubic") != resize_image(image, 8)).any()


def test_a_long_strip_is_cropped_without_being_resized_whole():
    strip = np.repeat(random_image(1, 4000), 2, axis=0)  # whole, it would be 32 x 64000
    theirs = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])(Image.fromarray(strip))
    for ours in (
        resize_image(strip, 32, "crop", "bicubic"),
        resize_image(strip.transpose(1, 0, 2), 32, "crop", "bicubic").transpose(1, 0, 2),
    ):
        # The same filter at coordinates in single precision: a value may round the other way.
        np.testing.assert_allclose(ours.astype(int), np.array(theirs).astype(int), atol=2)


@pytest.mark.parametrize("bad", [{"resize": "squash"}, {"interpolation": "nearest"}])
def test_unknown_ways_are_refused(bad, paths):
    message = "resize must be stretch or crop, interpolation bilinear or bicubic"
    with pytest.raises(ValueError, match=message):
        resize_image(random_image(4, 4), 2, **bad)
    with pytest.raises(ValueError, match=message):
        FileImages(paths, 8, **bad)
    with pytest.raises(ValueError, match=message):
        ResizedImages(FileImages(paths, 8), 8, **bad)


@pytest.mark.parametrize(("resize", "how"), WAYS)
def test_files_are_resized_as_asked(paths, resize, how):
    files = FileImages(paths, 8, resize=resize, interpolation=how, num_workers=2)
    expected = [resize_image(raw, 8, resize, how) for raw in files.read_raw([2, 0, 1])]
    np.testing.assert_array_equal(files.read([2, 0, 1]).numpy(), np.stack(expected))
    again = pickle.loads(pickle.dumps(files))
    assert torch.equal(again.read([1]), files.read([1]))


def test_raw_images_keep_their_sizes(paths):
    files = FileImages(paths, 8, num_workers=2)
    raw = files.read_raw([1, 0])
    assert [image.shape for image in raw] == [(31, 9, 3), (10, 16, 3)]
    np.testing.assert_array_equal(raw[0], random_image(31, 9, 1))
    subset = SubsetImages(files, [2, 1])
    np.testing.assert_array_equal(subset.read_raw([1])[0], raw[0])
    raw[0][:] = 0  # a copy of its own, to be written to
    with pytest.raises(IndexError, match=r"0\.\.2"):
        files.read_raw([3])


def test_a_cache_is_of_one_way_and_still_knows_the_originals(paths, tmp_path):
    caches = [
        cache_images(FileImages(paths, 8, resize=resize, interpolation=how), tmp_path / "cache", progress=False)
        for resize, how in WAYS
    ]
    assert len(list((tmp_path / "cache").glob("images-*.npy"))) == len(WAYS)
    for cached, (resize, how) in zip(caches, WAYS, strict=True):
        for images in (cached, pickle.loads(pickle.dumps(cached))):
            np.testing.assert_array_equal(
                images.read([1])[0].numpy(), resize_image(random_image(31, 9, 1), 8, resize, how)
            )
            np.testing.assert_array_equal(images.read_raw([1])[0], random_image(31, 9, 1))


def test_arrays_give_themselves_as_raw():
    array = np.stack([random_image(6, 6, seed) for seed in range(4)])
    raw = ArrayImages(array).read_raw([3, 0])
    np.testing.assert_array_equal(np.stack(raw), array[[3, 0]])
    with pytest.raises(ValueError, match="originals must be as many as the array's 4 images, got 3"):
        ArrayImages(array, ArrayImages(array[:3]))


def test_resized_source():
    array = np.stack([random_image(6, 6, seed) for seed in range(4)])
    images = ResizedImages(ArrayImages(array), 9, resize="crop", interpolation="bicubic")
    assert (len(images), images.in_memory) == (4, False)
    assert images.read([]).shape == (0, 9, 9, 3)
    np.testing.assert_array_equal(images.read([2, 1])[1].numpy(), resize_image(array[1], 9, "crop", "bicubic"))
    np.testing.assert_array_equal(images.read_raw([2])[0], array[2])
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        ResizedImages(ArrayImages(array), 0)
    with pytest.raises(IndexError):
        images.read([4])


def test_a_damaged_file_is_named_by_raw_reading_too(paths):
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"cannot decode .*1\.png"):
        FileImages(paths, 8).read_raw([0, 1])
