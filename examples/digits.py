"""Two digits and their sum: one network with two inputs and three outputs.

    python examples/digits.py [--out DIR] [--seed N] [--precision float16]

`dagnn demo` shows this network and what it reads. Here it is trained as an experiment of one's own would be:
three losses with weights, statistics for each, a checkpoint after every epoch of which the last and the best
stay, and an interruption after which training goes on as if nothing had been.

Data: scikit-learn's digits, 8x8 pixels; 1437 to learn from, 360 held out. Takes about 15 seconds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import dagnn
from dagnn.demo import DigitPairs, accuracies, build, load_digits
from dagnn.train import SGD, Trainer

REACH = {"digit_a": 0.97, "digit_b": 0.97, "sum": 0.93}
EPOCHS = 20


def trainer(out, seed, precision=None):
    """A network as it comes, and what will train it.

    The sum is the hardest of the three tasks and depends on the other two, so its loss counts double.
    """
    net = build()
    net.init_params(seed)
    return Trainer(
        net,
        SGD(momentum=0.9, weight_decay=0.0005),
        learning_rate=lambda time: 0.025 * (1 + np.cos(np.pi * time / EPOCHS)),
        batch_size=64,
        num_epochs=EPOCHS,
        der_outputs={"loss_a": 1, "loss_b": 1, "loss_sum": 2},
        extract_stats=errors,
        random_seed=seed,
        precision=precision,
        exp_dir=out,
        continue_=True,
        keep_last=1,
        keep_best="val.sum",
    )


def errors(net):
    """What was read wrong in this epoch so far."""
    return {task: net.state[f"error_{task}"]["average"] for task in ("a", "b", "sum")}


def interrupt(trainer):
    """Stop in the middle, as a power cut would."""
    if trainer.epoch == 8:
        raise KeyboardInterrupt


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", default="experiments/digits", type=Path)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--precision", choices=("float16", "bfloat16"), help="of most layers")
    options = arguments.parse_args()
    for old in options.out.glob("net-epoch-*.h5"):
        old.unlink()

    rng = np.random.default_rng(options.seed)
    learn, held_out = load_digits(rng)
    pairs = held_out.pairs(1000, rng)
    data = DigitPairs(learn, pairs)

    first = trainer(options.out, options.seed, options.precision)
    first.post_epoch = interrupt
    try:
        first.fit(data)
    except KeyboardInterrupt:
        print("Interrupted in epoch 8, before its checkpoint: it will be done again.")

    second = trainer(options.out, options.seed, options.precision)  # another process would do the same
    second.fit(data)

    net = dagnn.load(f"{options.out}/net-epoch-{EPOCHS}.h5")
    net.mode = "test"
    reached = accuracies(net, pairs)
    for name, accuracy in reached.items():
        print(f"{name:<8} {accuracy:.1%} right, at least {REACH[name]:.0%} wanted")
    return int(any(reached[name] < REACH[name] for name in REACH))


if __name__ == "__main__":
    sys.exit(main())
