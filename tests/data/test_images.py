import os
import pickle
import struct
import threading
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tenfold.data.images import (
    ArrayImages,
    FileImages,
    SubsetImages,
    cache_images,
    count_pixels,
    decode_image,
    file_table,
    resize_image,
    sniff_format,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_image(seed: int = 0, height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header announces a size, with almost no pixel data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(kind, options):
    pixels = random_image()
    decoded = decode_image(encode(Image.fromarray(pixels), kind, **options))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_colours_survive():
    decoded = decode_image(encode(Image.new("RGB", (16, 8), RED), "JPEG", quality=95))
    assert decoded.shape == (8, 16, 3)
    np.testing.assert_allclose(decoded, np.broadcast_to(RED, (8, 16, 3)), atol=3)


@pytest.mark.parametrize(
    ("kind", "expected"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", None), ("BMP", None)]
)
def test_format_is_told_by_first_bytes(kind, expected):
    assert sniff_format(encode(Image.new("RGB", (4, 4)), kind)) == expected
    assert sniff_format(b"") is None


def test_exif_orientation_is_applied_once():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    decoded = decode_image(encode(Image.fromarray(pixels), "PNG", exif=exif))
    assert decoded.shape == (3, 2, 3)
    np.testing.assert_array_equal(decoded[0, 1], RED)


def test_grey_palette_and_one_bit_become_rgb():
    grey = Image.fromarray(np.array([[0, 100], [200, 255]], dtype=np.uint8))
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encode(grey, "PNG")), expected)
    palette = Image.new("P", (2, 1))
    palette.putpalette([*GREEN, *BLUE])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode_image(encode(palette, "PNG")), [[GREEN, BLUE]])
    np.testing.assert_array_equal(decode_image(encode(Image.new("1", (1, 1), 1), "PNG")), [[[255, 255, 255]]])


def test_sixteen_bit_grey_keeps_its_high_byte():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255])


def test_transparent_pixels_are_laid_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decode_image(encode(image, kind, **options)), [[(255, 255, 255), RED]])


def test_cmyk_jpeg_becomes_rgb():
    decoded = decode_image(encode(Image.new("RGB", (16, 16), BLUE).convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(decoded[8, 8], BLUE, atol=6)


def test_jpeg_with_a_second_image_gives_the_main_one():
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    decoded = decode_image(encode(first, "MPO", save_all=True, append_images=[second], quality=95))
    np.testing.assert_allclose(decoded[4, 4], RED, atol=4)


def animation(kind: str) -> bytes:
    return encode(
        Image.fromarray(random_image(0)), kind, save_all=True, append_images=[Image.fromarray(random_image(1))]
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello, this is text", "must be JPEG, PNG or WEBP"),
        (encode(Image.new("RGB", (4, 4)), "GIF"), "must be JPEG, PNG or WEBP"),  # whatever name it is sent under
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "must be JPEG, PNG or WEBP"),
        (animation("PNG"), "PNG is animated"),
        (animation("WEBP"), "WEBP is animated"),
        (png_of_size(5000, 5000), "5000 x 5000 pixels, more than the limit of 16000000"),
        (png_of_size(30_000, 30_000), "more pixels than the limit"),  # beyond Pillow's own hard limit
        (png_of_size(4, 4), "truncated or damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged"),
        (b"\xff\xd8\xff" + b"\0" * 40, "damaged"),
        (b"RIFF\0\0\0\0WEBP" + b"\0" * 40, "damaged"),
        (encode(Image.fromarray(random_image()), "JPEG") + b"\xff\xda" * 200, "scans"),
    ],
)
def test_refusals_are_one_clear_sentence(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
    assert " object at 0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_cut_is_refused(kind):
    data = encode(Image.fromarray(random_image(height=40, width=40)), kind)
    for length in range(0, len(data) - 20, max(1, len(data) // 40)):
        with pytest.raises(ValueError, match="image"):
            decode_image(data[:length])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on broken EXIF
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_bytes_decode_or_raise_a_value_error_and_nothing_else(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = np.frombuffer(encode(Image.fromarray(random_image()), kind, exif=exif), dtype=np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = data.copy()
        damaged[rng.integers(0, min(len(data), 150), 4)] = rng.integers(0, 256, 4)
        try:
            assert decode_image(damaged.tobytes()).shape[2] == 3
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_bomb_is_refused_without_decoding_it(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the pixels were decoded"))
    with pytest.raises(ValueError, match="more than the limit of 100"):
        decode_image(png_of_size(20, 12), max_pixels=100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_raised_limit_never_passes_pillows_own():
    with pytest.raises(ValueError, match=f"limit of {Image.MAX_IMAGE_PIXELS}"):
        decode_image(png_of_size(10_000, 9_000), max_pixels=10**9)


def test_resize_of_flat_and_of_equal_size():
    pixels = random_image(height=9, width=9)
    np.testing.assert_array_equal(resize_image(pixels, 9), pixels)
    flat = np.full((5, 11, 3), 77, dtype=np.uint8)
    np.testing.assert_array_equal(resize_image(flat, 4), np.full((4, 4, 3), 77))


def test_halving_averages_as_bilinear_with_antialiasing_does():
    # Triangle filter of support 2 around x = 0.5: weights 3 : 3 : 1 over pixels 0, 1, 2 (0.75, 0.75, 0.25).
    row = np.array([0, 70, 140, 210], dtype=np.uint8)
    image = np.repeat(np.repeat(row[None, :, None], 4, axis=0), 3, axis=2)
    assert resize_image(image, 2)[0, :, 0].tolist() == [50, 160]


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), dtype=np.uint8)])
def test_resize_refuses_other_arrays(bad):
    with pytest.raises(ValueError, match="uint8"):
        resize_image(bad, 4)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        resize_image(random_image(), 0)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)


def test_array_rows_come_in_the_order_asked_for(array):
    images = ArrayImages(array)
    rows = images.read([4, 0, 4])
    assert (images.in_memory, len(images)) == (True, 6)
    assert (rows.dtype, rows.shape, rows.is_contiguous()) == (torch.uint8, (3, 5, 5, 3), True)
    np.testing.assert_array_equal(rows.numpy(), array[[4, 0, 4]])
    rows.zero_()
    np.testing.assert_array_equal(images.read(np.array([4])).numpy(), array[[4]])  # a copy: the source is untouched
    assert images.read([]).shape == (0, 5, 5, 3)


@pytest.mark.parametrize("rows", [[6], [-1]])
def test_rows_that_are_not_there(array, rows):
    for source in (ArrayImages(array), SubsetImages(ArrayImages(array), range(6))):
        with pytest.raises(IndexError, match=r"0\.\.5"):
            source.read(rows)


def test_rows_that_are_no_integers(array):
    with pytest.raises(ValueError, match="integers"):
        ArrayImages(array).read([0.5])


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 4, 4, 4), (4, 4, 3)])
def test_array_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"uint8 \(N, S, S, 3\)"):
        ArrayImages(np.zeros(shape, dtype=np.uint8))


