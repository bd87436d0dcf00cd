"""The report of a run or of prediction files."""
