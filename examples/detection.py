"""Detection: which shapes are in an image, and where, by a network in the way of Fast R-CNN.

    python examples/detection.py [--out DIR] [--seed N]

Images of 96x96 pixels show one to three circles, squares and triangles (those of segmentation.py). A small
trunk of convolutions looks at the whole image once; `ROIPooling` cuts out of its features what belongs to a
proposed box, and two heads say what is in it and how the box should be corrected (Girshick 2015,
`dagnn.zoo.add_fast_rcnn_heads`). Both are trained at once, on a sum of two losses.

In training, boxes around the shapes, more and less exact, and random ones are proposed. In the test nothing
is known of the shapes: proposed are windows of a few sizes all over the image, as selective search would
propose boxes in photos. What remains after non-maximum suppression is measured by average precision, at an
intersection over union of at least one half.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from segmentation import AVERAGE, CLASSES, SPREAD, scene

import dagnn
from dagnn import zoo
from dagnn.data import Data
from dagnn.train import SGD, Trainer

REACH = 0.92  # mean average precision
SIZE = 96
TRAIN, VAL = 800, 150
EPOCHS = 7
ROIS = 20  # proposed per image in training
SCALES = np.array([0.1, 0.1, 0.2, 0.2])  # of corrections, so that all have about the same spread


# ---- boxes: rows x1, y1, x2, y2


def overlap(a, b):
    """Intersection over union of all boxes `a` with all boxes `b`, (A, B)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.add.outer(np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1))
    return both / (areas - both)


