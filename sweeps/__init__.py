"""Sweeps: groups of runs that are compared with each other, and their tables and figures."""
