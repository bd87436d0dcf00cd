"""Files and locks, processes, downloads and devices, for every part.

Nothing here knows X-rays or models. Read `files.py` first: how a file is written whole or not at
all.
"""
