"""The CUDA sources: NVIDIA's compiler takes them, and what is launched is what there is."""

import ast
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import nvrtc
import pytest
from emulated_kernels import KERNEL, cache

import dagnn
from dagnn.backends.cupy.modules import REALS, SOURCES, options, source

FILES = sorted(path.stem for path in SOURCES.glob("*.cu"))
KERNELS = {file: KERNEL.findall(source(file)) for file in FILES}
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SOME = [
    ("sm_90", "float32", "int"),
    ("sm_80", "float64", "long long"),
    ("sm_100", "float16", "int"),
    ("sm_90", "bfloat16", "int"),
]
BY_CUPY = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the options (cupy.cuda.compiler)."""
ALL = list(product(ARCHITECTURES, REALS, ("int", "long long")))


@pytest.fixture(scope="module")
def compiler():
    library = nvrtc.library()
    if library is None:
        pytest.skip("needs NVIDIA's compiler: pip install nvidia-cuda-nvrtc")
    return library


@pytest.mark.parametrize("file", FILES)
def test_sources_compile(compiler, file):
    every_way(compiler, file, SOME)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_sources_compile_for_every_type_and_architecture(compiler, file):
    every_way(compiler, file, ALL)


def every_way(compiler, file, ways):
    """Compile it once each way, without a warning; not again what was so compiled before."""

    def compile(way):
        architecture, dtype, index = way
        flags = (*options(dtype, index), *BY_CUPY, f"-arch={architecture}")
        key = hashlib.sha256("\0".join([str(version), source(file), *flags]).encode()).hexdigest()[:32]
        done = cache() / f"{key}.nvrtc"
        if not done.exists():
            assert nvrtc.compile(compiler, source(file), flags) == "", way
            done.touch()

    version = nvrtc.version(compiler)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile, ways))


def test_the_compiler_says_what_is_wrong(compiler):
    log = nvrtc.compile(compiler, "__global__ void k() { nothing; }", ["-arch=sm_90"])
    assert 'identifier "nothing" is undefined' in log


def launches():
    """(file, pattern of the kernel's name, where) of every launch in the backend."""
    for path in SOURCES.parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in ("each", "blocks") and len(node.args) > 2 and pattern(node.args[0]):
                where = f"{path.name}:{node.lineno}"
                yield pattern(node.args[0]), pattern(node.args[1]), where


def pattern(node):
    """Of what a string in the source may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(pattern(value) or ".*" for value in node.values)
    return "" if not isinstance(node, ast.FormattedValue) else ".*"


def test_what_is_launched_is_there():
    found = list(launches())
    assert found
    for file, name, where in found:
        assert file in KERNELS, f"{where}: there is no kernels/{file}.cu"
        assert any(re.fullmatch(name or ".*", kernel) for kernel in KERNELS[file]), f"{where}: no {name}"


def test_every_kernel_is_named_in_the_package():
    text = "".join(path.read_text() for path in Path(dagnn.__file__).parent.rglob("*.py"))
    strings = {string.replace("{", ".*{") for string in re.findall(r'f?"([\w{}.=]+)"', text)}
    patterns = [re.sub(r"\{.*?\}", "", string) for string in strings if "{" in string]
    for file, names in KERNELS.items():
        assert names, file
        for name in names:
            named = name in strings or any(re.fullmatch(one, name) for one in patterns if one != ".*")
            assert named, f"{file}.cu: {name} is never launched"
