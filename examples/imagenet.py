"""ImageNet in small: from folders of JPEGs to a network, as MatConvNet's `cnn_imagenet` does it.

    python examples/imagenet.py [--out DIR] [--seed N]
    python examples/imagenet.py --data FOLDER --network alexnet --batch-size 256      # ILSVRC, and days

First the colours of some training images are measured. Their mean is subtracted, and training images are
tinted along the directions in which colours differ anyway. From each a random part of random shape is cut
out, resized, mirrored or not, and changed in contrast and saturation; from validation images the centre.
Threads do all that while the network computes; the trainer says so if it must wait.

Without ImageNet at hand, ten drawn shapes take its place (see shapes.py): JPEGs of many sizes, 150 of each
to learn from and 40 held out, in ImageNet's folders. Four convolutions with batch normalisation, on 64x64
pixels, learn them in about a minute to the accuracy REACH. What comes out is ready for

    dagnn run experiments/imagenet/imagenet.h5 photo.jpg
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import shapes

import dagnn
from dagnn import zoo
from dagnn.data import ImageNet, ImageReader
from dagnn.images import write_image
from dagnn.train import SGD, Trainer

REACH = 0.85  # of the drawn shapes
EPOCHS = 20
NETWORKS = ("small", "alexnet", "vgg_f", "vgg_m", "vgg_s", "vgg_vd_16", "vgg_vd_19")
CENTRE = 0.875  # of the sides of validation images


# ---- the images


def draw(folder, seed, train=150, val=40):
    """Write drawn shapes where ImageNet would be."""
    rng = np.random.default_rng(seed)
    wnids = [f"n{90000000 + i}" for i in range(len(shapes.NAMES))]
    for wnid, name in zip(wnids, shapes.NAMES, strict=True):
        (folder / "train" / wnid).mkdir(parents=True, exist_ok=True)
        for i in range(train):
            write_image(folder / "train" / wnid / f"{wnid}_{i}.JPEG", shape(rng, name))
    (folder / "val").mkdir(exist_ok=True)
    truth = []
    for i, label in enumerate(rng.permutation(np.arange(val * len(wnids)) % len(wnids)), 1):
        truth.append(f"ILSVRC2012_val_{i:08d}.JPEG {label}")
        write_image(folder / "val" / truth[-1].split()[0], shape(rng, shapes.NAMES[label]))
    (folder / "val.txt").write_text("\n".join(truth))
    words = map(" ".join, zip(wnids, shapes.NAMES, strict=True))
    (folder / "synset_words.txt").write_text("\n".join(words))


def shape(rng, name):
    """A picture of any size."""
    return shapes.picture(rng, name, *rng.integers(96, 161, size=2))


def measure_colours(paths):
    """The mean of the images' pixels, and a matrix that makes typical differences of random numbers."""
    pixels = ImageReader(resize=(32, 32))(paths).transpose(1, 0, 2, 3).reshape(3, -1)
    variances, directions = np.linalg.eigh(np.cov(pixels))
    return pixels.mean(axis=1), directions * np.sqrt(variances)


def choose_readers(data, size):
    """Let images be brought to size x size pixels; returns their mean colour, which is subtracted."""
    some = np.random.default_rng(0).permutation(data.train)[:1000]
    average, deviation = measure_colours([data.paths[i] for i in some])
    data.reader = ImageReader(
        resize=(size, size),
        crop_size=(0.75, 1),
        crop_anisotropy=(3 / 4, 4 / 3),
        crop_location="random",
        flip=True,
        subtract_average=average,
        brightness=0.1 * deviation,
        contrast=0.4,
        saturation=0.4,
    )
    data.val_reader = ImageReader(resize=(size, size), crop_size=CENTRE, subtract_average=average)
    return average


# ---- the network


def build(name, num_classes):
    """One of the zoo's networks, with batch normalisation, or the small one; and the size of its images."""
    if name == "small":
        return small(num_classes), 64
    net = getattr(zoo, name)(num_classes, batch_norm=True)
    return net, net.meta["normalization"]["imageSize"][0]


