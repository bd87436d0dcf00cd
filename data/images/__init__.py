"""From an image file, packed store or Parquet file to one channel of grey levels.

In: the name of an image. Out: a Pillow image in grey, which `data/transforms.py` turns into a
tensor. Read `image_source.py` first, then `files.py` for single files and `store.py` for stores.
"""
