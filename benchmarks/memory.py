"""Peak memory of a few steps, each program in a process of its own: `python -m benchmarks.memory` is one.

It is what the process has at most while it makes its steps, less what it had when all its libraries were
imported: parameters, derivatives, the solver's memory, variables and whatever the library needs to compute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import dagnn

from .measure import forget_peak, resident_mb
from .nets import CASES

STEPS = 3


def peak_mb(name: str, phase: str, who: str, threads: int) -> float:
    """Of network `name`; `who` is "dagnn", "onnxruntime", or "nchw" or "nhwc" for PyTorch."""
    command = [sys.executable, "-m", "benchmarks.memory", name, phase, who, str(threads)]
    with TemporaryDirectory() as folder:
        if who == "onnxruntime":  # whose process is not to have PyTorch in it
            from . import peers

            file = Path(folder) / "net.onnx"
            file.write_bytes(peers.onnx_model(CASES[name].net(), CASES[name].inputs()))
            command += ["--onnx", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("net", "phase", "who"):
        parser.add_argument(name)
    parser.add_argument("threads", type=int)
    parser.add_argument("--onnx", type=Path)
    args = parser.parse_args()

    from . import works

    case = CASES[args.net]
    dagnn.set_num_threads(args.threads)
    if args.who == "onnxruntime":
        import onnxruntime  # noqa: F401
    elif args.who != "dagnn":
        from . import peers  # noqa: F401
    forget_peak()
    before = resident_mb()
    if args.who == "dagnn":
        work = works.ours(case, args.phase)
    elif args.who == "onnxruntime":
        work = works.onnxruntime(case, args.threads, args.onnx)
    else:
        work = works.pytorch(case, args.phase, args.who, args.threads)
    forget_peak()  # drawing the parameters took more than their own memory
    for _ in range(STEPS):
        work()
    print(resident_mb("VmHWM") - before)


if __name__ == "__main__":
    main()
