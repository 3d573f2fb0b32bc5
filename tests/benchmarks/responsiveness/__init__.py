"""A burst on a real engine, served in four ways: what people wait for, and what it costs.

Covers transformers' continuous batching with a toy model on shm GPUs, one thread. What a large engine
would do is only modelled: `serving_model`.
"""
