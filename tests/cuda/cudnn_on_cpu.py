"""A module that stands for `cudnn` (nvidia-cudnn-frontend) over the emulated CuPy: `cudnn_on_cpu.make()`.

It interprets the graphs that the package builds, with the reference kernels, and is as strict as cuDNN: about
the order of calls, dims, strides and types of every tensor, alignment, pointers and workspaces. Only the
patterns pass that have engines compiled beforehand: convolution [+ sum] + biases [+ ReLU].
"""

import ctypes
import enum
from contextlib import suppress
from types import ModuleType

import emulated_cuda
import numpy as np

from dagnn.backends import get

ALIGNMENT = 16
STEPS = ["built", "validated", "lowered", "planned", "supported", "executable"]
WORKSPACE = 1000  # bytes of plan 0; each further one takes twice as much


class cudnnGraphNotSupportedError(Exception):
    """No engine does this."""


data_type = enum.Enum("data_type", "HALF BFLOAT16 FLOAT DOUBLE INT32")
heur_mode = enum.Enum("heur_mode", "A B FALLBACK")
numerical_note = enum.Enum(
    "numerical_note",
    "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD "
    "WINOGRAD_TILE_4x4 WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP",
)
TYPES = {
    data_type.HALF: np.dtype("float16"),
    data_type.FLOAT: np.dtype("float32"),
    data_type.DOUBLE: np.dtype("float64"),
}
with suppress(ImportError):
    from ml_dtypes import bfloat16

    TYPES[data_type.BFLOAT16] = np.dtype(bfloat16)


class Tensor:
    """A tensor of a graph: an input, or the result of `node`."""

    def __init__(self, node=None, dim=None, stride=None, kind=None, uid=None, name=""):
        self.node, self.dim, self.stride, self.kind, self.uid, self.name = node, dim, stride, kind, uid, name
        self.output = False

    def set_output(self, value):
        self.output = value
        return self

    def set_dim(self, dim):
        self.dim = list(dim)
        return self

    def set_stride(self, stride):
        self.stride = list(stride)
        return self

    def set_data_type(self, kind):
        self.kind = kind
        return self

    def set_uid(self, uid):
        self.uid = uid
        return self

    def layout(self):
        """Whether it is channels-last, None where that's the same; ValueError unless it is dense maps.

        A result may be some channels of larger ones.
        """
        _, c, h, w = self.dim
        first, last = [c * h * w, h * w, w, 1], [c * h * w, 1, w * c, c]
        if self.output and self.stride not in (first, last):
            first[0], _, _, by_pixel = self.stride
            last = [by_pixel * h * w, 1, by_pixel * w, by_pixel]
        if self.stride not in (first, last):
            raise ValueError(f"{self.name}: strides {self.stride} of {self.dim} are not dense")
        return self.stride == last if first != last else None


class Handle:
    """A handle, with the stream it runs on."""

    def __init__(self):
        self.device, self.stream = emulated_cuda.current_device(), 0


