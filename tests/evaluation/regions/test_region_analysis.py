"""Scores of cases, their intervals over patients, and the sentences about the position prior."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from evaluation import metrics
from evaluation.intervals import Resamples
from evaluation.regions.analysis import (
    ALARMS,
    HIT,
    IOU,
    MASS,
    MEAN,
    PRECISION,
    RegionCases,
    Row,
    analyse,
    baselines_of,
    find_cases,
    score_source,
)
from evaluation.regions.regions import BOX, SIZE, Regions, as_regions
from evaluation.regions.scores import PositionPrior
from evaluation.regions.sources import OWN, PRIOR, GivenMaps, MapSource

SCORES = (HIT, IOU, 'miou_chosen', MASS, PRECISION)


def made_cases(counts: dict[str, int], seed: int = 0) -> RegionCases:
    """Cases of some labels, two images of a patient in each label."""
    rng, rows = np.random.default_rng(seed), []
    for label, count in counts.items():
        for number in range(count):
            rows.append((f'{number}.png', label, f'p{number // 2}', 8, 8, rng.random()))
    columns = ['path', 'label', 'patient', 'height', 'width', 'area']
    marked = pd.DataFrame(rows, columns=columns)
    prior = PositionPrior(['A'], ['p'], np.zeros((1, 4, 4), int))
    return RegionCases(marked, pd.DataFrame(columns=columns[:3]), prior, ())


def made_row(cases: RegionCases, name: str, source: str, seed: int, shift: float = 0.0) -> Row:
    rng = np.random.default_rng(seed)
    values = {score: rng.random(len(cases.marked)) / 2 + shift for score in SCORES}
    kind = OWN if source else PRIOR
    return Row(name, source, kind, pd.DataFrame(values | {'has_signal': True}))


def analysed(cases: RegionCases, *rows: Row, resamples: int = 400) -> dict:
    return analyse(cases, rows, resamples=resamples, seed=3)


def line_of(table: pd.DataFrame, **values: str) -> pd.Series:
    keep = np.logical_and.reduce([table[name] == value for name, value in values.items()])
    (place,) = np.flatnonzero(keep)
    return table.iloc[place]


def test_intervals_are_those_of_a_bootstrap_over_patients_by_hand() -> None:
    cases = made_cases({'A': 30, 'B': 24, 'C': 6})
    row = made_row(cases, 'model', 'model', 1)
    found = analysed(cases, row, made_row(cases, PRIOR, '', 2))
    drawn = Resamples(cases.marked['patient'], resamples=400, seed=3)
    means = {}
    for label in ('A', 'B'):
        part = cases.marked[cases.marked['label'] == label]
        values = row.scores.loc[part.index, HIT].to_numpy()
        weights = drawn.weights(part['patient'])
        counts = weights.counts[weights.patient].astype(float)  # of each case, [N, 1 + R]
        means[label] = (values[:, None] * counts).sum(axis=0) / counts.sum(axis=0)
        line = line_of(found['scores'], row='model', label=label, score=HIT, group='')
        assert line['value'] == pytest.approx(values.mean())
        ends = np.percentile(means[label][1:], [2.5, 97.5])
        assert (line['low'], line['high']) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
        assert (line['cases'], line['patients']) == (len(part), len(part) // 2)
    line = line_of(found['scores'], row='model', label=MEAN, score=HIT, group='')
    both = (means['A'] + means['B']) / 2
    assert line['value'] == pytest.approx(both[0])
    assert line['low'] == pytest.approx(np.percentile(both[1:], 2.5))


def test_few_cases_have_no_interval_and_are_in_no_mean() -> None:
    cases = made_cases({'A': 30, 'B': 24, 'C': 19})
    found = analysed(cases, made_row(cases, 'model', 'model', 1), made_row(cases, PRIOR, '', 2))
    assert found['counted'] == ['A', 'B'] and found['headline'] == MEAN
    line = line_of(found['scores'], row='model', label='C', score=IOU, group='')
    assert line['few'] and np.isnan(line['low']) and not np.isnan(line['value'])
    assert {*found['differences']['label']} == {'A', 'B', MEAN}


def test_halves_by_size_have_all_cases_once() -> None:
    cases = made_cases({'A': 41})
    row = made_row(cases, 'model', 'model', 1)
    scores = analysed(cases, row, made_row(cases, PRIOR, '', 2))['scores']
    small, large = (
        line_of(scores, row='model', label='A', score=HIT, group=group)
        for group in ('small', 'large')
    )
    assert (small['cases'], large['cases']) == (20, 21)
    order = cases.marked['area'].sort_values().index
    assert small['value'] == pytest.approx(row.scores.loc[order[:20], HIT].mean())


@pytest.mark.parametrize(
    ('shift', 'verdict', 'word'),
    [
        (0.3, 'is above', 'above'),
        (-0.3, 'is below', 'below'),
        (0, 'is not above', 'not distinguishable'),
    ],
)
def test_the_sentence_says_whether_a_model_is_above_the_prior(
    shift: float, verdict: str, word: str
) -> None:
    cases = made_cases({'A': 60})
    rows = made_row(cases, 'model', 'model', 1, shift), made_row(cases, PRIOR, '', 2)
    (sentence,) = analysed(cases, *rows, resamples=1000)['verdicts']
    assert sentence.startswith(f'model {verdict} the position prior for A: hit rate')
    assert sentence.count(f', {word})') == 2
    line = analysed(cases, *rows, resamples=1000)['differences'].iloc[0]
    difference = rows[0].scores[HIT].mean() - rows[1].scores[HIT].mean()
    assert line['difference'] == pytest.approx(difference)


def test_without_enough_cases_nothing_is_said() -> None:
    cases = made_cases({'A': 10})
    found = analysed(cases, made_row(cases, 'm', 'm', 1, 0.4), made_row(cases, PRIOR, '', 2))
    assert found['headline'] == '' and found['differences'].empty
    assert 'nothing follows' in found['verdicts'][0]


def write_maps(folder: Path, maps: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, values in maps.items():
        np.save(folder / f'{name}.npy', values)
    return folder


def boxes(rows: list[tuple]) -> Regions:
    """Regions of (path, label, x, y, width, height) on images of 8 x 8; no box without numbers."""
    found = []
    for number, (path, label, *box) in enumerate(rows):
        values = dict(zip(BOX, box, strict=False)) | dict.fromkeys(SIZE, 8)
        found.append({'path': path, 'label': label, 'row': f'row {number}'} | values)
    return as_regions(Path('own.csv'), 'own table', found)


def scored(regions: Regions, *sources: MapSource) -> tuple[RegionCases, list[Row]]:
    cases = find_cases(regions, sources)
    return cases, [row for source in sources for row in score_source(source, regions, cases)]


def test_given_maps_are_found_by_names_with_folders_and_without_suffix(tmp_path: Path) -> None:
    hit, miss = np.eye(8) * 0, np.eye(8) * 0
    hit[1, 1], miss[7, 7] = 1, 1
    rows = [('patient1/study1/a.png', 'Mass', 0, 0, 3, 3), ('b.png', 'Nodule/Mass', 0, 0, 3, 3)]
    folder = write_maps(
        tmp_path / 'maps', {'patient1_study1_a__Mass': hit, 'b.png__Nodule_Mass': miss}
    )
    regions = boxes(rows)
    cases, (row,) = scored(regions, GivenMaps(folder, 'given'))
    assert row.scores[HIT].tolist() == [1, 0] and row.scores[IOU].tolist() == [1 / 9, 0]
    assert [*cases.marked['patient']] == ['patient1'.removeprefix('patient'), 'b']


def test_images_that_name_no_patient_are_counted(tmp_path: Path) -> None:
    """But not those of which the path, the table or the source names one."""
    names = ['patient1/study1/a', '00013118_008', 'a', '7', 'told', 'known']
    folder = write_maps(
        tmp_path / 'maps', {f'{name.replace("/", "_")}__Mass': np.eye(4) for name in names}
    )
    regions = boxes([(f'{name}.png', 'Mass', 0, 0, 3, 3) for name in names])
    told = np.where(regions.table['path'] == 'told.png', 'told', '')
    regions = replace(regions, table=regions.table.assign(patient=told))
    source = GivenMaps(folder, 'given')
    source.patients |= {'known.png': 'P3', '7.png': '7.png'}
    cases, _ = scored(regions, source)
    assert any('2 of 6 images name no patient, and each counts as one' in n for n in cases.notes)
    one = boxes([('patient1/study1/a.png', 'Mass', 0, 0, 3, 3)])
    assert find_cases(one, [GivenMaps(folder, 'given')]).notes == ()


def test_a_map_that_lacks_is_refused_and_zeros_are_a_miss(tmp_path: Path) -> None:
    rows = [(f'{name}.png', 'Mass', 0, 0, 3, 3) for name in 'abc'] + [
        ('a.png', 'Edema', 0, 0, 2, 2)
    ]
    maps = {f'{name}__Mass': np.random.default_rng(0).random((4, 4)) for name in 'ab'}
    folder = write_maps(tmp_path / 'maps', maps | {'b__Edema': np.ones((2, 2))})
    with pytest.raises(ValueError, match=r'1 of 4 cases .* first Edema in a.png'):
        scored(boxes(rows), GivenMaps(folder, 'given'))
    write_maps(folder, {'a__Edema': np.zeros((2, 2))})
    cases, (row,) = scored(boxes(rows), GivenMaps(folder, 'given'))
    assert row.scores.iloc[-1][[HIT, IOU, MASS]].tolist() == [0, 0, 0]
    words = '1 images with a region are not scored, because they have no map, such as c.png'
    assert any(words in note for note in cases.notes)


@pytest.mark.parametrize(
    ('files', 'paths', 'named'),
    [
        (['p/a__Mass', 'p_a__Mass'], ['p/a.png'], ['p/a__Mass.npy', 'p_a__Mass.npy']),
        (['a__Mass', 'a.png__Mass'], ['a.png'], ['a__Mass.npy', 'a.png__Mass.npy']),
        (['p_a__Mass'], ['p/a.png', 'p_a.png'], ['Mass in p/a.png', 'Mass in p_a.png']),
        (['p_a__Mass', 'b__Mass'], ['b.png', 'p/a.png', 'p_a.png'], ['p/a.png', 'p_a.png']),
    ],
)
def test_two_maps_or_two_cases_of_one_name_are_refused_with_both(
    tmp_path: Path, files: list[str], paths: list[str], named: list[str]
) -> None:
    (tmp_path / 'maps' / 'p').mkdir(parents=True)
    folder = write_maps(tmp_path / 'maps', {name: np.eye(4) for name in files})
    # The last case has no region: its map would decide whether it is an alarm.
    rows = [(path, 'Mass', 0, 0, 3, 3)[: 2 if path == 'p_a.png' else 6] for path in paths]
    with pytest.raises(ValueError, match='--maps') as error:
        scored(boxes(rows), GivenMaps(folder, 'given'))
    assert all(name in str(error.value) for name in named)


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        (np.zeros((2, 2, 2)), r'must be an array \[h, w\]'),
        (np.array(['a']), r'must be an array \[h, w\]'),
        (np.array([[np.nan, 1]]), 'NaN or infinite'),
        (np.array([[1, np.longdouble('1e400')]]), 'NaN or infinite'),
        (np.array([[{}]]), 'cannot be read'),
    ],
)
def test_a_wrong_map_is_named(tmp_path: Path, values: np.ndarray, words: str) -> None:
    folder = write_maps(tmp_path / 'maps', {'a__Mass': values})
    with pytest.raises(ValueError, match=words) as error:
        scored(boxes([('a.png', 'Mass', 0, 0, 3, 3)]), GivenMaps(folder, 'given'))
    assert 'a__Mass.npy' in str(error.value)


def test_given_maps_score_as_their_own_values_in_any_unit(tmp_path: Path) -> None:
    cells = np.random.default_rng(0).normal(size=(8, 8))
    inside = np.zeros((8, 8), bool)
    inside[:3, :3] = True
    expected = average_precision_score(inside.ravel(), cells.ravel())
    regions = boxes([('a.png', 'Mass', 0, 0, 3, 3)])
    for number, values in enumerate((cells, cells * 1e-60, cells + 1e8, cells * 1e38)):
        folder = write_maps(tmp_path / str(number), {'a__Mass': values})
        _, (row,) = scored(regions, GivenMaps(folder, 'given'))
        assert row.scores[PRECISION].tolist() == [pytest.approx(expected, abs=1e-9)]


@pytest.mark.parametrize('shape', [(8, 12), (80, 120)])
def test_a_transposed_map_is_refused_at_any_size(tmp_path: Path, shape: tuple[int, int]) -> None:
    """But not a square one, which another program made of an image that it squeezed."""
    folder = write_maps(tmp_path / 'maps', {'a__Mass': np.random.default_rng(0).random(shape)})
    found = dict(zip(BOX, (0, 0, 3, 3), strict=True)) | dict(zip(SIZE, (12, 8), strict=True))
    row = {'path': 'a.png', 'label': 'Mass', 'row': 'row 2'} | found
    regions = as_regions(Path('own.csv'), 'own table', [row])
    with pytest.raises(ValueError, match='height and width are swapped'):
        scored(regions, GivenMaps(folder, 'given'))
    square = {'a__Mass': np.random.default_rng(0).random((10, 10))}
    assert scored(regions, GivenMaps(write_maps(tmp_path / 'square', square), 'given'))


def test_a_region_marked_where_there_is_none_counts_as_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images with a region, and four without: a map of zeros, a map, and twice no map.

    The last two are left out, because it is not known whether they are alarms.
    """
    monkeypatch.setattr(metrics, 'FEW_CASES', 1)
    rng = np.random.default_rng(0)
    rows = [(f'{name}.png', 'Mass', 0, 0, 3, 3) for name in 'abc']
    rows += [(f'{name}.png', 'Mass') for name in 'defg']
    # Of another label, all images without a region lack a map.
    rows += [('a.png', 'Other', 0, 0, 3, 3), ('d.png', 'Other')]
    maps = {f'{name}__Mass': rng.random((4, 4)) for name in 'abce'}
    # Of the image f, another label was explained; of g, none.
    folder = write_maps(
        tmp_path / 'maps',
        maps | {'d__Mass': np.zeros((2, 2)), 'f__Other': np.ones((2, 2))} | {'a__Other': np.eye(4)},
    )
    regions = boxes(rows)
    source = GivenMaps(folder, 'given')
    cases, (row,) = scored(regions, source)
    assert [*cases.absent['path']] == ['d.png', 'e.png'] and row.alarms.tolist() == [False, True]
    assert any(
        '3 cases without a region have no map, first Mass in f.png' in n for n in cases.notes
    )
    scores = analyse(cases, [row, *score_source(baselines_of(cases, 0), regions, cases)],
                     resamples=0, seed=0)['scores']  # fmt: skip
    marked = line_of(scores, row='given', label='Mass', score=IOU, group='')
    everything = line_of(scores, row='given', label='Mass', score=ALARMS, group='')
    assert everything['value'] == pytest.approx(marked['value'] * 3 / 4)
    assert {*scores.loc[scores['score'] == ALARMS, 'label']} == {'Mass'}


def test_the_prior_also_knows_the_regions_of_images_that_are_not_scored(tmp_path: Path) -> None:
    rows = [('a.png', 'Mass', 0, 0, 2, 2), ('b.png', 'Mass', 4, 4, 2, 2)]
    folder = write_maps(tmp_path / 'maps', {'a__Mass': np.eye(4)})
    cases, _ = scored(boxes(rows), GivenMaps(folder, 'given'))
    values = baselines_of(cases, 0).maps('a.png', 'Mass')[PRIOR].cells
    assert [*cases.marked['path']] == ['a.png']
    assert values[32:48, 32:48].min() > 0 and values[:32].max() == 0
