"""One-line faults in the production code, each with the cheap test that must see it.

`python -m tests.mutants` applies each to a copy of the tree, runs its test there, and prints who was
caught, beside the same tests on the code as it is. A fault that survives is a test that is missing.
Not to be mixed up with `tests.simulation.broken_brokers`, which breaks a broker from outside.
"""
