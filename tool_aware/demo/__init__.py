"""The embedded default: a sample query log in a real PostgreSQL and a tiny base model, so that every stage runs."""
