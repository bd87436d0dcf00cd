"""The report of a run or of prediction files.

In: cases with probabilities and targets. Out: report.json, report.html, and tables in CSV and
LaTeX. Read `document.py` first, which collects the report and writes its files.
"""
