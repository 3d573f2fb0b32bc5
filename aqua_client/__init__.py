"""Page tensors into leased memory of neighbouring GPUs."""

__version__ = "0.1.0"
