"""`cuda.bindings.driver` of a fake node; what it does is in tests/fakes/fake_cuda."""

from tests.fakes.fake_cuda.driver import *  # noqa: F403 - the module is its names
