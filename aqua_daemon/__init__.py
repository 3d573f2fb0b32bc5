"""The broker side of AQUA: the daemon, its keepers and aquactl. Free of torch and of CUDA."""

__version__ = "0.2.0"
