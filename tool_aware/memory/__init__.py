"""What a training step or an evaluation takes on the card, and what to do with what there is."""
