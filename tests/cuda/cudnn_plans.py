"""Builds cuDNN's plans for an H200 where there is no GPU: `python tests/cuda/cudnn_plans.py lenet resnet_50`.

A process of its own, since cuDNN wants a driver: without one it gets a library in its stead that knows its
functions' names only. Prints a JSON object: how many plans were built, what failed, seconds; without names of
nets, of one convolution.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dagnn import Conv, ConvTranspose, zoo
from dagnn.backends.cupy.dnn import Problem, Rules, planned
from dagnn.backends.reference.convolution import Convolution, conv_sizes

NETS = [name for name in zoo.__all__ if "init_params" not in name and "add_" not in name]
SIZES = {"lenet": (1, 28), "dncnn": (1, 64), "spatial_transformer": (1, 60), "alexnet": (3, 227)}
SMALL = ("cifar_nin", "cifar_quick")
IMAGES = 8
PRECISIONS = {
    "float32": ("float32", Rules()),
    "tf32": ("float32", Rules(tf32=True)),
    "float16": ("float16", Rules()),
    "bfloat16": ("bfloat16", Rules()),
    "float64": ("float64", Rules()),
}

# As cuDNN writes it of a device: `cudnn.create_device_properties(0).serialize()`.
H200 = {
    "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0, "deviceId": 0, "deviceName": "NVIDIA H200",
    "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
    "multiProcessorCount": 132, "smCountOrigin": 0, "warpSize": 32, "maxSharedMemoryPerBlock": 49152,
    "maxSharedMemoryPerBlockOptin": 232448, "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32,
    "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0,
    "supportCoopLaunch": 1, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "memoryBusWidth": 6144,
    "l2CacheSize": 62914560, "totalGlobalMem": 150000000000,
}  # fmt: skip
DRIVER = [
    "cuCtxGetCurrent", "cuCtxGetLimit", "cuCtxPopCurrent", "cuCtxPushCurrent", "cuDeviceGet",
    "cuDeviceGetCount", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuKernelGetAttribute",
    "cuKernelGetFunction", "cuKernelSetAttribute", "cuLaunchCooperativeKernel", "cuLaunchKernel",
    "cuLaunchKernelEx", "cuLibraryGetKernel", "cuLibraryLoadData", "cuLibraryLoadFromFile",
    "cuLibraryUnload", "cuLinkAddData", "cuLinkComplete", "cuLinkCreate", "cuLinkDestroy",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuOccupancyMaxPotentialClusterSize",
    "cuStreamGetCtx", "cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled",
]  # fmt: skip
QUIRKS = [  # (x shape, w shape, options): groups, dilation, asymmetric pads, windows of one axis
    ((4, 32, 20, 20), (64, 8, 3, 3), {"pad": (0, 1, 2, 1), "stride": 2}),
    ((4, 32, 20, 20), (32, 1, 3, 3), {"pad": 1}),
    ((4, 16, 20, 20), (8, 16, 3, 3), {"dilate": 2, "pad": (2, 1, 0, 2)}),
    ((4, 5, 17, 13), (7, 5, 1, 4), {"stride": (2, 3)}),
    ((1, 1, 5, 5), (1, 1, 5, 5), {}),
]


def driver() -> None:
    """A libcuda.so.1: the machine's, or one whose functions all say that there is no device."""
    try:
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "libcuda.so.1")
            command = [
                "g++",
                "-shared",
                "-fPIC",
                "-Wl,-soname,libcuda.so.1",
                "-x",
                "c++",
                "-",
                "-o",
                str(library),
            ]
            text = "\n".join(f'extern "C" int {name}() {{ return 100; }}' for name in DRIVER)
            subprocess.run(command, input=text, text=True, check=True)
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def convolutions(name: str) -> list[tuple]:
    """(x shape, w shape, options) of a net's convolutions; of transposed ones, those that they reverse."""
    net = getattr(zoo, name)()
    channels, size = SIZES.get(name, (3, 32 if name in SMALL else 224))
    shapes = {"input": (IMAGES, channels, size, size), "label": (IMAGES, 1, 1, 1)}
    shapes |= {"rois": (5, 64), "targets": (64, 84, 1, 1), "instance_weights": (64, 84, 1, 1)}
    shapes = net.var_shapes({key: shape for key, shape in shapes.items() if key in net.inputs})
    found = []
    for node in net.layers.values():
        layer, x = node.layer, shapes[node.inputs[0]]
        if isinstance(layer, ConvTranspose):
            options = layer.upsample, layer.crop, layer.num_groups
            x, window = Convolution._transposed(x, layer.size, *options)
            found.append((x, layer.size, window))
        elif isinstance(layer, Conv):
            found.append((x, layer.size, {"stride": layer.stride, "pad": layer.pad, "dilate": layer.dilate}))
    return found


def problems(found: list[tuple], dtype: str) -> list[Problem]:
    """What a forward and a backward pass ask of cuDNN, in both orders of memory, each once.

    Outputs also as the middle third of the channels of larger maps.
    """
    asked = {}
    for x, filters, options in found:
        options = {"stride": 1, "pad": 0, "dilate": 1, **options}
        sizes = conv_sizes(x, filters, **options)
        rest = tuple(x), tuple(filters), sizes.output, sizes.stride, sizes.pad, sizes.dilate
        for last in (False, True):
            for kind in ("fprop", "dgrad", "wgrad"):
                asked[Problem(kind, dtype, last, *rest)] = None
            _, c, h, w = sizes.output
            apart = (3 * c * h * w, 1, 3 * w * c, 3 * c) if last else (3 * c * h * w, h * w, w, 1)
            for add, relu, steps in ((0, 0, ()), (0, 1, ()), (1, 1, ()), (0, 1, apart)):
                asked[Problem("fprop", dtype, last, *rest, True, bool(add), bool(relu), steps)] = None
    return list(asked)


def main(nets: list[str]) -> dict:
    driver()
    import cudnn

    properties = cudnn.create_device_properties(json.dumps(H200))
    place = {"device_property": properties, "sm_version": 900, "sm_count": 132}
    found = [*QUIRKS, *(one for name in nets for one in convolutions(name))] if nets else QUIRKS[:1]
    built, failed, start = Counter(), [], time.perf_counter()
    for precision, (dtype, rules) in PRECISIONS.items():
        for problem in problems(found, dtype):
            try:
                planned(cudnn, problem, rules, **place)
                built[f"{precision} {problem.kind}"] += 1
            except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
                failed.append([precision, str(problem), str(error)[:300]])
    return {"built": built, "failed": failed, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(main(NETS if sys.argv[1:] == ["all"] else sys.argv[1:]), indent=1))
