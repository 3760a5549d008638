"""What a backend is: every kernel with its meaning, and the few services around arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from ..dtypes import is_floating
from .reference.activation import Activation
from .reference.checks import Array
from .reference.convolution import Convolution
from .reference.elementwise import Elementwise
from .reference.half import in_single_precision
from .reference.losses import Losses
from .reference.normalisation import Normalisation
from .reference.pooling import Pooling
from .reference.sampling import Sampling
from .services import MemoryUse, Ready, Recorder, Steps

__all__ = ["Array", "Backend", "MemoryUse"]


@in_single_precision
class Backend(Convolution, Pooling, Sampling, Activation, Normalisation, Losses, Elementwise):
    """The reference backend: readable kernels on NumPy arrays, the specification of all others.

    A subclass sets `name` and `xp` and overrides what it does better. It adds no public method and
    keeps every signature, so that a layer never needs to know which backend it runs on.
    Kernels may return any memory layout, and never write into their arguments. On data of 16 bits (float16,
    bfloat16) they compute in single precision, sums included, and round what they return.

    >>> import numpy as np
    >>> Backend().conv(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))[0, 0]
    array([[4., 4.],
           [4., 4.]])
    """

    name: ClassVar[str] = "reference"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def xp(self) -> Any:
        """The array module: `numpy`, or one that looks like it."""
        return np

    def asarray(self, a: Any) -> Array:
        """`a`, of this backend or another, as an array of this one; not copied if it already is one.

        Bytes that lie the other way round are turned: kernels compute in the machine's order.

        >>> Backend().asarray([1, 2])
        array([1, 2])
        """
        try:
            array = np.asarray(a)
            return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        except TypeError:
            if not hasattr(a, "get"):  # as CuPy's arrays have, which don't come by themselves
                raise
            return a.get()

    def to_numpy(self, a: Array) -> np.ndarray:
        """`a` as a NumPy array; not copied if it already is one.

        >>> Backend().to_numpy(np.float32(2)).shape
        ()
        """
        return np.asarray(a)

    def owns(self, a: Any) -> bool:
        """Whether `a` is an array of this backend.

        >>> Backend().owns(np.zeros(1)), Backend().owns([0])
        (True, False)
        """
        return isinstance(a, np.ndarray | np.generic)

    def rng(self, *keys: int) -> Any:
        """A generator with `random` and `standard_normal`; the same `keys` give the same numbers.

        >>> bool(Backend().rng(0, 7).random() == Backend().rng(0, 7).random())
        True
        """
        return np.random.default_rng(keys)

    def evaluation(self) -> AbstractContextManager[Any]:
        """What a whole evaluation runs inside, so that kernels needn't each prepare the same.

        >>> with Backend().evaluation():
        ...     Backend().relu(np.array([-1.0, 2.0]))
        array([0., 2.])
        """
        return nullcontext()

    def recorder(self) -> Recorder | None:
        """A new recorder of work; None where work can't be recorded, as here.

        >>> Backend().recorder()
        """
        return None

    def parameter(self, value: Any) -> Array:
        """`value` as an array of this backend, in the memory order in which its kernels read parameters.

        >>> Backend().parameter([1.0, 2.0])
        array([1., 2.])
        """
        return self.asarray(value)

    def release_idle(self) -> None:
        """Let go of memory that is kept to be used again.

        >>> Backend().release_idle()
        """

    def memory_use(self) -> MemoryUse:
        """How much memory the arrays of this backend take, as far as it counts them (here: not at all).

        >>> print(Backend().memory_use())
        0.0 MB in use, 0.0 MB held
        """
        return MemoryUse(0, 0)

    def prefetcher(self) -> Callable[[Mapping[str, Any]], Ready]:
        """A function that begins to bring arrays here, and returns one that gives them, here.

        The first may be called on another thread, the second where the arrays are wanted. Here nothing
        needs bringing.

        >>> Backend().prefetcher()({"label": [3]})()
        {'label': [3]}
        """
        return lambda arrays: lambda: arrays

    def fetch(self, arrays: Sequence[Array]) -> Callable[[], list[np.ndarray]]:
        """Begin to bring small arrays to the host, as they are now; the result gives them, and waits for it.

        >>> Backend().fetch([np.array(True)])()
        [array(True)]
        """
        copies = [np.array(self.to_numpy(a)) for a in arrays]
        return lambda: copies

    def constant(self, value: Array) -> Array:
        """`value`, which the caller will never change: kernels may keep with it what they make of it.

        >>> Backend().constant(np.ones(2))
        array([1., 1.])
        """
        return value

    def cast(self, arrays: Sequence[Array], dtype: Any, scale: float = 1.0) -> list[Array]:
        """Many floating arrays as `dtype`, times `scale`, at once; the same array where nothing changes.

        The product is made before it is rounded to `dtype`.

        >>> [a.tolist() for a in Backend().cast([np.float16([3, 4]), np.float32([5])], np.float32, 0.5)]
        [[1.5, 2.0], [2.5]]
        """

        def one(a: Array) -> Array:
            if scale != 1:
                wide = a.astype(np.promote_types(a.dtype, np.float32), copy=False)
                a = wide * wide.dtype.type(scale)
            return a.astype(dtype, copy=False)

        with np.errstate(over="ignore"):
            return [one(a) for a in arrays]

    def finite(self, arrays: Sequence[Array]) -> Array:
        """Whether no element of any array is nan or inf: an array without axes, for which nobody waits.

        >>> Backend().finite([np.ones(3), np.array([1.0, np.inf])])
        array(False)
        """
        found = [self.xp.isfinite(a).all() for a in arrays if is_floating(a.dtype)]
        return self.xp.asarray(self.xp.stack(found).all() if found else True)

    def steps(self, rule: str) -> Steps | None:
        """Steps of all parameters at once by the rule of a solver, such as "adam".

        None where one parameter after the other is as good, as here.

        >>> Backend().steps("adam")
        """
        return None

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """A new array with arbitrary contents.

        >>> Backend().empty((2, 3), "float32").shape
        (2, 3)
        """
        return self.xp.empty(shape, dtype)

    def empty_maps(self, shape: Sequence[int], dtype: Any) -> Array:
        """New (N, C, H, W) maps with arbitrary contents, in the order of memory in which convolutions write.

        >>> Backend().empty_maps((1, 2, 3, 4), "float32").shape
        (1, 2, 3, 4)
        """
        return self.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        """A new array of zeros.

        >>> Backend().zeros((2,), "float32")
        array([0., 0.], dtype=float32)
        """
        return self.xp.zeros(shape, dtype)
