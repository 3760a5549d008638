"""The building blocks, one file each. `BUILTIN` holds those a file may name."""

from .affine_grid_generator import AffineGridGenerator
from .batch_norm import BatchNorm
from .bilinear_sampler import BilinearSampler
from .concat import Concat
from .conv import Conv
from .conv_transpose import ConvTranspose
from .crop import Crop
from .custom import Custom
from .dropout import DropOut
from .layer import Layer
from .loss import Loss
from .loss_smooth_l1 import LossSmoothL1
from .lrn import LRN
from .norm_offset import NormOffset
from .normalize_lp import NormalizeLp
from .pdist import PDist
from .permute import Permute
from .placeholder import Placeholder
from .pooling import Pooling
from .relu import ReLU
from .reshape import Reshape
from .roi_pooling import ROIPooling
from .scale import Scale
from .sigmoid import Sigmoid
from .slice import Slice
from .softmax import SoftMax
from .spatial_norm import SpatialNorm
from .split import Split
from .sum import Sum
from .tanh import Tanh
from .uniform_scaling_grid_generator import UniformScalingGridGenerator

__all__ = [
    "LRN",
    "AffineGridGenerator",
    "BatchNorm",
    "BilinearSampler",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Crop",
    "Custom",
    "DropOut",
    "Loss",
    "LossSmoothL1",
    "NormOffset",
    "NormalizeLp",
    "PDist",
    "Permute",
    "Placeholder",
    "Pooling",
    "ROIPooling",
    "ReLU",
    "Reshape",
    "Scale",
    "Sigmoid",
    "Slice",
    "SoftMax",
    "SpatialNorm",
    "Split",
    "Sum",
    "Tanh",
    "UniformScalingGridGenerator",
]

BUILTIN: dict[str, type[Layer]] = {name: globals()[name] for name in __all__ if name != "Placeholder"}
