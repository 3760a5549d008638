"""Segmentation: what every pixel belongs to, by a fully convolutional network with skip connections.

    python examples/segmentation.py [--out DIR] [--seed N]

Images show circles, squares and triangles, turned and coloured at random, over a background with a texture
of the same kind: only the outline tells what a pixel belongs to. The network is FCN-8s (Long et al. 2015,
`dagnn.zoo.fcn_8s`) in small: classes are scored at 1/8 of the image's size, brought to 1/4 and added to the
scores of a finer layer, once more at 1/2, and brought to full size by interpolation. Pixels on an outline
have label -1 and don't count. Crops make it take images of any size.

It is measured by pixel accuracy and mean intersection over union, which a layer of our own counts, as
MatConvNet-FCN's SegmentationAccuracy does. The network written is deployed, and reads photos as they are:

    dagnn run experiments/segmentation/segmentation.h5 photo.png --save classes.png
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import dagnn
from dagnn import zoo
from dagnn.data import Arrays
from dagnn.train import SGD, Trainer

REACH = 0.90  # mean intersection over union
CLASSES = ["background", "circle", "square", "triangle"]
SIZE = 64
TRAIN, VAL = 1000, 200
EPOCHS = 10
AVERAGE, SPREAD = 128, 64  # of the pixels, roughly


# ---- the images


def scene(rng, size, number):
    """An image (3, size, size) of pixels 0..255 with `number` shapes; their classes; each one's distances.

    Distances (number, size, size) are those to the shape's outline, in pixels, negative inside.
    """
    image, ground = texture(rng, size)
    places, classes, distances = [], rng.integers(1, len(CLASSES), number), []
    for c in classes:
        place = free_place(rng, size, places)
        places.append(place)
        distances.append(outline(CLASSES[c], *place, rng.uniform(0, 2 * np.pi), size))
        pattern, _ = texture(rng, size, unlike=ground)
        image += np.clip(0.5 - distances[-1], 0, 1) * (pattern - image)
    image += rng.normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), classes, np.stack(distances)


def texture(rng, size, unlike=None):
    """A colour with waves in it, as pixels and by itself, that differs visibly from the colour `unlike`."""
    colour = rng.uniform(30, 225, 3)
    while unlike is not None and abs(colour - unlike).max() < 80:
        colour = rng.uniform(30, 225, 3)
    waves = np.zeros((3, size, size))
    for _ in range(3):
        frequency, phase = rng.normal(0, 0.4, 2), rng.uniform(0, 2 * np.pi)
        wave = np.sin(np.tensordot(frequency, np.indices((size, size)), 1) + phase)
        waves += rng.normal(0, 9, 3)[:, None, None] * wave
    return colour[:, None, None] + waves, colour


def free_place(rng, size, places):
    """Row, column and radius of a shape that touches no other."""
    while True:
        radius = size * rng.uniform(0.13, 0.27)
        y, x = rng.uniform(radius, size - radius, 2)
        if all(np.hypot(y - v, x - u) > radius + r for v, u, r in places):
            return y, x, radius


def outline(name, y, x, radius, angle, size):
    """The distance of every pixel to the outline of a shape."""
    v, u = np.indices((size, size)) - np.array([y, x])[:, None, None]
    if name == "circle":
        return np.hypot(v, u) - 0.85 * radius
    corners = {"square": 4, "triangle": 3}[name]
    sides = angle + 2 * np.pi * np.arange(corners)[:, None, None] / corners
    return (v * np.sin(sides) + u * np.cos(sides)).max(axis=0) - radius * np.cos(np.pi / corners)


def make_data(seed):
    """Images of one to three shapes, and the class of every pixel, -1 on outlines."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(TRAIN + VAL):
        image, classes, distances = scene(rng, SIZE, rng.integers(1, 4))
        label = np.max((distances < 0) * classes[:, None, None], axis=0)
        label[abs(distances).min(axis=0) < 0.8] = -1
        images.append(image)
        labels.append(label[None])
    return Arrays({"input": np.stack(images), "label": np.stack(labels)}, [1] * TRAIN + [2] * VAL)


