"""Metrics with intervals, probes, saliency maps, reconstruction errors, and the report."""
