"""The images, studies and patients that DATA.LEAVE_OUT lists, in every stage."""

import numpy as np
import pandas as pd

from config import Config
from data.tables.identity import canonical_names, image_name, patient_name, study_name
from data.tables.records import Records
from data.tables.table import Fault, Table, refuse

COLUMNS = ('file', 'Path', 'Study', 'Patient')  # the first one that a row has is what it names


def is_left_out(config: Config, records: Records, source: str = '') -> np.ndarray:  # [N] bool
    """Return which images are listed, by their own names or those of their study or patient.

    A name is compared as it is and, if it is nobody's, in its canonical form. A row with a study
    and a patient names this study of the patient.

    Args:
        config: Run configuration.
        records: Records of N images.
        source: Name of an entry of DATA.SOURCES, with which the listed names then begin.
    """
    found, start = np.zeros(len(records), bool), f'{source}/' if source else ''
    studies = np.array([study_name(name) for name in records.study], object)
    # Names of the images by kind, and the function that shortens a name before it is compared.
    kinds = {
        'image': ((records.file, records.path), image_name),
        'study': ((records.study, studies), study_name),
        'patient': ((records.patient,), patient_name),
    }
    for kind, names in _read(config).items():
        names = {name.removeprefix(start) for name in names if name.startswith(start)}
        values, shortened = kinds[kind]
        for exact in values:
            found |= np.isin(exact, [*names])
        others = canonical_names([shortened(name) for name in names.difference(*values)])
        found |= np.isin(canonical_names([shortened(name) for name in values[-1]]), others)
    return found


def require_found(config: Config, *parts: Records | None) -> None:
    """Refuse a list that names none of the images that a run reads."""
    count = sum(part.num_left_out for part in parts if part is not None)
    num_listed = sum(map(len, _read(config).values()))
    if num_listed and not count:
        raise ValueError(
            f'DATA.LEAVE_OUT {config.DATA.LEAVE_OUT}: none of the {num_listed} listed names is one '
            'of these data; with DATA.SOURCES, names must begin with the name of the source'
        )


def _read(config: Config) -> dict[str, list[str]]:
    """Return the listed names of images, studies and patients."""

    def on_fault(fault: Fault) -> None:
        if fault.kind != 'empty CSV':  # a check that found no duplicate
            refuse(fault)

    table = Table(config.DATA.LEAVE_OUT, on_fault, ' (see DATA.LEAVE_OUT)')
    table.require(COLUMNS)
    file, path, study, patient = (table[name].to_numpy(object) for name in COLUMNS)
    image = np.where(file == '', path, file)
    is_local = (study != '') & (patient != '') & ~np.array(['/' in name for name in study], bool)
    study = np.where(is_local, [f'{p}/{s}' for p, s in zip(patient, study, strict=True)], study)
    names = {
        'image': image,
        'study': np.where(image == '', study, ''),
        'patient': np.where((image == '') & (study == ''), patient, ''),
    }
    return {kind: [*pd.unique(cells[cells != ''])] for kind, cells in names.items()}
