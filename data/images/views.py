"""The view of an image: 'frontal', 'lateral', or '' for other and unknown views.

A table states it, or else the name of the file, or else the header of a DICOM file.
"""

import re
from collections.abc import Sequence

import numpy as np

# View of each ViewPosition of DICOM and MIMIC-CXR. Other positions are neither.
POSITIONS = dict.fromkeys(('AP', 'PA', 'FRONTAL'), 'frontal')
POSITIONS |= dict.fromkeys(('L', 'LL', 'RL', 'LAT', 'LATERAL', 'XTABLE LATERAL'), 'lateral')
# Words of names such as view1_frontal.jpg, 12-LAT.png and lateral/12.png.
WORDS = {'frontal': 'frontal', 'lateral': 'lateral', 'lat': 'lateral'}
WORD = re.compile(r'[^\W\d_]+')
# DATA.VIEWS of a training -> the view that it lacks. Most models of unknown training are frontal.
UNSEEN = {'frontal': 'lateral', 'lateral': 'frontal', '': 'lateral'}


def views_in_names(names: Sequence[str]) -> np.ndarray:
    """Return the view [N] that names of files, or else their folders, state; '' if none does."""
    views = np.full(len(names), '', object)
    for number, name in enumerate(names):
        for part in reversed(name.split('/')[-2:]):
            found = {WORDS[word] for word in WORD.findall(part.lower()) if word in WORDS}
            if found:
                views[number] = found.pop() if len(found) == 1 else ''
                break
    return views


def views_warning(views: Sequence[str], trained: str) -> str:
    """Warn of images [N] whose view a model was not trained on; '' if there is none.

    Args:
        views: View of each image.
        trained: DATA.VIEWS of the training; '' if it is unknown.
    """
    count = sum(view == UNSEEN.get(trained) for view in views)
    if not count:
        return ''
    return f'{count} of {len(views)} images are {UNSEEN[trained]}, {end_of_warning(trained)}'


def end_of_warning(trained: str) -> str:
    """Return the end of a warning of images of a view that a training (DATA.VIEWS) lacks."""
    if not trained:
        return 'and no file next to the predictions says on which views the model was trained'
    return f'but the model was trained on {trained} images only'
