"""The images, studies and patients that DATA.LEAVE_OUT lists, in every stage."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from config import Config
from data.tables.identity import canonical_names, image_name, patient_name, study_name
from data.tables.records import Records
from data.tables.table import Fault, Table, refuse
from data.tables.unknown import NOBODY

COLUMNS = ('file', 'Path', 'Study', 'Patient')  # the first one that a row has is what it names
SHOWN = 50  # names in a message
Name = tuple[str, str]  # (kind, name as it is listed), such as ('patient', '117')


def find_listed(
    config: Config, records: Records, source: str = ''
) -> tuple[np.ndarray, frozenset[Name]]:
    """Find listed images by their own names or those of their study or patient.

    A name is compared as it is and, if it is nobody's, in its canonical form. A row with a study
    and a patient names this study of the patient.

    Args:
        config: Run configuration.
        records: Records of N images.
        source: Name of an entry of DATA.SOURCES, with which the listed names then begin.

    Returns:
        Whether each image is listed, [N] bool, and the listed names that were found.
    """
    is_listed, start = np.zeros(len(records), bool), f'{source}/' if source else ''
    studies = np.array([study_name(name) for name in records.study], object)
    # Names of the images by kind, and the function that shortens a name before it is compared.
    kinds = {
        'image': ((records.file, records.path), image_name),
        'study': ((records.study, studies), study_name),
        'patient': ((records.patient,), patient_name),
    }
    found: set[Name] = set()
    for kind, names in _read(config).items():
        wanted = np.array([name for name in names if name.startswith(start)], object)
        own = np.array([name.removeprefix(start) for name in wanted], object)
        values, shortened = kinds[kind]
        is_found = np.zeros(len(own), bool)
        for exact in values:
            is_listed |= np.isin(exact, own)
            is_found |= np.isin(own, exact)
        others = canonical_names([shortened(name) for name in own[~is_found]])
        forms = canonical_names([shortened(name) for name in values[-1]])
        is_listed |= np.isin(forms, others)
        is_found[~is_found] = np.isin(others, forms)
        found |= {(kind, name) for name in wanted[is_found]}
    return is_listed, frozenset(found)


def names_not_found(config: Config, found: Iterable[Name]) -> Fault | None:
    """Return a fault that lists the names that a run did not find: an error if it found none."""
    listed = [(kind, name) for kind, names in _read(config).items() for name in names]
    found = {*found}
    lacking = [f'{kind} {name!r}' for kind, name in listed if (kind, name) not in found]
    if not lacking:
        return None
    shown = ', '.join(lacking[:SHOWN])
    rest = f' and {len(lacking) - SHOWN:,} more' if len(lacking) > SHOWN else ''
    detail = (
        f'DATA.LEAVE_OUT {config.DATA.LEAVE_OUT}: {len(lacking):,} of the {len(listed):,} listed '
        f'names are not in these data: {shown}{rest}'
    )
    if len(lacking) < len(listed):
        return Fault('DATA.LEAVE_OUT', detail, severity='warning')
    detail = (
        f'DATA.LEAVE_OUT {config.DATA.LEAVE_OUT}: none of the {len(listed):,} listed names is one '
        f'of these data: {shown}{rest}; with DATA.SOURCES, names must begin with the name of the '
        'source'
    )
    return Fault('DATA.LEAVE_OUT', detail)


def _read(config: Config) -> dict[str, list[str]]:
    """Return the listed names of images, studies and patients.

    Raises:
        ValueError: If the file has no known column or a row names nothing: a withdrawal of consent
            must not be lost.
    """

    def on_fault(fault: Fault) -> None:
        if fault.kind != 'empty CSV':  # a check that found no duplicate
            refuse(fault)

    table = Table(config.DATA.LEAVE_OUT, on_fault, ' (see DATA.LEAVE_OUT)')
    if not any(name in table for name in COLUMNS):  # also without a row below: it may be a name
        detail = f'there is no column {" or ".join(COLUMNS)} (see DATA.LEAVE_OUT); found: '
        detail += f'{", ".join(table.cells) or "none"}; the first row must name the columns'
        table.fault('missing column', detail)
    table.empty_unknown(*COLUMNS, also=NOBODY)
    file, path, study, patient = (table[name].to_numpy(object) for name in COLUMNS)
    image = np.where(file == '', path, file)
    key = next(name for name in COLUMNS if name in table)
    names_one = (image != '') | (study != '') | (patient != '')
    table.check(key, names_one, 'row without a name', 'is empty, and so are its other names')
    is_local = (study != '') & (patient != '') & ~np.array(['/' in name for name in study], bool)
    study = np.where(is_local, [f'{p}/{s}' for p, s in zip(patient, study, strict=True)], study)
    names = {
        'image': image,
        'study': np.where(image == '', study, ''),
        'patient': np.where((image == '') & (study == ''), patient, ''),
    }
    return {kind: [*pd.unique(cells[cells != ''])] for kind, cells in names.items()}