def test_memory_map_travels_as_its_path(array, tmp_path):
    big = np.tile(array, (200, 1, 1, 1))
    np.save(tmp_path / "a.npy", big)
    images = ArrayImages(np.load(tmp_path / "a.npy", mmap_mode="r"))
    data = pickle.dumps(images)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data).read([7, 1199]).numpy(), big[[7, 1199]])
    part = pickle.loads(pickle.dumps(ArrayImages(images.array[100:110])))
    np.testing.assert_array_equal(part.read([0, 9]).numpy(), big[[100, 109]])


def test_subset_maps_rows(array):
    subset = SubsetImages(ArrayImages(array), [5, 2])
    assert len(subset) == 2
    np.testing.assert_array_equal(subset.read([1, 0, 1]).numpy(), array[[2, 5, 2]])


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    files = []
    for row, (kind, shape) in enumerate([("PNG", (9, 12)), ("JPEG", (30, 7)), ("WEBP", (8, 8)), ("PNG", (40, 40))]):
        files.append(tmp_path / f"{row}.{kind.lower()}")
        files[-1].write_bytes(encode(Image.fromarray(random_image(row, *shape)), kind))
    return files


def test_files_give_what_serving_gives(paths):
    images = FileImages(paths, 16, num_workers=2)
    expected = [resize_image(decode_image(paths[row].read_bytes()), 16) for row in (3, 1, 1, 0)]
    assert (images.in_memory, len(images)) == (False, 4)
    np.testing.assert_array_equal(images.read([3, 1, 1, 0]).numpy(), np.stack(expected))