def prepared(batch, rng):
    """The images as the network trains on them: numbers around 0, in training mirrored at random."""
    images, labels = (batch["input"].astype(np.float32) - AVERAGE) / SPREAD, batch["label"]
    if rng is not None:
        for axis in (2, 3):
            if rng.random() < 0.5:
                images, labels = np.flip(images, axis), np.flip(labels, axis)
    return {"input": images, "label": labels}


# ---- the network


def build():
    """The network, with its loss and the count of what it sees right."""
    net = dagnn.DagNN()
    net.meta["init"] = {}
    half = add_conv(net, "input", "1", (24, 3, 4, 4), stride=2, pad=(1, 2, 1, 2))
    quarter = add_section(net, half, "2", [24, 48, 48])
    eighth = add_section(net, quarter, "3", [48, 64, 64, 64])
    scores = add_scores(net, eighth, "3", 64)
    scores = add_skip(net, scores, quarter, "2", 48)
    scores = add_skip(net, scores, half, "1", 24)
    add_upsampling(net, scores, "input", "prediction", "0")
    net.add_layer("objective", dagnn.Loss(), ["prediction", "label"], "objective")
    net.add_layer("accuracy", Accuracy(), ["prediction", "label"], "accuracy")
    return net


def add_section(net, x, index, channels):
    """Half the size, rounded up, then convolutions."""
    pooling = dagnn.Pooling(pool_size=2, stride=2, pad=(0, 1, 0, 1))
    net.add_layer(f"pool{index}", pooling, x, f"pool{index}")
    x = f"pool{index}"
    for k, (c, d) in enumerate(pairwise(channels), 1):
        x = add_conv(net, x, f"{index}_{k}", (d, c, 3, 3), pad=1)
    return x


def add_conv(net, x, name, size, **options):
    """A convolution with batch normalisation and ReLU."""
    net.add_layer(f"conv{name}", dagnn.Conv(size=size, has_bias=False, **options), x, f"conv{name}")
    net.add_layer(f"bn{name}", dagnn.BatchNorm(size[0]), f"conv{name}", f"bn{name}")
    net.add_layer(f"relu{name}", dagnn.ReLU(), f"bn{name}", f"relu{name}")
    return f"relu{name}"


def add_scores(net, x, index, channels):
    """A score per class, 0 to begin with."""
    net.add_layer(f"score{index}", dagnn.Conv(size=(len(CLASSES), channels, 1, 1)), x, f"score{index}")
    net.meta["init"][f"score{index}_filters"] = "zero"
    return f"score{index}"


def add_skip(net, scores, x, index, channels):
    """The `scores` twice as fine, and added to them those of the finer layer `x`."""
    skip = add_scores(net, x, index, channels)
    finer = add_upsampling(net, scores, skip, f"finer{index}", index)
    net.add_layer(f"sum{index}", dagnn.Sum(), [finer, skip], f"sum{index}")
    return f"sum{index}"


def add_upsampling(net, x, like, y, index):
    """`x` interpolated to twice its size and cut to that of `like`; the filters stay as they are."""
    n = len(CLASSES)
    twice = dagnn.ConvTranspose(size=(n, 1, 4, 4), has_bias=False, upsample=2, crop=1, num_groups=n)
    net.add_layer(f"upsample{index}", twice, x, f"upsample{index}")
    net.add_layer(f"crop{index}", dagnn.Crop(), [f"upsample{index}", like], y)
    net.meta["init"][f"upsample{index}_filters"] = "bilinear"
    net.freeze(f"upsample{index}_filters")
    return y


@dataclass
class Accuracy(dagnn.Loss):
    """The share of pixels seen right; what was seen as what in this epoch stays in the layer's state."""

    def forward(self, ctx, inputs, params):
        scores, labels = inputs
        seen = confusion(labels, scores.argmax(axis=1)[:, None])
        ctx.state["confusion"] = ctx.state.get("confusion", 0) + seen
        return [np.asarray(pixel_accuracy(seen), scores.dtype)]


def confusion(labels, seen):
    """How many pixels of class i were seen as class j; those with a negative label don't count."""
    n, counts = len(CLASSES), labels >= 0
    return np.bincount(n * labels[counts] + seen[counts], minlength=n * n).reshape(n, n)


