"""Ablation sweeps: what is run, how it is run, and tables and figures of what came out."""
