"""The trainer: from data and a network to a trained network, epoch by epoch (MatConvNet's cnn_train_dag)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Data
from ..errors import OptionError, TrainingError
from ..net import DagNN
from ..structure import Names, as_names
from . import checkpoint
from .options import as_data, as_samples, check, check_rates
from .passes import Pass, TrainingPass
from .report import Bar, Report
from .scaling import LossScale
from .solvers import SGD, Solver
from .stats import History, write_stats
from .update import Updates

LearningRate = float | Sequence[float] | Callable[[float], float]


@dataclass(eq=False)
class Trainer:
    """Trains a network on batches of samples, as MatConvNet's `cnn_train_dag` does.

    In every batch it minimises z = sum of weight × mean over the samples, for the outputs and weights in
    `der_outputs`. Batches may be cut into sub-batches to save memory: their derivatives add up to that of
    the batch, and moments, trained by "average", are averaged by size.

    Parameters
    ----------
    net : the network; its parameters have values (`net.init_params()`, or from a file).
    solver : how parameters follow their derivatives; default: `SGD()`.
    learning_rate : a number; one per epoch, of which the last goes on; or a function of the time in epochs,
        0.0 at the start, called before every batch. Default: the solver's.
    weight_decay, momentum, nesterov : options of the solver; default: as it has them.
    batch_size, num_sub_batches : samples in a batch; into how many parts it is cut.
    num_epochs, epoch_size : when to end; samples in an epoch, drawn afresh each time (default: all).
    der_outputs : weights of the scalar outputs to minimise; default {"objective": 1}.
    freeze : parameters that stay as they are, by names or patterns such as "conv1*"; see `DagNN.freeze`.
    random_seed : of the order of samples, of random changes to them, and of dropout.
    memory_budget : the most memory the evaluation of a sub-batch may take, in bytes or as "2GB": what it
        can't keep from forward to backward is made again, with the same results; see `DagNN.eval`.
    precision : "float16" or "bfloat16": convolutions and what lies between compute in it, parameters and
        losses stay float32; "float32"; default: as the net has it. See `DagNN.precision`.
    loss_scale : a factor of derivatives on their way, a number or "dynamic", which float16 has by default: as
        large as may be, for which steps whose derivatives overflow are skipped.
    capture : replay evaluations as CUDA graphs on a backend that has such, with the same results; see
        `DagNN.capture`, which it sets meanwhile. Unless batches have sub-batches, or the solver is your own,
        the graph of a training step holds all of it, and the next batch is launched before it has ended.
    prefetch : sub-batches prepared in the background, and brought to the GPU; 0: none. The result doesn't
        depend on it.
    exp_dir : folder for checkpoints `net-epoch-N.h5`, `stats.json`, `stats.csv` and `curves.png`; default:
        nothing is written.
    continue_ : resume after the last checkpoint in `exp_dir`, as if there had been no interruption: with
        its parameters and their settings, state of the solver, random numbers and statistics.
    keep_last, keep_best : the number of checkpoints to keep (default: all), and with them that of the best
        epoch by a statistic: "val.top1err" (lowest) or "-val.accuracy" (highest).
    post_epoch : called as `post_epoch(trainer)` after every epoch, before its checkpoint; it may set
        `trainer.learning_rate` or call `trainer.stop()`.
    extract_stats : `extract_stats(net)` returns the statistics of the epoch so far, {name: number}; default:
        the running averages of the losses, by the names of their outputs.
    progress : show a bar for the epoch and print a line after it.
    plots : formats of the picture of the curves: "png", "svg", "pdf". Needs matplotlib.
    tensorboard : write the statistics for TensorBoard too. Needs tensorboardX.
    layers : names of custom layers for the checkpoints; see `dagnn.save`.

    Attributes
    ----------
    epoch : the number of epochs finished.
    scaling : the scale of derivatives as it is now.
    history : their statistics, [{"train": {"objective": ...}, "val": {...}}, ...].

    >>> import numpy as np, dagnn
    >>> x = np.random.default_rng(0).standard_normal((200, 2, 1, 1), np.float32)
    >>> net = dagnn.DagNN()
    >>> net.add_layer("fc", dagnn.Conv(size=(2, 2, 1, 1)), "x", "scores")
    >>> net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    >>> net.init_params(0)
    >>> data = {"x": x, "label": (x[:, 0] > x[:, 1]).ravel().astype(int)}
    >>> trainer = Trainer(net, learning_rate=0.1, batch_size=20, num_epochs=3, progress=False)
    >>> trainer.fit(data)[-1]["train"]["objective"] < 0.2
    True
    """

    net: DagNN
    solver: Solver = field(default_factory=SGD)
    _: KW_ONLY
    learning_rate: LearningRate | None = None
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    batch_size: int = 128
    num_sub_batches: int = 1
    num_epochs: int = 20
    epoch_size: int | None = None
    der_outputs: Mapping[str, float] = field(default_factory=lambda: {"objective": 1.0})
    freeze: Names = ()
    random_seed: int = 0
    memory_budget: int | str | None = None
    precision: str | None = None
    loss_scale: float | str | None = None
    capture: bool = False
    prefetch: int = 2
    exp_dir: str | PathLike[str] | None = None
    continue_: bool = False
    keep_last: int | None = None
    keep_best: str | None = None
    post_epoch: Callable[[Trainer], Any] | None = None
    extract_stats: Callable[[DagNN], Mapping[str, float]] | None = None
    progress: bool = True
    plots: Sequence[str] = ("png",)
    tensorboard: bool = False
    layers: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check(self)
        given = {name: getattr(self, name) for name in ("weight_decay", "momentum", "nesterov")}
        for name, value in given.items():
            if value is not None and not hasattr(self.solver, name):
                raise OptionError(f"{type(self.solver).__name__} has no {name}. Received: {value!r}")
        for name, value in given.items():
            if value is not None:
                setattr(self.solver, name, value)
        self.history: History = []
        self.folder = None if self.exp_dir is None else Path(self.exp_dir).expanduser()
        self._given_rate, self._own_rate = self.learning_rate, self.solver.learning_rate
        self.scaling = self._scaling()
        self._updates: Updates | None = None
        self._stopped = False
        self._broken_off = False  # in the middle of an epoch

    @property
    def epoch(self) -> int:
        """The number of epochs finished."""
        return len(self.history)

    def _scaling(self) -> LossScale:
        return LossScale.of(self.loss_scale, self.precision or self.net.precision)

    def stop(self) -> None:
        """Let this epoch be the last; for `post_epoch`."""
        self._stopped = True

    def rate_at(self, time: float) -> float:
        """The learning rate at a time in epochs, 0.0 at the start."""
        rate = self._own_rate if self.learning_rate is None else self.learning_rate
        if callable(rate):
            check_rates([now := rate(time)])
            return now
        if isinstance(rate, Sequence | np.ndarray):
            return rate[min(int(time), len(rate) - 1)]
        return rate

    def fit(self, data: Data | Mapping[str, Any], train: Any = None, val: Any = None) -> History:
        """Train up to epoch `num_epochs`; returns the statistics of all epochs.

        Parameters
        ----------
        data : a `dagnn.data.Data`, or a dict of arrays by variable name, whose first axis is the samples.
        train, val : numbers of the samples to train on and to validate with; default: those the data says,
            of a dict all for training.

        Raises
        ------
        TrainingError : the objective or a derivative isn't finite; with epoch, batch and layer.
        DataError : the data failed; with epoch and batch.
        DagnnError : evaluation failed, because of a label say; with epoch, batch, layer and sample.
        """
        check(self)
        data = as_data(data)
        train, val = as_samples("train", train, data), as_samples("val", val, data)
        if not len(train):
            raise OptionError(f"{type(data).__name__} has no samples to train on: give fit(data, train=...)")
        if self.net.parameter_server is not None:
            raise OptionError("the trainer moves the parameters itself: set net.parameter_server = None")
        net = self.net
        before = net.mode, net.accumulate_param_ders, net.precision, net.capture
        report = Report(self)
        self._begin()
        try:
            net.accumulate_param_ders = False
            net.precision = self.precision or net.precision
            net.capture = self.capture or net.capture
            while self.epoch < self.num_epochs and not self._stopped:
                self._broken_off = True
                training = self._train_epoch(data, train, val)
                self._check_params()
                if self.post_epoch:
                    self.post_epoch(self)
                self._save()
                self._broken_off = False
                report.epoch(training)
        finally:
            if self._updates is not None:  # graphs that end with its steps aren't used again
                net.capture, self._updates = False, None
            net.mode, net.accumulate_param_ders, net.precision, net.capture = before
            self.solver.learning_rate = self._own_rate
            report.close()
        return self.history

    def evaluate(self, data: Data | Mapping[str, Any], samples: Any = None) -> dict[str, float]:
        """The statistics of some samples in mode "test"; default: those for validation, else all."""
        data = as_data(data)
        if samples is None and not len(getattr(data, "val", ())):
            samples = np.arange(len(data))
        samples = as_samples("val", samples, data)
        if not len(samples):
            raise OptionError("there are no samples to evaluate")
        before = self.net.mode, self.net.precision, self.net.capture
        try:
            self.net.precision = self.precision or self.net.precision
            self.net.capture = self.capture or self.net.capture
            return self._run(Pass(self, data, samples, epoch=0), "evaluation")
        finally:
            self.net.mode, self.net.precision, self.net.capture = before

    def _train_epoch(self, data: Data, train: np.ndarray, val: np.ndarray) -> Pass:
        epoch, title = self.epoch + 1, f"epoch {self.epoch + 1:{len(str(self.num_epochs))}}/{self.num_epochs}"
        order = np.random.default_rng((self.random_seed, epoch)).permutation(train)[: self.epoch_size]
        training = TrainingPass(self, data, order, epoch)
        stats = {"train": self._run(training, f"{title} train")}
        if len(val):
            stats["val"] = self._run(Pass(self, data, val, epoch), f"{title} val  ")
        self.history.append(stats)
        return training

    def _run(self, current: Pass, title: str) -> dict[str, float]:
        with Bar(current, title, self.progress) as bar:
            return current.run(bar)

    def _updates_of(self, solver: Solver) -> Updates | None:
        """What graphs end with; the same as long as the solver is, for graphs go by it."""
        if self._updates is None or self._updates.solver is not solver:
            self._updates = Updates.of(self.net, solver, self.der_outputs)
        if self._updates is not None:
            with self.net.backend.evaluation():
                self._updates.good.fill(True)
        return self._updates

    # ---- beginning, checking, keeping

    def _begin(self) -> None:
        """Start afresh, go on, or resume from `exp_dir`; that `exp_dir` can be written is seen here."""
        self._stopped = False
        epochs = checkpoint.epochs_in(self.folder) if self.folder else []
        if epochs and (self._broken_off or epochs[-1] != self.epoch):
            self._resume(epochs)
        elif self._broken_off and self.progress:
            print(f"Epoch {self.epoch + 1} was broken off: it begins again with the parameters as they are")
        elif not self.history:
            self.net.seed, self.solver.state = self.random_seed, {}
            self.scaling = self._scaling()
            self.net.freeze(self.freeze)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(self.folder)
            checkpoint.prune(self.folder, self.history, self.keep_last, self.keep_best)
            write_stats(self.folder, self.history)

    def _resume(self, epochs: list[int]) -> None:
        assert self.folder is not None
        if not (self.continue_ or self._broken_off):
            raise OptionError(
                f"{self.folder} has the checkpoints of a training, up to epoch {epochs[-1]}. "
                f"Resume it with continue_=True (--continue), or choose another exp_dir"
            )
        path = checkpoint.path_of(self.folder, epochs[-1])
        progress = checkpoint.resume(path, self.net, self.layers)
        self.solver.load_state(progress.solver)
        self.scaling = self._scaling()
        self.scaling.load_state(progress.scaling)
        self.history, self._stopped = progress.history, progress.stopped
        if progress.freeze != as_names(self.freeze):
            self.net.unfreeze(progress.freeze)
            self.net.freeze(self.freeze)
        notes = [f"Resumed {path}: {self.epoch} of {self.num_epochs} epochs are done"]
        if progress.learning_rate is not None:
            self.learning_rate = progress.learning_rate
            notes.append(f"post_epoch had set learning_rate to {progress.learning_rate}")
        if self._stopped:
            notes.append("post_epoch had stopped it; call fit once more to go on all the same")
        if self.progress:
            print("; ".join(notes), flush=True)

    def _save(self) -> None:
        if self.folder is None:
            return
        rate = self.learning_rate if self.learning_rate is not self._given_rate else None
        if callable(rate):
            raise OptionError("post_epoch set learning_rate to a function, which no checkpoint can keep")
        rate = rate.tolist() if isinstance(rate, np.ndarray) else rate
        state, freeze = self.solver.state_dict(), as_names(self.freeze)
        scaling = self.scaling.state_dict() if self.scaling.dynamic else {}
        progress = checkpoint.Progress(self.epoch, self.history, state, rate, freeze, self._stopped, scaling)
        checkpoint.save(self.folder, self.net, progress, self.layers)
        checkpoint.prune(self.folder, self.history, self.keep_last, self.keep_best)

    def _check_params(self) -> None:
        params = [param for param in self.net.params.values() if param.value is not None]
        if self.net.backend.finite([param.value for param in params]):
            return
        for param in params:
            if not self.net.backend.finite([param.value]):
                raise TrainingError(
                    f"Epoch {self.epoch}: parameter {param.name!r} is not finite after the last step. "
                    f"Received: learning_rate {self.solver.learning_rate:g}"
                )


def fit(
    net: DagNN, data: Data | Mapping[str, Any], train: Any = None, val: Any = None, **options: Any
) -> History:
    """Train `net` on `data`: `Trainer(net, **options).fit(data, train, val)`, in one call.

    >>> import numpy as np, dagnn
    >>> net = dagnn.DagNN()
    >>> net.add_layer("fc", dagnn.Conv(size=(1, 1, 1, 1)), "x", "y")
    >>> net.add_layer("loss", dagnn.PDist(p=2, no_root=True, aggregate=True), ["y", "target"], "objective")
    >>> net.init_params(0)
    >>> x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(64, 1, 1, 1)
    >>> history = fit(net, {"x": x, "target": 3 * x + 1}, learning_rate=0.1, batch_size=8, progress=False)
    >>> round(net.params["fc_filters"].value.item(), 2), round(net.params["fc_biases"].value.item(), 2)
    (3.0, 1.0)
    """
    return Trainer(net, **options).fit(data, train, val)
