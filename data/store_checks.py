"""Whether the files of a packed store fit together: checksums say only that nothing was lost."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

FILE_NAME = re.compile(r'(?!\.)[^/\\\0]+')  # in the store's own folder
KINDS = {
    'generation': int,
    'files': dict,
    'shards': list,
    'left_out': dict,
    'settings': dict,
    'scored': bool,
}


def about_problem(about: Mapping[str, Any]) -> str:
    """What of store.json is not as a store needs it; '' if nothing."""
    for key, kind in KINDS.items():
        if type(about.get(key)) is not kind:
            return f'{key!r} is missing or no {kind.__name__}'
    files, settings = about['files'], about['settings']
    for name, numbers in files.items():
        if not FILE_NAME.fullmatch(name) or not _are_whole(numbers, 2):
            return f"'files' has {name!r:.100}, which is no file's name with size and checksum"
    if not all(isinstance(name, str) and name in files for name in about['shards']):
        return "'shards' names what 'files' does not"
    if not all(isinstance(problem, str) for problem in about['left_out'].values()):
        return "'left_out' has no texts"
    if not _are_whole([about['generation']], 1):
        return "'generation' is below 0"
    flags = [settings.get(key) for key in ('square', 'keep_16bit')]
    size = settings.get('size')
    is_size = size is None and flags[0] is False or _are_whole([size], 1) and size > 0
    if not is_size or not all(isinstance(flag, bool) for flag in flags):
        return "'settings' are none of this program's"
    return ''


def index_problem(
    names: np.ndarray,
    pictures: np.ndarray,
    about: Mapping[str, Any],
    *,
    picture_type: np.dtype,
    item_bytes: Mapping[int, int],
) -> str:
    """What of the index does not fit; '' if nothing.

    Args:
        names: [N] of the pictures' files.
        pictures: [N] where their pixels are.
        about: of `about_problem`.
        picture_type: of `pictures`.
        item_bytes: form of pixels -> bytes of each.
    """
    if names.dtype.kind != 'S' or pictures.dtype != picture_type:
        return 'it is of another type'
    if not len(names) or names.ndim != 1 or names.shape != pictures.shape:
        return 'names and pictures are not as many'
    if (names[1:] <= names[:-1]).any():
        return 'the names are not sorted, or one is there twice'
    if not np.isin(pictures['form'], list(item_bytes)).all():
        return 'a picture is of an unknown form'
    ends = [about['files'][name][0] for name in about['shards']]
    if pictures['shard'].max() >= len(ends):
        return 'a picture is in no file of pixels'
    sizes = [pictures[field].astype(float) for field in ('offset', 'height', 'width')]
    items = np.array([item_bytes[form] for form in pictures['form'].tolist()])
    if (sizes[0] + sizes[1] * sizes[2] * items > np.array(ends)[pictures['shard']]).any():
        return 'a picture ends beyond its file of pixels'
    if not all(field.all() for field in sizes[1:]):
        return 'a picture has no pixels'
    return (
        _square_problem(pictures, items, about['settings']) if about['settings']['square'] else ''
    )


def _square_problem(pictures: np.ndarray, items: np.ndarray, settings: Mapping[str, Any]) -> str:
    sides = {*np.unique(pictures['height']), *np.unique(pictures['width'])}
    if sides != {settings['size']}:
        return f'the pictures are no squares of {settings["size"]} px'
    if not settings['keep_16bit'] and (items != 1).any():
        return 'a picture has more than 8 bits'
    return ''


def _are_whole(numbers: object, count: int) -> bool:
    is_list = isinstance(numbers, list) and len(numbers) == count
    return is_list and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
