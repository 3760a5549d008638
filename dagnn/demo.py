"""The demo: one network reads two handwritten digits and their sum.

Two towers of layers, which share their parameters, read one image each; a joint head reads the sum from
what the towers say. Everything a user of dagnn does is here in order: build a network, train it, test it,
save it, load it, look at it.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from math import cos, pi
from pathlib import Path
from shlex import quote
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import dagnn
from dagnn.data import Batch, Data
from dagnn.draw import draw
from dagnn.errors import missing_package
from dagnn.train import Trainer, curves

READINGS = {"digit_a": 0.97, "digit_b": 0.97, "sum": 0.93}  # what is read, and the accuracy it must reach
LOSSES = ["loss_a", "loss_b", "loss_sum"]
HELD_OUT = 360  # images
SIZES = {"image_a": (1, 1, 8, 8), "image_b": (1, 1, 8, 8)}


def run(out: str | Path = "dagnn-demo", seed: int = 0, epochs: int = 20) -> int:
    """Run the demo and write its files to `out`; returns 0, or 1 where an accuracy isn't reached."""
    started = perf_counter()
    check_extras()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    learn, held_out = load_digits(rng)
    pairs = held_out.pairs(1000, rng)
    net = build()
    net.init_params(seed)
    net.seed = seed  # of the dropout masks

    print(
        f"""One network reads two handwritten digits and their sum.

  images     {len(learn)} to learn from, {len(held_out)} held out; 8x8 pixels (scikit-learn's digits)
  network    {len(net.layers)} layers; two towers with the same parameters, a joint head for the sum
  training   {epochs} epochs of SGD with momentum on three losses
"""
    )
    history = train(net, DigitPairs(learn, pairs), epochs, seed)

    reader = net.subnet(outputs=READINGS)  # without labels and losses
    reader.mode = "test"
    reached = accuracies(reader, pairs)
    print(f"\nRead right, of {len(pairs)} pairs of held-out images:\n")
    for name, accuracy in reached.items():
        print(f"  {name:<10} {accuracy:.1%}   (at least {READINGS[name]:.0%})")

    reader.meta["accuracy"] = reached
    reader.save(out / "net.h5")
    same = identical(reader, dagnn.load(out / "net.h5"), pairs)
    print(f"\nThe network saved and loaded again reads {'the same, bit for bit' if same else 'DIFFERENTLY'}.")

    draw(net, out / "net.svg", SIZES)
    curves.plot(history, out / "curves.png")
    picture_readings(reader, pairs, out / "readings.png")
    command = quote(sys.argv[0]) if Path(sys.argv[0]).name == "dagnn" else "dagnn"
    print(
        f"""
Written to {out}:

  net.h5         the trained network
  net.svg        its drawing, with the losses it was trained on
  curves.png     the losses' sum and what it read wrong, while it learned
  readings.png   some pairs and what it reads, mistakes included

To go on:

  {command} info {quote(str(out / "net.h5"))}
  {command} summary {quote(str(out / "net.h5"))} --input image_a=1x8x8 --input image_b=1x8x8

It took {perf_counter() - started:.0f} seconds."""
    )
    missed = [name for name, accuracy in reached.items() if accuracy < READINGS[name]]
    if missed or not same:
        print(f"\nNot good enough: {', '.join(missed) or 'the loaded network'}.")
    return int(bool(missed) or not same)


