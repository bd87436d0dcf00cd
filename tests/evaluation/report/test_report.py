"""The report: document, HTML page, JSON, tables and hashed names."""

import base64
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from cases import make_cases
from PIL import Image
from sklearn.metrics import roc_auc_score

from data.tables.labels import COMPETITION_LABELS
from evaluation.metrics import (
    METRICS,
    OF_LABEL,
    Protocol,
    Tally,
    applicable,
    metric,
    recall,
    specificity,
)
from evaluation.report.document import (
    SCORES_FILE,
    build_document,
    compare_sets,
    compare_with_baselines,
    differences_table,
    overview_table,
    scores_table,
    write_report,
)
from evaluation.report.report_warnings import CHANCE, NO_RESAMPLES
from sweeps.long_table import read_table

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="alert(1)">\'&amp;{{ 7 }}'
LABELS = (*COMPETITION_LABELS, 'Fracture', HOSTILE)
PROTOCOL = Protocol(level='image', resamples=200)
NO_INTERVALS = replace(PROTOCOL, resamples=0)
VOID = {'meta', 'link', 'img', 'br', 'col', 'wbr'}


class Page(HTMLParser):
    """The elements of an HTML page as [tag, attributes, text]."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[list] = []
        self.open: list[list] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = [tag, dict(attrs), '']
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element[2] += data

    def texts(self, *tags: str) -> list[str]:
        return [text for tag, _, text in self.elements if tag in tags]


def written_page(folder: Path, document: dict, *images: dict) -> Page:
    return Page(write_report(folder, document, *images).read_text(encoding='utf-8'))


def some_cases(name: str = 'test', *, seed: int = 0, labels: tuple = LABELS):
    """Draw cases of a model better than chance. Rows and targets do not depend on the seed."""
    rng = np.random.default_rng(9)
    targets = (rng.random((150, len(labels))) < 0.4).astype(float)
    sex = rng.choice(np.array(['Female', 'Male', HOSTILE], object), len(targets))
    view = rng.choice(np.array(['Frontal AP', HOSTILE], object), len(targets))
    noise = np.random.default_rng(seed).normal(size=targets.shape)
    probabilities = 1 / (1 + np.exp(-(2 * targets - 1 + noise)))
    groups = {'Sex': sex, 'View': view}
    return make_cases(probabilities, targets, name=name, labels=labels, groups=groups)


def make_document(folder: Path) -> dict:
    """Build a report with every part. 'Fracture' has only one class in the set 'valid'."""
    valid, test, other = some_cases('valid'), some_cases(seed=1), some_cases('other', seed=2)
    valid.targets[:, LABELS.index('Fracture')] = 0
    test.path[:] = [f'{HOSTILE}/patient{i:05d}/study1' for i in range(len(test))]
    curve = {'name': 'Training loss', 'values': [0.7, np.nan, 0.5]}
    extras = {
        'training': {'epochs': [0, 1, 2], 'curves': [curve]},
        'maps': [some_map(folder, path=HOSTILE, threshold=1e-5)],
        'maps_check': {'method': 'Grad-CAM', 'cells': 8, 'similarity': 0.07, 'note': 'a note'},
    }
    told = {'run': {'Task': 'observations', HOSTILE: HOSTILE}, 'warnings': [HOSTILE]}
    holdout = some_cases('holdout', seed=3)
    document = build_document(
        [valid, test], holdout, PROTOCOL, policy='ones', extras=extras, **told
    )
    comparisons = compare_sets([some_cases(seed=1), other], PROTOCOL, name='test')
    return document | {'comparisons': comparisons}


def some_map(folder: Path, **changes: object) -> dict:
    """Write a map; return what a document says about it."""
    (folder / 'maps').mkdir(parents=True)
    Image.new('L', (8, 8)).save(folder / 'maps/1.png')
    entry = {'label': 'Edema', 'kind': 'true positive', 'path': 'p', 'file': 'maps/1.png'}
    return entry | {'probability': 0.9, 'threshold': 0.5, 'has_signal': True} | changes


def make_comparison(models: list, protocol: Protocol = PROTOCOL) -> dict:
    extras = {'comparisons': compare_sets(models, protocol, name='test')}
    return build_document(models, None, protocol, run={}, extras=extras)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('report') / 'run'


@pytest.fixture(scope='module')
def page(folder: Path) -> Page:
    return written_page(folder, make_document(folder))


@pytest.fixture(scope='module')
def written(page: Page, folder: Path) -> dict:
    return json.loads((folder / 'report.json').read_text())


def numbers(report: object) -> Iterator[float]:
    if isinstance(report, dict | list):
        for part in report.values() if isinstance(report, dict) else report:
            yield from numbers(part)
    elif isinstance(report, int | float):
        yield report


def test_the_page_shows_the_numbers_of_the_json(page: Page, written: dict) -> None:
    shown = [(attrs['value'], text) for tag, attrs, text in page.elements if tag == 'data']
    assert len(shown) > 500
    in_json = set(numbers(written))
    for value, text in shown:
        if value == '':
            assert text == 'n/a'
        elif text != '< 0.001':
            given, rel = text.replace('\N{MINUS SIGN}', '-'), 0.05 if 'e' in text else 1e-9
            assert float(given.replace(',', '')) == pytest.approx(float(value), rel=rel, abs=5.1e-4)
            assert float(value) in in_json or value.isdigit()
    on_page = {float(value) for value, _ in shown if value}
    for part in written['sets']:
        assert on_page.issuperset(numbers([label['scores'] for label in part['labels']]))
    for key in ('headline', 'published', 'maps', 'maps_check'):
        assert written[key] and on_page.issuperset(numbers(written[key])), key
    assert {entry.title for entry in applicable(OF_LABEL).values()} <= set(page.texts('th'))


def test_links_have_the_order_of_the_page(page: Page, folder: Path) -> None:
    html = (folder / 'report.html').read_text(encoding='utf-8')
    navigation, main = html.split('</nav>', 1)
    links = re.findall(r'href="#([\w-]+)"', navigation.split('<nav', 1)[1])
    places = [main.index(f'id="{name}"') for name in links]
    assert len(links) >= 3 and places == sorted(places)


def test_means_of_groups_have_their_number_of_labels(page: Page, written: dict) -> None:
    columns = [column for entry in written['sets'] for column in entry['groups']]
    numbers = {len(group['counted']) for column in columns for group in column['groups']}
    assert numbers and {f'{number} labels' for number in numbers} <= {*page.texts('small')}


def test_a_metric_is_one_function(tmp_path: Path) -> None:
    """A new metric appears in report.html, report.json and the CSV, with intervals."""

    def youden(tally: Tally) -> np.ndarray:
        """Sensitivity plus specificity minus 1."""
        return recall(tally) + specificity(tally) - 1

    metric('Youden index', needs='threshold')(youden)
    try:
        document = build_document([some_cases()], some_cases('holdout', seed=3), PROTOCOL, run={})
        html = write_report(tmp_path, document).read_text(encoding='utf-8')
    finally:
        del METRICS['youden']
    scores = document['sets'][0]['labels'][0]['scores']
    index = scores['recall']['value'] + scores['specificity']['value'] - 1
    assert scores['youden']['value'] == pytest.approx(index)
    assert scores['youden']['low'] < index < scores['youden']['high']
    table = read_table(tmp_path / SCORES_FILE).set_index(['metric', 'resample'])['value']
    assert table['youden', 'low'].iloc[0] == pytest.approx(scores['youden']['low'])
    assert '>Youden index</th>' in html
    assert f'value="{scores["youden"]["high"]!r}"' in html


def test_hostile_text_is_escaped_everywhere(page: Page) -> None:
    assert (len(page.texts('script')), len(page.texts('style'))) == (1, 1)
    assert 'hacked' not in page.texts('script')[0]
    for _, attributes, _ in page.elements:
        assert not [name for name in attributes if name.startswith('on')]
    for tag in ('th', 'dd', 'li'):
        assert HOSTILE in page.texts(tag), tag
    assert any(text.startswith(f'{HOSTILE}/patient') for text in page.texts('td'))
    assert any(HOSTILE in text for text in page.texts('figcaption'))


def test_the_page_loads_no_other_file(page: Page, folder: Path) -> None:
    for _, attributes, _ in page.elements:
        for name in ('src', 'href'):
            assert attributes.get(name, '#').startswith(('#', 'data:'))
    html = (folder / 'report.html').read_text(encoding='utf-8')
    assert not re.search(r'https?://|@import|url\(', html)
    assert len(page.texts('img')) == 1


def test_tables_hold_the_numbers_of_the_json(folder: Path, written: dict) -> None:
    table = read_table(folder / SCORES_FILE).set_index(
        ['row', 'split', 'group', 'label', 'metric', 'resample']
    )
    table = table['value'].sort_index()
    assert table.index.is_unique and table.notna().all()
    assert 'Fracture' not in table['', 'valid', ''].index  # the label has one class in this set
    edema = table['', 'test', '', 'Edema']
    label = written['sets'][1]['labels'][LABELS.index('Edema')]
    for name in applicable(OF_LABEL):
        assert edema[name, 'high'] == label['scores'][name]['high']
    assert edema['ece_scaled', ''] == label['scores']['ece_scaled']['value']
    assert edema['auroc_delong', 'low'] == label['scores']['auroc_delong']['low']
    assert edema['threshold', ''] == label['threshold']
    assert edema['positives', ''] + edema['negatives', ''] == label['n']
    female = written['sets'][0]['groups'][0]['groups'][1]
    recall = female['labels']['Edema']['scores']['recall']['high']
    assert table['', 'valid', 'Sex: Female', 'Edema', 'recall', 'high'] == recall
    assert table['', 'valid', 'Sex: Female', '', 'cases', ''] == female['rows']
    assert 'auroc_gap' in table.index.get_level_values('metric')
    compared = written['comparisons'][0]
    difference = table['test minus other', 'test', '']
    mean = compared['means']['five']['difference']
    assert difference['mean_of_five', 'difference', 'low'] == mean['low']
    assert difference['Edema', 'p_holm', ''] == compared['labels']['Edema']['p_holm']


def test_a_set_with_one_class_shows_na_and_no_empty_section(tmp_path: Path) -> None:
    cases = replace(some_cases(labels=('Fracture',)), groups={})
    cases.targets[:] = 0
    document = build_document([cases], None, NO_INTERVALS, run={})
    page = written_page(tmp_path, document)
    assert page.texts('p')[0] == 'n/a'
    assert json.loads((tmp_path / 'report.json').read_text())['headline']['score']['value'] is None
    headings = ' '.join(page.texts('h2', 'h3'))
    assert not re.search('Comparisons|Saliency|Training|Published|Subgroups', headings)


def test_few_cases_and_patients_in_two_splits_give_warnings(tmp_path: Path) -> None:
    cases = some_cases()
    cases.targets[:, 0] = np.arange(len(cases)) < 7
    cases.targets[:, 1] = np.arange(len(cases)) >= 4
    holdout = some_cases('holdout', seed=5)
    holdout.targets[:, LABELS.index('Edema')] = 0
    holdout.targets[:, 2] = np.arange(len(holdout)) < 2
    patients = {'train': ['p1', 'p2', 'p2'], 'valid': ['p3'], 'test': ['p2', 'p1', 'p4']}
    document = build_document([cases], holdout, NO_INTERVALS, run={}, patients=patients)
    warnings = '\n'.join(document['warnings'])
    assert 'no threshold because the held-out cases lack a class: Edema' in warnings
    assert f'{LABELS[0]} (7 positives), {LABELS[1]} (4 negatives)' in warnings
    assert f'{LABELS[2]} (2 positives)' in warnings
    assert 'Accuracy leave out Edema' in warnings
    assert document['alerts'][0].startswith('2 patient(s) are in both train and test')
    assert document['headline']['alerts'][0] == document['alerts'][0], 'in the first lines'
    assert '7 positives' in document['headline']['note']
    auroc = document['sets'][0]['labels'][0]['scores']['auroc']
    assert scores_table(document['sets'][0])['AUROC'][LABELS[0]] == f'{auroc["value"]:.3f}'
    rows = written_page(tmp_path, document).texts('tr')
    marked = [row for row in rows if '▲\xa0few' in row and '7 positives' in row]
    assert marked and all(row.startswith(LABELS[0]) for row in marked)


@pytest.mark.parametrize('num_enough', [0, 3])
def test_latex_marks_few_cases_and_names_labels_that_are_not_scored(num_enough, tmp_path) -> None:
    labels = ('A & b', '50 %', 'Never', 'Edema', 'Fracture', 'Pneumonia')[: 3 + num_enough]
    models = [some_cases(name, seed=n, labels=labels) for n, name in enumerate(['first', 'second'])]
    for cases in models:
        cases.targets[:, 0] = np.arange(len(cases)) < 7
        cases.targets[:, 1] = np.arange(len(cases)) >= 4
        cases.targets[:, 2] = 0
    write_report(tmp_path, make_comparison(models))
    for table in (tmp_path / 'report_scores.tex').read_text().split(r'\end{table}')[:2]:
        for start, few in ((r'A \& b', '7 positives'), (r'50 \%', '4 negatives')):
            rows = [row for row in table.splitlines() if f'& {start} &' in row]
            assert rows and all(f'(few: {few})' in row for row in rows)
        assert not any(f'& {label} ' in row and 'few' in row for label in labels[3:]
                       for row in table.splitlines())  # fmt: skip
        notes = table.split(r'\end{adjustbox}')[1]
        assert 'labels without both classes are not scored: Never' in notes
        assert r'A \& b (7 positives), 50 \% (4 negatives)' in notes
        assert ('and means leave them out' in notes) == (num_enough > 0)


def test_a_temperature_at_the_end_of_its_range_gives_a_warning() -> None:
    holdout = some_cases('holdout', seed=5)
    for column, sign in enumerate((1, -1)):
        holdout.probabilities[:, column] = 0.5 + sign * (holdout.targets[:, column] - 0.5) / 2
    document = build_document([some_cases()], holdout, NO_INTERVALS, run={})
    warnings = [line for line in document['warnings'] if 'the end of its range' in line]
    assert [re.search(r'is (\S+),.*: (.*)', line).groups() for line in warnings] == [
        ('0.01', LABELS[0]),
        ('100', LABELS[1]),
    ]


def test_a_full_disk_leaves_the_earlier_report_as_it_was(tmp_path: Path, full_disk) -> None:
    old, new = (
        build_document([some_cases(seed=seed)], None, NO_INTERVALS, run={}) for seed in range(2)
    )
    write_report(tmp_path, old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk(), pytest.raises(OSError, match='report.html'):
        write_report(tmp_path, new)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_labels_of_one_class_are_listed_once_and_neither_scored_nor_counted(tmp_path: Path) -> None:
    labels = (*COMPETITION_LABELS, 'Fracture', 'Hernia')
    cases, other = some_cases(labels=labels), some_cases('other', seed=2, labels=labels)
    for part in (cases, other):
        part.targets[:, :5] = 0
        part.targets[:, 6] = np.arange(len(cases)) < 30
    extras = {'comparisons': compare_sets([cases, other], NO_INTERVALS, name='test')}
    document = build_document([cases], None, NO_INTERVALS, run={}, extras=extras)
    headline, mean = document['headline'], document['sets'][0]['means']['labels']
    assert headline['name'] == 'Mean AUROC of 2 labels'
    assert headline['score'] == mean['auroc']
    assert headline['note'] == ''  # labels without a positive do not count
    assert document['published'] == []
    page = written_page(tmp_path, document)
    assert sum(text.count('Edema') for text in page.texts('body')) == 1
    assert 'mean_of_five' not in {*read_table(tmp_path / SCORES_FILE)['label']}


def test_a_model_without_signal_gives_an_alert() -> None:
    cases = some_cases(labels=('Edema', 'Fracture'))
    assert build_document([cases], None, PROTOCOL, run={})['alerts'] == []
    cases.probabilities[:, 1] = 0.738 + 0.001 * np.random.default_rng(0).random(len(cases))
    span, chance = build_document([cases], None, PROTOCOL, run={})['alerts']
    assert '0.0010' in span and str(CHANCE) in chance
    for line in (span, chance):
        assert 'Fracture' in line and 'Edema' not in line


def test_too_few_resamples_for_a_corrected_p_are_said() -> None:
    models = [some_cases(name, seed=i) for i, name in enumerate('ab')]  # 7 labels: 2 * 7 / .05
    for resamples, has_note in ((278, True), (280, False)):
        (entry,) = compare_sets(models, replace(PROTOCOL, resamples=resamples), name='test')
        assert ('more than 279 resamples' in entry['note']) == has_note == bool(entry['note'])
    for cases in models:  # a label without an interval has no p and is not counted
        cases.targets[:, 0] = np.arange(len(cases)) < 1
    (entry,) = compare_sets(models, replace(PROTOCOL, resamples=278), name='test')
    assert np.isnan(entry['labels'][LABELS[0]]['p_holm']) and not entry['note']
    assert differences_table(entry)['p (Holm)'][LABELS[0]] == 'n/a'
    words = NO_RESAMPLES.format(resamples=0, least=200)
    assert words in make_comparison(models, NO_INTERVALS)['warnings']


@pytest.mark.parametrize('resamples', [199, 200])
def test_few_resamples_give_no_interval_and_the_reason(resamples: int) -> None:
    protocol = replace(PROTOCOL, resamples=resamples)
    models = [some_cases(name, seed=i) for i, name in enumerate('ab')]
    document = make_comparison(models, protocol)
    reasons = [line for line in document['warnings'] if 'because they need 200 resamples' in line]
    assert len(reasons) == (resamples < 200) and all(str(resamples) in line for line in reasons)
    (compared,) = document['comparisons']
    parts = [*compared['labels'].values(), compared['means']['five']]
    bounds = [part['p_bootstrap'] for part in parts]
    bounds += [part[key]['low'] for part in parts for key in ('difference', 'within_views')]
    for entry in document['sets']:
        scores = [label['scores'] for label in entry['labels']]
        bounds += [own[name]['low'] for own in scores for name in applicable({'order', 'views'})]
        groups = [column['gaps'].values() for column in entry['groups']]
        bounds += [gap['p_bootstrap'] for gaps in groups for gap in gaps if not gap['few']]
    assert len(bounds) > 60
    assert np.isnan(bounds).all() if resamples < 200 else not np.isnan(bounds).any()


def test_names_of_models_are_escaped(tmp_path: Path) -> None:
    document = make_comparison([some_cases('<x>'), some_cases('c', seed=1)], NO_INTERVALS)
    page = write_report(tmp_path, document).read_text(encoding='utf-8')
    assert 'Set: &lt;x&gt;</h2>' in page and '<x>' not in page


@pytest.mark.parametrize('labels', [('Edema', 'Fracture', 'Pneumonia'), ('Edema', 'Fracture')])
def test_models_with_other_labels_have_no_mean_side_by_side(labels: tuple, tmp_path: Path) -> None:
    one = some_cases('a', seed=1, labels=('Edema', 'Fracture', 'Pneumonia'))
    document = make_comparison([one, some_cases('b', seed=2, labels=labels)], NO_INTERVALS)
    tables = written_page(tmp_path, document).texts('table')
    (table,) = [text for text in tables if 'AUROC of each model' in text]
    assert ('Mean of 3 labels' in table) == (labels == one.labels)


def test_data_without_patients_give_a_warning() -> None:
    cases = some_cases()
    for given, is_told in ((cases, False), (replace(cases, patient=cases.path.copy()), True)):
        warnings = make_comparison([given], NO_INTERVALS)['warnings']
        assert any('name no patients' in line for line in warnings) == is_told


def test_worst_errors_have_small_images_and_empty_maps_say_so(tmp_path: Path) -> None:
    cases, holdout = (some_cases(name, labels=('Edema',)) for name in ('test', 'holdout'))
    extras = {'maps': [some_map(tmp_path, has_signal=False)]}
    document = build_document([cases], holdout, NO_INTERVALS, run={}, extras=extras)
    errors = document['sets'][0]['worst_errors']
    images = {('test', 'Edema', error['kind']): Image.new('L', (9, 7)) for error in errors}
    page = written_page(tmp_path, document, images)
    sources = [el[1]['src'] for el in page.elements if el[1].get('class') == 'thumbnail']
    assert len(sources) == len(errors) == 2
    data = base64.b64decode(sources[0].partition(',')[2])
    assert Image.open(io.BytesIO(data)).size == (9, 7)
    assert any('no signal' in text.lower() for text in page.texts('figcaption'))


def test_baselines_are_shown_next_to_the_model(tmp_path: Path) -> None:
    cases = some_cases(labels=('Edema', 'Fracture'))
    better = np.where(cases.targets == 1, 0.9, 0.1)
    worse = np.random.default_rng(3).random(cases.targets.shape)
    close = some_cases(seed=7, labels=('Edema', 'Fracture')).probabilities
    baselines = {'pixels': close, 'oracle': better, 'noise': worse}
    comparisons = compare_with_baselines(cases, baselines, PROTOCOL)
    extras = {'comparisons': comparisons, 'baselines': True}
    others = some_cases('valid', labels=('Edema', 'Fracture'))
    document = build_document([others, cases], None, PROTOCOL, run={}, extras=extras)
    page = written_page(tmp_path, document)
    entry = json.loads((tmp_path / 'report.json').read_text())['comparisons'][0]
    area = roc_auc_score(cases.targets[:, 0], close[:, 0])
    own = roc_auc_score(cases.targets[:, 0], cases.probabilities[:, 0])
    part = entry['labels']['Edema']
    assert (part['auroc_a']['value'], part['auroc_b']['value']) == pytest.approx((own, area))
    assert part['difference']['low'] < own - area < part['difference']['high']
    (table,) = [text for text in page.texts('table') if 'scored by the baselines' in text]
    for row in comparisons:
        mean = row['means']['labels']
        for score in (mean['auroc_b'], mean['difference']):
            assert f'{score["value"]:.3f}'.replace('-', '−') in table
    assert document['headline']['set'] == 'test', 'the report is of one model'
    told = [[row['b'] in line for row in comparisons] for line in document['alerts']]
    assert [False, True, False] in told, 'the oracle does better than the model'
    assert not any(noise for *_, noise in told)


def test_named_columns_of_the_latex_table_and_what_its_means_leave_out(tmp_path: Path) -> None:
    holdout = some_cases('holdout', seed=3)
    holdout.targets[:, 0] = 0  # without a threshold
    document = build_document([some_cases()], holdout, NO_INTERVALS, run={})
    names = ['brier', 'auroc', 'f1', 'macro_f1']
    write_report(tmp_path, document, columns=names)
    rows = re.findall(r'^ & (.*) \\\\$', (tmp_path / 'report_scores.tex').read_text(), re.M)
    head, second, *_, five, every = ([cell.strip() for cell in row.split('&')] for row in rows)
    assert head[1:] == ['n', 'positives', *(METRICS[name].title for name in names)]
    label = document['sets'][0]['labels'][1]
    assert second[0] == label['label'] and second[-1] == 'n/a'
    assert second[3].startswith(f'{label["scores"]["brier"]["value"]:.3f}')
    for *_, auroc, f1, _ in (five, every):
        assert 'without' not in auroc and f'without {LABELS[0]}' in f1


def test_a_comparison_starts_with_means_that_say_how_many_labels_they_have(tmp_path: Path) -> None:
    first, second = some_cases('first'), some_cases('second', seed=1)
    third = replace(second, name='third').with_labels([label in LABELS[:3] for label in LABELS])
    document = make_comparison([first, second, third])
    assert document['headline'] is None
    assert [*overview_table(document['comparisons']).index] == [
        'third minus second: Mean of 3 labels',
        'third minus first: Mean of 3 labels',
        'second minus first: Mean of the five CheXpert tasks',
    ]
    table = written_page(tmp_path, document).texts('table')[0]
    assert 'third minus first: Mean of 3 labels' in table
    for entry in document['comparisons']:
        mean = entry['means']['five'] or entry['means']['labels']
        assert f'{abs(mean["difference"]["value"]):.3f}' in table


def test_latex_shows_the_letters_of_names(tmp_path: Path) -> None:
    models = [some_cases(name, labels=('a|b', 'c > d')) for name in ('age ≥ 65', '[b] < c')]
    write_report(tmp_path, build_document(models, None, PROTOCOL, run={}))
    text = (tmp_path / 'report_scores.tex').read_text()
    assert r'a\textbar{}b' in text and r'c \textgreater{} d' in text and r'age $\geq$ 65' in text
    assert '\n' + r'{}[b] \textless{} c & ' in text  # no option of the row before
    assert not set('<>|') & set(text)


def test_latex_rows_are_complete_and_escaped(tmp_path: Path) -> None:
    labels = ('Edema', '50 % of_a & b')
    models = [some_cases(name, seed=i, labels=labels) for i, name in enumerate(['a_1', 'b & c'])]
    document = make_comparison(models)
    write_report(tmp_path, document)
    text = (tmp_path / 'report_scores.tex').read_text()
    rows = [line for line in text.splitlines() if line.endswith(r'\\')]
    cells = [[cell.strip() for cell in re.split(r'(?<!\\)&', row)] for row in rows]
    tables = text.split(r'\end{table}')
    assert (len(rows), len(tables)) == (1 + 2 * 3 + 1 + 3, 3)
    for table, num_columns in zip(tables, (9, 6), strict=False):
        assert len(re.search(r'\\begin{tabular}{(\w+)}', table)[1]) == num_columns
    assert [len(row) for row in cells] == [9] * 7 + [6] * 4
    assert r'50 \% of\_a \& b' in text and r'a\_1' in text and r'b \& c' in text
    assert cells[3][1] == cells[-1][1] == 'Mean of 2 labels'
    captions = re.findall(r'\\caption{(.*)}', text)
    assert all('Not for clinical use.' in caption for caption in captions)
    assert not re.search(r'(?<!\\)[%_#$]', text.partition('\n')[2])
    edema = document['sets'][0]['labels'][0]['scores']['auroc']
    assert '{value:.3f} [{low:.3f}, {high:.3f}]'.format(**edema) in cells[1]
    wrapped = [r'\shortstack[l]{difference\\in AUROC}', r'\shortstack[l]{p\\(bootstrap)}']
    assert cells[-4][2:] == [*wrapped, 'p (Holm)', r'within views \\']
    assert text.count('\\end{tabular}\n\\end{adjustbox}\n') == 2
    assert cells[-1][3] and not cells[-1][4], 'the mean is not corrected'


@pytest.mark.parametrize('folder', ['CheXpert-v1.0', 'CheXpert-phantom'])
def test_a_report_of_phantoms_says_so(folder: str, tmp_path: Path) -> None:
    cases = some_cases(labels=('Edema',))
    cases = replace(cases, path=cases.path + f' of {folder}')
    page = written_page(tmp_path, build_document([cases], None, NO_INTERVALS, run={}))
    is_phantom = 'phantom' in folder
    assert ('Synthetic X-rays' in page.texts('li')) == is_phantom
    assert any(', synthetic X-rays' in text for text in page.texts('p')) == is_phantom
    assert ('Synthetic X-rays.' in (tmp_path / 'report_scores.tex').read_text()) == is_phantom
