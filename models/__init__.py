"""Encoders, pre-training methods, losses, and conversion of weights."""

from models.build import build_model

__all__ = ['build_model']