def small(num_classes):
    """Four convolutions, and the mean over what is left of the image."""
    net = dagnn.DagNN()
    x = add_block(net, "input", 1, dagnn.Conv(size=(24, 3, 5, 5), stride=2, pad=2, has_bias=False))
    x = add_block(net, x, 2, dagnn.Conv(size=(64, 24, 3, 3), pad=1, has_bias=False))
    x = add_block(net, x, 3, dagnn.Conv(size=(96, 64, 3, 3), pad=1, has_bias=False))
    x = add_block(net, x, 4, dagnn.Conv(size=(128, 96, 3, 3), pad=1, has_bias=False))
    net.add_layer("mean", dagnn.Pooling("avg", 2), x, "mean")
    net.add_layer("fc", dagnn.Conv(size=(num_classes, 128, 1, 1)), "mean", "prediction")
    net.add_layer("objective", dagnn.Loss(), ["prediction", "label"], "objective")
    net.add_layer("top1err", dagnn.Loss("classerror"), ["prediction", "label"], "top1err")
    return net


def add_block(net, x, number, conv):
    """Convolution, batch normalisation, ReLU, and a maximum that halves the image."""
    layers = {"conv": conv, "bn": dagnn.BatchNorm(conv.size[0]), "relu": dagnn.ReLU()}
    layers["pool"] = dagnn.Pooling("max", 2, stride=2)
    for name, layer in layers.items():
        net.add_layer(f"{name}{number}", layer, x, f"{name}{number}")
        x = f"{name}{number}"
    return x


def train(net, data, args):
    """Train with rates that fall along a cosine, from 0.1 for batches of 256; returns the accuracy."""
    zoo.init_params(net, args.seed)
    first = 0.1 * args.batch_size / 256
    trainer = Trainer(
        net,
        SGD(momentum=0.9, weight_decay=0.0005),
        learning_rate=lambda time: first * (1 + np.cos(np.pi * time / args.epochs)) / 2,
        batch_size=args.batch_size,
        num_epochs=args.epochs,
        random_seed=args.seed,
        precision=args.precision,
        exp_dir=args.out,
        continue_=args.resume,
        keep_last=1,
    )
    return 1 - trainer.fit(data)[-1]["val"]["top1err"]


def deployed(net, size, average, names):
    """The network for single photos, which knows how to prepare them and how to say what it sees."""
    net = net.deploy()
    net.add_layer("prob", dagnn.SoftMax(), "prediction", "prob")
    net.meta = {
        "classes": {"description": names},
        "normalization": {
            "imageSize": [size, size, 3],
            "cropSize": CENTRE,
            "averageImage": average,
            "interpolation": "bilinear",
        },
    }
    return net


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--data", type=Path, help="folder with ImageNet; default: drawn shapes")
    arguments.add_argument("--network", choices=NETWORKS, default="small")
    arguments.add_argument("--epochs", type=int, default=EPOCHS)
    arguments.add_argument("--batch-size", type=int, default=40)
    arguments.add_argument("--precision", choices=("float16", "bfloat16"), help="of most layers")
    arguments.add_argument("--out", type=Path, default="experiments/imagenet")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--continue", dest="resume", action="store_true", help="after the last checkpoint")
    args = arguments.parse_args()
    folder = args.data or args.out / "shapes"
    if not args.data:
        draw(folder, args.seed)
    if not (args.data or args.resume):  # what ImageNet itself has taught took days: that stays
        for old in args.out.glob("net-epoch-*.h5"):
            old.unlink()

    data = ImageNet(folder, ImageReader())
    if not (len(data.train) and len(data.val)):
        arguments.error(f"{folder} needs images in its folders train and val")
    net, size = build(args.network, len(data.classes))
    average = choose_readers(data, size)
    reached = train(net, data, args)
    deployed(net, size, average, data.descriptions).save(args.out / "imagenet.h5")
    print(f"{reached:.1%} of {len(data.val)} images are told right.")
    if args.data:
        return 0
    print(f"At least {REACH:.0%} wanted.")
    return int(reached < REACH)


if __name__ == "__main__":
    sys.exit(main())
