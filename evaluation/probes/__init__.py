"""Frozen encoders: features and probes."""
