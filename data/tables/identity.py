"""Compare patients, studies and images by a canonical form of their names.

Programs write one patient as 117, 117.0, 000117, P117 or '117, and 1234 as 1,234. Records keep the
names of their table. The canonical form is only used to compare.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from data.images.image_source import IMAGE_SUFFIXES

# Matches a study in a name: CheXpert's patient00001/study1, MIMIC-CXR's p10000032/s50414267.
STUDY = re.compile(
    r'\A(?P<study>(?:.*?/)?(?P<patient>patient\d+|p\d+)/(?:study|s)\d+)(?=/|\Z)(?P<image>.*)'
)
ANY_CASE = re.compile(STUDY.pattern, re.IGNORECASE)  # only to compare
SUFFIX = re.compile(rf'(?:{"|".join(map(re.escape, IMAGE_SUFFIXES))})\Z', re.IGNORECASE)
# Folders above that of a patient which are not part of the name: those of CheXpert's splits, and
# MIMIC-CXR's files/p10/, whose number begins the patient's.
ABOVE_PATIENT = re.compile(
    r'(?:.*/)?(?:files|train|valid|test|p?(?P<group>\d\d)(?=/p?(?P=group)\d{6}\Z))/'
    r'(?=(?:patient\d+|p?\d{8})\Z)',
    re.IGNORECASE | re.ASCII,
)
# A number such as 117.0 or 1,234. In 1.000 the point may be decimal, and is read so.
NUMBER = r"(\d{1,3}(?:[, '’]\d{3})+|\d{1,3}(?:\.\d{3}){2,}|\d+)(?:[.,]0*)?"
# A number, perhaps behind words for a patient or a study (`MRN: 12`, `Subject ID 12`), or behind
# the p of MIMIC-CXR.
WORD = 'p|pt|pat|patient|participant|pid|ptid|id|mrn|no|nr|number|sub|subj|subject|s|study'
NUMBERED = re.compile(rf'(?:(?:{WORD})[\W_]*){{0,3}}?[\W_]*?{NUMBER}[\W_]*', re.ASCII)
PLAIN = re.compile(rf'(?:p(?=\d{{8}}\Z))?{NUMBER}', re.ASCII)
# A number for which Excel has dropped digits, such as 1.17E+11.
SCIENTIFIC = re.compile(r'\d+(?:[.,]\d+)?e\+\d+', re.IGNORECASE | re.ASCII)
INVISIBLE = ('Cf', 'Cc')  # Unicode categories of characters such as a byte-order mark


def canonical(name: str) -> str:
    """Return the form of a name of a patient, a study or an image that is compared.

    Blanks of any kind, upper case, a leading apostrophe, leading zeros, a final `.0`, marks between
    thousands, and words such as `p` or `patient-` in front of a number do not count. Each part of a
    path is treated alone: `P-007/study01` and `patient7/1` have one form.
    """
    parts = []
    for part in _visible(name).casefold().split('/'):
        part = part.strip().lstrip("'’`").strip()
        number = NUMBERED.fullmatch(part)
        parts.append((_digits(number[1]).lstrip('0') or '0') if number else part)
    return '/'.join(parts)


def one_spelling(names: Sequence[str]) -> np.ndarray:  # [N] object
    """Return names of patients or studies with one spelling, the first in order, for each.

    Blanks, a leading apostrophe, a final `.0`, marks between thousands, and folders above a patient
    do not count. Case, leading zeros and words such as `P` may tell two patients apart, so names
    that differ in these (see `canonical`) remain.
    """
    codes, unique = pd.factorize(np.asarray(names, object))
    if not len(unique):
        return np.asarray(names, object)
    forms = pd.factorize(np.array([_plain(name) for name in unique], object))[0]
    return pd.Series(unique, dtype=object).groupby(forms).min().to_numpy(object)[forms][codes]


def _plain(name: str) -> str:
    if name.isascii() and name.isdecimal():
        return name
    name = patient_name(_visible(name).strip().lstrip("'’`"))
    number = PLAIN.fullmatch(name)
    return _digits(number[1]) if number else name


def _visible(name: str) -> str:
    """Return a name in usual characters: full-width digits become digits, and marks disappear."""
    if name.isascii() and name.isprintable():
        return name
    name = unicodedata.normalize('NFKC', name)
    return ''.join(c for c in name if unicodedata.category(c) not in INVISIBLE)


def _digits(number: str) -> str:
    return re.sub(r'\D', '', number)


def canonical_names(names: Sequence[str]) -> np.ndarray:  # [N] object
    """Return the canonical forms of names; equal names are only looked at once."""
    codes, unique = pd.factorize(np.asarray(names, object))
    return np.array([canonical(name) for name in unique], object)[codes]


def patient_forms(names: Sequence[str]) -> np.ndarray:  # [N] object
    """Return the canonical forms of names of patients, without folders above them."""
    codes, unique = pd.factorize(np.asarray(names, object))
    return np.array([canonical(patient_name(name)) for name in unique], object)[codes]


def patient_name(name: str) -> str:
    """Remove the folders above that of a patient: `files/p10/p10000032` becomes `p10000032`.

    Folders that may tell two patients apart, as in `clinic/p1`, remain.
    """
    path = name.strip().replace('\\', '/').rstrip('/')
    match = ABOVE_PATIENT.match(path)
    return path[match.end() :] if match else name


def image_name(name: str) -> str:
    """Remove the folders above the folder of the patient, and the suffix of an image.

    'CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg' becomes
    'patient64541/study1/view1_frontal', and MIMIC-CXR's 'files/p10/p10000032/s50414267/x.jpg'
    becomes 'p10000032/s50414267/x'. A name without a patient's folder only loses its suffix.
    """
    match = ANY_CASE.match(name)
    name = name[match.start('patient') :] if match else name
    return SUFFIX.sub('', name.rstrip('/'))


def study_name(name: str) -> str:
    """Return the name of the study of an image; the name itself if it has no study."""
    match = ANY_CASE.match(name)
    return name[match.start('patient') : match.end('study')] if match else name


def look_up_names(wanted: Sequence[str], known: Sequence[str], what: str) -> np.ndarray:  # [N]
    """Return the position of each name among the known ones, or of its other spelling; else -1.

    Args:
        wanted: Names [N].
        known: Names [M]; of equal ones, the first counts.
        what: Where the known names are, for the message.

    Raises:
        ValueError: If a name without an equal one has several other spellings.
    """
    wanted, known = (pd.Index(np.asarray(names, object)) for names in (wanted, known))
    first = np.flatnonzero(~known.duplicated())
    place = known[first].get_indexer(wanted)
    found = np.where(place >= 0, first[place] if len(first) else -1, -1)
    rest = np.flatnonzero(found < 0)
    if not len(rest):
        return found
    # A known name that is somebody's own name is not another spelling as well.
    free = np.setdiff1d(first, found)
    if not len(free):
        return found
    forms, forms_wanted = pd.Index(canonical_names(known[free])), canonical_names(wanted[rest])
    several = forms.duplicated(keep=False)
    unclear = np.isin(forms_wanted, forms[several].to_numpy(object))
    if unclear.any():
        spellings = known[free][forms == forms_wanted[unclear][0]][:3]
        raise ValueError(
            f'{what}: {wanted[rest][unclear][0]!r} may be each of {", ".join(map(repr, spellings))}'
        )
    place = forms[~several].get_indexer(forms_wanted)
    found[rest] = np.where(place >= 0, free[~several][place], -1)
    return found


def other_spellings(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (first name, other spelling of it) for names of patients that have one form."""
    unique = pd.unique(np.asarray(names, object))
    first: dict[str, str] = {}
    forms = zip(patient_forms(unique), unique, strict=True)
    pairs = ((first.setdefault(form, name), name) for form, name in forms)
    return [(one, other) for one, other in pairs if one != other]


def shared_patients(patients: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a sentence for each two splits that share patients, given the patients by split."""
    forms = {}
    for split, names in patients.items():
        unique = pd.unique(np.asarray(names, object))[::-1]  # of two spellings, the first remains
        forms[split] = dict(zip(patient_forms(unique), unique, strict=True))
    lines, splits = [], [*forms]
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            if both := sorted(forms[one].keys() & forms[other].keys()):
                spelt = [{forms[one][form], forms[other][form]} for form in both]
                example = max(spelt, key=len)  # two spellings, if there are any
                named = ' and '.join(map(repr, sorted(example)))
                lines.append(
                    f'{len(both)} patient(s) are in both {one} and {other}, for example '
                    f'{named if len(example) > 1 else min(example)}, so the scores include '
                    'patients with which the model may have been trained'
                )
    return lines
