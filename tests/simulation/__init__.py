"""Whole nodes in virtual time around the real broker, with a fault at any step.

`python -m tests.simulation --seeds N --steps M` runs them. What is real: the broker. What is
modelled: keepers, client processes, owners, the links between them, the kernel's word. What
judges: an oracle that knows the truth of the model and never asks the broker for its sums.
"""
