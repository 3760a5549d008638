"""Experiments described in a TOML file: `dagnn train CONFIG.toml` and `dagnn evaluate CONFIG.toml`."""

from __future__ import annotations

import inspect
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import data as datasets
from .. import io, zoo
from ..data import Data
from ..errors import FileFormatError, OptionError
from ..net import DagNN
from . import checkpoint, solvers
from .trainer import Trainer

DATA = {
    "cifar10": datasets.Cifar10,
    "cifar100": datasets.Cifar100,
    "fashion_mnist": datasets.FashionMnist,
    "folder": datasets.ImageFolder,
    "imagenet": datasets.ImageNet,
    "imdb": datasets.Imdb,
    "mnist": datasets.Mnist,
}
SECTIONS = ("network", "data", "solver", "training", "backend")
PATHS = ("file", "root", "path", "exp_dir")  # options that are relative to the folder of the file


@dataclass
class Experiment:
    """A network, the data it learns from, and the trainer, as a file describes them.

    The file has these sections; all but `[network]` and `[data]` may be missing:

        [network]
        zoo = "lenet"                     # or file = "net.mat", or python = "nets.py:build"
        batch_norm = true                 # further options go to the builder
        seed = 0                          # of the initial parameters

        [data]
        kind = "mnist"                    # cifar10, cifar100, folder, imagenet or imdb; or python = ...
        root = "data/mnist"               # options of the class, here dagnn.data.Mnist
        reader = { resize = [224, 224] }  # options of dagnn.data.ImageReader, for folders of images

        [solver]
        name = "SGD"                      # a class of dagnn.train
        momentum = 0.9

        [training]                        # options of dagnn.train.Trainer
        batch_size = 100
        learning_rate = [0.01, 0.01, 0.001]
        exp_dir = "experiments/lenet"

        [backend]                         # options of DagNN.move
        name = "cupy"
        device = 0

    Paths are relative to the folder of the file. `python = "nets.py:build"` calls the function `build` of
    that file (or of a module that can be imported), which therefore runs: an experiment is a program.
    """

    net: DagNN
    data: Data
    trainer: Trainer

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, continue_: bool = False, precision: str | None = None
    ) -> Experiment:
        """The experiment that a file describes; `precision` is the trainer's in place of what it says.

        Raises
        ------
        FileFormatError : it is no TOML.
        OptionError : a section or option is not known, or has a wrong value.
        """
        sections, folder = _read(Path(path)), Path(path).parent
        net = _net(sections["network"], folder)
        if "backend" in sections:
            net.move(**_backend(sections["backend"]))
        data = _data(sections["data"], folder)
        solver = _solver(sections.get("solver", {}))
        options = _placed(sections.get("training", {}), folder)
        options |= {"precision": precision} if precision else {}
        trainer = _call("[training]", Trainer, {"continue_": continue_, **options}, net, solver)
        return cls(net, data, trainer)

    def restore(self, file: str | PathLike[str] | None = None) -> Path:
        """Give the network the parameters of `file`, by default the last checkpoint; returns its path."""
        if file is None:
            folder = self.trainer.folder
            if folder is None:
                raise OptionError("[training] has no exp_dir, where a checkpoint would be")
            epochs = checkpoint.epochs_in(folder)
            if not epochs:
                raise OptionError(f"There is no checkpoint in {folder}: run `dagnn train` first")
            file = checkpoint.path_of(folder, epochs[-1])
        checkpoint.restore(Path(file), self.net)
        return Path(file)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            sections = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is no TOML file: {error}") from None
    for name, section in sections.items():
        if name not in SECTIONS:
            raise OptionError(f"{path}: no section [{name}] is known. There are: {', '.join(SECTIONS)}")
        if not isinstance(section, dict):
            raise OptionError(f"{path}: [{name}] is a section. Received: {section!r}")
    for name in ("network", "data"):
        if name not in sections:
            raise OptionError(f"{path} has no section [{name}]")
    return sections


