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
WORDS = set(
    """na|n a|nan|nat|nd|n d|nk|n k|nil|none|null|missing|blank|empty|tbd|xxx|xxxx|u|unk|ukn|unkn
    |unknown|unassigned|unavailable|undefined|undetermined|undisclosed|undocumented|unidentified
    |unnamed|unrecorded|unreported|unspecified|withheld|redacted|anon|anonymous|anonymized
    |anonymised|deidentified|de identified|no data|no id|no info|no information|no name|no value
    |noid|noname|none given|not applicable|not assigned|not available|not disclosed|not documented
    |not entered|not given|not known|not provided|not recorded|not reported|not set|not specified
    |not stated|k a|unbekannt|inconnu|inconnue|desconocido|desconocida|desconhecido|desconhecida
    |nicht bekannt|keine angabe|non renseigné|non communiqué|ignorado|ignorada|sin datos|sin dato
    |no informado|não informado|okänd|nieznany|unkown|unknow|uknown|unknwon|unknonw|no mrn
    |sconosciuto|onbekend|n n|不明|未知|無し|なし|неизвестно""".replace('\n    ', '').split('|')
)
# Words that may stand beside one of these, as in `Patient unknown` and `P-nan`.
BESIDE = {'p', 'pt', 'pat', 'patient', 'subject', 'study', 'sex', 'gender', 'age', 'view', 'id'}
# `no patient ID` and `not on file` say it, too; `no device` may be a group.
NEGATIONS = {'no', 'not', 'without', 'kein', 'keine', 'ohne', 'sans', 'sin'}
RECORDS = BESIDE | set('name number mrn data on in file record records chart'.split())
NOBODY = ('-1', '-1.0')  # names that are pandas' code for what is missing
# Errors of spreadsheets in any language (`#REF!`, `#NV`, `#WERT!`), and what databases write for
# nothing.
ERROR = re.compile(r'#\D*[^\W\d]\D*|#DIV/0!|\\N', re.IGNORECASE)
MARKS = re.compile(r'[\W_\u30fc]+')  # a cell such as `-`, `?` or `--`; the last one is a long dash
PLUS = '+'  # `+` and `-` are results of a test, so `+` alone is one, too


def is_unknown_word(cell: str) -> bool:
    """Return whether a cell says that its value is unknown."""
    if cell.isdecimal():  # most names of patients, at less cost
        return False
    text = unicodedata.normalize('NFKC', cell)  # full-width letters and dashes
    if PLUS in text:
        return False
    words = MARKS.sub(' ', text.casefold()).split()
    without = [word for word in words if word not in BESIDE] or words
    is_word = not WORDS.isdisjoint([' '.join(words), ' '.join(without)])
    is_word |= all(word in WORDS for word in without)
    is_word |= len(words) > 1 and words[0] in NEGATIONS and RECORDS.issuperset(words[1:])
    return bool(is_word or ERROR.fullmatch(text.strip()))


def known_cells(cells: Sequence[str], also: Sequence[str] = ()) -> np.ndarray:  # [N] object
    """Return cells with '' in place of those that say that their value is unknown, or of `also`."""
    codes, texts = pd.factorize(np.asarray(cells, object))
    known = ['' if text in also or is_unknown_word(text) else text for text in texts]
    return np.array(known, object)[codes]
