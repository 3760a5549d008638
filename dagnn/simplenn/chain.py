"""SimpleNN and its evaluation."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import inf
from os import PathLike
from time import perf_counter
from typing import Any, NamedTuple
from zlib import crc32

from .. import backends
from ..backends.base import Array, Backend
from ..dtypes import is_floating
from ..errors import DagnnError, DTypeError, OptionError, ReleasedError, ShapeError, shortage_explained
from ..geometry import Shape
from ..layers import DropOut
from ..layers.layer import Context, Layer
from ..net import DagNN
from ..plan import shape_and_type
from .convert import add_link, chain, rename_canonically
from .custom import Result, call
from .layers import LOSSES, WITH_DERS, Link, block, extra_inputs, is_custom, is_empty, tidy

TIDY = {"type", "name", "weights", "precious"}
MODES = {"normal": "train", "train": "train", "test": "test"}


class SimpleNN:
    """A chain of layers, each a dict with MatConvNet's fields, evaluated as `vl_simplenn` does.

    Arrays are in dagnn's axes: data (N, C, H, W), filters (K, C/groups, h, w), those of "convt"
    (C, K/groups, h, w), biases (K,), moments (C, 2); labels (field `class`) count from 0.

    >>> import numpy as np
    >>> from dagnn.simplenn import SimpleNN
    >>> net = SimpleNN([
    ...     {"type": "conv", "weights": [np.ones((4, 1, 3, 3)), np.zeros(4)], "pad": 1},
    ...     {"type": "relu", "name": "r"},
    ...     {"type": "softmaxloss"},
    ... ])
    >>> net.layers[2]["class"] = np.zeros((2, 1, 5, 5), int)
    >>> res = net.eval(np.ones((2, 1, 5, 5)), dzdy=1.0)
    >>> res[1].x.shape, res[0].dzdw[0].shape, round(float(res[3].x), 3)
    ((2, 4, 5, 5), (4, 1, 3, 3), 34.657)
    >>> net.to_dagnn().layers["r"].inputs
    ['x1']

    Layers are tidied when the net is made (see `dagnn.simplenn.tidy`) and read anew by every evaluation, so
    that fields may be changed at any time. The chain is walked layer by layer: each dict is turned into the
    dagnn layer it stands for, which is given a `Context` as a DagNN would. A DagNN's Plan isn't used,
    because it decides by itself what to keep and has no notion of `backprop_depth`, of `res`, or of a custom
    layer that reads and writes results; `to_dagnn` gives the same network with a Plan.

    Types: conv, convt, pool, pool_center, normalize, lrn, normalize_hacked, lrn_hacked,
    normalize_nobackprop, lrn_nobackprop, normalizelp, softmax, loss, softmaxloss, relu, relu_eccv16,
    relu_deconvnet, relu_nobackprop, tanh, sigmoid, noffset, spnorm, dropout, bnorm, pdist, custom. A layer of
    another type is kept, and raises PlaceholderError when it is evaluated.

    Attributes
    ----------
    layers : list of dicts.
    meta : free information about the net.
    backend : what it runs on; with its options as of a DagNN.
    seed, evaluation : with a layer's name the key of its random numbers; `evaluation` counts.
    """

    def __init__(
        self,
        layers: Iterable[Mapping[str, Any]],
        meta: Mapping[str, Any] | None = None,
        backend: str | Backend = "numpy",
        **options: Any,
    ) -> None:
        self.backend = backends.get(backend, **options)
        self.layers: list[Link] = tidy(layers, self.backend)
        self.meta: dict[str, Any] = dict(meta or {})
        self.seed = 0
        self.evaluation = 0

    def tidy(self) -> None:
        """Bring layers added since the net was made into the same form (see `dagnn.simplenn.tidy`)."""
        self.layers = tidy(self.layers, self.backend)

    def eval(
        self,
        x: Any,
        dzdy: Any = None,
        res: list[Result] | None = None,
        *,
        mode: str = "normal",
        conserve_memory: bool = False,
        accumulate: bool = False,
        backprop_depth: float = inf,
        skip_forward: bool = False,
        hold_on: bool = False,
        parameter_server: Any = None,
        sync: bool = False,
        cudnn: bool = True,
    ) -> list[Result]:
        """Run the chain forward and, if `dzdy` is given, backward.

        Parameters
        ----------
        x : the input.
        dzdy : derivative of z with respect to the output: an array of its shape, or a number for an output
            of one element.
        res : results of an earlier evaluation, to be written over.
        mode : "normal" (or "train"), or "test", in which batch normalisation uses its moments and dropout
            does nothing.
        conserve_memory : forget each x once it isn't needed, but for the last one, losses, and layers whose
            field `precious` is true; and each derivative but for those of the input and of weights.
        accumulate : add derivatives of weights to those in `res`.
        backprop_depth : how many layers, from the last one, backpropagate.
        skip_forward : take the values in `res` instead of computing them.
        parameter_server : an object whose `push("l<layer>_<weight>", der)`, both counted from 1, takes the
            derivatives of weights instead of `dzdw`.
        hold_on : keep derivatives in `dzdw` although there is a parameter server.
        sync : wait for the device after each layer, so that times are meaningful on a GPU.
        cudnn : accepted for MatConvNet's sake; the backend chooses.

        Returns
        -------
        One `Result` per point of the chain: `res[0]` for the input, `res[i + 1]` for the output of layer i.
        It is the given `res` if there was one. A dropout layer whose field `frozen` is true uses the mask in
        `res[i + 1].aux` again.

        The derivative of batch normalisation in mode "test" is that of the linear map it is there
        (MatConvNet takes the one for mode "normal").
        """
        if mode not in MODES:
            raise OptionError(f"mode is 'normal' (or 'train') or 'test'. Received: {mode!r}")
        if not backprop_depth > 0:
            raise OptionError(f"backprop_depth must be more than 0. Received: {backprop_depth!r}")
        if untidy := [k for k, link in enumerate(self.layers) if not link.keys() >= TIDY]:
            raise OptionError(f"layers[{untidy[0]}] isn't tidy: call net.tidy() after adding layers")
        n, doder = len(self.layers), not is_empty(dzdy)
        if skip_forward and (not doder or res is None):
            raise OptionError("skip_forward needs dzdy, and the results of a forward pass in res")
        if res is None:
            res = [Result() for _ in range(n + 1)]
        elif len(res) != n + 1:
            raise OptionError(f"res must have {n + 1} entries for {n} layers. Received: {len(res)}")
        mode = MODES[mode]
        lowest = int(max(n - backprop_depth, 0)) if doder else n  # no layer below it backpropagates
        steps = {}
        with self.backend.evaluation(), shortage_explained(self.backend.memory_use):
            if not skip_forward:
                self.evaluation += 1
                res[0].x = self.backend.asarray(x)
                for i in range(n):
                    start = perf_counter()
                    if i >= lowest:
                        steps[i] = self._forward(i, res, mode, True)
                    else:
                        self._forward(i, res, mode, False)
                        if conserve_memory and not (i and _stays(self.layers[i - 1])):
                            res[i].x = None
                    res[i].time = self._since(start, sync)
            if not doder:
                return res
            res[n].dzdx = self._seed(dzdy, res[n].x)
            for i in reversed(range(lowest, n)):
                start, link = perf_counter(), self.layers[i]
                step = self._again(i, res, mode) if skip_forward else steps.pop(i)
                self._backward(i, res, step, accumulate)
                if parameter_server is not None and not hold_on and link["type"] in WITH_DERS:
                    _push(parameter_server, i, res[i])
                if conserve_memory and not link["precious"] and i != n - 1:
                    res[i + 1].dzdx = res[i + 1].x = None
                res[i].backward_time = self._since(start, sync)
            if conserve_memory and 0 < lowest < n and not self.layers[lowest]["precious"]:
                res[lowest].dzdx = res[lowest].x = None
            return res

    def _forward(self, i: int, res: list[Result], mode: str, back: bool) -> _Step | None:
        link, before, after = self.layers[i], res[i], res[i + 1]
        with _explained(i, link, x=before.x):
            if is_custom(link):
                res[i + 1] = call(link, "forward", before, after)
                return None
            step = self._step(link, mode, back, after.aux if link.get("frozen") else None)
            after.x = step.forward(before.x)
            if mode == "train" and isinstance(step.layer, DropOut):
                after.aux = step.ctx.state["mask"]
            return step

    def _again(self, i: int, res: list[Result], mode: str) -> _Step | None:
        """What backward needs of layer i, from the values of an earlier pass."""
        link, before, after = self.layers[i], res[i], res[i + 1]
        with _explained(i, link, x=before.x):
            if is_custom(link):
                return None
            masked = mode == "train" and link["type"] == "dropout"
            if before.x is None or (masked and after.aux is None):
                what = f"res[{i}].x" if before.x is None else f"res[{i + 1}].aux"
                raise ReleasedError(
                    f"skip_forward needs {what}, of a pass in this mode that conserved no memory"
                )
            step = self._step(link, mode, True, after.aux)
            step.forward(before.x)
            return step

    def _backward(self, i: int, res: list[Result], step: _Step | None, accumulate: bool) -> None:
        link, before, after = self.layers[i], res[i], res[i + 1]
        with _explained(i, link, x=before.x, dzdy=after.dzdx):
            if step is None:
                res[i] = call(link, "backward", before, after)
                return
            (before.dzdx, *_), ders = step.layer.backward(step.ctx, step.weights, [after.dzdx])
        if link["type"] in WITH_DERS:
            dzdw = [*ders, *[None] * (len(link["weights"]) - len(ders))]
            if accumulate and before.dzdw:
                dzdw = [_plus(old, new) for old, new in zip(before.dzdw, dzdw, strict=True)]
            before.dzdw = dzdw

    def _step(self, link: Link, mode: str, back: bool, mask: Any) -> _Step:
        layer = block(link)
        if isinstance(layer, DropOut):
            layer.frozen = True  # so that the mask can be read
        weights = link["weights"][: len(layer.params)]
        extra = [self.backend.asarray(a) for a in extra_inputs(link)]
        ctx = Context(
            self.backend,
            mode,
            partial(self.backend.rng, self.seed, self.evaluation, crc32(link["name"].encode())),
            (back, *[False] * len(extra)),
            tuple(back and w is not None for w in weights),
            {} if mask is None else {"mask": mask},
        )
        return _Step(layer, ctx, weights, extra)

    def _seed(self, dzdy: Any, y: Array | None) -> Array:
        if y is None:
            raise ReleasedError(f"skip_forward needs res[{len(self.layers)}].x, the output of a forward pass")
        der = self.backend.asarray(dzdy)
        if hasattr(dzdy, "dtype") and is_floating(der.dtype) and der.dtype != y.dtype and der.ndim:
            raise DTypeError(f"dzdy is {der.dtype}, the output {y.dtype}")
        if der.size == 1 and y.size == 1:
            der = der.reshape(y.shape)
        if der.shape != y.shape:
            received = shape_and_type(der)
            raise ShapeError(f"dzdy must have the output's shape {tuple(y.shape)}. Received: {received}")
        return der.astype(y.dtype, copy=False)

    def _since(self, start: float, sync: bool) -> float:
        cuda = getattr(self.backend.xp, "cuda", None)
        if sync and cuda is not None:
            cuda.get_current_stream().synchronize()
        return perf_counter() - start

    # ---- elsewhere

    def to_dagnn(self, canonical_names: bool = False) -> DagNN:
        """The same network as a DagNN, under MatConvNet's names (`DagNN.fromSimpleNN`).

        Layers keep their names; variables are x0, x1 ...; the second input of a loss is `label` (label1 ...);
        parameters of layer `l` are `lf` and `lb`, of a batch normalisation `lm`, `lb` and `lx`. With
        `canonical_names` the input is called `input`; the input and output of each softmax `prediction` and
        `prob`; the output of each loss `objective`, and its input `prediction` unless it is a `prob`.

        Layers that can't be evaluated become placeholders that keep their fields. `class` and training
        state are left behind; a convolution without filters becomes one with filters of ones, not trained.
        """
        net = DagNN(self.backend)
        net.meta, net.seed, net.evaluation = copy.deepcopy(self.meta), self.seed, self.evaluation
        for i, link in enumerate(self.layers):
            with _explained(i, link):
                add_link(net, i, link)
        if canonical_names:
            rename_canonically(net)
        inputs = net.meta.get("inputs")
        first = inputs[0] if isinstance(inputs, list) and inputs else inputs
        if isinstance(first, dict):
            first["name"] = net.inputs[0]
        return net

    @classmethod
    def from_dagnn(cls, net: DagNN) -> SimpleNN:
        """A DagNN that is a chain, as a SimpleNN (MatConvNet's `toSimpleNN`).

        GraphError for a net that is no chain, OptionError for a layer that a SimpleNN cannot have.

        >>> import dagnn
        >>> net = dagnn.DagNN()
        >>> net.add_layer("relu", dagnn.ReLU(leak=0.1), "x", "y")
        >>> dagnn.SimpleNN.from_dagnn(net).layers[0]["type"]
        'relu'
        """
        return cls(chain(net), net.meta, net.backend)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SimpleNN:
        """The chain in a .mat file: a SimpleNN struct, or a DagNN that is a chain."""
        from ..io.matconvnet import read

        net = read(path)
        return net if isinstance(net, SimpleNN) else cls.from_dagnn(net)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the chain to a .mat file as a SimpleNN struct, which MatConvNet loads."""
        from ..io.matwrite import save

        save(self, path)

    def display(
        self, input_shape: Shape | None = None, *, batch_size: int | None = None, columns: int = 18
    ) -> str:
        """The table that MatConvNet's `vl_simplenn_display` prints, a column for each layer.

        Parameters
        ----------
        input_shape : (N, C, H, W); what is not given is looked for in `meta` (inputSize, or
            normalization.imageSize) and shown as NaN where it isn't there.
        batch_size : replaces N (default 1).
        columns : how many layers stand next to each other.

        Rows: support of the operator, filter dimension (depth of the bank), dilation, number of filters,
        stride, pad; size, offset and stride in pixels of the receptive field in the input, where the
        offset counts pixels from 1 as in MATLAB; size, depth, number and memory of the data behind the
        layer; memory of the weights. A transposed convolution has a fractional stride and a negative pad,
        what it crops. n/a: there is none, or it is not known.

        >>> import numpy as np
        >>> net = SimpleNN([
        ...     {"type": "conv", "name": "c", "weights": [np.zeros((8, 3, 5, 5), "f4"), None], "stride": 2},
        ...     {"type": "pool", "name": "p", "pool": 2, "stride": 2, "pad": (0, 1, 0, 1)},
        ... ])
        >>> print(net.display((1, 3, 32, 32)))
             layer|    0|   1|      2|
              type|input|conv|  mpool|
              name|  n/a|   c|      p|
        ----------|-----|----|-------|
           support|  n/a|   5|      2|
          filt dim|  n/a|   3|    n/a|
        filt dilat|  n/a|   1|    n/a|
         num filts|  n/a|   8|    n/a|
            stride|  n/a|   2|      2|
               pad|  n/a|   0|0x1x0x1|
        ----------|-----|----|-------|
           rf size|  n/a|   5|      7|
         rf offset|  n/a|   3|      4|
         rf stride|  n/a|   2|      4|
        ----------|-----|----|-------|
         data size|   32|  14|      7|
        data depth|    3|   8|      8|
          data num|    1|   1|      1|
        ----------|-----|----|-------|
          data mem| 12KB| 6KB|    2KB|
         param mem|  n/a| 2KB|     0B|
        <BLANKLINE>
        parameter memory| 2KB (6e+02 parameters)|
             data memory|20KB (for batch size 1)|
        """
        from .display import table

        return table(self, input_shape, batch_size, columns)

    def move(self, backend: str | Backend, **options: Any) -> None:
        """Move the weights to `backend`, "numpy" or "cupy" with its options; see `DagNN.move`."""
        new, old = backends.get(backend, **options), self.backend
        for link in self.layers:
            link["weights"] = [None if w is None else new.asarray(old.to_numpy(w)) for w in link["weights"]]
        self.backend = new

    def __repr__(self) -> str:
        from ..summary import human_count

        kinds = Counter(link["type"] for link in self.layers)
        weights = sum(w.size for link in self.layers for w in link["weights"] if w is not None)
        types = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        size = f"{len(self.layers)} layers, {human_count(weights)} weights"
        return f"SimpleNN ({self.backend.name}): {size}; {types}"


class _Step(NamedTuple):
    """A layer on its way through one evaluation."""

    layer: Layer
    ctx: Context
    weights: list[Any]
    extra: list[Any]

    def forward(self, x: Array) -> Array:
        (y,) = self.layer.forward(self.ctx, [x, *self.extra], self.weights)
        return y


@contextmanager
def _explained(i: int, link: Link, **arrays: Any) -> Iterator[None]:
    """Say, in whatever goes wrong, in which layer it was and what that layer had received."""
    where = f"layers[{i}] {link['name']!r} ({link['type']})"
    try:
        yield
    except Exception as error:
        texts = [f"{n} {shape_and_type(a)}" for n, a in arrays.items() if a is None or hasattr(a, "dtype")]
        received = "; ".join(texts) or f"the fields {', '.join(link)}"
        if isinstance(error, DagnnError):
            error.add_context(where, received)
        else:
            error.add_note(f"In {where}.\nReceived: {received}")
        raise


def _stays(link: Link) -> bool:
    return link["precious"] or link["type"] in LOSSES


def _plus(old: Array | None, new: Array | None) -> Array | None:
    return new if old is None else old if new is None else old + new


def _push(server: Any, i: int, entry: Result) -> None:
    for k, der in enumerate(entry.dzdw):
        if der is not None:
            server.push(f"l{i + 1}_{k + 1}", der)
            entry.dzdw[k] = None
