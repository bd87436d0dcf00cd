"""The table of a study of one binary task: a row a run, beside published rows as context.

A row is a dict: images, model, augmented, pretraining, masked, and accuracy, precision, f1,
recall, auroc. Those of runs also say what was scored, and each of their scores has 'value', 'low'
and 'high'.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import Config, default_config, encoder_name, encoder_node
from config_checks import PROBES
from data.labels import NO_FINDING, task_labels
from data.tables import safe_cell
from evaluation.published import FRADKIN, MAE_STUDY
from provenance import OPTIONS_FILE, read_record

# Metric in report.json -> title of the column.
SCORES = {
    'accuracy': 'accuracy',
    'precision': 'precision',
    'f1': 'F1',
    'recall': 'recall',
    'auroc': 'AUC',
}
SETTINGS = ['images', 'model', 'augmented', 'pretraining', 'masked']
TITLES = [*SETTINGS[:3], 'pre-training', *SETTINGS[4:], *SCORES.values()]
MASKED = {'simmim': 'SimMIM', 'mae': 'MAE'}  # by MODEL.PRETRAIN
UNKNOWN = 'n/a'
SCORED = ['label', 'set', 'n', 'positives', 'level', 'views', 'run']
CONTEXT = (
    f'{FRADKIN}, as context only: other data, splits and training, thresholds unknown, so that no '
    'difference between these rows and those above is an effect of anything named here.'
)

FindingRow = Mapping[str, Any]


def read_runs(
    folders: Sequence[str | Path],
    *,
    masked: Sequence[float | None],
    pretraining: Sequence[Path | None] | None = None,
    split: str = 'test',
) -> list[FindingRow]:
    """A row for each run's folder (config.yaml, report.json), in their order.

    Args:
        folders: of the runs.
        masked: of each, the share that its pre-training hid; None where nothing was hidden.
        pretraining: of each, the folder of its pre-training; None: that of the file PRETRAINED.
        split: the set of the report that is shown.

    Raises:
        ValueError: if a file is missing or is no run's of a binary task, or if tasks differ.
    """
    if len(masked) != len(folders):
        raise ValueError(f'masked: give one value a run, got {len(masked)} for {len(folders)} runs')
    runs = zip(folders, masked, pretraining or [None] * len(folders), strict=True)
    rows = [_read_run(Path(folder), share, before, split) for folder, share, before in runs]
    for row in rows:
        if row['label'] != rows[0]['label']:
            raise ValueError(
                f'{row["run"]}: DATA.TASK must be that of {rows[0]["run"]} '
                f'({rows[0]["label"]}), got {row["label"]}'
            )
    return rows


def published_rows(rows: Sequence[FindingRow]) -> list[FindingRow]:
    """The published rows of the task of these runs; none for another task than any_finding."""
    if (rows[0]['label'],) != task_labels('any_finding'):
        return []
    return [
        row._asdict() | {'pretraining': 'MAE' if row.model.startswith('MAE') else UNKNOWN}
        for row in MAE_STUDY
    ]


def is_augmented(config: Config) -> bool:
    """Whether fine-tuning changed its images at random."""
    aug = config.AUG
    if config.FINETUNE.MODE in PROBES:  # on features of the images as they are
        return False
    strengths = (aug.COLOR_JITTER, aug.REPROB, aug.HFLIP, aug.ROTATION, aug.TRANSLATE, aug.SHEAR)
    # No CROP_AREA is the default, which crops; no SCALE is none.
    ranges = set(aug.CROP_AREA) != {1.0} or not set(aug.SCALE) <= {1.0}
    return ranges or any((*strengths, aug.DISTORTION)) or aug.AUTO_AUGMENT != 'none'


def markdown(rows: Sequence[FindingRow], published: Sequence[FindingRow] = ()) -> str:
    """The runs as a Markdown table, then the published rows as another."""
    header = [*TITLES, 'n', 'run']
    lines = [
        f'{rows[0]["label"]} against {NO_FINDING}. In brackets 95 % intervals, where the report '
        'has them. Accuracy, precision, F1 and recall are at the threshold of the report.',
        '',
        *_table(header, [[*_cells(row), _scored(row), row['run']] for row in rows]),
    ]
    if published:
        lines += ['', CONTEXT, '', *_table(TITLES, [_cells(row) for row in published])]
    return '\n'.join(lines) + '\n'


def write_csv(path: str | Path, rows: Sequence[FindingRow], published: Sequence[FindingRow] = ()) -> None:
    """Write all rows as CSV with unrounded numbers; 'source' is 'run' or 'published'."""
    table = [{'source': 'run'} | _flat(row) for row in rows]
    table += [{'source': 'published'} | _flat(row) for row in published]
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(table[0]), restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows(table)


def _read_run(folder: Path, masked: float | None, pretraining: Path | None, split: str) -> FindingRow:
    config, report = default_config(), folder / 'report.json'
    config.merge_from_file(folder / OPTIONS_FILE)
    data = config.DATA
    if data.TASK == 'observations':
        raise ValueError(
            f"{folder / 'config.yaml'}: DATA.TASK must be 'any_finding' or 'effusion', got "
            f'{data.TASK!r}'
        )
    (label,) = task_labels(data.TASK)
    scored, entry = _find_scores(report, split, label)
    mode = '' if config.FINETUNE.MODE == 'full' else f', {config.FINETUNE.MODE}'
    return {
        'images': data.TRAIN_IMAGES or _share(data.TRAIN_FRACTION),
        'model': f'{_model(config)}{mode}',
        'augmented': is_augmented(config),
        'pretraining': _pretraining(pretraining, config.PRETRAINED),
        'masked': masked,
        **{metric: entry['scores'][metric] for metric in SCORES},
        'label': label,
        'set': split,
        **{key: entry[key] for key in ('n', 'positives')},
        **{key: scored[key] for key in ('level', 'views')},
        'run': str(folder),
    }


def _model(config: Config) -> str:
    width = encoder_node(config).get('EMBED_DIM')  # a model of timm has none of ours
    return f'{encoder_name(config)}, width {width}' if width else encoder_name(config)


def _pretraining(folder: Path | None, checkpoint: str) -> str | None:
    """The method, by the folder of the run or of its checkpoint; None without pre-training."""
    if folder is None and not checkpoint:
        return None
    folder = folder or Path(checkpoint).parent
    record = read_record(folder) or {}
    if record.get('stage') not in ('simmim', 'contrastive'):
        return UNKNOWN
    config = default_config()
    config.merge_from_file(folder / OPTIONS_FILE)
    if record['stage'] == 'simmim':
        return MASKED[config.MODEL.PRETRAIN]
    from models.contrastive.methods import METHODS  # it takes torch, which the others do not

    return METHODS[config.CONTRASTIVE.METHOD].title


def _find_scores(report: Path, split: str, label: str) -> tuple[FindingRow, FindingRow]:
    """The set of this name in a report.json, and its entry of this label."""
    if not report.is_file():
        raise ValueError(f'{report} is missing: fine-tune with REPORT.WRITE True')
    try:
        sets = json.loads(report.read_text(encoding='utf-8'))['sets']
        found = {part['name']: part for part in sets}
        labels = {
            name: {entry['label']: entry for entry in part['labels']}
            for name, part in found.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{report} is no report of a run: {error!r}') from error
    if split not in found:
        raise ValueError(f'{report}: there is no set {split!r}, only {", ".join(found) or "none"}')
    if label not in labels[split]:
        raise ValueError(
            f'{report}: the set {split!r} has no label {label!r}, only '
            f'{", ".join(labels[split]) or "none"}'
        )
    return found[split], labels[split][label]


def _share(fraction: float) -> str:
    return 'all' if fraction == 1 else f'{100 * fraction:g} %'


def _cells(row: FindingRow) -> list[str]:
    images, masked = row['images'], row['masked']
    return [
        f'{images:,}' if isinstance(images, int) else images,
        row['model'],
        'yes' if row['augmented'] else 'no',
        row.get('pretraining') or '-',
        '-' if masked is None else f'{masked:.2f}',
        *(_score(row[key]) for key in SCORES),
    ]


def _score(score: float | FindingRow | None) -> str:
    if not isinstance(score, Mapping):
        score = {'value': score, 'low': None, 'high': None}
    value, *interval = (
        None if score[name] is None else f'{score[name]:.3f}' for name in ('value', 'low', 'high')
    )
    if value is None:
        return 'n/a'
    return value if None in interval else f'{value} ({interval[0]} to {interval[1]})'


def _scored(row: FindingRow) -> str:
    rows = {'study': 'studies', 'image': 'images'}.get(row['level'], row['level'])
    return f'{row["n"]:,} {rows} ({row["positives"]:,} positive), {row["views"]}, {row["set"]}'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ['---'] * len(header), *rows]
    return ['| ' + ' | '.join(_escape(cell) for cell in line) + ' |' for line in lines]


def _escape(text: str) -> str:
    """Text that stays in its cell and is no HTML."""
    for character, shown in {'&': '&amp;', '<': '&lt;', '|': r'\|', '\n': ' ', '\r': ' '}.items():
        text = text.replace(character, shown)
    return text


def _flat(row: FindingRow) -> dict[str, object]:
    """One value a column; a score has three."""
    flat = {key: row.get(key) for key in SETTINGS}
    for key in SCORES:
        score = row[key] if isinstance(row[key], Mapping) else {'value': row[key]}
        flat[key] = score['value']
        flat |= {f'{key}_{end}': score.get(end) for end in ('low', 'high')}
    flat |= {key: row.get(key) for key in SCORED}
    return {key: safe_cell(value) for key, value in flat.items()}
