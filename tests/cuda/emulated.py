"""A module that stands for CuPy on a machine without a GPU: `emulated.cupy`.

Its arrays keep their numbers in host memory, but behave as CuPy's: they don't mix with NumPy's arrays,
reductions give 0-d arrays, ufuncs give C order, new memory is rubbish, and while a stream captures, work is
kept for the graph and what needs the host raises. It offers no name that CuPy hasn't.
"""

import functools
import operator
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import emulated_cuda
import numpy as np
from emulated_cuda import MemoryPointer, alloc, capturing, cuda, current_device, not_while_capturing, submit
from emulated_kernels import Kernel, compiled, missing

__all__ = ["cupy", "installed", "missing"]

CONSTANTS = """bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intp float16 float32 float64 dtype
    newaxis inf nan pi e iinfo finfo broadcast_shapes result_type can_cast"""
UFUNCS = """absolute add bitwise_and bitwise_or bitwise_xor ceil copysign cos divide equal exp expm1 floor
    floor_divide fmax fmin fmod greater greater_equal invert isfinite isinf isnan ldexp left_shift less
    less_equal log log1p log2 logaddexp logical_and logical_not logical_or logical_xor matmul maximum minimum
    multiply negative not_equal power reciprocal remainder right_shift rint sign signbit sin sqrt square
    subtract tan tanh true_divide trunc"""
FUNCTIONS = """all allclose amax amin any argmax argmin argsort array_equal broadcast_to bincount clip
    concatenate count_nonzero cumsum diff dot einsum expand_dims flatnonzero flip isclose kron max mean median
    min moveaxis nan_to_num nonzero outer pad prod put_along_axis ravel repeat reshape roll round searchsorted
    sort split squeeze std sum swapaxes take take_along_axis tensordot tile transpose tri tril triu
    unique unravel_index var vdot where stack ascontiguousarray asfortranarray atleast_1d atleast_2d
    empty_like zeros_like ones_like full_like copyto shares_memory may_share_memory ndim shape size"""
METHODS = """all any argmax argmin argsort clip cumsum diagonal dot max mean min nonzero prod ravel repeat
    round squeeze std sum swapaxes take trace var"""
