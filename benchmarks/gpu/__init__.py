"""Whole networks on a GPU, against PyTorch: `python -m benchmarks.gpu`; `--help` says what else."""
