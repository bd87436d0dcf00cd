"""Encoders, pre-training methods and losses.

In: a config. Out: a model that maps a batch to a loss, or images to logits. Read `simmim.py` first,
then `encoder.py` and `swin_transformer.py`.
"""

from models.build import build_model

__all__ = ['build_model']