CREATE = "arange eye full identity linspace ones zeros"
KEEP_ORDER = {"empty_like", "zeros_like", "ones_like", "full_like", "asfortranarray"}
IN_PLACE = {"copyto": 0, "put_along_axis": 0}
CUBLAS = {"matmul", "dot", "einsum", "tensordot", "vdot", "inner", "kron", "outer"}
SYNCHRONOUS = {"nonzero", "flatnonzero", "unique", "bincount", "repeat", "allclose", "array_equal"}


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in emulated device memory."""

    __array_priority__ = 100

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C") -> None:
        shape = tuple(shape) if np.iterable(shape) else (shape,)
        dtype = np.dtype(dtype)
        if not dtype.isnative:
            raise TypeError(f"{dtype} has the bytes of the host in another order")
        if memptr is None:
            memptr = alloc(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        start = memptr.ptr - memptr.mem.ptr
        host = np.ndarray(shape, dtype, memptr.mem.bytes[start:], strides=strides, order=order)
        self._set(host, memptr.mem)

    def _set(
        self, host: np.ndarray, memory: emulated_cuda.Memory, base: "ndarray | None" = None
    ) -> "ndarray":
        self._host, self._memory, self.base = host, memory, base
        return self

    @classmethod
    def _of(cls, host: np.ndarray, memory: emulated_cuda.Memory, base: "ndarray") -> "ndarray":
        return cls.__new__(cls)._set(host, memory, base)

    # What the host knows without looking at the device.
    shape = property(lambda self: self._host.shape, lambda self, shape: setattr(self._host, "shape", shape))
    dtype = property(lambda self: self._host.dtype)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: self.transpose())
    device = property(lambda self: cuda.Device(self._memory.device))
    data = property(lambda self: MemoryPointer(self._memory, self._host.ctypes.data - self._memory.ptr))

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator["ndarray"]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[k] for k in range(len(self)))

    # Copies to the host and from it.
    def get(self, stream=None, order="C", out=None, blocking=True) -> np.ndarray:
        not_while_capturing()
        self._memory.must_be_there()
        if out is not None:
            out[...] = self._host
            return out
        return np.array(self._host, order=order)

    def set(self, arr: np.ndarray, stream=None) -> None:
        not_while_capturing()
        if not isinstance(arr, np.ndarray) or arr.shape != self.shape or arr.dtype != self.dtype:
            raise ValueError("set takes a NumPy array of the same shape and type")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        self._host[...] = arr

    def item(self, *index: int) -> object:
        return self.get().item(*index)

    def tolist(self) -> object:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        return self.get().__index__()

    def __repr__(self) -> str:
        return repr(self._host)

    def __str__(self) -> str:
        return str(self._host)

    def __format__(self, spec: str) -> str:
        return format(self.get() if self.ndim else self.get()[()], spec)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    # NumPy's functions on such arrays are this module's.
    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        ours = getattr(cupy, ufunc.__name__, None)
        if ours is None or method not in ("__call__", "at", "reduce", "accumulate", "outer"):
            return NotImplemented
        if isinstance(kwargs.get("out"), tuple):
            (kwargs["out"],) = kwargs["out"]
        return ours(*args, **kwargs) if method == "__call__" else getattr(ours, method)(*args, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        ours = getattr(cupy, function.__name__, None)
        if ours is None or not function.__module__.startswith("numpy"):
            raise TypeError(f"no implementation found for {function.__name__!r} of CuPy arrays")
        return ours(*args, **kwargs)

    # Indices.
    def __getitem__(self, key):
        if any(one.dtype == bool for one in _arrays(key)):
            not_while_capturing()
        return _call(np.ndarray.__getitem__, self, _key(key))

    def __setitem__(self, key, value) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        _call(np.ndarray.__setitem__, self, _key(key), value, _writes=self)

    # Methods, by NumPy's functions and methods of the same name.
    def astype(self, dtype, order="K", casting=None, subok=None, copy=True) -> "ndarray":
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return _call(np.ndarray.astype, self, np.dtype(dtype), order, _keep_order=order == "K")

    def copy(self, order="C") -> "ndarray":
        if self._memory.device != current_device():
            with self.device:
                here = self if order == "K" else self.copy(order)
            if not (here.flags.c_contiguous or here.flags.f_contiguous):
                raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
            new = ndarray(here.shape, here.dtype, strides=_dense_strides(here._host))
            submit(lambda: np.copyto(new._host, here._host), [here._memory, new._memory])
            return new
        return _call(np.array, self, order=order, copy=True, _keep_order=order != "C")

    def flatten(self, order="C") -> "ndarray":
        return _call(np.ndarray.flatten, self, order)

    def fill(self, value) -> None:
        _call(np.ndarray.fill, self, value, _writes=self)

    def view(self, dtype=None) -> "ndarray":
        return _call(np.ndarray.view, self, self.dtype if dtype is None else np.dtype(dtype))

    def reshape(self, *shape, order="C") -> "ndarray":
        _one_or_numbers(shape)
        return _call(np.ndarray.reshape, self, *shape, order=order)

    def transpose(self, *axes) -> "ndarray":
        _one_or_numbers(axes)
        return _call(np.ndarray.transpose, self, *axes)

    def reduced_view(self, dtype=None) -> "ndarray":
        return self


def _one_or_numbers(axes: tuple) -> None:
    """TypeError unless these are one tuple or list, or numbers: CuPy takes no other sequences."""
    if not (len(axes) == 1 and isinstance(axes[0], tuple | list | None)):
        list(map(operator.index, axes))


def _method(name: str) -> Callable:
    def method(self, *args, **kwargs):
        return _call(getattr(np.ndarray, name), self, *args, **kwargs)

    return method


for _name in METHODS.split():
    setattr(ndarray, _name, _method(_name))


def _arrays(tree: object) -> list[ndarray]:
    """All device arrays in nested sequences."""
    if isinstance(tree, ndarray):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [one for part in tree for one in _arrays(part)] if isinstance(tree, list | tuple) else []


def _host(tree: object) -> object:
    """`tree` with the host's view of every device array; TypeError where a NumPy array is among them."""
    if isinstance(tree, ndarray):
        return tree._host
    if isinstance(tree, np.ndarray):
        raise TypeError(f"Unsupported type {type(tree)}")
    if isinstance(tree, dict):
        return {key: _host(one) for key, one in tree.items()}
    return type(tree)(map(_host, tree)) if type(tree) in (list, tuple) else tree


