"""Drawn shapes: pictures to learn from where no photos are at hand.

Every picture shows one of ten shapes, turned, squeezed, coloured and placed at random, on a darker ground.
Both have clouds of the same kind, so that only the outline tells what it is. Needs Pillow.

    python examples/shapes.py OUT.png       # shows them, a column for each shape
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

from dagnn.images import write_image

CONTRAST = 50  # by which the shape is brighter than the ground, at least
CLOUDS, NOISE = 16, 5  # standard deviations
FINE = 4  # outlines are drawn this much larger, for smooth edges


# ---- outlines: corners (x, y) of polygons around (0, 0), with a radius of 1


BAR = 0.3  # half the width of those of arrow and cross


def rotation(angle):
    """What turns rows of corners, by corners @ rotation(angle)."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def arc(start, end, radius=1.0, x=0.0):
    """Points of a circle around (x, 0) between two angles in degrees."""
    angle = np.radians(np.linspace(start, end, 32))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) + (x, 0)


def star(points, inner):
    """A star, whose notches are at the radius `inner`."""
    angle = np.pi / points * np.arange(2 * points)
    radius = np.where(np.arange(2 * points) % 2, inner, 1)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def cross():
    quarter = np.array([(1, -BAR), (1, BAR), (BAR, BAR)])
    return np.concatenate([quarter @ rotation(turn) for turn in np.arange(4) * np.pi / 2])


def heart():
    t = np.linspace(0, 2 * np.pi, 48)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, y + 2], axis=1) / 17


OUTLINES = {
    "arrow": [(-1, -BAR), (0, -BAR), (0, -0.85), (1, 0), (0, 0.85), (0, BAR), (-1, BAR)],
    "circle": arc(0, 360),
    "crescent": [*arc(50, 310), *arc(285, 75, radius=0.8, x=0.43)],
    "cross": cross(),
    "heart": heart(),
    "hourglass": [(-0.7, -0.9), (0.7, -0.9), (0.15, 0), (0.7, 0.9), (-0.7, 0.9), (-0.15, 0)],
    "ring": [*arc(0, 360), *arc(360, 0, radius=0.55)],
    "square": [(0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8), (0.8, -0.8)],
    "star": star(5, inner=0.42),
    "triangle": arc(90, 450)[[0, 11, 21]] * 1.1,
}
NAMES = list(OUTLINES)


# ---- pictures


def pictures(rng, count, size=32):
    """`count` pictures (count, 3, size, size), uint8, and what they show, as indices of NAMES."""
    labels = rng.permutation(np.arange(count) % len(NAMES))
    images = [picture(rng, NAMES[label], size, size) for label in labels]
    return np.stack(images).transpose(0, 3, 1, 2), labels


def picture(rng, name, height, width):
    """A picture (height, width, 3), uint8, of the shape `name`."""
    ground, shape = colours(rng)
    ground, shape = clouds(rng, ground, height, width), clouds(rng, shape, height, width)
    image = Image.composite(shape, ground, mask(rng, name, height, width))
    noisy = np.asarray(image) + rng.normal(0, NOISE, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def colours(rng):
    """Two colours that can be told apart, the darker one first."""
    while True:
        first, second = rng.uniform(30, 225, (2, 3))
        if second.mean() - first.mean() > CONTRAST:
            return first, second


def clouds(rng, colour, height, width):
    """A colour that changes smoothly from place to place."""
    coarse = np.clip(colour + rng.normal(0, CLOUDS, (5, 5, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def mask(rng, name, height, width):
    """Where the shape is, from 0 to 255."""
    radius = min(height, width) * rng.uniform(0.28, 0.45)
    turned = np.asarray(OUTLINES[name]) @ rotation(rng.uniform(0, 2 * np.pi))
    corners = turned * (1, rng.uniform(0.75, 1)) @ rotation(rng.uniform(0, 2 * np.pi))
    centre = rng.uniform(radius, (width - radius, height - radius))
    large = Image.new("L", (FINE * width, FINE * height))
    ImageDraw.Draw(large).polygon([tuple(p) for p in FINE * (centre + radius * corners)], fill=255)
    return large.reduce(FINE)


def main():
    rng = np.random.default_rng(0)
    rows = [np.hstack([picture(rng, name, 64, 64) for name in NAMES]) for _ in range(6)]
    write_image(sys.argv[1], np.vstack(rows))


if __name__ == "__main__":
    main()
