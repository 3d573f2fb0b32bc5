"""What holds for a keeper's slab and a client's memory, wherever the bytes are.

One suite for shared memory, for CUDA on a made-up driver, and, with `pytest -m gpu`, for CUDA.
"""
