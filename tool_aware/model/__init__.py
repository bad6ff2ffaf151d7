"""The frozen base model and the LoRA adapter on it."""
