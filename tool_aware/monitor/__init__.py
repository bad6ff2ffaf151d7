"""monitor_gpu.py: GPUs over time, checks of this machine, texts of the memory estimate."""