def centres_and_sizes(boxes):
    """Centre and size of boxes, (N, 2) each."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def corrections(boxes, truths):
    """What leads from `boxes` to `truths`: shifts in parts of the size, logarithms of ratios of sizes."""
    (centre, size), (goal, goal_size) = centres_and_sizes(boxes), centres_and_sizes(truths)
    return np.hstack([(goal - centre) / size, np.log(goal_size / size)]) / SCALES


def corrected(boxes, change):
    """`boxes` changed by corrections."""
    centre, size = centres_and_sizes(boxes)
    shift, ratio = np.split(change * SCALES, 2, axis=1)
    centre, size = centre + shift * size, size * np.exp(np.clip(ratio, -1, 1))
    return np.clip(np.hstack([centre - size / 2, centre + size / 2]), 0, SIZE)


def jittered(boxes, number, rng):
    """`number` boxes like some of `boxes`, less and less like them."""
    centre, size = centres_and_sizes(boxes[rng.integers(len(boxes), size=number)])
    much = np.linspace(0.02, 0.35, number)[:, None]
    centre = centre + much * size * rng.standard_normal((number, 2))
    size = size * np.exp(much * rng.standard_normal((number, 2)))
    return np.clip(np.hstack([centre - size / 2, centre + size / 2]), 0, SIZE)


def windows():
    """Windows of a few sizes at regular distances all over the image."""
    found = []
    for size in (20, 28, 39, 52):
        starts = np.linspace(0, SIZE - size, 1 + round(3.5 * (SIZE - size) / size))
        x, y = (axis.ravel() for axis in np.meshgrid(starts, starts))
        found.append(np.stack([x, y, x + size, y + size], axis=1))
    return np.concatenate(found)


# ---- the data


class Scenes(Data):
    """Images with the boxes and classes of the shapes in them; what is proposed is drawn anew every time."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.images, self.boxes, self.classes = [], [], []
        for _ in range(TRAIN + VAL):
            image, classes, distances = scene(rng, SIZE, rng.integers(1, 4))
            self.images.append((image.astype(np.float32) - AVERAGE) / SPREAD)
            self.boxes.append(np.array([bounding_box(distance < 0) for distance in distances]))
            self.classes.append(classes)
        super().__init__([1] * TRAIN + [2] * VAL)

    def __len__(self):
        return TRAIN + VAL

    def batch(self, indices, rng=None):
        """Images, proposed boxes, and for each of these its class and how it is to be corrected."""
        rng = rng or np.random.default_rng(indices)
        proposed = [self.propose(i, rng) for i in indices]
        judged = zip(*map(self.judge, indices, proposed), strict=True)
        label, targets, weights = map(np.concatenate, judged)
        return {
            "input": np.stack([self.images[i] for i in indices]),
            "rois": rois(proposed),
            "label": label,
            "targets": targets,
            "instance_weights": weights,
        }

    def propose(self, i, rng):
        """Boxes around the shapes of an image, and windows, most of which have a bit of a shape."""
        everywhere = windows()
        chance = 0.1 + (overlap(everywhere, self.boxes[i]).max(axis=1) > 0.02)
        some = rng.choice(len(everywhere), ROIS // 2, replace=False, p=chance / chance.sum())
        return np.concatenate([jittered(self.boxes[i], ROIS - len(some), rng), everywhere[some]])

    def judge(self, i, boxes):
        """The class of each box that fits a shape by half or more, and how to correct it to fit wholly."""
        shared = overlap(boxes, self.boxes[i])
        best = shared.argmax(axis=1)
        found = np.flatnonzero(shared.max(axis=1) >= 0.5)
        label = np.zeros(len(boxes), int)
        label[found] = self.classes[i][best[found]]
        targets, weights = np.zeros((2, len(boxes), len(CLASSES), 4), np.float32)
        targets[found, label[found]] = corrections(boxes[found], self.boxes[i][best[found]])
        weights[found, label[found]] = 1 / len(boxes)  # the loss, a sum, becomes a mean over boxes
        return label, targets.reshape(len(boxes), -1, 1, 1), weights.reshape(len(boxes), -1, 1, 1)


def bounding_box(mask):
    """The smallest box with all pixels of `mask`."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0]


def rois(boxes):
    """The boxes of several images as (5, R): which image, and the box's first and last pixels."""
    rows = [np.insert(b - [0, 0, 1, 1], 0, k, axis=1) for k, b in enumerate(boxes)]
    return np.concatenate(rows).T


# ---- the network


def build():
    """A trunk whose features are four times coarser than the image, and the heads of Fast R-CNN."""
    net = dagnn.DagNN()
    x = "input"
    for k, (c, d, stride) in enumerate([(3, 24, 2), (24, 48, 2), (48, 48, 1), (48, 48, 1)], 1):
        conv = dagnn.Conv(size=(d, c, 3, 3), stride=stride, pad=1, has_bias=False)
        net.add_layer(f"conv{k}", conv, x, f"conv{k}")
        net.add_layer(f"bn{k}", dagnn.BatchNorm(d), f"conv{k}", f"bn{k}")
        net.add_layer(f"relu{k}", dagnn.ReLU(), f"bn{k}", f"relu{k}")
        x = f"relu{k}"
    zoo.add_fast_rcnn_heads(net, x, 48, len(CLASSES), width=128, subdivisions=5, transform=1 / 4)
    for k in "67":  # few units learn faster with normalisation in the place of dropout
        net.splice(f"dropout{k}")
        net.insert(f"bn{k}", dagnn.BatchNorm(128), after=f"fc{k}")
    net.add_layer("error", dagnn.Loss("classerror"), ["predcls", "label"], "error")
    return net


def train(net, data, out, seed):
    """Train on the sum of both losses."""
    trainer = Trainer(
        net,
        SGD(momentum=0.9, weight_decay=0.0005),
        learning_rate=lambda time: 0.03 * (1 + np.cos(np.pi * time / EPOCHS)),
        batch_size=8,
        num_epochs=EPOCHS,
        der_outputs={"losscls": 1, "lossbbox": 1},
        random_seed=seed,
        exp_dir=out,
        keep_last=1,
    )
    return trainer.fit(data)


# ---- detection


def detect(net, image):
    """What the network finds: (class, score, box), best first; one shape in one place."""
    boxes = windows()
    out = net.eval({"input": image[None], "rois": rois([boxes])}, outputs=["predcls", "predbbox"])
    scores = np.exp(out["predcls"] - out["predcls"].max(axis=1, keepdims=True)).reshape(len(boxes), -1)
    scores /= scores.sum(axis=1, keepdims=True)
    best = 1 + scores[:, 1:].argmax(axis=1)
    every = np.arange(len(boxes))
    score = scores[every, best]
    places = corrected(boxes, out["predbbox"].reshape(len(boxes), -1, 4)[every, best])
    return [(best[k], score[k], places[k]) for k in suppressed(places, score)]


def suppressed(boxes, scores, most=0.3):
    """Non-maximum suppression: the boxes that no better one overlaps by more than `most`, best first."""
    left, kept = np.argsort(-scores), []
    while len(left):
        kept.append(left[0])
        left = left[overlap(boxes[left[:1]], boxes[left])[0] <= most]
    return kept


def average_precision(c, found, data, images):
    """The area under precision over recall for one class; `found` has the detections per image."""
    ranked = [(s, i, box) for i, ones in zip(images, found, strict=True) for k, s, box in ones if k == c]
    ranked.sort(key=lambda one: -one[0])
    left = {i: data.boxes[i][data.classes[i] == c] for i in images}
    number, right = sum(map(len, left.values())), np.zeros(len(ranked))
    for rank, (_, i, box) in enumerate(ranked):
        shared = overlap(box[None], left[i])[0]
        if len(shared) and shared.max() >= 0.5:
            right[rank] = 1
            left[i] = np.delete(left[i], shared.argmax(), axis=0)  # found again, it counts as wrong
    precision = np.cumsum(right) / np.arange(1, len(ranked) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return (precision * right).sum() / number


def picture(data, images, found, path):
    """Images with what was found in them; what the network is unsure of stays out."""
    colours = {1: "#ffb000", 2: "#00c2a8", 3: "#ff5fa2"}
    figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=80)
    for axes, i, ones in zip(figure.subplots(2, 4).flat, images, found, strict=False):
        axes.imshow(data.images[i].transpose(1, 2, 0) * SPREAD / 255 + AVERAGE / 255)
        axes.set_axis_off()
        for c, score, (x1, y1, x2, y2) in ones:
            if score >= 0.6:
                box = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, lw=2, ec=colours[c])
                axes.add_patch(box)
                label = {"facecolor": colours[c], "lw": 0, "pad": 1.5}
                axes.text(x1, max(y1 - 2, 5), f"{CLASSES[c]} {score:.2f}", size=8, bbox=label)
    figure.savefig(path)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", default="experiments/detection")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    out = Path(options.out)
    for old in out.glob("net-epoch-*.h5"):
        old.unlink()

    data = Scenes(options.seed)
    net = build()
    zoo.init_params(net, options.seed)
    train(net, data, out, options.seed)

    net = net.deploy()
    found = [detect(net, data.images[i]) for i in data.val]
    precision = {c: average_precision(c, found, data, data.val) for c in range(1, len(CLASSES))}
    for c, value in precision.items():
        print(f"average precision of {CLASSES[c] + 's':<10} {value:.1%}")
    reached = np.mean(list(precision.values()))
    picture(data, data.val, found, out / "detection.png")
    print(f"Mean average precision {reached:.1%} on {VAL} held-out images, at least {REACH:.0%} wanted.")
    return int(reached < REACH)


if __name__ == "__main__":
    sys.exit(main())
