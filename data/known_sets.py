"""The former name of `data.tables.known_sets`, which a file my_set.py may still import."""

from data.tables.known_sets import (
    ages,
    images_below,
    join,
    listed,
    open_table,
    sexes,
    views,
)

__all__ = ['ages', 'images_below', 'join', 'listed', 'open_table', 'sexes', 'views']
