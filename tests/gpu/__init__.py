"""What only a CUDA device can answer or prove."""
