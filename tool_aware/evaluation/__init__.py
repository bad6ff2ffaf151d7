"""Stage 3: how much better the tuned model is than the base, at which tools, and with which certainty."""
