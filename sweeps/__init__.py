"""Sweeps of runs and rounds of them: what is run, how, and tables and figures of what came out."""
