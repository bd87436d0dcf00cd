"""The page report.html of a report, from the templates in `evaluation/templates`."""

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from data.tables.labels import COMPETITION_LABELS
from evaluation.intervals import MIN_RESAMPLES
from evaluation.metrics import FEW_CASES, METRICS, OF_CLASSES, OF_LABEL, applicable
from evaluation.published import MEAN_OF_FIVE
from evaluation.report import charts
from evaluation.report.report_warnings import SYNTHETIC

TEMPLATES = Path(__file__).parent / 'templates'
JPEG_QUALITY = 88  # for images in the page; the PNG files of the maps are lossless
ONE_TRAINING = (
    'Each file is one training. Two seeds of one recipe can also differ like this, so a small p '
    'does not show that a method is better.'
)
UNDEFINED = (
    f'A score has no interval with fewer than {MIN_RESAMPLES} resamples of the patients, if there '
    'are few cases, if more than 5 of 100 resamples leave the '
    'score undefined, or if all resamples have the same score.'
)


def render_page(
    folder: Path, report: dict, thumbnails: Mapping[tuple[str, str, str], Image.Image]
) -> str:
    """Render a report as one HTML page. `charts.format_value` formats numbers; text is escaped.

    Args:
        folder: Folder with the image files of `maps`.
        report: Content of report.json.
        thumbnails: (set, label, kind) of a worst error -> small image to show.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=charts.format_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = dict.fromkeys(label['label'] for entry in report['sets'] for label in entry['labels'])
    environment.filters |= {
        'p_value': charts.p_value,
        'probability': charts.probability,
        'breakable': breakable,
        'in_order': lambda part: [(name, part[name]) for name in names if name in part],
    }
    # The set of the headline comes first.
    main = report['headline'] and report['headline']['set']
    sets = sorted(report['sets'], key=lambda entry: entry['name'] != main)
    maps: dict[str, list[tuple[dict, str]]] = {}  # label -> maps, each with a data URI
    for entry in report['maps']:
        with Image.open(folder / entry['file']) as image:
            maps.setdefault(entry['label'], []).append((entry, _data_uri(image.convert('RGB'))))
    script = (TEMPLATES / 'report.js').read_text(encoding='utf-8')
    return environment.get_template('report.html.j2').render(
        report=report,
        sets=sets,
        class_metrics=[*applicable(OF_CLASSES).values()],
        names=[*names],
        mean_title=mean_title,
        synthetic=SYNTHETIC in report['alerts'],
        made_of={k: v for entry in report['sets'] for k, v in entry['made_of'].items()},
        same_labels=len({frozenset(entry['means']['counted']) for entry in report['sets']}) == 1,
        maps=maps,
        thumbnails={key: _data_uri(image) for key, image in thumbnails.items()},
        style=Markup((TEMPLATES / 'report.css').read_text(encoding='utf-8')),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        charts=charts,
        **_metric_columns(report),
        explanations={
            entry.title: f'{entry.explanation} {"Higher" if entry.higher_is_better else "Lower"} '
            'is better.'
            for entry in METRICS.values()
        },
        five=COMPETITION_LABELS,
        mean_of_five=MEAN_OF_FIVE,
        one_training=ONE_TRAINING,
        few_cases=FEW_CASES,
        few_labels=_few_labels,
        no_interval=UNDEFINED,
    )


def breakable(name: str) -> Markup:
    """Return a name that breaks after '/' and '_' where a line has no room for it."""
    return Markup('<wbr>').join(re.split('(?<=[/_])', name))


def mean_title(mean: str, labels: Sequence[str]) -> str:
    """Return the name of a mean, 'five' or 'labels', over these labels."""
    if mean == 'five':
        return 'Mean of the five CheXpert tasks'
    return f'Mean of {len(labels)} label{"s" * (len(labels) != 1)}'


def _metric_columns(report: dict) -> dict[str, Any]:
    """Return which metrics the tables of the page show. Columns are pairs (heading, name)."""
    labels = [label['scores'] for entry in report['sets'] for label in entry['labels']]
    shown = {
        name: entry
        for name, entry in applicable(OF_LABEL).items()
        # Without a set of several views, the metrics of views have no value.
        if 'views' not in entry.needs or any(scores[name]['value'] is not None for scores in labels)
    }
    ranking, summary = [], []
    for name in applicable({'order', 'probabilities', 'views'}):
        if name in shown:
            ranking.append((shown[name].title, name))
            if name == 'auroc':
                ranking.append((f'{shown[name].title}, DeLong', 'auroc_delong'))
            if 'probabilities' in shown[name].needs:
                ranking.append((f'{shown[name].title}, scaled', f'{name}_scaled'))
    for name, entry in METRICS.items():
        if entry.in_summary:
            summary.append((entry.title, name))
            if name == 'auroc':
                summary.append((f'{entry.title}, standardised', 'auroc_standardised'))
    return {
        'metrics': shown,
        'decisions': [*applicable({'threshold'}).values()],
        'ranking_columns': ranking,
        'summary_columns': summary,
    }


def _few_labels(group: Mapping[str, Any], counted: Iterable[str]) -> list[str]:
    """Return the counted labels that have few cases in a group."""
    labels = group['labels']
    return [name for name in counted if name in labels and labels[name]['few']]


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=JPEG_QUALITY)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()
