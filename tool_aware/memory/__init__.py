"""GPU memory of training and evaluation: estimates, plans, and edits that make a configuration fit."""
