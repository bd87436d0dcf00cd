"""The report's files: the page shows the dict's numbers, and shows text as text."""

import copy
import csv
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_example import (
    FIVE,
    FORMULA,
    HOSTILE_LABEL,
    LABELS,
    LONG_PATH,
    SCRIPT,
    example_report,
    single_label_report,
)
from report_page import Page

from evaluation.report import write_report

# Numbers that are drawn, not written, or that stand in report_groups.csv alone.
NOT_SHOWN = (
    r'\.(roc|precision_recall|calibration)(\.|$)|\.radiologists\.\d+\.|^training\.|^format$|\.few$|'
    r'\.groups\.\d+\.labels\..*\.scores\.(f1|kappa|accuracy|precision|brier|ece)\.|'
    r'^sets\.1\.means\.labels_with_both_classes\.'
)


@pytest.fixture(scope='module')
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the module's page is made of."""
    return example_report(tmp_path_factory.mktemp('maps'))


@pytest.fixture(scope='module')
def folder(report: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole report."""
    folder = tmp_path_factory.mktemp('report')
    example_report(folder)  # for its maps
    write_report(folder, report)
    return folder


@pytest.fixture(scope='module')
def page(folder: Path) -> Page:
    return Page((folder / 'report.html').read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def written(folder: Path) -> dict:
    return json.loads((folder / 'report.json').read_text(encoding='utf-8'))


def at(value: object, path: str) -> object:
    """The value at a dotted path, a list's length for a list."""
    for key in path.split('.'):
        key = key.replace('%2E', '.').replace('%25', '%')
        value = value[int(key)] if isinstance(value, list) else value[key]
    return len(value) if isinstance(value, list) else value


def leaves(value: object, path: tuple = ()) -> list[str]:
    """The dotted paths of all numbers and nulls."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, item in pairs for leaf in leaves(item, (*path, key))]
    keys = [str(key).replace('%', '%25').replace('.', '%2E') for key in path]
    return [] if isinstance(value, str | bool) else ['.'.join(keys)]


def test_every_number_on_the_page_is_the_one_in_the_json(page: Page, written: dict) -> None:
    shown = [e for e in page.all('data') if 'data-path' in e[1]]
    assert len(shown) > 2500
    for _, attributes, text, _ in shown:
        value = at(written, attributes['data-path'])
        if value is None:
            assert (attributes['value'], text) == ('', 'n/a')
            continue
        assert float(attributes['value']) == value
        text = text.replace('\N{MINUS SIGN}', '-').replace(',', '')
        if text == '< 0.001':
            assert 0 <= value < 0.001
        elif 'e' in text:
            assert float(text) == pytest.approx(value, rel=0.05)
        else:
            decimals = len(text.partition('.')[2])
            assert decimals in (0, 3)
            assert abs(float(text) - value) <= 0.5 * 10**-decimals + 1e-12


def test_no_number_of_the_json_is_missing_from_the_page(page: Page, written: dict) -> None:
    shown = {e[1].get('data-path') for e in page.all('data')}
    missing = {leaf for leaf in leaves(written) if leaf not in shown}
    # What is undefined has no interval, and where there are no radiologists there is no count.
    without = ('.low', '.high', '.radiologists_below')
    missing = {p for p in missing if not (p.endswith(without) and at(written, p) is None)}
    assert sorted(path for path in missing if not re.search(NOT_SHOWN, path)) == []


def test_numbers_stand_nowhere_else_than_in_data_elements(page: Page) -> None:
    apart = {'data', 'bdi', 'svg', 'script', 'style', 'title'}
    text = ' '.join(data for data, above in page.loose if not apart & set(above))
    found = set(re.findall(r'\S*\d\S*', text))
    assert found == {'95', '0.5.', 'F1', '20', '1:'}


def test_builds_are_byte_identical_whatever_the_order_of_the_keys(
    report: dict, folder: Path, tmp_path: Path
) -> None:
    def shuffled(value: object) -> object:
        if isinstance(value, dict):
            keys = list(value)
            random.Random(1).shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    example_report(tmp_path)
    before = copy.deepcopy(report)
    write_report(tmp_path, shuffled(report))
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert names == [
        'report.html', 'report.json', 'report_comparisons.csv', 'report_groups.csv',
        'report_labels.csv',
    ]  # fmt: skip
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    np.testing.assert_equal(report, before)


def test_the_json_holds_the_dict_with_null_for_nan(report: dict, written: dict) -> None:
    def same(given: object, found: object) -> bool:
        if isinstance(given, dict):
            return given.keys() == found.keys() and all(same(given[k], found[k]) for k in given)
        if isinstance(given, list | np.ndarray):
            pairs = zip(given, found, strict=True)
            return all(same(one, other) for one, other in pairs)
        if isinstance(given, float) and math.isnan(given):
            return found is None
        return given == found if not isinstance(given, str) or '\udce9' not in given else True

    assert same(report, written)
    assert not same(report | {'title': ''}, written)


def test_hostile_text_is_text(page: Page, folder: Path) -> None:
    assert len(page.all('script')) == 1
    assert 'hacked' not in page.all('script')[0][2]
    for tag, attributes, _, _ in page.elements:
        assert not [name for name in attributes if name.startswith('on')], tag
        for name in ('src', 'href'):
            link = attributes.get(name, '#')
            assert link.startswith(('#', 'data:')), link
    texts = [element[2] for element in page.all('bdi')]
    for words in (HOSTILE_LABEL, FORMULA, LONG_PATH, SCRIPT, '{{ 7 * 7 }} {% raw %}'):
        assert words in texts, words
    html = (folder / 'report.html').read_text(encoding='utf-8')
    assert '\u202e' not in html
    assert '[U+202E]gnp.exe' in html
    assert 'http://' not in html.replace('http://evil.example', '')
    assert 'https://' not in html


def test_ids_are_unique_and_what_is_referred_to_is_there(page: Page) -> None:
    ids = [e[1]['id'] for e in page.elements if 'id' in e[1]]
    assert len(ids) == len(set(ids))
    for _, attributes, _, _ in page.elements:
        named = attributes.get('aria-labelledby', '').split()
        linked = [attributes['href'][1:]] if attributes.get('href', '').startswith('#') else []
        assert set(named + linked) <= set(ids)


def test_headings_tables_and_charts_have_what_a_screen_reader_needs(page: Page) -> None:
    levels = [int(e[0][1]) for e in page.elements if re.fullmatch('h[1-6]', e[0])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert len(page.all('caption')) == len(page.all('table')) > 20
    assert all(e[1].get('scope') in ('col', 'row', 'rowgroup') for e in page.all('th'))
    for _, attributes, _, _ in page.all('svg'):
        if attributes.get('aria-hidden') != 'true':
            assert attributes['role'] == 'img'
            assert len(attributes['aria-labelledby'].split()) == 2
    assert len(page.all('desc')) == 2 * 14 * 3 + 2
    assert all(e[1]['alt'] for e in page.all('img'))
    assert len(page.all('img')) == 8


def test_the_first_screen_says_what_it_must(page: Page, written: dict) -> None:
    header, main = (' '.join(page.all(tag)[0][2].split()) for tag in ('header', 'main'))
    text = header + main.split('Published figures: context only')[0]
    value, low, high = (written['headline']['score'][key] for key in ('value', 'low', 'high'))
    assert f'{value:.3f} 95 % interval {low:.3f} to {high:.3f}' in text
    assert '500 studies of 500 patients' in text
    assert 'Not for clinical use' in text
    assert '4 warnings' in text
    assert 'not a comparison' in text
    assert 'Consolidation30 positives of 500' in text


def test_the_headline_set_comes_first(page: Page) -> None:
    names = [e[2] for e in page.all('h2') if e[2].startswith('Set:')]
    assert names == ['Set: test (headline)', 'Set: valid']


def test_no_mean_over_all_labels_where_some_are_undefined(
    page: Page, report: dict, tmp_path: Path
) -> None:
    text = page.all('body')[0][2]
    assert text.count('no mean AUROC: undefined for Fracture') == 1
    wrong = copy.deepcopy(report)
    wrong['sets'][0]['means']['all'] = wrong['sets'][0]['means']['five']
    with pytest.raises(ValueError, match="means.all of set 'valid'.*Fracture"):
        write_report(tmp_path, wrong)


def test_radiologists_below_the_curve_are_counted(page: Page) -> None:
    captions = [e[2] for e in page.all('figcaption') if 'of 3 radiologists below' in e[2]]
    assert len(captions) == 5
    assert '; 1 of 3 radiologists below the curve' in captions[-1]


def test_few_positives_are_marked_by_sign_and_word(page: Page) -> None:
    rows = [e[2] for e in page.all('tr')]
    forest = [row for row in rows if 'few positives: ' in row]
    assert any('Female' in row and '▲\xa0few positives: Consolidation' in row for row in forest)
    lesions = [row for row in rows if row.startswith('Lung LesionFemale')]
    assert all('▲\xa0few' in row for row in lesions)
    assert not any('few' in row for row in rows if row.startswith('Cardiomegaly5'))
    assert sum('8▲\xa0few' in row for row in rows) >= 2


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_exact_numbers(folder: Path, written: dict) -> None:
    rows = read_csv(folder / 'report_labels.csv')
    assert len(rows) == 2 * (14 + 3)
    edema = next(row for row in rows if (row['set'], row['label']) == ('test', 'Edema'))
    label = written['sets'][1]['labels'][list(LABELS).index('Edema')]
    assert float(edema['auroc_low']) == label['scores']['auroc']['low']
    assert float(edema['ece_scaled']) == label['scaled']['ece']['value']
    assert (edema['positives'], edema['uncertain_left_out']) == ('85', '3')
    fracture = next(row for row in rows if row['label'] == 'Fracture')
    assert (fracture['auroc'], fracture['threshold'], fracture['ece_scaled']) == ('', '', '')
    groups = read_csv(folder / 'report_groups.csv')
    row = next(r for r in groups if (r['group'], r['label']) == ('Female', 'Edema'))
    values = written['sets'][0]['groups'][0]['groups'][0]['labels']['Edema']
    assert float(row['kappa_high']) == values['scores']['kappa']['high']
    assert row['few'] == str(values['few'])
    gap = next(r for r in groups if r['group'] == '(gap: Male above Female)')
    assert float(gap['gap_low']) == -0.0123
    differences = read_csv(folder / 'report_comparisons.csv')
    assert [row['label'] for row in differences][-1] == '(mean of the five tasks)'
    assert float(differences[-1]['difference']) == 0.0142


def test_cells_that_a_spreadsheet_would_run_begin_with_an_apostrophe(folder: Path) -> None:
    cells = {
        cell
        for path in folder.glob('*.csv')
        for row in read_csv(path)
        for name, cell in row.items()
        if name in ('set', 'column', 'group', 'label', 'a', 'b')
    }
    assert "'" + FORMULA in cells
    assert "'-b" in cells
    assert f"'@{SCRIPT}" in cells
    assert not [cell for cell in cells if cell[:1] in tuple('=+-@\t\r')]
    numbers = [row['difference_low'] for row in read_csv(folder / 'report_comparisons.csv')]
    assert any(number.startswith('-') for number in numbers)


def test_the_least_report_shows_na_and_no_empty_section(tmp_path: Path) -> None:
    (tmp_path / 'report_comparisons.csv').write_text('old')
    page = Page(write_report(tmp_path, single_label_report()).read_text(encoding='utf-8'))
    headings = [e[2] for e in page.all('h2') + page.all('h3')]
    assert headings == [
        'AUROC, Fracture', 'Set: valid (headline)', 'What was run', 'Scores by label',
        'ROC curves', 'Precision-recall curves', 'Calibration',
    ]  # fmt: skip
    assert page.all('p')[0][2] == 'n/a'
    assert 'no AUROC, and in no mean of AUROCs: Fracture' in page.all('body')[0][2]
    assert [e[2] for e in page.all('text')].count('not defined: one class only') == 2
    assert not (tmp_path / 'report_comparisons.csv').exists()
    assert read_csv(tmp_path / 'report_groups.csv') == []


def change(path: str, value: object) -> dict:
    report = single_label_report()
    *keys, last = path.split('.')
    part = report
    for key in keys:
        part = part[key]
    part[last] = value
    return report


PICTURE = {'label': 'a', 'kind': 'b', 'path': 'c', 'probability': 0.5, 'threshold': 0.5}


@pytest.mark.parametrize(
    'path, value, message',
    [
        ('format', 2, 'format of the report must be 1, got 2'),
        ('headline.set', 'train', r"headline.set is 'train', the sets are \['valid'\]"),
        ('title', {1, 2}, 'a report holds text'),
        ('maps', [PICTURE | {'file': '../secret.png'}], r"'../secret.png' lies outside"),
        ('maps', [PICTURE | {'file': 'none.png'}], r'cannot read the picture .*none.png'),
        ('maps', [PICTURE | {'file': 'text.png'}], r'cannot read the picture .*text.png'),
    ],
)
def test_mistakes_are_named(path: str, value: object, message: str, tmp_path: Path) -> None:
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, change(path, value))
    assert not (tmp_path / 'report.json').exists()


def test_it_runs_without_torch() -> None:
    code = 'import sys, evaluation.report; sys.exit("torch" in sys.modules)'
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, '-c', code], cwd=root, check=False).returncode == 0


def test_the_five_tasks_are_together_on_the_first_screen(page: Page) -> None:
    table = next(e[2] for e in page.all('table') if 'AUROC of each label' in e[2])
    places = [table.index(label) for label in ('The five', *FIVE, 'Other labels', 'No Finding')]
    assert places[0] == min(places)
    assert max(places[:6]) < places[6] < places[7]


COLUMNS = {
    'n': r'\.n', 'Positives': r'\.positives', 'AUROC': r'\.scores\.auroc\.\w+|\.auroc\.\w+',
    'AUROC, DeLong': r'\.delong(\.\w+)?', 'Average precision': r'\.average_precision\.\w+',
    'Brier': r'\.scores\.brier\.\w+', 'Brier, scaled': r'\.scaled\.brier\.\w+',
    'ECE, scaled': r'\.scaled\.ece\.\w+', 'Temperature': r'\.temperature',
    'Threshold': r'\.threshold', 'Recall (sensitivity)': r'\.recall\.\w+',
    'Specificity': r'\.specificity\.\w+', 'Precision': r'\.precision\.\w+', 'F1': r'\.f1\.\w+',
    'Cohen’s kappa': r'\.kappa\.\w+', 'Accuracy': r'\.accuracy\.\w+', 'Gap': r'\.gap\.\w+',
    'AUROC, standardised': r'\.standardised_auroc(\.\w+)?', 'Patients': r'\.patients',
    'Underdiagnosis': r'\.underdiagnosis(\.\w+)?', 'Mean AUROC of the five': r'\.five(\.\w+)?',
    'Probability': r'\.probability', 'Target': r'\.target', 'Studies': r'\.rows',
}  # fmt: skip


def test_each_column_shows_what_its_heading_says(page: Page) -> None:
    checked = set()
    heads, place = [], 0
    for tag, attributes, text, above in page.elements:
        if tag == 'table':
            heads = []
        elif tag == 'tr':
            place = -1
        elif tag in ('td', 'th'):
            place += 1
            heads += [text] if attributes.get('scope') == 'col' else []
        path = attributes.get('data-path', '')
        is_mean = path.endswith(('.means.all', '.means.five'))
        if tag == 'data' and 'td' in above and heads[place] in COLUMNS and path and not is_mean:
            assert re.fullmatch(f'.*({COLUMNS[heads[place]]})', path), heads[place]
            checked.add(heads[place])
    assert checked == set(COLUMNS)
