"""The mathematics of one training step: packing, forward and backward pass, loss, optimizer."""
