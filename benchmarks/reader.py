"""How fast ImageReader reads JPEGs of 256 x 256 pixels: `python -m benchmarks.reader [--json FILE]`.

Each line is the best of several rounds: images per second, and milliseconds of CPU time per image, which
other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import PIL
from PIL import Image

from dagnn.data import ImageReader

SIZE = 256
AVERAGE = (123.68, 116.779, 103.939)
USUAL = {"resize": (224, 224), "crop_location": "random", "flip": True, "subtract_average": AVERAGE}
RECIPES = {
    "crop 224, flip": USUAL | {"crop_size": 224 / 256},
    "+ scale, aspect": USUAL | {"crop_size": (0.5, 1), "crop_anisotropy": (3 / 4, 4 / 3)},
    "+ colours": USUAL
    | {"crop_size": (0.5, 1), "crop_anisotropy": (3 / 4, 4 / 3)}
    | {"brightness": 10, "contrast": 0.4, "saturation": 0.4},
}


def photographs(rng: np.random.Generator) -> list[np.ndarray]:
    """A few large pictures: photographs if scikit-image is here, else smooth noise."""
    try:
        from skimage import data
    except ImportError:
        coarse = rng.integers(0, 256, (3, 16, 24, 3)).astype(np.uint8)
        return [np.asarray(Image.fromarray(c).resize((600, 400), Image.Resampling.BICUBIC)) for c in coarse]
    return [data.astronaut(), data.chelsea(), data.coffee()]


def draw(folder: Path, n: int) -> list[str]:
    """`n` JPEGs of quality 90: parts of photographs with the noise of a sensor."""
    rng = np.random.default_rng(0)
    pictures = photographs(rng)
    paths = [str(folder / f"{k:05}.jpg") for k in range(n)]
    for k, path in enumerate(paths):
        picture = pictures[k % len(pictures)]
        top, left = (rng.integers(length - SIZE + 1) for length in picture.shape[:2])
        noise = rng.normal(0, 4, (SIZE, SIZE, 3))
        pixels = picture[top : top + SIZE, left : left + SIZE] + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def decode(paths: list[str]) -> None:
    """What no reader that uses Pillow can do without."""
    for path in paths:
        with Image.open(path) as picture:
            picture.load()


def measured(work: Callable[[], object], n: int, rounds: int) -> dict[str, float]:
    """Images per second and CPU milliseconds per image of the best rounds."""
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = perf_counter(), process_time()
        work()
        walls.append(perf_counter() - wall)
        cpus.append(process_time() - cpu)
    return {"images_per_second": n / min(walls), "cpu_ms_per_image": 1000 * min(cpus) / n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()

    results = []
    with TemporaryDirectory() as folder:
        paths = draw(Path(folder), options.images)

        def record(recipe: str, threads: int, work: Callable[[], object]) -> None:
            figures = measured(work, len(paths), options.rounds)
            results.append({"recipe": recipe, "threads": threads, **figures})
            rate, cpu = figures.values()
            print(f"{recipe:18} threads {threads:2}  {rate:7.0f} images/s  {cpu:6.2f} ms of CPU an image")

        record("Pillow alone", 1, lambda: decode(paths))
        for recipe, changes in RECIPES.items():
            for threads in options.threads:
                reader = ImageReader(**changes, num_threads=threads)
                record(recipe, threads, lambda reader=reader: reader(paths, np.random.default_rng(0)))

    if options.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        versions = {"numpy": np.__version__, "pillow": PIL.__version__}
        options.json.write_text(json.dumps({**machine, **versions, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
