"""CIFAR-10: small pictures in colour, as MatConvNet's `cnn_cifar` learns them.

    python examples/cifar.py [--out DIR] [--seed N] [--precision float16]
    python examples/cifar.py --data FOLDER       # with cifar-10-batches-bin or cifar-10-batches-py

The network is Caffe's "quick" one, the learning rates, one for each parameter and epoch, are those of
cnn_cifar, and so is the preparation of the pictures: less their mean, contrast normalised, whitened. Training
pictures are flipped and shifted at random while the network computes; the trainer says so if it must wait.

Without CIFAR-10 at hand, ten drawn shapes take its place (see shapes.py): 3000 to learn from, 1000 held out,
in the very same files. They are learned within a minute to the accuracy REACH.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import shapes

from dagnn import zoo
from dagnn.data import Cifar10, write_cifar10
from dagnn.train import SGD, Trainer

REACH = 0.95  # of the drawn shapes
EPOCHS = 9  # 45 in cnn_cifar
SHIFT = 2  # pixels


def draw(folder, seed, train=3000, test=1000):
    """Write drawn shapes where CIFAR-10 would be."""
    images, labels = shapes.pictures(np.random.default_rng(seed), train + test)
    write_cifar10(folder, images[:train], labels[:train], images[train:], labels[train:], shapes.NAMES)


def flipped_and_shifted(batch, rng):
    """The batch, in training with every picture mirrored or not and moved by up to SHIFT pixels."""
    if rng is None:
        return batch
    images = batch["input"]
    count, _, height, width = images.shape
    padded = np.pad(images, [(0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)])
    changed = np.empty_like(images)
    tops, lefts = rng.integers(2 * SHIFT + 1, size=(2, count))
    for i, flip in enumerate(rng.random(count) < 0.5):
        moved = padded[i, :, tops[i] : tops[i] + height, lefts[i] : lefts[i] + width]
        changed[i] = moved[:, :, ::-1] if flip else moved
    return batch | {"input": changed}


def learning_rates(epochs):
    """0.05, for the last third a tenth of it, for the last ninth a hundredth, as in cnn_cifar."""
    return [0.05 / 10 ** ((9 * epoch >= 6 * epochs) + (9 * epoch >= 8 * epochs)) for epoch in range(epochs)]


def train(data, epochs, out, seed, resume=False, precision=None):
    """Train a network from scratch; returns its trainer."""
    net = zoo.cifar_quick()
    zoo.init_params(net, seed)
    trainer = Trainer(
        net,
        SGD(momentum=0.9, weight_decay=0.0001),
        learning_rate=learning_rates(epochs),
        batch_size=50,
        num_epochs=epochs,
        random_seed=seed,
        precision=precision,
        exp_dir=out,
        continue_=resume,
        keep_last=1,
        keep_best="val.top1err",
    )
    trainer.fit(data)
    return trainer


def accuracies(trainer, data, labels):
    """The share of the validation samples of every class that are told right."""
    classes = [data.val[labels[data.val] == label] for label in range(10)]
    return [1 - trainer.evaluate(data, samples)["top1err"] for samples in classes]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", help="folder with CIFAR-10; default: drawn shapes")
    arguments.add_argument("--epochs", type=int, help="default: 45 on CIFAR-10, 9 on shapes")
    arguments.add_argument("--out", type=Path, default="experiments/cifar")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--continue", dest="resume", action="store_true", help="after the last checkpoint")
    arguments.add_argument("--precision", choices=("float16", "bfloat16"), help="of most layers")
    args = arguments.parse_args()
    folder = args.data or args.out / "shapes"
    if not args.data:
        draw(folder, args.seed)
    if not (args.data or args.resume):  # what CIFAR-10 itself has taught took hours: that stays
        for old in args.out.glob("net-epoch-*.h5"):
            old.unlink()

    cifar = Cifar10(folder, contrast_normalization=True, whiten_data=True)
    data = cifar.map(flipped_and_shifted)
    epochs = args.epochs or (45 if args.data else EPOCHS)
    trainer = train(data, epochs, args.out, args.seed, args.resume, args.precision)

    for name, accuracy in zip(cifar.classes, accuracies(trainer, data, cifar.labels), strict=True):
        print(f"  {name:<12} {accuracy:.0%}")
    reached = 1 - trainer.history[-1]["val"]["top1err"]
    print(f"{reached:.1%} of {len(data.val)} pictures are told right.")
    if args.data:
        return 0
    print(f"At least {REACH:.0%} wanted.")
    return int(reached < REACH)


if __name__ == "__main__":
    sys.exit(main())
