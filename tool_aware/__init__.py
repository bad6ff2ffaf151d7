"""Fine-tune Mistral-7B-Instruct to choose the right tool; docs/ARCHITECTURE.md is the map."""

__version__ = "1.0.0.dev0"
