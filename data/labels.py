"""The former name of `data.tables.labels`, which a file of one's own may still import."""

from data.tables.labels import LABELS, POSITIVE, register_policy

__all__ = ['LABELS', 'POSITIVE', 'register_policy']
