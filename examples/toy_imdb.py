"""Data of one's own: from an image database on disk to a tested network, with an interruption.

    python examples/toy_imdb.py [--out DIR] [--seed N]

1. Images are drawn piece by piece (circles, squares and triangles in noise) and written to an image database,
   an HDF5 file in which each belongs to the set for training, for validation or for testing. Only a piece is
   ever in memory: a database of yours may be as large as the disk.
2. A small network is trained from the file, which is read batch by batch. Training is interrupted in the
   middle, begun anew with `continue_=True`, and ends with the same parameters, bit by bit, as one that was
   not interrupted.
3. The last checkpoint is loaded and tested on images that had no part in training.

Result: about 99 % of the test images are named right, in seconds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import dagnn
from dagnn.data import Imdb, ImdbWriter
from dagnn.train import Trainer

REACH = 0.95  # of the test images named right
CLASSES = ["circle", "square", "triangle"]
PIECES = {1: 6, 2: 1, 3: 2}  # of each set: 1 is for training, 2 for validation, 3 for testing
PIECE, SIZE = 240, 24  # images in a piece, their height and width
EPOCHS = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("experiments/toy_imdb"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    write_database(args.out / "imdb.h5", args.seed)
    with Imdb(args.out / "imdb.h5") as data:
        print(f"{data.path}: {len(data)} images of {', '.join(data.classes)}, of which")
        print(f"{len(data.train)} train, {len(data.val)} validate and {len(data.test)} test the network")

        train_interrupted(data, args.out / "net", args.seed)
        whole = trainer(args.seed, progress=False)
        whole.fit(data)

        net = dagnn.load(args.out / "net" / f"net-epoch-{EPOCHS}.h5")
        same = all(np.array_equal(net.params[name].value, p.value) for name, p in whole.net.params.items())
        accuracy = 1 - Trainer(net, progress=False).evaluate(data, data.test)["top1err"]
    print(f"\nThe parameters are {'the same' if same else 'NOT THE SAME'} as without an interruption.")
    print(f"{accuracy:.1%} of the test images are named right (at least {REACH:.0%} wanted)")
    return int(accuracy < REACH or not same)


# ---- the database


def write_database(path, seed):
    """Draw images and write them piece by piece, then their mean colour."""
    rng, colours = np.random.default_rng(seed), []
    with ImdbWriter(path, meta={"classes": CLASSES}) as writer:
        for number, pieces in PIECES.items():
            for _ in range(pieces):
                labels = rng.integers(len(CLASSES), size=PIECE)
                images = np.stack([draw(CLASSES[label], rng) for label in labels])
                writer.append(images, labels, sets=number)
                if number == 1:
                    colours.append(images.mean(axis=(0, 2, 3)))
        writer.data_mean = np.mean(colours, axis=0)


def draw(shape, rng):
    """A bright shape on dark ground, turned a little, its size, place and colours at random: (3, H, W)."""
    radius = rng.uniform(6, 9)
    y, x = np.indices((SIZE, SIZE)) - rng.uniform(radius, SIZE - radius, size=(2, 1, 1))
    inside = np.ones((SIZE, SIZE), bool)
    if shape == "circle":
        inside = y**2 + x**2 < (0.8 * radius) ** 2
    else:
        corners, reach = {"square": (4, 0.7), "triangle": (3, 0.5)}[shape]
        for angle in 2 * np.pi * (rng.uniform(-0.03, 0.03) + np.arange(corners) / corners):
            inside &= y * np.cos(angle) + x * np.sin(angle) < reach * radius
    ground = rng.uniform(20, 80, size=3)
    colour = ground + rng.uniform(60, 160, size=3)
    image = np.where(inside, colour[:, None, None], ground[:, None, None])
    return (image + 12 * rng.standard_normal(image.shape)).clip(0, 255).astype(np.uint8)


# ---- the network


def build(seed):
    """Three convolutions with batch normalisation and pooling, and a classifier."""
    net, x = dagnn.DagNN(), "input"
    layers = {
        "conv1": dagnn.Conv(size=(16, 3, 3, 3), pad=1),
        "bnorm1": dagnn.BatchNorm(16),
        "relu1": dagnn.ReLU(),
        "pool1": dagnn.Pooling(pool_size=2, stride=2),
        "conv2": dagnn.Conv(size=(32, 16, 3, 3), pad=1),
        "bnorm2": dagnn.BatchNorm(32),
        "relu2": dagnn.ReLU(),
        "pool2": dagnn.Pooling(pool_size=2, stride=2),
        "conv3": dagnn.Conv(size=(64, 32, 3, 3), pad=1),
        "bnorm3": dagnn.BatchNorm(64),
        "relu3": dagnn.ReLU(),
        "pool3": dagnn.Pooling(pool_size=2, stride=2),
        "prediction": dagnn.Conv(size=(len(CLASSES), 64, 3, 3)),
    }
    for name, layer in layers.items():
        net.add_layer(name, layer, x, name)
        x = name
    net.add_layer("loss", dagnn.Loss(), [x, "label"], "objective")
    net.add_layer("error", dagnn.Loss("classerror"), [x, "label"], "top1err")
    net.init_params(seed)
    return net


def trainer(seed, **options):
    """A network as it comes, and what will train it."""
    return Trainer(
        build(seed),
        learning_rate=lambda time: 0.02 * 0.1 ** (time / EPOCHS),
        batch_size=40,
        num_epochs=EPOCHS,
        random_seed=seed,
        **options,
    )


def train_interrupted(data, folder, seed):
    """Train halfway with checkpoints in `folder`; then go on from the last one, as another process would."""
    for old in folder.glob("net-epoch-*.h5"):  # of an earlier run
        old.unlink()

    def interrupt(trainer):
        if trainer.epoch == EPOCHS // 2 + 1:
            raise KeyboardInterrupt

    try:
        trainer(seed, exp_dir=folder, post_epoch=interrupt).fit(data)
    except KeyboardInterrupt:
        print("Interrupted in this epoch, before its checkpoint.", flush=True)
    trainer(seed, exp_dir=folder, continue_=True).fit(data)


if __name__ == "__main__":
    sys.exit(main())