def check_extras() -> None:
    """MissingPackageError, saying what to install, unless all that the demo needs is there."""
    for package, module in (("scikit-learn", "sklearn"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise missing_package("the demo", package, "demo")


# ---- the network


def build() -> dagnn.DagNN:
    """Two image inputs, three outputs, and the losses and errors that compare these with three labels.

    >>> net = build()
    >>> net.outputs
    ['digit_a', 'loss_a', 'error_a', 'digit_b', 'loss_b', 'error_b', 'sum', 'loss_sum', 'error_sum']
    >>> net.layers["conv1_a"].params == net.layers["conv1_b"].params
    True
    """
    net = dagnn.DagNN()
    for side in "ab":
        add_tower(net, side)
    # Side by side, so that one softmax makes probabilities of both and one filter sees both.
    net.add_layer("join", dagnn.Concat(axis=3), ["scores_a", "scores_b"], "both")
    net.add_layer("join_softmax", dagnn.SoftMax(), "both", "beliefs")
    net.add_layer("mix", dagnn.Conv(size=(64, 10, 1, 2)), "beliefs", "mix")
    net.add_layer("mix_bnorm", dagnn.BatchNorm(64), "mix", "mix_bnorm")
    net.add_layer("mix_relu", dagnn.ReLU(), "mix_bnorm", "mix_relu")
    net.add_layer("add", dagnn.Conv(size=(19, 64, 1, 1)), "mix_relu", "scores_sum")
    add_reading(net, "scores_sum", "sum", "sum")
    return net


def add_reading(net: dagnn.DagNN, scores: str, output: str, task: str) -> None:
    """An output with the probabilities of all answers; loss and error of a task that has a label."""
    net.add_layer(f"read_{task}", dagnn.SoftMax(), scores, output)
    net.add_layer(f"loss_{task}", dagnn.Loss(), [scores, f"label_{task}"], f"loss_{task}")
    net.add_layer(f"error_{task}", dagnn.Loss("classerror"), [scores, f"label_{task}"], f"error_{task}")


def add_tower(net: dagnn.DagNN, side: str) -> None:
    """The layers that read digit_a in image_a, or digit_b in image_b."""
    chain = {
        "conv1": dagnn.Conv(size=(32, 1, 3, 3), pad=1),
        "bnorm1": dagnn.BatchNorm(32),
        "relu1": dagnn.ReLU(),
        "conv2": dagnn.Conv(size=(32, 32, 3, 3), pad=1),
        "bnorm2": dagnn.BatchNorm(32),
        "relu2": dagnn.ReLU(),
        "pool2": dagnn.Pooling(pool_size=2, stride=2),
        "conv3": dagnn.Conv(size=(64, 32, 3, 3), pad=1),
        "bnorm3": dagnn.BatchNorm(64),
        "relu3": dagnn.ReLU(),
        "pool3": dagnn.Pooling(pool_size=2, stride=2),
        "dropout": dagnn.DropOut(rate=0.3),
        "scores": dagnn.Conv(size=(10, 64, 2, 2)),
    }
    x = f"image_{side}"
    for name, layer in chain.items():
        y = f"{name}_{side}"
        # Both towers name the same parameters, and so share them.
        net.add_layer(y, layer, x, y, params=[f"{name}_{spec.role}" for spec in layer.params])
        x = y
    add_reading(net, x, f"digit_{side}", side)


# ---- the data


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) between 0 and 1, and which digits they show."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pairs(self, number: int, rng: np.random.Generator) -> Pairs:
        """Random pairs of these digits."""
        return self.paired(*rng.integers(len(self), size=(2, number)))

    def paired(self, a: np.ndarray, b: np.ndarray) -> Pairs:
        """The digits with numbers `a` on the left, those with numbers `b` on the right."""
        return Pairs(self.images[a], self.images[b], self.labels[a], self.labels[b])


class Pairs(NamedTuple):
    """Pairs of images with their digits."""

    image_a: np.ndarray
    image_b: np.ndarray
    label_a: np.ndarray
    label_b: np.ndarray

    def __len__(self) -> int:
        return len(self.label_a)

    @property
    def images(self) -> dict[str, np.ndarray]:
        return {"image_a": self.image_a, "image_b": self.image_b}

    @property
    def truths(self) -> dict[str, np.ndarray]:
        return {"digit_a": self.label_a, "digit_b": self.label_b, "sum": self.label_a + self.label_b}

    @property
    def labels(self) -> dict[str, np.ndarray]:
        return {"label_a": self.label_a, "label_b": self.label_b, "label_sum": self.label_a + self.label_b}


class DigitPairs(Data):
    """For training, every digit by the side of a random one, moved a little; for validation, `held_out`."""

    def __init__(self, learn: Digits, held_out: Pairs) -> None:
        self.learn, self.held_out = learn, held_out
        super().__init__([1] * len(learn) + [2] * len(held_out))

    def __len__(self) -> int:
        return len(self.learn) + len(self.held_out)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> Batch:
        """Images and labels of training samples, if there is an `rng`, or of pairs for validation."""
        if rng is None:
            pairs = Pairs(*(array[indices - len(self.learn)] for array in self.held_out))
            return {**pairs.images, **pairs.labels}
        pairs = self.learn.paired(indices, rng.integers(len(self.learn), size=len(indices)))
        return {name: shifted(image, rng) for name, image in pairs.images.items()} | pairs.labels


def load_digits(rng: np.random.Generator) -> tuple[Digits, Digits]:
    """The digits to learn from and those held out; no image is in both."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    order = rng.permutation(len(labels))
    learn, held_out = order[HELD_OUT:], order[:HELD_OUT]
    return Digits(images[learn], labels[learn]), Digits(images[held_out], labels[held_out])


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images moved by up to one pixel in each direction, each its own way."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moved = np.empty_like(images)
    for image, source, (y, x) in zip(moved, padded, rng.integers(3, size=(len(images), 2)), strict=True):
        image[:] = source[:, y : y + 8, x : x + 8]
    return moved


# ---- training and testing


def train(net: dagnn.DagNN, data: Data, epochs: int, seed: int) -> list:
    """Train `net` on its three losses; returns the statistics of every epoch."""
    trainer = Trainer(
        net,
        learning_rate=lambda time: 0.025 * (1 + cos(pi * time / epochs)),
        batch_size=64,
        num_epochs=epochs,
        der_outputs=dict.fromkeys(LOSSES, 1),
        extract_stats=statistics,
        random_seed=seed,
    )
    return trainer.fit(data)


def statistics(net: dagnn.DagNN) -> dict[str, float]:
    """The sum of the losses, and how many digits and sums were read wrong, in this epoch so far."""
    average = {name: float(state["average"]) for name, state in net.state.items() if "average" in state}
    return {
        "loss": sum(average[name] for name in LOSSES),
        "digit err": (average["error_a"] + average["error_b"]) / 2,
        "sum err": average["error_sum"],
    }


def accuracies(net: dagnn.DagNN, pairs: Pairs) -> dict[str, float]:
    """The share of the pairs of which `net` reads each thing right."""
    read = readings(net, pairs)
    return {name: float(np.mean(read[name] == truth)) for name, truth in pairs.truths.items()}


def readings(net: dagnn.DagNN, pairs: Pairs) -> dict[str, np.ndarray]:
    """What `net` reads: the most probable digits and sums."""
    probabilities = net.eval(pairs.images, outputs=READINGS)
    return {name: p.argmax(axis=1).ravel() for name, p in probabilities.items()}


def identical(net: dagnn.DagNN, other: dagnn.DagNN, pairs: Pairs) -> bool:
    """Whether two networks give the same probabilities, to the last bit."""
    ours, theirs = net.eval(pairs.images), other.eval(pairs.images)
    return all(np.array_equal(ours[name], theirs[name]) for name in READINGS)


# ---- pictures


def figure(rows: int, columns: int, **kwargs: Any) -> Any:
    """A matplotlib figure that needs no screen, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(layout="constrained", dpi=130, **kwargs)
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns)


def picture_readings(net: dagnn.DagNN, pairs: Pairs, path: Path) -> None:
    """Eight pairs as they come, then up to eight mistakes, with what `net` reads under each."""
    read, truths = readings(net, pairs), pairs.truths
    wrong = np.any([read[name] != truths[name] for name in READINGS], axis=0)
    mistakes = np.flatnonzero(wrong)[:8]
    fig, grid = figure(4, 4, figsize=(9, 7))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, [*range(8), *mistakes], strict=False):
        both = np.hstack([np.pad(image[i, 0], 1) for image in pairs.images.values()])
        axes.imshow(both, cmap="gray_r", vmin=0, vmax=1)
        text = f"{read['digit_a'][i]} + {read['digit_b'][i]} = {read['sum'][i]}"
        if wrong[i]:
            text += f"\nreally {pairs.label_a[i]} + {pairs.label_b[i]} = {truths['sum'][i]}"
        colour = "#bb3e48" if wrong[i] else "#1f2430"
        axes.text(0.5, -0.05, text, color=colour, ha="center", va="top", transform=axes.transAxes)
    fig.suptitle(f"What the network reads: the first pairs, then mistakes ({wrong.mean():.1%} of all)")
    fig.savefig(path)