def _must_be_here(arrays: list[ndarray]) -> None:
    """An error where arrays that work is on are another device's, or their memory is gone."""
    for one in arrays:
        one._memory.must_be_there()
        if one._memory.device != current_device():
            raise ValueError(
                f"Array device must be same as the current device: array device = {one._memory.device} "
                f"while current = {current_device()}"
            )


def _key(key: object) -> object:
    """Indices; CuPy takes NumPy's arrays here, and copies them."""
    if isinstance(key, tuple):
        return tuple(map(_key, key))
    return asarray(key) if isinstance(key, np.ndarray | list) else key


def _call(function, *args, _writes: ndarray | None = None, _keep_order: bool = False, **kwargs):
    """NumPy's function on the memory of device arrays, now or in the graph; its results are device arrays."""
    arrays = _arrays((args, kwargs))
    memories = [one._memory for one in arrays]
    args, kwargs = _host(args), _host(kwargs)
    out = _writes if _writes is not None else next((a for a in arrays if a._host is kwargs.get("out")), None)
    if out is not None:
        _must_be_here(arrays)
        submit(lambda: function(*args, **kwargs), memories)
        return None if _writes is not None else out
    with np.errstate(all="ignore"):
        result = function(*args, **kwargs)
    if isinstance(result, tuple | list):
        not_while_capturing()
        return type(result)(_wrap(one, arrays, None, False, memories) for one in result)
    again = (lambda: function(*args, **kwargs)) if capturing() else None
    return _wrap(result, arrays, again, _keep_order, memories)


def _wrap(result, arrays, again, keep_order, memories):
    """A result as a device array: a view of an argument, or new memory, written now or in the graph."""
    if not isinstance(result, np.ndarray | np.generic):
        return result
    result = np.asarray(result)
    for one in arrays:
        if result.size and np.may_share_memory(result, one._memory.bytes):
            return ndarray._of(result, one._memory, one if one.base is None else one.base)
    _must_be_here(arrays)
    strides = _dense_strides(result) if keep_order else None
    new = ndarray(result.shape, result.dtype, strides=strides)
    if again is None:
        new._host[...] = result
    else:
        if new.dtype.kind in "biu":
            new._host.fill(0)  # rubbish that is still an index
        where = new._host
        submit(lambda: np.copyto(where, again()), [*memories, new._memory])
    return new


def _dense_strides(a: np.ndarray) -> tuple[int, ...]:
    """Of an array without gaps whose axes are in the order of a's."""
    strides, step = [0] * a.ndim, a.itemsize
    for k in sorted(range(a.ndim), key=lambda k: (a.strides[k], -k)):
        strides[k], step = step, step * a.shape[k]
    return tuple(strides)


class ufunc:
    """A universal function."""

    def __init__(self, name: str) -> None:
        self._ufunc, self.__name__ = getattr(np, name), name

    def __call__(self, *args, out=None, **kwargs):
        if self.__name__ in CUBLAS:
            _no_cublas()
        if out is not None:
            kwargs["out"] = out
        elif len(args) > self._ufunc.nin:
            *args, kwargs["out"] = args
        for arg in args:
            if isinstance(arg, list | tuple):
                raise TypeError(f"Unsupported type {type(arg)}")
        return _call(self._ufunc, *args, **kwargs)

    def at(self, a, indices, b=None) -> None:
        rest = () if b is None else (b,)
        _call(self._ufunc.at, a, _key(indices), *rest, _writes=a)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        return _call(self._ufunc.reduce, array, axis, dtype, **_given(out=out), keepdims=keepdims)

    def accumulate(self, array, axis=0, dtype=None, out=None):
        return _call(self._ufunc.accumulate, array, axis, dtype, **_given(out=out))

    def outer(self, a, b, **kwargs):
        return _call(self._ufunc.outer, a, b, **kwargs)


def _given(**options):
    return {key: value for key, value in options.items() if value is not None}


