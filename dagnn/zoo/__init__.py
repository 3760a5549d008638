"""Well-known networks, built with MatConvNet's definitions.

Every builder returns a `DagNN` without values: `init_params(net)` draws them as MatConvNet's own examples
do, `net.init_params()` by the rule of each layer. Classifiers read the variables "input" and "label" and
write "prediction" (scores, before softmax), "objective" (softmaxlog), "top1err" and, where there are more
than five classes, "top5err". `net.meta["normalization"]` tells `dagnn.Preprocessor` what images to make.

>>> from dagnn import zoo
>>> net = zoo.lenet()
>>> net.inputs, net.outputs
(['input', 'label'], ['objective', 'top1err', 'top5err'])
>>> net.var_shapes({"input": (1, 1, 28, 28)})["prediction"]
(1, 10, 1, 1)
"""

from .alexnet import alexnet, vgg_f, vgg_m, vgg_s
from .cifar import cifar_nin, cifar_quick
from .dncnn import dncnn
from .fast_rcnn import add_fast_rcnn_heads, fast_rcnn
from .fcn import fcn_8s, fcn_16s, fcn_32s
from .googlenet import googlenet
from .init import init_params
from .lenet import lenet
from .resnet import resnet_50, resnet_101, resnet_152
from .spatial_transformer import spatial_transformer
from .vgg import vgg_vd_16, vgg_vd_19

__all__ = [
    "add_fast_rcnn_heads",
    "alexnet",
    "cifar_nin",
    "cifar_quick",
    "dncnn",
    "fast_rcnn",
    "fcn_8s",
    "fcn_16s",
    "fcn_32s",
    "googlenet",
    "init_params",
    "lenet",
    "resnet_50",
    "resnet_101",
    "resnet_152",
    "spatial_transformer",
    "vgg_f",
    "vgg_m",
    "vgg_s",
    "vgg_vd_16",
    "vgg_vd_19",
]
