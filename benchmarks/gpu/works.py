"""One step of a network on the device: each function makes a `Work`, which begins a step and doesn't wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import dagnn
import dagnn.train
from dagnn import DagNN
from dagnn.backends.base import Backend
from dagnn.capture import borrowing
from dagnn.train.update import Updates

from ..measure import Work
from ..nets import Case
from ..works import SOLVER

PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "float64")
LOW = ("bfloat16", "float16")  # trained with parameters in float32


@dataclass(frozen=True)
class Setting:
    """How a network is evaluated."""

    phase: str
    precision: str = "float32"
    capture: bool = False


@cache
def _made(build: Any) -> DagNN:
    return Case(build, (1, 1, 1, 1)).net()


def plain(case: Case) -> DagNN:
    """The network of a case on NumPy, with the same parameters each time."""
    return _made(case.build).copy()


def backend_of(precision: str, device: int = 0, **options: Any) -> Backend:
    """The backend that computes in a precision."""
    return dagnn.backends.get("cupy", device=device, tf32=precision == "tf32", **options)


Backends = Callable[[str], Backend]
"""The backend that computes in a precision."""


def without_dropout(net: DagNN) -> DagNN:
    """Its masks set to nothing: everybody draws others."""
    for node in net.layers.values():
        if isinstance(node.layer, dagnn.DropOut):
            node.layer.rate = 0.0
    return net


def prepared(net: DagNN, setting: Setting, backend: Backend) -> DagNN:
    """The network where and how it is to run."""
    net.mode = "test" if setting.phase == "infer" else "train"
    net.move(backend)
    net.capture = setting.capture
    if setting.precision in LOW:
        net.precision = setting.precision
    elif setting.precision == "float64":
        net.astype("float64")
    return net


def inputs_of(case: Case, setting: Setting, backend: Backend) -> dict[str, Any]:
    """The batch on the device."""
    double = setting.precision == "float64"
    return {
        name: backend.asarray(a.astype("float64") if double and a.dtype.kind == "f" else a)
        for name, a in case.inputs().items()
    }


def ours(case: Case, setting: Setting, backend: Backend) -> Work:
    """dagnn, with inputs on the device already; an evaluation returns the prediction."""
    net, inputs = prepared(plain(case), setting, backend), inputs_of(case, setting, backend)
    if setting.phase == "infer":
        x = {"input": inputs["input"]}
        return lambda: net.eval(x, outputs=["prediction"])["prediction"]
    solver = dagnn.train.SGD(**SOLVER)
    updates = Updates.of(net, solver, ["objective"])
    lent = ExitStack()
    lent.enter_context(
        borrowing(net, updates=updates)
    )  # as the trainer does, for all steps: in the end it copies

    def step(_: Any = lent) -> None:
        if updates is not None:
            updates.made = False
        net.eval(inputs, {"objective": 1}, outputs=["objective"])
        if updates is None or not updates.made:
            solver.step(net)

    return step


class Peer:
    """PyTorch with the same network, parameters and inputs, on `device`, in memory `layout`."""

    def __init__(self, net: DagNN, case: Case, setting: Setting, layout: str, device: str = "cuda") -> None:
        import torch

        from .. import peers

        self._torch, self._objective, self._setting = torch, peers.objective, setting
        model, x, label = peers.pytorch(net, case.inputs(), layout)
        pure = self._dtype if setting.precision == "float64" or setting.phase == "infer" else torch.float32
        self.model, self.x = model.to(device, pure), x.to(device, pure)
        self.label = label.to(device, pure) if label.is_floating_point() else label.to(device)
        self.model.train(setting.phase == "train")
        low = setting.precision in LOW and setting.phase == "train"
        self._cast = torch.autocast(device, self._dtype) if low else nullcontext()

    @property
    def _dtype(self) -> Any:
        """What the layers' data is."""
        return getattr(self._torch, {"tf32": "float32"}.get(self._setting.precision, self._setting.precision))

    def compiled(self) -> Peer:
        """The same through torch.compile."""
        self.model = self._torch.compile(self.model)
        return self

    def prediction(self) -> Any:
        with self._torch.inference_mode():
            return self.model(self.x)

    def backward(self) -> None:
        with self._cast:
            prediction = self.model(self.x)
        if self._setting.precision in LOW:
            prediction = prediction.float()
        self._objective(prediction, self.label).backward()

    def work(self) -> Work:
        """A step; training is with the fused SGD."""
        if self._setting.phase == "infer":
            return self.prediction
        rate, momentum, decay = SOLVER.values()
        sgd = self._torch.optim.SGD(self.model.parameters(), rate, momentum, weight_decay=decay, fused=True)

        def step() -> None:
            sgd.zero_grad()
            self.backward()
            sgd.step()

        return step


@contextmanager
def pytorchs_precision(precision: str) -> Iterator[None]:
    """PyTorch's own switches: TF32 only where it is asked for, and the fastest of cuDNN's algorithms."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