def _no_cublas() -> None:
    if capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def _function(name: str) -> Callable:
    function = getattr(np, name)

    @functools.wraps(function)
    def run(*args, **kwargs):
        if name in CUBLAS:
            _no_cublas()
        if name in SYNCHRONOUS:
            not_while_capturing()
        if kwargs.get("out", 0) is None:
            del kwargs["out"]
        if not _arrays((args, kwargs)):
            raise TypeError(f"{name} takes CuPy arrays")
        writes = args[IN_PLACE[name]] if name in IN_PLACE else None
        return _call(function, *args, _writes=writes, _keep_order=name in KEEP_ORDER, **kwargs)

    return run


def _creator(name: str) -> Callable:
    function = getattr(np, name)

    @functools.wraps(function)
    def run(*args, **kwargs):
        again = functools.partial(function, *_host(args), **_host(kwargs))
        return _wrap(again(), [], again if capturing() else None, True, [])

    return run


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False) -> ndarray:
    """A device array of anything; copies from the host break a capture."""
    if isinstance(obj, ndarray):
        if not copy and dtype in (None, obj.dtype) and not (order == "C" and not obj.flags.c_contiguous):
            return obj  # on whichever device
        return obj.copy(order).astype(obj.dtype if dtype is None else dtype, copy=False)
    if _arrays(obj):
        stacked = cupy.stack([asarray(one) for one in obj])
        return stacked if dtype is None else stacked.astype(dtype)
    not_while_capturing()
    result = np.array(obj, dtype, ndmin=ndmin)
    if result.dtype.kind not in "biufcV":
        raise ValueError(f"Unsupported dtype {result.dtype}")
    result = result.astype(result.dtype.newbyteorder("="), copy=False)
    fortran = order in ("K", "A", "F") and result.flags.f_contiguous and not result.flags.c_contiguous
    return _wrap(result, [], None, fortran, [])


def asarray(a, dtype=None, order=None, *, blocking=False) -> ndarray:
    """A device array of `a`, not copied if it is one."""
    return array(a, dtype, copy=False, order=order or "K")


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True) -> np.ndarray:
    """A NumPy array of anything."""
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def empty(shape, dtype=float, order="C") -> ndarray:
    """A new array of rubbish."""
    return ndarray(shape, dtype, order=order)


class RawKernel:
    """A kernel of a RawModule."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None) -> None:
        if shared_mem:
            raise NotImplementedError("shared memory is static here")
        arrays = [arg for arg in args if isinstance(arg, ndarray)]
        _must_be_here(arrays)
        packed = self._kernel.pack(args)
        memories = [arg._memory for arg in arrays]
        submit(functools.partial(self._kernel.run, tuple(grid), tuple(block), packed), memories)


class RawModule:
    """CUDA source, compiled when its first kernel is asked for."""

    def __init__(self, code, *, options=(), backend="nvrtc", name_expressions=None) -> None:
        self._code, self._options, self._library = code, tuple(options), None

    def get_function(self, name: str) -> RawKernel:
        if self._library is None:
            self._library = compiled(self._code, self._options)
        return RawKernel(Kernel(self._library, name))


def _module() -> ModuleType:
    module = ModuleType("cupy", __doc__)
    module.__version__ = "14.2.0"
    for name in CONSTANTS.split():
        setattr(module, name, getattr(np, name))
    for name in UFUNCS.split():
        setattr(module, name, ufunc(name))
    for name in FUNCTIONS.split():
        setattr(module, name, _function(name))
    for name in CREATE.split():
        setattr(module, name, _creator(name))
    module.abs, module.bitwise_not, module.conjugate = module.absolute, module.invert, ufunc("conjugate")
    for own in (ndarray, ufunc, array, asarray, asnumpy, empty, RawKernel, RawModule):
        setattr(module, own.__name__, own)
    module.cuda = cuda
    module.get_default_memory_pool = lambda: emulated_cuda._default_pool
    module.get_default_pinned_memory_pool = emulated_cuda.PinnedMemoryPool
    return module


cupy = _module()


def installed(patch) -> ModuleType:
    """Make `import cupy` give the emulated one, until pytest's MonkeyPatch `patch` is undone."""
    patch.setitem(sys.modules, "cupy", cupy)
    return cupy
