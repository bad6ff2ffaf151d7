"""What a training run leaves behind while it goes on: checkpoints, metrics, curves, run card."""
