"""The NumPy backend, and its kernels as plain functions: `conv(x, w, b)` is MatConvNet's vl_nnconv.

>>> import numpy as np
>>> from dagnn.backends import numpy as kernels
>>> kernels.relu(np.array([-1.0, 2.0]))
array([0., 2.])
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..base import Backend, MemoryUse
from ..reference.half import in_single_precision
from . import memory, threads
from .convolution import Constant, Convolution, filters
from .elementwise import Elementwise
from .finite import all_finite
from .normalisation import Normalisation
from .pooling import Pooling


@in_single_precision
class NumPyBackend(Convolution, Pooling, Normalisation, Elementwise, Backend):
    """The reference backend with faster kernels wherever a net spends its time."""

    name: ClassVar[str] = "numpy"

    def evaluation(self):
        return threads.one_thread

    def parameter(self, value):
        value = self.asarray(value)
        return filters(value) if value.ndim == 4 else value

    def release_idle(self):
        memory.pool.clear()

    def memory_use(self):
        return MemoryUse(memory.pool.used, memory.pool.held)

    def constant(self, value):
        return value.view(Constant)

    def finite(self, arrays):
        return np.asarray(all_finite(arrays))

    def empty(self, shape, dtype):
        return memory.empty(shape, dtype)

    def empty_maps(self, shape, dtype):
        n, channels, height, width = shape
        return memory.empty((n, height, width, channels), dtype).transpose(0, 3, 1, 2)

    def zeros(self, shape, dtype):
        zeros = memory.empty(shape, dtype)
        zeros.fill(0)
        return zeros


backend = NumPyBackend()

rng = backend.rng
conv = backend.conv
conv_dzdx = backend.conv_dzdx
conv_dzdw = backend.conv_dzdw
conv_dzdb = backend.conv_dzdb
conv_transpose = backend.conv_transpose
conv_transpose_dzdx = backend.conv_transpose_dzdx
conv_transpose_dzdw = backend.conv_transpose_dzdw
max_pool = backend.max_pool
max_pool_dzdx = backend.max_pool_dzdx
avg_pool = backend.avg_pool
avg_pool_dzdx = backend.avg_pool_dzdx
roi_pool = backend.roi_pool
roi_pool_dzdx = backend.roi_pool_dzdx
relu = backend.relu
relu_dzdx = backend.relu_dzdx
sigmoid = backend.sigmoid
sigmoid_dzdx = backend.sigmoid_dzdx
tanh = backend.tanh
tanh_dzdx = backend.tanh_dzdx
softmax = backend.softmax
softmax_dzdx = backend.softmax_dzdx
dropout_mask = backend.dropout_mask
batch_norm = backend.batch_norm
batch_norm_ders = backend.batch_norm_ders
lrn = backend.lrn
lrn_dzdx = backend.lrn_dzdx
normalize_lp = backend.normalize_lp
normalize_lp_dzdx = backend.normalize_lp_dzdx
spatial_norm = backend.spatial_norm
spatial_norm_dzdx = backend.spatial_norm_dzdx
norm_offset = backend.norm_offset
norm_offset_dzdx = backend.norm_offset_dzdx
loss = backend.loss
loss_dzdx = backend.loss_dzdx
check_labels = backend.check_labels
smooth_l1 = backend.smooth_l1
smooth_l1_dzdx = backend.smooth_l1_dzdx
pdist = backend.pdist
pdist_dzdx = backend.pdist_dzdx
bilinear_sampler = backend.bilinear_sampler
bilinear_sampler_ders = backend.bilinear_sampler_ders
affine_grid = backend.affine_grid
affine_grid_der = backend.affine_grid_der
uniform_scaling_grid = backend.uniform_scaling_grid
uniform_scaling_grid_der = backend.uniform_scaling_grid_der
sum = backend.sum
concat = backend.concat
sum_to = backend.sum_to
