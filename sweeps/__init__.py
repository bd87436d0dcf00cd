"""Sweeps: groups of runs that are compared with each other, and their tables and figures.

In: a sweep file (`scripts/ablations`, `scripts/studies`). Out: runs, tables and figures. Read
`files.py` first; `scripts/ablate.py` is its command.
"""
