"""Stage 3: is the tuned model really better than the base, at what, and how sure are we."""
