"""`cuda.bindings.nvrtc` of a fake node; what it does is in tests/fakes/fake_cuda."""

from tests.fakes.fake_cuda.nvrtc import *  # noqa: F403 - the module is its names
