"""Benchmarks of one GPU, each beside its rivals in the same run; `tests.gpu.benching` runs one."""
