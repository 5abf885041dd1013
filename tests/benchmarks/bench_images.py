"""Images per second: ``FileImages`` and its cache against a plain loop over the same files, in one run.

``python -m tests.benchmarks.bench_images [--num-images 600] [--image-size 448] [--num-workers 8]``
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tenfold.data.images import FileImages, cache_images


def write_images(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of COCO's usual size; smooth noise, so that they compress like photographs (about 90 kB each)."""
    rng = np.random.default_rng(0)
    paths = []
    for row in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480), Image.BICUBIC)
        noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (480, 640, 1))
        paths.append(folder / f"{row:06d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=85)
    return paths


def plain_loop(paths: list[Path], size: int) -> torch.Tensor:
    """Read like a typical dataset class: open, convert, resize and stack, one image at a time."""
    images = [Image.open(path).convert("RGB").resize((size, size), Image.BILINEAR) for path in paths]
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def rate(read: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for rows in batches:
        read(rows)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=600)
    parser.add_argument("--image-size", type=int, default=448)
    parser.add_argument("--num-workers", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), args.num_images)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        print(f"{len(paths)} JPEGs of 640 x 480, {kilobytes:.0f} kB each, to {args.image_size} pixels, batches of 64")
        batches = np.array_split(np.random.default_rng(0).permutation(len(paths)), max(1, len(paths) // 64))
        files = FileImages(paths, args.image_size, num_workers=args.num_workers)
        files.read(range(8))  # starts the threads
        baseline = rate(lambda rows: plain_loop([paths[row] for row in rows], args.image_size), batches)
        threaded = rate(files.read, batches)
        start = time.perf_counter()
        cached = cache_images(files, Path(folder) / "cache", progress=False)
        building = len(paths) / (time.perf_counter() - start)
        reading = rate(cached.read, batches)
        for name, value in (
            ("plain loop", baseline),
            (f"FileImages, {args.num_workers} threads", threaded),
            ("building the cache", building),
            ("reading the cache", reading),
        ):
            print(f"{name:26s} {value:9.0f} images/s   {value / baseline:6.2f} x")


if __name__ == "__main__":
    main()
