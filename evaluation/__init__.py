"""Evaluation: metrics with intervals, probes, saliency maps, reconstruction errors, the report."""