def pixel_accuracy(seen):
    """The share of pixels that were seen right."""
    return np.trace(seen) / seen.sum()


def mean_iou(seen):
    """Intersection over union of the pixels of a class and those seen as it, in the mean over classes."""
    right = np.diag(seen)
    return np.mean(right / np.maximum(seen.sum(axis=0) + seen.sum(axis=1) - right, 1))


# ---- training, and what comes of it


def train(net, data, out, seed):
    """Train on the mean over pixels of the loss, which itself adds them up."""
    trainer = Trainer(
        net,
        SGD(momentum=0.9, weight_decay=0.0005),
        learning_rate=lambda time: 0.1 * (1 + np.cos(np.pi * time / EPOCHS)),
        batch_size=8,
        num_epochs=EPOCHS,
        der_outputs={"objective": 1 / SIZE**2},
        extract_stats=statistics,
        random_seed=seed,
        exp_dir=out,
        keep_last=1,
        layers={"Accuracy": Accuracy},
    )
    return trainer.fit(data.map(prepared))


def statistics(net):
    """Loss and accuracies of the epoch so far."""
    seen = net.state["accuracy"]["confusion"]
    loss = net.state["objective"]["average"]
    return {"loss": loss, "pixel accuracy": pixel_accuracy(seen), "mean IoU": mean_iou(seen)}


def deployed(net):
    """The network for photos: pixels are 0..255, so the first filters are made that much smaller."""
    net = net.deploy()
    first = net.params["conv1_filters"]
    first.value = first.value / SPREAD
    net.meta = {"classes": CLASSES, "normalization": {"averageImage": [AVERAGE] * 3}}
    return net


def look(net, images):
    """The class of every pixel (N, 1, H, W) in `images` (N, 3, H, W) of pixels 0..255."""
    read = dagnn.Preprocessor.from_meta(net.meta)
    x = read([image.transpose(1, 2, 0) for image in images])
    return net.eval({"input": x}, outputs="prediction")["prediction"].argmax(axis=1)[:, None]


def picture(images, labels, seen, path):
    """Images, what is in them, and what the network sees."""
    colours = ["#ffffff", "#22262e", "#e07a3f", "#2f8f83", "#5b6fc7"]
    figure = Figure(figsize=(10, 4.3), layout="constrained", dpi=90)
    grid = figure.subplots(3, len(images))
    for column, *maps in zip(grid.T, images, labels, seen, strict=True):
        column[0].imshow(maps[0].transpose(1, 2, 0))
        for axes, classes in zip(column[1:], maps[1:], strict=True):
            axes.imshow(classes[0] + 1, cmap=ListedColormap(colours), vmin=0, vmax=4, interpolation="nearest")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[:, 0], ("image", "truth", "seen"), strict=True):
        axes.set_ylabel(title)
    names = ["not counted", *CLASSES]
    patches = [Patch(fc=c, ec="#22262e", label=name) for c, name in zip(colours, names, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", default="experiments/segmentation")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    out = Path(options.out)
    for old in out.glob("net-epoch-*.h5"):
        old.unlink()

    data = make_data(options.seed)
    net = build()
    zoo.init_params(net, options.seed)
    train(net, data, out, options.seed)

    net = deployed(net)
    held_out = data.batch(data.val)
    seen = look(net, held_out["input"])
    counts = confusion(held_out["label"], seen)
    reached = float(mean_iou(counts))
    net.meta["accuracy"] = {"pixels": float(pixel_accuracy(counts)), "mean_iou": reached}
    net.save(out / "segmentation.h5")
    picture(held_out["input"][:8], held_out["label"][:8], seen[:8], out / "segmentation.png")
    print(f"{pixel_accuracy(counts):.1%} of the pixels of {VAL} held-out images are seen right.")
    print(f"Mean intersection over union {reached:.1%}, at least {REACH:.0%} wanted.")
    print(f"{out} has the deployed network, segmentation.h5, and what it sees, segmentation.png.")
    return int(reached < REACH)


if __name__ == "__main__":
    sys.exit(main())
