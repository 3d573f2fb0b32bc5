"""A CUDA driver and an NVML for tests: real processes, real bytes, no GPU.

`tests/fakes/cuda_site` gives them their real names; `tests.fakes.cuda_node` is what tests use.
"""
