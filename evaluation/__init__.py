"""Scores of predictions with intervals, reconstruction errors, and saliency maps.

In: a trained model, or files of predictions and labels. Out: scores, which `report/` shows. Read
`metrics.py` first, then `analysis.py`, which scores one set of cases.
"""
