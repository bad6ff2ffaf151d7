"""The files of a training run: checkpoints, metrics, curves, run card."""
