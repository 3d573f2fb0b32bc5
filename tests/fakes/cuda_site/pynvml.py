"""`pynvml` of a fake node; what it does is in tests/fakes/fake_cuda."""

from tests.fakes.fake_cuda.nvml_names import names

globals().update(names())
