"""Handwritten digits: MatConvNet's LeNet, from its example cnn_mnist.

    python examples/mnist.py                  # scikit-learn's digits, which come with it
    python examples/mnist.py --data FOLDER    # MNIST, whose four files are in FOLDER

Data: 1797 digits of 8x8 pixels, enlarged to what MNIST has: 20x20 in the middle of 28x28. They are written as
files of MNIST's and read back from them; 360 are held out, always the same ones.

The network is `dagnn.zoo.lenet` with batch normalisation. 1437 digits are few, so every batch is bent a
little differently each time it is seen: turned, stretched, slanted and moved. A network without parameters
does that, made of the two layers by which spatial transformers look at images.

Result: about 99 % of the held-out digits are read right.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import dagnn
from dagnn import zoo
from dagnn.data import Mnist, write_idx
from dagnn.images import resize, to_uint8
from dagnn.train import Trainer

REACH = 0.985  # of the held-out digits read right
HELD_OUT = 360
EPOCHS, EPOCHS_MNIST = 25, 4
BEND = np.float32([0.1, 0.1, 0.1, 0.1, 0.07, 0.07])  # standard deviations, of a map's matrix and its shift


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="with MNIST's files (default: made here)")
    parser.add_argument("--out", type=Path, default=Path("experiments/mnist"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float16", "bfloat16"), help="of most layers")
    args = parser.parse_args()

    data = Mnist(args.data or write_digits(args.out / "digits"), subtract_mean=False)
    epochs = EPOCHS_MNIST if args.data else EPOCHS
    print(f"{len(data.train)} digits to learn from, {len(data.val)} held out")

    history = train(data.map(bent), epochs, args.out / "net", args.seed, args.precision)
    accuracy = 1 - history[-1]["val"]["top1err"]
    print(f"{accuracy:.2%} of the held-out digits are read right (at least {REACH:.1%} wanted)")
    print(f"The network is {args.out / 'net' / f'net-epoch-{epochs}.h5'}, beside it the curves")
    return int(accuracy < REACH)


def write_digits(folder):
    """scikit-learn's digits, in files as MNIST has them; returns the folder."""
    digits = load_digits()
    images = np.stack([np.pad(to_uint8(resize(image / 16, (20, 20))), 4) for image in digits.images])
    labels = digits.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    for part, chosen in ("train", order[:-HELD_OUT]), ("t10k", order[-HELD_OUT:]):
        write_idx(folder / f"{part}-images-idx3-ubyte", images[chosen])
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels[chosen])
    return folder


def looker():
    """A network that looks at an image through an affine map of its pixels' coordinates."""
    net = dagnn.DagNN()
    net.add_layer("grid", dagnn.AffineGridGenerator(28, 28), "map", "grid")
    net.add_layer("look", dagnn.BilinearSampler(), ["image", "grid"], "seen")
    return net


LOOKER = looker()


def bent(batch, rng):
    """Images seen through maps that differ a little from the identity; in validation, as they are."""
    if rng is None:
        return batch
    images = batch["input"]
    identity = np.float32([1, 0, 0, 1, 0, 0])
    maps = identity + BEND * rng.standard_normal((len(images), 6), np.float32)
    seen = LOOKER.eval({"image": images, "map": maps.reshape(-1, 6, 1, 1)})["seen"]
    return batch | {"input": seen}


def train(data, epochs, folder, seed, precision=None):
    """Train LeNet, at a rate that falls to a hundredth; returns the statistics of all epochs."""
    net = zoo.lenet(batch_norm=True)
    zoo.init_params(net, seed)
    for old in folder.glob("net-epoch-*.h5"):  # of an earlier run
        old.unlink()
    trainer = Trainer(
        net,
        learning_rate=lambda time: 0.03 * 0.01 ** (time / epochs),
        batch_size=100,
        num_epochs=epochs,
        random_seed=seed,
        precision=precision,
        exp_dir=folder,
        keep_last=1,
    )
    return trainer.fit(data)


if __name__ == "__main__":
    sys.exit(main())
