"""Stage 2: packing, the training loop, checkpoints, export."""
