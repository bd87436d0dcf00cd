"""Where a model looks: saliency maps against regions that radiologists marked.

In: a file of regions, and maps of a model or of another program. Out: scores with intervals and
baselines, figures, and a page. Read `regions.py` first, then `scores.py`, which scores one map.
"""
