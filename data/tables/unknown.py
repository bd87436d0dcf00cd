"""Words by which a cell says that its value is unknown: one list, for the columns of all tables.

The cells of a patient, a study, the sex, the age, the view, the projection and a group are compared
with it. Cells of labels are not: an empty one is not mentioned, and `n/a` is not labelled.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd

# Case and punctuation do not count: `N/A`, `#N/A`, `n.a.` and `(n/a)` are `n a`.
WORDS = {'', 'na', 'n a', 'nan', 'nat', 'nd', 'n d', 'nil', 'none', 'null', 'missing', 'blank'}
WORDS |= {'u', 'unk', 'ukn', 'unkn', 'unknown', 'undefined', 'undetermined', 'undisclosed', 'empty'}
WORDS |= {'unavailable', 'unidentified', 'unnamed', 'unspecified', 'withheld', 'redacted'}
WORDS |= {'no data', 'no id', 'no name', 'no value', 'noid', 'noname', 'anon', 'anonymous'}
WORDS |= {'anonymized', 'anonymised', 'deidentified', 'de identified'}
WORDS |= {f'not {word}' for word in ('applicable', 'assigned', 'available', 'disclosed', 'entered')}
WORDS |= {f'not {word}' for word in ('given', 'known', 'provided', 'recorded', 'reported', 'set')}
WORDS |= {f'not {word}' for word in ('specified', 'stated')}
WORDS |= {'unbekannt', 'inconnu', 'desconocido', 'desconhecido', 'sconosciuto', 'onbekend'}
# Words that may stand beside one of these, as in `Patient unknown` and `P-nan`.
BESIDE = {'p', 'pt', 'pat', 'patient', 'subject', 'study', 'sex', 'gender', 'age', 'view', 'id'}
NOBODY = ('-1', '-1.0')  # names that are pandas' code for what is missing
ERROR = re.compile(r'#(REF|VALUE|NAME|NUM|DIV/0)[!?]', re.IGNORECASE)  # of a spreadsheet
MARKS = re.compile(r'[\W_\u30fc]+')  # a cell such as `-`, `?` or `--`; the last one is a long dash
PLUS = '+'  # `+` and `-` are results of a test, so `+` alone is one, too


def is_unknown_word(cell: str) -> bool:
    """Return whether a cell says that its value is unknown."""
    if cell.isdecimal():  # most names of patients, at less cost
        return False
    text = unicodedata.normalize('NFKC', cell)  # full-width letters and dashes
    words = MARKS.sub(' ', text.casefold()).split()
    without = [word for word in words if word not in BESIDE]
    is_word = ' '.join(words) in WORDS or bool(without) and ' '.join(without) in WORDS
    return is_word and PLUS not in text or bool(ERROR.fullmatch(text.strip()))


def known_cells(cells: Sequence[str], also: Sequence[str] = ()) -> np.ndarray:  # [N] object
    """Return cells with '' in place of those that say that their value is unknown, or of `also`."""
    codes, texts = pd.factorize(np.asarray(cells, object))
    known = ['' if text in also or is_unknown_word(text) else text for text in texts]
    return np.array(known, object)[codes]
