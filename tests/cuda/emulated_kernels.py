"""CUDA kernels without CUDA: the source behind shim.h, compiled by g++, launched on the CPU."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHIM = Path(__file__).with_name("shim.h")
FLAGS = "-std=c++17 -O1 -shared -fPIC -w -fno-strict-aliasing -ffp-contract=off -U_FORTIFY_SOURCE"
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if not sys.platform.startswith("linux"):
        return "the emulated CuPy needs Linux"
    return None if shutil.which("g++") else "the emulated CuPy needs g++"


def cache() -> Path:
    """A folder, this user's own, for what compilers make of sources."""
    folder = Path(tempfile.gettempdir()) / f"dagnn-compiled-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is somebody else's")
    return folder


def compiled(code: str, options: tuple[str, ...]) -> ctypes.PyDLL:
    """The library of this source's launchers, from the cache in the temporary folder where it is there."""
    names = KERNEL.findall(re.sub(r"//[^\n]*|/\*.*?\*/", "", code, flags=re.S))
    launchers = "\n".join(
        f'extern "C" int launch_{name}(void** args, const unsigned int* sizes) {{'
        f" return emulation::launch({name}, args, sizes); }}\n"
        f'extern "C" const char* parameters_{name}() {{'
        f" static std::string all = emulation::codes({name}); return all.c_str(); }}"
        for name in names
    )
    text = f'{SHIM.read_text()}\n#line 1 "kernels.cu"\n{code}\n{launchers}\n'
    flags = [*FLAGS.split(), *(option for option in options if option.startswith(("-D", "-U", "-I")))]
    key = hashlib.sha256("\0".join([text, *flags]).encode()).hexdigest()[:32]
    library = cache() / f"{key}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        command = ["g++", *flags, "-x", "c++", "-", "-o", str(part)]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"g++ refuses the kernels:\n{result.stderr[:4000]}")
        part.replace(library)
    return ctypes.PyDLL(str(library))  # which keeps the interpreter's lock: one launch at a time


class Kernel:
    """A kernel of a library: checks its arguments against its parameters, and runs it."""

    def __init__(self, library: ctypes.PyDLL, name: str) -> None:
        try:
            self._launch = library[f"launch_{name}"]
            parameters = library[f"parameters_{name}"]
        except AttributeError:
            raise ValueError(f"no kernel {name!r}") from None
        parameters.restype = ctypes.c_char_p
        self.name, self.parameters = name, parameters().decode().split()

    def pack(self, args: tuple) -> list[np.ndarray]:
        """Every argument's bytes; TypeError where they aren't what the parameter takes."""
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        pairs = enumerate(zip(self.parameters, args, strict=True), 1)
        return [self._pack(k, code, arg) for k, (code, arg) in pairs]

    def _pack(self, k: int, code: str, arg: object) -> np.ndarray:
        if isinstance(arg, int | float) and not isinstance(arg, np.generic):
            arg = np.float64(arg) if isinstance(arg, float) else np.int64(arg)
        if isinstance(arg, np.generic):
            if code[0] == "P" and arg == 0:
                arg = np.uint64(0)
            elif code[0] == "P" or code != dtype_code(arg.dtype):
                raise TypeError(f"argument {k} of {self.name} is {code}, got a {arg.dtype}")
            return np.array([arg])
        data = getattr(arg, "data", arg)  # of an array, or memory itself
        if not hasattr(data, "ptr") or isinstance(arg, np.ndarray):
            raise TypeError(f"argument {k} of {self.name} must be on the device, got {type(arg).__name__}")
        if code[0] != "P" or (data is not arg and not points_to(code[1:], arg.dtype)):
            what = getattr(arg, "dtype", "memory")
            raise TypeError(f"argument {k} of {self.name} is {code}, got an array of {what}")
        return np.array([data.ptr], np.uint64)

    def run(self, grid: tuple[int, ...], block: tuple[int, ...], packed: list[np.ndarray]) -> None:
        """Run all blocks; RuntimeError where threads wait for others that never come."""
        sizes = [*grid, 1, 1][:3] + [*block, 1, 1][:3]
        pointers = (ctypes.c_void_p * max(1, len(packed)))(*(one.ctypes.data for one in packed))
        if self._launch(pointers, (ctypes.c_uint * 6)(*sizes)):
            raise RuntimeError(f"{self.name}: threads of a block wait at different barriers")


def dtype_code(dtype: np.dtype) -> str:
    """What shim.h calls a type."""
    if dtype.name in ("float16", "bfloat16"):
        return "s2"
    kind = {"b": "u"}.get(dtype.kind, dtype.kind)
    return f"{kind}{dtype.itemsize}"


def points_to(code: str, dtype: np.dtype) -> bool:
    """Whether a pointer to `code` may be given an array of `dtype`; pointers are 64-bit integers."""
    own = dtype_code(dtype)
    return (
        code in ("v", own) or (code[0] == "P" and own in ("u8", "i8")) or (dtype.kind == "b" and code == "i1")
    )
