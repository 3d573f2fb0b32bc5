"""What people park tensors in today. Programs of their own, in the environment `.bench`."""
