"""NVIDIA GPUs as the driver shows them, and those that this process may use."""
