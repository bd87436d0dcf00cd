"""Sweeps: many runs around a question, and the tables and figures of what they came to."""
