"""Three worked cases: classify, denoise, super-resolve, each with a MatConvNet .mat file.

    pip install -e '.[demo,images]'
    python examples/worked_cases.py FOLDER [OUT]

FOLDER holds two networks that their authors published for MatConvNet, and nothing else is needed of either
project: `dncnn-sigma25.mat` (github.com/cszn/DnCNN, there model/specifics/sigma=25.mat) and `lapsrn-x2.mat`
(github.com/phoenix104104/LapSRN, there models/LapSRN_x2.mat). The digit classifier is trained here,
in seconds. Pictures go to OUT, by default docs/images; docs/worked-cases.md shows them and tells the story.

The photograph is china.jpg, which comes with scikit-learn: by danielbuechele, CC BY 2.0,
https://www.flickr.com/photos/danielbuechele/6061409035/
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits, load_sample_image

import dagnn
from dagnn.cli import main as command
from dagnn.images import psnr, read_image, resize, rgb_to_grey, rgb_to_ycbcr, write_image
from dagnn.train import SGD

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def dagnn_command(*arguments):
    """What typing `dagnn ...` does, and a line that shows what was typed."""
    words = [str(argument) for argument in arguments]
    print("\n$ dagnn", *(Path(word).name if "/" in word else word for word in words))
    if command(words):
        sys.exit("that failed")


def side_by_side(path, *pictures, enlarge=1):
    """One picture of several, with white between them."""
    gap = np.full((pictures[0].shape[0], 6 // enlarge, *pictures[0].shape[2:]), 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    write_image(path, np.concatenate(parts, axis=1).repeat(enlarge, axis=0).repeat(enlarge, axis=1))


def luma(picture):
    """The Y that papers on super-resolution compare."""
    return rgb_to_ycbcr(picture / 255)[:, :, 0]


# ---- classify


def digit_classifier(images, digits, average):
    """A small network trained on 8 x 8 pixels of 0..255, with everything in it that `dagnn run` needs."""
    net = dagnn.DagNN()
    net.add_layer("conv1", dagnn.Conv((16, 1, 3, 3), pad=1), "data", "x1")
    net.add_layer("relu1", dagnn.ReLU(), "x1", "x2")
    net.add_layer("pool1", dagnn.Pooling("max", 2, stride=2), "x2", "x3")
    net.add_layer("conv2", dagnn.Conv((64, 16, 4, 4)), "x3", "x4")
    net.add_layer("relu2", dagnn.ReLU(), "x4", "x5")
    net.add_layer("classify", dagnn.Conv((10, 64, 1, 1)), "x5", "prediction")
    net.add_layer("softmax", dagnn.SoftMax(), "prediction", "prob")
    net.add_layer("loss", dagnn.Loss("softmaxlog"), ["prediction", "label"], "objective")
    net.init_params(seed=0)
    first = net.params["conv1_filters"]  # pixels are large numbers: small filters, smaller steps
    first.value, first.learning_rate = first.value / 100, 1e-4
    net.meta = {
        "normalization": {"imageSize": [8, 8, 1], "averageImage": average},
        "classes": {"description": WORDS},
    }
    solver, rng = SGD(learning_rate=0.02, momentum=0.9), np.random.default_rng(0)
    for _ in range(20):
        for batch in np.array_split(rng.permutation(len(images)), 24):
            net.eval({"data": images[batch] - average, "label": digits[batch]}, {"objective": 1})
            solver.step(net)
    return net


def classify(out, work):
    digits = load_digits()
    images = (digits.images[:, None] * 255 / 16).astype(np.float32)
    known, new = slice(0, 1500), slice(1500, None)
    average = np.float32(images[known].mean())
    net = digit_classifier(images[known], digits.target[known], average)

    net.mode = "test"
    scores = net.eval({"data": images[new] - average}, outputs="prob")["prob"]
    wrong = scores.argmax(1).ravel() != digits.target[new]
    print(f"Digits never seen in training: {wrong.sum()} of {wrong.size} are read wrong")

    doubt = int(np.argmin(np.where(wrong, 1, scores.max(1).ravel())))  # right, but only just
    write_image(out / "digit.png", resize(images[new][doubt, 0] / 255, 16, "nearest"))
    net.save(work / "digits.mat")
    dagnn_command("info", work / "digits.mat")
    dagnn_command("run", work / "digits.mat", out / "digit.png", "--top", 3)


# ---- denoise


def denoise(models, out, work):
    clean = rgb_to_grey(load_sample_image("china.jpg")[60:300, 200:440])
    noise = 25 / 255 * np.random.default_rng(0).standard_normal(clean.shape)
    write_image(work / "noisy.png", clean / 255 + noise)
    dagnn_command(
        "run", models / "dncnn-sigma25.mat", work / "noisy.png", "--residual", "--save", work / "denoised.png"
    )
    noisy, denoised = (read_image(work / name) for name in ("noisy.png", "denoised.png"))
    print(f"PSNR: noisy {psnr(noisy, clean):.2f} dB, denoised {psnr(denoised, clean):.2f} dB")
    side_by_side(out / "denoised.png", noisy, denoised, clean)


# ---- super-resolve


def super_resolve(models, out, work):
    large = load_sample_image("china.jpg")[:426]
    write_image(work / "small.png", resize(large, 1 / 2))
    dagnn_command("run", models / "lapsrn-x2.mat", work / "small.png", "--save", work / "doubled.png")
    doubled, bicubic = read_image(work / "doubled.png"), resize(read_image(work / "small.png"), 2)
    for name, picture in ("bicubic", bicubic), ("LapSRN", doubled):
        print(f"PSNR of the brightness: {name} {psnr(luma(picture), luma(large), border=2):.2f} dB")
    detail = (slice(100, 220), slice(210, 330))
    side_by_side(out / "doubled.png", bicubic[detail], doubled[detail], large[detail], enlarge=2)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    models, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "docs/images")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        classify(out, Path(folder))
        denoise(models, out, Path(folder))
        super_resolve(models, out, Path(folder))
