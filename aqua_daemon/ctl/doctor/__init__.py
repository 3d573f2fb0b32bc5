"""aquactl doctor: whether this machine can serve a node, and what to do where it can't."""
