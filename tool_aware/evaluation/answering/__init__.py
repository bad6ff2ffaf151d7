"""Answers of the base and the fine-tuned model: on this machine, from a server or from a file."""
