"""From the tables of a data set to `Records`: labels, patients, splits and groups.

In: the CSV, Excel, JSON or Parquet files of a data set. Out: `Records`, with one row per image.
Read `records.py` first, then `reading.py`, which reads the data set of a config.
"""
