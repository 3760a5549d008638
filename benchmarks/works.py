"""One step of a network, of dagnn and of its peers: each function makes a `Work`, which makes a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import dagnn
import dagnn.train

from .measure import Work
from .nets import Case

SOLVER = {"learning_rate": 1e-10, "momentum": 0.9, "weight_decay": 5e-4}  # the values stay finite
LAYOUTS = ("nchw", "nhwc")
PHASES = ("infer", "train")


def ours(case: Case, phase: str) -> Work:
    """dagnn; an evaluation returns the prediction."""
    net, inputs = case.net(), case.inputs()
    if phase == "infer":
        net.mode = "test"
        x = {"input": inputs["input"]}
        return lambda: net.eval(x, outputs=["prediction"])["prediction"]
    solver = dagnn.train.SGD(**SOLVER)

    def step() -> None:
        net.eval(inputs, {"objective": 1}, outputs=["objective"])
        solver.step(net)

    return step


def pytorch(case: Case, phase: str, layout: str, threads: int) -> Work:
    """PyTorch, in memory `layout` "nchw" or "nhwc"; its SGD is the fused one, which is its fastest."""
    import torch

    from . import peers

    torch.set_num_threads(threads)
    model, x, label = peers.pytorch(case.net(), case.inputs(), layout)
    if phase == "infer":
        model.eval()

        def infer() -> np.ndarray:
            with torch.inference_mode():
                return model(x).numpy()

        return infer
    model.train()
    rate, momentum, decay = SOLVER.values()
    sgd = torch.optim.SGD(model.parameters(), rate, momentum, weight_decay=decay, fused=True)

    def step() -> None:
        sgd.zero_grad()
        peers.objective(model(x), label).backward()
        sgd.step()

    return step


def onnxruntime(case: Case, threads: int, file: Path | None = None) -> Work:
    """ONNX Runtime, on the network that `peers.write_onnx` wrote to `file`, or writes now."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    model: Any = str(file) if file else _exported(case)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = {"input": case.inputs()["input"]}
    return lambda: session.run(None, x)[0]


def _exported(case: Case) -> bytes:
    from . import peers

    return peers.onnx_model(case.net(), case.inputs())
