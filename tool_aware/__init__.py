"""Teach Mistral-7B-Instruct to choose the right tool; see docs/ARCHITECTURE.md for the map."""