class pygraph:
    """A graph of operations."""

    refused = staticmethod(lambda graph: False)  # a test's, to have no engine for some
    plans = 3
    log: list = []  # what happened: ("planned", uids), ("timed", index), ("executed", index)

    def __init__(
        self, name="", io_data_type=None, intermediate_data_type=None, compute_data_type=None, handle=None
    ):
        if not isinstance(handle, Handle):
            raise TypeError("a graph needs a handle, or the properties of a device")
        self.io, self.compute = io_data_type, compute_data_type
        self.tensors, self.step, self.notes, self.limit, self.selected = [], 0, set(), None, None
        self.built = set()

    def _go(self, step):
        if STEPS.index(step) != self.step + 1:
            raise RuntimeError(f"{step} after {STEPS[self.step]}")
        self.step += 1

    def _needs(self, step):
        if self.step < STEPS.index(step):
            raise RuntimeError(f"needs to be {step}, is {STEPS[self.step]}")

    def _made(self, *node):
        if self.step:
            raise RuntimeError("the graph is validated")
        self.tensors.append(Tensor(node))
        return self.tensors[-1]

    def tensor(self, *, dim, stride, data_type, uid, name):
        if any(
            len(part) != 4 or min(part) < 1 or not all(type(n) is int for n in part) for part in (dim, stride)
        ):
            raise ValueError(f"{name}: dim {dim}, stride {stride}")
        self.tensors.append(Tensor(None, dim, stride, data_type, uid, name))
        return self.tensors[-1]

    def conv_fprop(self, *, image, weight, pre_padding, post_padding, stride, dilation):
        return self._made("fprop", image, weight, pre_padding, post_padding, stride, dilation)

    def conv_dgrad(self, *, loss, filter, pre_padding, post_padding, stride, dilation):
        return self._made("dgrad", loss, filter, pre_padding, post_padding, stride, dilation)

    def conv_wgrad(self, *, image, loss, pre_padding, post_padding, stride, dilation):
        return self._made("wgrad", image, loss, pre_padding, post_padding, stride, dilation)

    def bias(self, *, input, bias):
        return self._made("bias", input, bias)

    def add(self, *, a, b):
        return self._made("add", a, b)

    def relu(self, *, input):
        return self._made("relu", input)

    def validate(self):
        self._go("validated")
        real = [one for one in self.tensors if one.node is None or one.output]
        uids = [one.uid for one in real]
        if None in uids or len(set(uids)) < len(uids):
            raise ValueError(f"uids {uids}")
        (self.result,) = (one for one in real if one.output)
        for one in real:
            if one.dim is None or one.stride is None or one.kind is not self.io:
                raise ValueError(f"{one.name or one.node[0]}: dim, stride or data type isn't set")
        layouts = {one.layout() for one in real} - {None}
        if len(layouts) > 1 or any(
            one.dim == self.result.dim and one.stride != self.result.stride for one in real
        ):
            raise ValueError("tensors differ in layout")
        if self.compute is not (data_type.DOUBLE if self.io is data_type.DOUBLE else data_type.FLOAT):
            raise ValueError(f"{self.io} is computed in {self.compute}")

    def build_operation_graph(self):
        self._go("lowered")
        chain, one = [], self.result
        while one.node:
            chain.append(one.node[0])
            one = one.node[1]
        patterns = [["fprop", *add, "bias", *relu] for add in ([], ["add"]) for relu in ([], ["relu"])]
        if chain[::-1] not in [["fprop"], ["dgrad"], ["wgrad"], *patterns] or pygraph.refused(self):
            raise cudnnGraphNotSupportedError(f"no engine for {chain[::-1]}")
        self.chain = chain[::-1]

    def create_execution_plans(self, modes):
        self._go("planned")
        assert modes == [heur_mode.A, heur_mode.FALLBACK]
        pygraph.log.append(("planned", sorted(one.uid for one in self.tensors if one.uid is not None)))

    def deselect_numeric_notes(self, notes):
        self._needs("planned")
        assert all(isinstance(note, numerical_note) for note in notes)
        self.notes |= set(notes)

    def deselect_workspace_greater_than(self, limit):
        self._needs("planned")
        self.limit = limit

    def check_support(self):
        self._go("supported")
        if self.limit is not None and self.limit < WORKSPACE:
            raise cudnnGraphNotSupportedError("every plan needs a larger workspace")

    def build_plans(self):
        self._go("executable")
        self.selected = 0
        self.built.add(0)

    def get_execution_plan_count(self):
        self._needs("planned")
        return pygraph.plans

    def build_plan_at_index(self, index):
        self._needs("supported")
        if self.limit is not None and self.get_workspace_size_plan_at_index(index) > self.limit:
            raise cudnnGraphNotSupportedError("deselected")
        self.built.add(index)
        self.selected = index

    def get_workspace_size(self):
        self._needs("executable")
        return self.get_workspace_size_plan_at_index(self.selected)

    def get_workspace_size_plan_at_index(self, index):
        return WORKSPACE << index

    def execute_plan_at_index(self, pointers, workspace, index, handle=None):
        emulated_cuda.not_while_capturing()
        pygraph.log.append(("timed", index))
        self._execute(pointers, workspace, index, handle)

    def execute(self, pointers, workspace, handle=None):
        pygraph.log.append(("executed", self.selected))
        self._execute(pointers, workspace, self.selected, handle)

    def _execute(self, pointers, workspace, index, handle):
        self._needs("executable")
        if index not in self.built:
            raise RuntimeError(f"plan {index} isn't built")
        if handle.stream != emulated_cuda.get_current_stream().ptr:
            raise RuntimeError("the handle runs on another stream")
        real = {one.uid: one for one in self.tensors if one.uid is not None}
        if set(pointers) != set(real) or any(type(p) is not int for p in [*pointers.values(), workspace]):
            raise ValueError(f"pointers {pointers} and {workspace} for {sorted(real)}")
        if any(pointer % ALIGNMENT or not pointer for pointer in [*pointers.values(), workspace]):
            raise RuntimeError("a pointer is null or isn't aligned")
        memory = {uid: _memory(pointers[uid], one) for uid, one in real.items()}
        _memory(workspace, Tensor(dim=[1, 1, 1, WORKSPACE << index], stride=[1] * 4, kind=data_type.HALF), 1)[
            ...
        ] = 7
        emulated_cuda.submit(lambda: self._compute(memory), [])

    def _compute(self, memory):
        result = self._value(self.result, memory)
        memory[self.result.uid][...] = result.astype(TYPES[self.io])

    def _value(self, tensor, memory):
        """A tensor's value in the precision of sums."""
        sums = TYPES[self.compute]
        if tensor.node is None:
            return memory[tensor.uid].astype(sums)
        name, *parts = tensor.node
        a = self._value(parts[0], memory)
        if name == "relu":
            return np.fmax(a, 0)  # cuDNN doesn't propagate nan here
        b = self._value(parts[1], memory)
        if name in ("bias", "add"):
            return a + b
        (top, left), (bottom, right), stride, dilate = parts[2:]
        options = {"stride": tuple(stride), "pad": (top, bottom, left, right), "dilate": tuple(dilate)}
        reference = get("reference")
        if name == "fprop":
            return reference.conv(a, b, **options)
        if name == "dgrad":
            return reference.conv_dzdx(a, b, tuple(tensor.dim), **options)
        return reference.conv_dzdw(b, a, tuple(tensor.dim), **options)


def _memory(pointer, tensor, itemsize=None):
    """The numbers at an address."""
    dtype = np.dtype(np.uint8) if itemsize == 1 else TYPES[tensor.kind]
    extent = 1 + sum((n - 1) * step for n, step in zip(tensor.dim, tensor.stride, strict=True))
    raw = np.frombuffer((ctypes.c_byte * (extent * dtype.itemsize)).from_address(pointer), np.uint8)
    raw.flags.writeable = True
    strides = [step * dtype.itemsize for step in tensor.stride]
    return np.ndarray(tuple(tensor.dim), dtype, raw, strides=strides)


def set_stream(*, handle, stream):
    handle.stream = stream


def make():
    """The module."""
    module = ModuleType("cudnn", __doc__)
    for own in (cudnnGraphNotSupportedError, data_type, heur_mode, numerical_note, pygraph, set_stream):
        setattr(module, own.__name__, own)
    module.create_handle = Handle
    return module
