"""A denoiser: a small DnCNN that learns from seven photographs.

    python examples/denoiser.py [--out DIR] [--seed N]

DnCNN is a chain of convolutions that looks at a noisy image and says what the noise is; subtracting that
leaves the image (Zhang et al. 2017, arXiv:1608.03981). Here it has 6 convolutions of 24 filters instead of 17
of 64, and learns from patches of seven photographs of scikit-image, to which Gaussian noise of standard
deviation 25 (of 255) is added anew every time. It is tested on three photographs it has never seen, against a
classical method: the least total variation (Chambolle 2004), with the weight that is best for these three.

The last step turns the network round: the signs of the last filters are changed and the noisy image is added,
so that what comes out is the clean image. `dagnn run OUT/denoiser.h5 photo.png --save clean.png` uses it on
any photograph. Takes about a minute.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from skimage import data as photographs
from skimage.restoration import denoise_tv_chambolle

import dagnn
from dagnn import zoo
from dagnn.data import Data
from dagnn.images import psnr, rgb_to_grey, write_image
from dagnn.train import Adam, fit

REACH = 29.2  # dB, mean over the photographs held out
LEARN = ("astronaut", "brick", "clock", "coins", "immunohistochemistry", "retina", "rocket")
HELD_OUT = ("camera", "chelsea", "coffee")
SIGMA = 25 / 255
EPOCHS = 5


class Patches(Data):
    """Patches of photographs, turned and mirrored, and their noise; each is drawn when it is asked for."""

    def __init__(self, photos, number=2200, size=40):
        self.photos, self.number, self.size = photos, number, size

    def __len__(self):
        return self.number

    def batch(self, indices, rng=None):
        clean = np.stack([self.patch(rng) for _ in indices])[:, None]
        noise = SIGMA * rng.standard_normal(clean.shape, np.float32)
        return {"input": clean + noise, "label": noise}

    def patch(self, rng):
        photo = self.photos[rng.integers(len(self.photos))]
        y, x = (rng.integers(side - self.size + 1) for side in photo.shape)
        patch = np.rot90(photo[y : y + self.size, x : x + self.size], rng.integers(4))
        return patch[:, ::-1] if rng.random() < 0.5 else patch


def grey(name):
    """A photograph of scikit-image, grey between 0 and 1."""
    photo = getattr(photographs, name)()
    return ((photo if photo.ndim == 2 else rgb_to_grey(photo)) / np.float32(255)).astype(np.float32)


def train(seed):
    """A DnCNN that says what the noise is: its objective is 1/(2N) times the sum of squares."""
    net = zoo.dncnn(depth=6, width=24)
    net.meta["init"]["conv6_filters"] = 0.001  # so that it begins by seeing almost no noise
    zoo.init_params(net, seed)
    fit(
        net,
        Patches([grey(name) for name in LEARN]),
        solver=Adam(weight_decay=0),
        learning_rate=lambda time: 0.0015 * (1 + np.cos(np.pi * time / EPOCHS)),
        batch_size=4,
        num_epochs=EPOCHS,
        der_outputs={"objective": 0.5},
        random_seed=seed,
    )
    return net


def turned_round(net):
    """The network for use: batch normalisation folded, and the image instead of its noise."""
    net = net.subnet(outputs="prediction").deploy()
    last = net.layers["conv6"]
    for name in last.params:
        net.params[name].value = -net.params[name].value
    net.add_layer("subtract", dagnn.Sum(), ["input", "prediction"], "clean")
    net.meta = {"colours": "each"}  # `dagnn run` then cleans red, green and blue, one after the other
    net.mode = "test"
    return net


def compare(net, out):
    """The PSNR of every photograph held out: noisy, by total variation, by the network."""
    print(f"{'':<12} {'noisy':>7} {'variation':>12} {'network':>8}")
    table, strip = [], None
    for name in HELD_OUT:
        clean = grey(name)
        noisy = clean + SIGMA * np.random.default_rng(0).standard_normal(clean.shape, np.float32)
        classical = denoise_tv_chambolle(noisy, weight=0.07)
        ours = net.eval({"input": noisy[None, None]})["clean"][0, 0]
        table.append([psnr(image.clip(0, 1), clean) for image in (noisy, classical, ours)])
        print(f"{name:<12} {table[-1][0]:>7.2f} {table[-1][1]:>12.2f} {table[-1][2]:>8.2f}")
        strip = np.hstack([noisy, ours, clean])[:320] if strip is None else strip
    write_image(out / "denoiser.png", strip.clip(0, 1))
    return np.mean(table, axis=0)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", default="experiments/denoiser", type=Path)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    net = turned_round(train(options.seed))
    net.save(options.out / "denoiser.h5")
    _, classical, ours = compare(net, options.out)
    print(f"Mean {ours:.2f} dB; wanted: {REACH} dB, and more than total variation, {classical:.2f} dB.")
    return int(ours < REACH or ours < classical)


if __name__ == "__main__":
    sys.exit(main())
