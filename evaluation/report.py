"""The report of an evaluation: report.json, one self-contained report.html, and CSV tables."""

import base64
import hashlib
import io
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.labels import COMPETITION_LABELS
from evaluation import report_charts, report_view
from evaluation.protocol import FEW_POSITIVES
from evaluation.report_tables import write_tables
from evaluation.report_view import Node, plain, raw

TEMPLATES = Path(__file__).parent / 'templates'
# Full-quality maps lie beside the report; the page holds JPEGs, so that a mail can carry it.
JPEG_QUALITY = 88
METRIC_TITLES = {
    'auroc': 'AUROC',
    'average_precision': 'Average precision',
    'f1': 'F1',
    'kappa': 'Cohen\N{RIGHT SINGLE QUOTATION MARK}s kappa',
    'accuracy': 'Accuracy',
    'precision': 'Precision',
    'recall': 'Recall (sensitivity)',
    'specificity': 'Specificity',
    'brier': 'Brier score',
    'ece': 'ECE',
}


def write_report(folder: str | Path, report: dict) -> Path:
    """Write a report: the same dict gives the same bytes.

    Args:
        folder: where; the files of `maps` lie in it.
        report: what the page shows, format 1; NaN is written as null and shown as n/a.

    Returns:
        report.html; beside it are report.json, report_labels.csv, report_groups.csv and, where
        models are compared, report_comparisons.csv.

    Raises:
        ValueError: if the report contradicts itself or a map cannot be read.
    """
    folder = Path(folder)
    report = plain(report)
    _check(report)
    page = _render(folder, report)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1)
    (folder / 'report.json').write_text(text + '\n', encoding='utf-8')
    write_tables(folder, report)
    path = folder / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def _check(report: dict) -> None:
    if report['format'] != 1:
        raise ValueError(f'format of the report must be 1, got {report["format"]!r}')
    names = [entry['name'] for entry in report['sets']]
    if report['headline']['set'] not in names:
        raise ValueError(f'headline.set is {report["headline"]["set"]!r}, the sets are {names}')
    for entry in report['sets']:
        means = entry['means']
        if means['undefined'] and means['all'] and means['all']['auroc']['value'] is not None:
            raise ValueError(
                f'means.all of set {entry["name"]!r} holds an AUROC, but the AUROC of '
                f'{", ".join(means["undefined"])} is undefined: it must be null'
            )


def _render(folder: Path, report: dict) -> str:
    root = Node(report)
    script = (TEMPLATES / 'report.js').read_text(encoding='utf-8')
    return (
        _environment()
        .get_template('report.html.j2')
        .render(
            report=root,
            sets=sorted(root['sets'], key=lambda s: raw(s['name']) != report['headline']['set']),
            maps=_maps_by_label(folder, root['maps']),
            style=Markup((TEMPLATES / 'report.css').read_text(encoding='utf-8')),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        raw,
        report_view.count,
        report_view.p_value,
        report_view.probability,
        report_view.text,
        report_view.words,
        report_view.entries,
    )
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters |= {'id': report_view.identifier, 'has_few': has_few}
    environment.tests['known'] = report_view.is_known
    environment.globals |= {
        'charts': report_charts,
        'metrics': METRIC_TITLES,
        'five': COMPETITION_LABELS,
        'few_positives': FEW_POSITIVES,
        'mean_of_groups': mean_of_groups,
        'few_labels': few_labels,
        'published_labels': published_labels,
    }
    return environment


def mean_of_groups(column: Node) -> str:
    """Which mean the forest plot of a column shows: that of the five wherever one is defined."""
    means = (group['means']['five'] for group in raw(column['groups']))
    return 'five' if any(mean and mean['value'] is not None for mean in means) else 'all_defined'


def has_few(label: Node) -> bool:
    """Whether a label's scores rest on few positives."""
    return raw(label['positives']) < FEW_POSITIVES


def few_labels(group: Node, mean: str) -> list[str]:
    """The labels of a mean that have few positives in a group."""
    labels = raw(group['labels'])
    names = COMPETITION_LABELS if mean == 'five' else labels
    return [name for name in names if name in labels and labels[name]['few']]


def published_labels(report: Node) -> list[str]:
    """The labels that published figures are given for, in the order of the first set."""
    order = [entry['label'] for entry in raw(report['sets'])[0]['labels']]
    given = [name for entry in raw(report['published']) for name in entry['values']]
    return [name for name in dict.fromkeys([*order, *given]) if name in given]


def _maps_by_label(folder: Path, maps: Node) -> list[tuple[str, list[tuple[Node, str]]]]:
    """(label, its maps and their pictures), in the order in which the labels come."""
    found: dict[str, list[tuple[Node, str]]] = {}
    for entry in maps:
        picture = _picture(folder, raw(entry['file']))
        found.setdefault(raw(entry['label']), []).append((entry, picture))
    return list(found.items())


def _picture(folder: Path, name: str) -> str:
    """A picture beside the report as a data URI."""
    from PIL import Image

    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f'maps: {name!r} lies outside the folder of the report, {folder}')
    try:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            image.convert('RGB').save(buffer, 'JPEG', quality=JPEG_QUALITY)
    except OSError as error:
        raise ValueError(f'maps: cannot read the picture {path}: {error}') from error
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()
