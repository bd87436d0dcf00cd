"""The files of a localisation: tables, figures, and a page that shows them.

`write_localisation` writes all files. Texts and tables are the same on the page and in the files.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.metrics import FEW_CASES
from evaluation.regions.analysis import (
    ALARMS,
    EVERYONE,
    HIT,
    IOU,
    LARGE,
    MEAN,
    OF_MAPS,
    SMALL,
    TITLES,
    RegionCases,
    Row,
    Scoring,
)
from evaluation.regions.figures import plot_examples, plot_scores
from evaluation.regions.regions import Regions
from evaluation.regions.sources import OWN, MapSource
from evaluation.report.report_page import TEMPLATES as REPORT_TEMPLATES
from evaluation.report.report_warnings import format_score
from system.files import replace_file, replace_files
from system.pages import NOT_FOR_CLINICAL_USE, are_synthetic, encode_figure
from system.tables import write_table

TEMPLATES = Path(__file__).parent / 'templates'
TITLE = 'Where does it look?'
MEAN_TITLE = 'Mean over labels'
SYNTHETIC = 'Synthetic X-rays (phantoms): the scores say nothing about patients.'
MEANINGS = {
    TITLES[HIT]: 'Share of the cases in which the highest point of the map lies in the region; of '
    'several highest pixels, the share that does.',
    TITLES[IOU]: 'Mean intersection over union of the region and of the map above the threshold of '
    "Otsu's method.",
    'Chosen threshold': 'The threshold of each label has the highest mIoU on other patients '
    '(five folds).',
    'Average precision': 'Precision over pixels, averaged over recall: no threshold is needed.',
    'Mass inside': 'Share of the sum of the map that lies in the region.',
    TITLES[ALARMS]: 'mIoU in which a region that is marked where there is none counts as 0.',
    'Position prior': 'The mean of the regions of the label on all other patients. A model that is '
    'not above it shows no more than where the finding usually lies.',
    'Centre, random map': 'A map that falls from the centre of the image, and random cells.',
    'Random weights': 'The same model before training.',
    'Another label': 'The map of another label of the same model and image, drawn at random.',
}
LIMITS = (
    'A region that a map marks shows what the score depends on by this method of maps. It does not '
    'show that the model reasons as a radiologist, and a low score may be the fault of the method. '
    'Scores on other images, labels or kinds of regions cannot be compared: a box contains pixels '
    'without the finding, so that its IoU is lower than that of an outline.'
)


class Localisation(NamedTuple):
    """All that the page shows.

    Attributes:
        regions: Regions with the labels of the models.
        cases: Cases that are scored.
        rows: Scored rows.
        sources: Sources of maps by their name.
        document: Result of `analysis.analyse`.
        about: Facts, name -> value, in the order of the page.
        notes: Sentences about what is scored.
    """

    regions: Regions
    cases: RegionCases
    rows: Sequence[Row]
    sources: Mapping[str, MapSource]
    document: Mapping[str, Any]
    about: Mapping[str, str]
    notes: Sequence[str]


def write_localisation(folder: Path, found: Localisation) -> Path:
    """Write all tables, figures and the page; return the page."""
    document, cases = found.document, found.cases
    cells, of_differences, pictures = _write_scores(folder, 'localisation', found, OF_MAPS)
    figures, labels = [*pictures], _shown_labels(found)
    counted = {MEAN_TITLE, *document['counted']}
    few = [row for row in cells if document['counted'] and row['Label'] not in counted]
    examples = {}
    for row in (row for row in found.rows if row.source and row.kind == OWN):
        source = found.sources[row.source]
        shown = plot_examples(row, source, found.regions, cases, labels)
        number = len(examples) + 1
        for name, figure in shown.items():
            examples.setdefault(row.name, []).append(f'{name}_model_{number}')
            pictures[f'{name}_model_{number}'] = encode_figure(figure)
    page = (
        _environment()
        .get_template('page.html.j2')
        .render(
            title=TITLE,
            flags=[
                NOT_FOR_CLINICAL_USE,
                *([SYNTHETIC] if are_synthetic(cases.marked['path']) else []),
            ],
            verdicts=document['verdicts'],
            about=found.about,
            notes=notes_of(found),
            scores=[row for row in cells if row not in few],
            few=few,
            sizes=size_cells(found),
            differences=of_differences,
            figures=[_data_uri(pictures[name]['.png']) for name in figures],
            examples={
                name: [_data_uri(pictures[file]['.png']) for file in files]
                for name, files in examples.items()
            },
            meanings=MEANINGS,
            limits=LIMITS,
            style=Markup((REPORT_TEMPLATES / 'report.css').read_text(encoding='utf-8')),
        )
    )
    files = _files(folder, pictures)
    replace_files(files | {folder / 'localisation.html': page.encode('utf-8', 'replace')})
    return folder / 'localisation.html'


def write_scores(folder: Path, name: str, found: Localisation, scoring: Scoring) -> Path:
    """Write tables and figure, without a page; return the table in Markdown."""
    _, _, pictures = _write_scores(folder, name, found, scoring)
    replace_files(_files(folder, pictures))
    return folder / f'{name}.md'


def _write_scores(
    folder: Path, name: str, found: Localisation, scoring: Scoring
) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, dict[str, bytes]]]:
    """Write the tables, and return their cells and the figure, whose files are not written yet."""
    document = found.document
    scores, differences = document['scores'], document['differences']
    notes = [*document['verdicts'], *notes_of(found)]
    cells, of_differences = score_cells(found), difference_cells(differences)
    write_table(folder, name, scores, cells, notes)
    if of_differences:
        write_table(folder, f'{name}_differences', differences, of_differences, notes[-1:])
    cases = pd.concat(
        found.cases.marked.join(row.scores).assign(row=row.name, source=row.source, kind=row.kind)
        for row in found.rows
    )
    replace_file(folder / f'{name}_cases.csv', cases.to_csv(index=False, lineterminator='\n'))
    means = [MEAN] if document['headline'] == MEAN else []
    shown = {'shown': scoring.judged, 'paths': found.cases.marked['path']}
    figures = plot_scores(name, scores, found.rows, [*means, *_shown_labels(found)], **shown)
    pictures = {file: encode_figure(figure) for file, figure in figures.items()}
    return cells, of_differences, pictures


def _shown_labels(found: Localisation) -> list[str]:
    """Return the labels of the figures: those of a handful of cases would look like results."""
    return found.document['counted'] or [*dict.fromkeys(found.cases.marked['label'])]


def _files(folder: Path, pictures: Mapping[str, Mapping[str, bytes]]) -> dict[Path, bytes]:
    """Return the contents of the files of figures."""
    return {
        folder / f'{name}{suffix}': data
        for name, encoded in pictures.items()
        for suffix, data in encoded.items()
    }


def notes_of(found: Localisation) -> list[str]:
    """Return sentences about the cases, the maps and the use, for tables and the page."""
    cases, rows = found.cases, found.rows
    notes = [*found.notes, *cases.notes]
    few = [label for label in dict.fromkeys(cases.marked['label'])]
    few = [label for label in few if label not in found.document['counted']]
    if few:
        notes.append(
            f'Fewer than {FEW_CASES} cases with a region, so without an interval, and in no mean '
            f'and no figure: {", ".join(few)}.'
        )
    for row in rows:
        silent = int((~row.scores['has_signal'].fillna(True).astype(bool)).sum())
        if silent:
            notes.append(
                f'{row.name}: {silent} of {len(row.scores)} maps have a single value everywhere. '
                'They mark nothing, and count as a miss.'
            )
    if are_synthetic(cases.marked['path']):
        notes.append(SYNTHETIC)
    return [*notes, NOT_FOR_CLINICAL_USE]


def score_cells(found: Localisation) -> list[dict[str, str]]:
    """Return the cells of the table of scores: a line for each label and row."""
    scores = found.document['scores']
    scores = scores[scores['group'] == EVERYONE]
    columns = [score for score in TITLES if score in {*scores['score']}]
    labels = [*dict.fromkeys(scores['label'])]
    cells = []
    for label in sorted(labels, key=lambda label: label != MEAN):
        for row in found.rows:
            lines = scores[(scores['label'] == label) & (scores['row'] == row.name)]
            by_score = {line['score']: line for line in lines.to_dict('records')}
            if by_score:
                first = next(iter(by_score.values()))
                name = MEAN_TITLE if label == MEAN else label
                values = {
                    TITLES[score]: format_score(by_score[score]) if score in by_score else ''
                    for score in columns
                }
                cells.append(
                    {'Label': name, 'Map': row.name, 'Cases': str(first['cases'])} | values
                )
    return cells


def size_cells(found: Localisation) -> list[dict[str, str]]:
    """Return the scores of small and of large regions of the headline's labels."""
    headline, scores = found.document['headline'], found.document['scores']
    cells = []
    for row in found.rows if headline else ():
        for group in (SMALL, LARGE):
            lines = scores[
                (scores['label'] == headline)
                & (scores['row'] == row.name)
                & (scores['group'] == group)
            ]
            by_score = {line['score']: line for line in lines.to_dict('records')}
            if by_score:
                values = {TITLES[score]: format_score(by_score[score]) for score in (HIT, IOU)}
                about = {'Map': row.name, 'Regions': group, 'Cases': str(by_score[HIT]['cases'])}
                cells.append(about | values)
    return cells


def difference_cells(differences: pd.DataFrame) -> list[dict[str, str]]:
    """Return the cells of the table of differences."""
    cells = []
    for line in differences.to_dict('records'):
        value = format_score(line | {'value': line['difference']})
        p_value = 'n/a' if np.isnan(line['p_holm']) else f'{line["p_holm"]:.4f}'
        cells.append(
            {
                'Label': MEAN_TITLE if line['label'] == MEAN else line['label'],
                'Map': line['row'],
                'minus': line['against'],
                'Score': TITLES[line['score']],
                'Difference': value,
                'p (Holm)': p_value,
            }
        )
    return cells


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _data_uri(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
