"""Frozen encoders: their features, and the probes that are fitted to them.

In: an encoder and labelled images. Out: a classifier, or arrays of features. Read `build.py` first.
"""
