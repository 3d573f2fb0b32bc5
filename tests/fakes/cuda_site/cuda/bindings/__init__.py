"""Stands first on PYTHONPATH in place of cuda-bindings."""
