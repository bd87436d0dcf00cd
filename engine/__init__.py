"""The training loop and what surrounds it: launch, resume, checkpoints and several processes.

In: a config, a model and a loader, which are passed in. Out: a run folder. Read `loop.py` first.
"""
