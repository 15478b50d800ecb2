"""Base models: site tables by name, and lazy reading of their weights."""
