"""A coarse model of one serving engine, replayed under several schedulers: a model, no measurement.

    python -m tests.benchmarks.serving_model [--trace CSV] [--speed 1 2 4] [--json FILE]

What an iteration costs, what a link carries and what of a swap is hidden are parameters, not
measured here (`engine.Hardware`). What is compared is the order of requests, on the same arrivals.
"""
