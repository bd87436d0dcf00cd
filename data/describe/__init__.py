"""Check and describe a whole data set, before anything is trained on it.

In: the data set of a config. Out: a list of faults, tables and figures. Read `check.py` first.
"""
