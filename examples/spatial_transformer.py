"""A network that looks where the digit is: a spatial transformer on cluttered digits.

    python examples/spatial_transformer.py [--out DIR] [--seed N]

A digit lies somewhere in an image of 60x60 pixels, among fragments of other digits. A first part of the
network, the localisation, says by six numbers of an affine map where to look; the image is sampled there, and
a classifier reads what it gets. Nobody tells the localisation where the digits are: it learns it from the
classifier's loss, through the derivative of the sampling (Jaderberg et al. 2015, arXiv:1506.02025;
MatConvNet's cnn_stn_cluttered_mnist). The same classifier without the transformer is trained for comparison.

Data: scikit-learn's digits, enlarged to 24x24; every training image is put together anew in every epoch.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import dagnn
from dagnn import zoo
from dagnn.data import Data
from dagnn.images import resize, write_image
from dagnn.train import Adam, fit

REACH = 0.85
SIZE, DIGIT, FRAGMENT = 60, 24, 8  # pixels
HELD_OUT = 360
EPOCHS = 7


class ClutteredDigits(Data):
    """Each sample is one digit at a random place, and six fragments of others."""

    def __init__(self, seed, copies=3):
        digits = load_digits()
        images = np.stack([resize(image / 16, (DIGIT, DIGIT)) for image in digits.images])
        order = np.random.default_rng(seed).permutation(len(images))
        self.images = images[order].clip(0, 1).astype(np.float32)
        self.labels = digits.target[order]
        self.copies = copies
        learn = len(images) - HELD_OUT
        super().__init__([1] * learn * copies + [2] * HELD_OUT)

    def __len__(self):
        return (len(self.images) - HELD_OUT) * self.copies + HELD_OUT

    def batch(self, indices, rng=None):
        """Training images differ every time; those for validation depend on their number alone."""
        learn = len(self.images) - HELD_OUT
        digits = np.where(self.sets[indices] == 1, indices % learn, indices - learn * (self.copies - 1))
        rngs = [rng or np.random.default_rng(i) for i in indices]
        images = [self.cluttered(digit, rng) for digit, rng in zip(digits, rngs, strict=True)]
        return {"input": np.stack(images)[:, None], "label": self.labels[digits]}

    def cluttered(self, digit, rng):
        image = np.zeros((SIZE, SIZE), np.float32)
        learn = len(self.images) - HELD_OUT
        for other in rng.integers(learn, size=6):
            y, x = rng.integers(DIGIT - FRAGMENT, size=2)
            fragment = self.images[other, y : y + FRAGMENT, x : x + FRAGMENT]
            put(image, fragment, rng)
        put(image, self.images[digit], rng)
        return image


def put(image, patch, rng):
    """Draw `patch` at a random place of `image`, where it is brighter."""
    y, x = rng.integers(SIZE - len(patch), size=2)
    part = image[y : y + len(patch), x : x + len(patch)]
    np.maximum(part, patch, out=part)


def with_transformer():
    """The zoo's network, with batch normalisation so that few epochs are enough.

    The map moves at a tenth of the rate of all else: a jump of it would throw the digit out of the image.
    """
    net = zoo.spatial_transformer()
    for name in ("conv1_where", "conv2_where", "conv3_where", "conv1", "conv2", "fc3"):
        node = net.layers[name]
        net.insert(f"bnorm_{name}", dagnn.BatchNorm(node.layer.size[0]), after=node.outputs[0])
    for role in ("filters", "biases"):
        net.params[f"transform_{role}"].learning_rate *= 0.1
    return net


def without_transformer():
    """The same classifier, which reads the image itself."""
    net = with_transformer()
    net.set_layer_inputs("pool0", "input")
    return net.subnet(outputs=["objective", "top1err"])


def trained(net, data, seed):
    """The error of `net` on held-out digits after training."""
    zoo.init_params(net, seed)
    history = fit(
        net,
        data,
        solver=Adam(weight_decay=0),
        learning_rate=lambda time: 0.001 * (1 + np.cos(np.pi * time / EPOCHS)),
        batch_size=64,
        num_epochs=EPOCHS,
        random_seed=seed,
    )
    return history[-1]["val"]["top1err"]


def picture(net, data, path):
    """Some held-out images, and under each what the classifier gets of it."""
    batch = data.batch(data.val[:12])
    net.mode = "test"
    seen = net.eval({"input": batch["input"]}, outputs="transformed")["transformed"]
    rows = [[np.pad(image[0], 2, constant_values=1) for image in row] for row in (batch["input"], seen)]
    write_image(path, 1 - np.block(rows))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", default="experiments/spatial-transformer", type=Path)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()

    data = ClutteredDigits(options.seed)
    net = with_transformer()
    plain = trained(without_transformer(), data, options.seed)
    error = trained(net, data, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    picture(net, data, options.out / "where-it-looks.png")
    print(f"Read right: {1 - plain:.1%} without a transformer, {1 - error:.1%} with one.")
    print(f"Wanted: at least {REACH:.0%} with one, and more than without.")
    return int(1 - error < REACH or error >= plain)


if __name__ == "__main__":
    sys.exit(main())