def test_files_survive_pickling_and_forking(paths):
    images = FileImages(paths, 8, num_workers=2)
    before = images.read([0, 2])
    assert torch.equal(pickle.loads(pickle.dumps(images)).read([0, 2]), before)
    child = os.fork()
    if child == 0:  # the parent's decoding threads do not exist here
        os._exit(0 if torch.equal(images.read([0, 2]), before) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_bad_files_are_named(paths, tmp_path):
    images = FileImages([*paths, tmp_path / "gone.jpg"], 8)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    with pytest.raises(ValueError, match=r"3\.png.*truncated"):
        images.read([0, 3])
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        images.read([4])


@pytest.mark.parametrize(("name", "value"), [("image_size", 0), ("num_workers", 0), ("max_pixels", 0)])
def test_numbers_of_file_images_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        FileImages([], **{"image_size": 8, name: value})


def test_file_table_lists_sizes_and_names_what_is_missing(paths, tmp_path):
    sizes, times = file_table(paths)
    assert sizes.tolist() == [path.stat().st_size for path in paths]
    assert times.tolist() == [path.stat().st_mtime_ns for path in paths]
    with pytest.raises(ValueError, match=r"2 of 6 .*first: .*nowhere"):
        file_table([*paths, tmp_path / "nowhere" / "x.jpg", tmp_path / "x.jpg"])
    assert file_table([tmp_path / "x.jpg", paths[0]], allow_missing=True)[0].tolist() == [-1, sizes[0]]


def test_cache_holds_what_decoding_gives_and_is_built_once(paths, tmp_path, monkeypatch):
    files = FileImages(paths, 16)
    cached = cache_images(files, tmp_path / "cache", progress=False)
    assert cached.in_memory
    assert torch.equal(cached.read([2, 0]), files.read([2, 0]))
    monkeypatch.setattr(FileImages, "read_into", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(cache_images(files, tmp_path / "cache", progress=False).read([1]), cached.read([1]))


def test_cache_is_keyed_by_content_and_size(paths, tmp_path):
    def build(size: int) -> torch.Tensor:
        return cache_images(FileImages(paths, size), tmp_path / "cache", progress=False).read([0])

    before = build(16)
    assert build(8).shape == (1, 8, 8, 3)
    paths[0].write_bytes(encode(Image.new("RGB", (9, 12), GREEN), "PNG"))
    after = build(16)
    assert not torch.equal(before, after)
    assert (after == torch.tensor(GREEN)).all()


def test_a_failed_build_leaves_nothing_and_a_killed_one_is_swept_up(paths, tmp_path):
    folder = tmp_path / "cache"
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[:100])
    files = FileImages(paths, 16)
    with pytest.raises(ValueError, match=r"3\.png"):
        cache_images(files, folder, progress=False)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]

    paths[3].write_bytes(whole)
    target = Path(cache_images(files, folder, progress=False).array.filename)
    target.rename(folder / f"{target.name}.abc.partial")  # what a kill leaves behind
    cache_images(files, folder, progress=False)
    assert not list(folder.glob("*.partial"))
    assert target.exists()


def test_builders_at_the_same_time_decode_once(paths, tmp_path, monkeypatch):
    calls = []
    read_into = FileImages.read_into

    def counting(self, out, rows):
        calls.append(len(out))
        read_into(self, out, rows)

    monkeypatch.setattr(FileImages, "read_into", counting)
    files = [FileImages(paths, 16) for _ in range(4)]
    threads = [
        threading.Thread(target=cache_images, args=(each, tmp_path / "cache"), kwargs={"progress": False})
        for each in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [4]


def test_full_disk_is_said_before_decoding(paths, tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    monkeypatch.setattr(FileImages, "read_into", lambda *_: pytest.fail("decoded"))
    with pytest.raises(OSError, match="no room for a cache of"):
        cache_images(FileImages(paths, 16), tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").glob("*.partial"))


def with_blocks(kind: str, count: int) -> bytes:
    """A small image with so many empty chunks or segments more."""
    data = encode(Image.new("RGB", (4, 4)), kind)
    if kind == "JPEG":
        return data[:2] + b"\xff\xe1\x00\x04ab" * count + data[2:]
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return data[:33] + chunk * count + data[33:]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_thousands_of_chunks_or_segments_are_refused_unread(kind, monkeypatch):
    assert decode_image(with_blocks(kind, 9_000)).shape == (4, 4, 3)
    assert decode_image(with_blocks(kind, 10) + b"\0" * 200_000).shape == (4, 4, 3)  # what follows the end is ignored
    data = with_blocks(kind, 1_000_000)
    monkeypatch.setattr(Image, "open", None)
    assert count_pixels(data) == 0
    with pytest.raises(ValueError, match=f"the {kind} must have at most 10000"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_blocks_of_wrong_lengths_end_the_count(kind):
    start = with_blocks(kind, 3)
    for cut in range(len(start)):
        for data in (start[:cut], start[:cut] + b"\xff" * 40, start[:cut] + b"\0" * 40):
            told = ""
            try:
                decode_image(data)
            except ValueError as error:
                told = str(error)
            assert "must have at most" not in told