def _net(options: Mapping[str, Any], folder: Path) -> DagNN:
    options = _placed(options, folder)
    seed = options.pop("seed", 0)
    source = _one_of("[network]", options, "zoo", "file", "python")
    value = options.pop(source)
    if source == "file":
        return _call("[network]", io.load, {"path": value, **options})
    builders = [name for name in zoo.__all__ if name not in ("init_params", "add_fast_rcnn_heads")]
    build = _chosen("zoo", value, vars(zoo), builders) if source == "zoo" else _imported(value, folder)
    net = _call("[network]", build, options)
    if all(param.value is None for param in net.params.values()):
        zoo.init_params(net, seed)
    return net


def _backend(options: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(options)
    if not isinstance(options.get("name"), str):
        raise OptionError(f'[backend] needs a name, such as "cupy". Received: {options.get("name")!r}')
    return {"backend": options.pop("name"), **options}


def _data(options: Mapping[str, Any], folder: Path) -> Data:
    options = _placed(options, folder)
    source = _one_of("[data]", options, "kind", "python")
    value = options.pop(source)
    make = _chosen("kind of data", value, DATA, DATA) if source == "kind" else _imported(value, folder)
    for reader in ("reader", "val_reader"):
        if isinstance(options.get(reader), dict):
            options[reader] = _call(f"[data] {reader}", datasets.ImageReader, options[reader])
    return _call("[data]", make, options)


def _solver(options: Mapping[str, Any]) -> solvers.Solver:
    options = dict(options)
    names = [name for name in solvers.__all__ if name not in ("Solver", "average")]
    return _call("[solver]", _chosen("solver", options.pop("name", "SGD"), vars(solvers), names), options)


def _placed(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {k: str(folder / v) if k in PATHS and isinstance(v, str) else v for k, v in options.items()}


def _one_of(section: str, options: Mapping[str, Any], *sources: str) -> str:
    given = [source for source in sources if source in options]
    if len(given) != 1:
        raise OptionError(
            f"{section} needs one of: {', '.join(sources)}. Received: {', '.join(given) or 'none'}"
        )
    return given[0]


def _chosen(what: str, name: Any, there: Mapping[str, Any], names: Any) -> Callable[..., Any]:
    if name not in names:
        near = get_close_matches(str(name), names)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}"
        raise OptionError(f"No {what} {name!r}. {hint}")
    return there[name]


def _imported(where: str, folder: Path) -> Callable[..., Any]:
    """The function that "nets.py:build" or "package.module:build" names."""
    module_name, colon, name = str(where).rpartition(":")
    if not colon:
        raise OptionError(f'python is "file.py:function" or "module:function". Received: {where!r}')
    if module_name.endswith(".py"):
        module = _run_file(folder / module_name)
    else:
        try:
            module = import_module(module_name)
        except ImportError as error:
            raise OptionError(f"python = {where!r}: {error}") from None
    functions = [key for key, value in vars(module).items() if callable(value)]
    return _chosen(f"function in {module_name}", name, vars(module), functions)


def _run_file(path: Path) -> ModuleType:
    """The module in a file, which may import others beside it."""
    spec = spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses look for their annotations
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _call(section: str, make: Callable[..., Any], options: Mapping[str, Any], *args: Any) -> Any:
    """make(*args, **options), where an option it doesn't have is an OptionError."""
    parameters = list(inspect.signature(make).parameters.values())
    known = [p.name for p in parameters[len(args) :]]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in options:
            if name not in known:
                near = get_close_matches(name, known)
                hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}"
                raise OptionError(f"{section} has no option {name!r}. {hint}")
    missing = [p.name for p in parameters[len(args) :] if p.default is p.empty and p.name not in options]
    if missing and not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        raise OptionError(f"{section} needs {', '.join(missing)}")
    return make(*args, **options)
