"""Results of a sweep: figures by seed, differences against independent computations, files."""

import json

import numpy as np
import pytest
from scipy import stats
from sweep_runs import RARE, SEEDS, MadeRuns, make_sweep, row_of, with_rows

from data.labels import COMPETITION_LABELS, LABELS
from data.masking import MaskGenerator, average_distance
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples
from sweeps.files import ROOT, load_sweep, run_folder, sweep_files
from sweeps.results import (
    SIGNIFICANT,
    _other_row,
    collect,
    enough_resamples,
    read_rows,
    t_interval,
    verdict,
    write_rows,
)

DRAWS = {'resamples': 40, 'bootstrap_seed': 5}
STRENGTHS = {'0.1': 1.6, '0.6': 1.0, '0.8': 1.1, '0.9': 0.9}
NAN = float('nan')
SHIPPED = [*sweep_files(), *sorted(ROOT.glob('scripts/comparison/*.yaml'))]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Four rows of three seeds, all finished, scored image by image."""
    made = MadeRuns(tmp_path_factory.mktemp('runs'), level='image')
    sweep = make_sweep([*STRENGTHS], reference=1)
    predicted = {
        (row.name, seed): made.add(row, seed, strength=STRENGTHS[row.name])
        for row in sweep.rows
        for seed in SEEDS
    }
    return made, sweep, predicted, collect(sweep, SEEDS, made.output, **DRAWS)


def scores_of(row, score):
    return [entry['finetune']['figures']['scores'][score] for entry in row['seeds']]


def area(probabilities, targets):
    """Share of the pairs of a positive and a negative that are in order; ties are half."""
    above = probabilities[targets == 1][:, None] - probabilities[targets == 0][None]
    return np.mean((above > 0) + (above == 0) / 2)


def brute_force(made, predicted, name, score, rows):
    """Difference of the seeds' mean AUROC to the reference, over these rows, repeated as given."""
    means = []
    for which in (name, '0.6'):
        areas = []
        for label in COMPETITION_LABELS if score == 'mean_of_five' else (score,):
            k = LABELS.index(label)
            areas += [area(predicted[which, s][rows, k], made.targets[rows, k]) for s in SEEDS]
        means.append(np.mean(areas))
    return means[0] - means[1]


@pytest.mark.parametrize('score', ['mean_of_five', 'Edema'])
def test_interval_over_patients_is_that_of_cases_written_out(finished, score):
    made, _, predicted, collected = finished
    weights = Resamples(made.patients, resamples=40, seed=5).weights(made.patients)
    assert (weights.sum(axis=1) != len(made.patients)).any()  # patients of two studies are drawn
    everyone = np.arange(len(made.patients))
    for name in ('0.1', '0.9'):
        part = row_of(collected, name)['compared'][score]
        wanted = brute_force(made, predicted, name, score, everyone)
        assert part['difference'] == pytest.approx(wanted, abs=1e-5)
        drawn = [brute_force(made, predicted, name, score, np.repeat(everyone, w)) for w in weights]
        low, high = np.percentile(drawn, [2.5, 97.5])
        found = part['over_patients']
        assert (found['low'], found['high']) == pytest.approx((low, high), abs=1e-5)
        fewer = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0))
        assert found['p'] == pytest.approx(min(1, 2 * (1 + fewer) / 41), abs=1e-5)


@pytest.mark.parametrize('score', ['mean_of_five', 'mean_of_defined', 'Pneumonia'])
def test_interval_over_seeds_is_that_of_a_paired_t_test(finished, score):
    collected = finished[-1]
    reference = scores_of(row_of(collected, '0.6'), score)
    for name in ('0.1', '0.8', '0.9'):
        row = row_of(collected, name)
        wanted = stats.ttest_rel(scores_of(row, score), reference).confidence_interval(0.95)
        part = row['compared'][score]
        found = part['over_seeds']
        assert (found['low'], found['high']) == pytest.approx((wanted.low, wanted.high), abs=1e-5)
        assert part['seeds'] == 3
        assert part['difference'] == pytest.approx(
            np.mean(scores_of(row, score)) - np.mean(reference), abs=2e-6
        )


def test_p_values_are_adjusted_over_the_rows(finished):
    rows = [row for row in finished[-1]['rows'] if row['against']]
    parts = [row['compared']['mean_of_five']['over_patients'] for row in rows]
    assert len(parts) == 3
    adjusted = holm([part['p'] for part in parts])
    assert [part['p_holm'] for part in parts] == pytest.approx(adjusted, abs=1e-5)
    assert any(part['p_holm'] > part['p'] for part in parts)


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_draws_are_enough_to_tell_every_row_of_a_sweep_from_the_noise(path):
    sweep = load_sweep(path)
    rows = sum(_other_row(sweep, row) != '' for row in sweep.rows)
    draws = enough_resamples(rows)
    assert rows and 2 * rows / (draws + 1) < SIGNIFICANT / 4
    samples = np.linspace(0.01, 0.02, draws)
    patients = {'low': 0.01, 'high': 0.02}
    for adjusted in holm([bootstrap_p(samples)] * rows):
        part = {'difference': 0.015, 'over_seeds': patients}
        assert verdict(part | {'over_patients': patients | {'p_holm': adjusted}}) == 'above'


@pytest.mark.parametrize('rows, draws', [(1, 1000), (5, 1000), (6, 1200), (32, 6400)])
def test_more_compared_rows_get_more_draws(rows, draws, tmp_path):
    sweep = make_sweep([str(i / 100) for i in range(rows + 1)])
    assert collect(sweep, [0], tmp_path)['resamples'] == {'count': draws, 'seed': 0}
    assert collect(sweep, [0], tmp_path, **DRAWS)['resamples'] == {'count': 40, 'seed': 5}


def test_what_is_undefined_is_not_compared(finished):
    row = row_of(finished[-1], '0.1')
    assert scores_of(row, RARE) == [None] * 3
    assert RARE not in row['compared']
    assert row['patients'] == len(set(finished[0].patients)) and row['problem'] == ''


@pytest.mark.parametrize(
    'seeds, patients, difference, p_holm, wanted',
    [
        ((0.01, 0.05), (0.02, 0.04), 0.03, 0.01, 'above'),
        ((-0.05, -0.01), (-0.04, -0.02), -0.03, 0.01, 'below'),
        ((-0.01, 0.07), (0.02, 0.04), 0.03, 0.01, 'inside the noise'),
        ((0.01, 0.05), (-0.01, 0.07), 0.03, 0.2, 'inside the noise'),
        ((0.01, 0.05), (0.001, 0.06), 0.03, 0.05, 'inside the noise'),
        ((0.0, 0.05), (0.02, 0.04), 0.03, 0.01, 'inside the noise'),
        ((NAN, NAN), (0.02, 0.04), 0.03, 0.01, 'n/a'),
        ((0.01, 0.05), (NAN, NAN), 0.03, NAN, 'n/a'),
        ((NAN, NAN), (-0.01, 0.04), 0.03, 0.3, 'inside the noise'),
    ],
)
def test_a_difference_counts_only_outside_both_kinds_of_noise(
    seeds, patients, difference, p_holm, wanted
):
    part = {
        'difference': difference,
        'over_seeds': dict(zip(('low', 'high'), seeds, strict=True)),
        'over_patients': {'low': patients[0], 'high': patients[1], 'p_holm': p_holm},
    }
    assert verdict(part) == wanted


def test_one_value_has_no_interval():
    assert np.isnan(t_interval([0.1])).all()


def test_figures_provenance_and_log_of_a_row(finished):
    made, _, _, collected = finished
    entry = row_of(collected, '0.1')['seeds'][1]
    pretrain, finetune = entry['pretrain'], entry['finetune']
    assert entry['seed'] == 1
    assert pretrain['figures'] == {
        'target': 'pixels',
        'target_px': 1,
        'holdout': {'before': 55, 'after': 16, 'mean': 38.5, 'linear': 32.1},
        'reference': {'before': 60, 'after': 21, 'mean': 43.5, 'linear': 37.1},
    }
    assert pretrain['log']['reference_l1_grey'] == [60, 30, 21]
    assert finetune['log'] == {'epoch': [-1, 0, 1], 'loss': [0.5] * 3, 'score': [0.6] * 3}
    figures = finetune['figures']
    assert (figures['split'], figures['checkpoint'], figures['level']) == (
        'test', 'selected', 'image'
    )  # fmt: skip
    assert (figures['views'], figures['rows']) == ('frontal', len(made.paths))
    assert finetune['provenance'] == {
        'code': 'v1-2-gabc', 'seed': 1, 'processes': 1, 'starts': 1, 'data': 'f00',
        'tables': {'train.csv': 'ba5e'}, 'gpus': [], 'torch': '2.6',
        'finished': '2020-01-01T00:10:00+00:00', 'seconds': 600.123,
    }  # fmt: skip


def test_options_that_differ_from_the_reference(finished):
    collected = finished[-1]
    assert row_of(collected, '0.1')['changes'] == {
        'pretrain': ['MODEL.DROP_RATE: 0.0 -> 0.1'], 'finetune': []
    }  # fmt: skip
    assert row_of(collected, '0.6')['changes'] == {'pretrain': [], 'finetune': []}
    assert all(row['also_changed'] == [] for row in collected['rows'])


def test_an_option_that_the_sweep_does_not_vary_is_told(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['a', 'b'])
    changes = {'swept_1': {'finetune': {'TRAIN.EPOCHS': 7}, 'pretrain': {}}}
    sweep = with_rows(sweep, **changes, reference={'pretrain': {}})
    for row in sweep.rows:
        made.add(row, 0)
    assert row_of(collect(sweep, [0], made.output), 'b')['also_changed'] == ['TRAIN.EPOCHS']


def test_distance_to_the_visible_is_that_of_the_rows_masks(finished, tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6', '0.8'], key='DATA.MASK_RATIO')
    made.add_pretraining(sweep.rows[1], 3, l1=20)
    rng, generator = np.random.default_rng(0), MaskGenerator(224, 32, 4, 0.8)
    wanted = average_distance(np.stack([generator(rng) for _ in range(200)]), 4)
    found = [row['average_distance_px'] for row in collect(sweep, [3], made.output)['rows']]
    assert found == [None, pytest.approx(wanted, rel=1e-5)]
    assert {row['average_distance_px'] for row in finished[-1]['rows']} == {None}


def test_unfinished_and_missing_runs_are_listed(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.1', '0.6', '0.9'], reference=1)
    for seed in SEEDS:
        made.add(sweep.reference, seed)
    made.add(sweep.rows[0], 0)
    made.add(sweep.rows[0], 1, finished=False)
    collected = collect(sweep, SEEDS, made.output, **DRAWS)
    row = row_of(collected, '0.1')
    states = [(e['pretrain']['state'], e['finetune']['state']) for e in row['seeds']]
    assert states == [
        ('finished', 'finished'), ('finished', 'unfinished'), ('missing', 'missing')
    ]  # fmt: skip
    assert row['seeds'][1]['finetune']['figures'] is None
    part = row['compared']['mean_of_five']
    assert part['seeds'] == 1 and part['over_seeds'] == {'low': None, 'high': None}
    one = scores_of({'seeds': row['seeds'][:1]}, 'mean_of_five')[0]
    other = scores_of(row_of(collected, '0.6'), 'mean_of_five')[0]
    assert part['difference'] == pytest.approx(one - other, abs=2e-6)
    assert row_of(collected, '0.9')['compared'] == {}
    assert 'no seed is finished' in row_of(collected, '0.9')['problem']


def test_rows_are_compared_with_those_that_they_name(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['all', 'few', 'few_scratch'])
    shared = {'pretrain': {}, 'pretrain_run': 'reference'}
    sweep = with_rows(
        sweep,
        reference=shared,
        swept_1=shared | {'against': 'few_scratch'},
        swept_2={'pretrain': None, 'pretrain_run': ''},
    )
    made.add_pretraining(sweep.reference, 0, l1=20)
    for row, strength in zip(sweep.rows, (1.0, 0.8, 0.2), strict=True):
        made.add_finetuning(row, 0, strength=strength)
    collected = collect(sweep, [0], made.output, **DRAWS)
    assert [row['against'] for row in collected['rows']] == ['', 'few_scratch', '']
    few, base = (row_of(collected, name) for name in ('few', 'few_scratch'))
    assert few['compared']['Edema']['difference'] == pytest.approx(
        scores_of(few, 'Edema')[0] - scores_of(base, 'Edema')[0], abs=2e-6
    )
    assert few['seeds'][0]['pretrain']['figures']['reference']['after'] == 20
    assert base['seeds'][0]['pretrain'] is None


def test_a_binary_task_is_compared_too(tmp_path):
    made, sweep = MadeRuns(tmp_path, task='effusion'), make_sweep(['0.1', '0.6'], reference=1)
    for row, strength in zip(sweep.rows, (3.0, 0.1), strict=True):
        made.add(row, 0, strength=strength)
    row = row_of(collect(sweep, [0], made.output, **DRAWS), '0.1')
    assert row['problem'] == ''
    assert set(row['compared']) == {'Pleural Effusion', 'mean_of_defined'}
    assert row['compared']['mean_of_defined']['over_patients']['low'] > 0


def edit_scores(folder, edit):
    scores = json.loads((folder / 'scores.json').read_text())
    edit(scores['test']['selected'])
    (folder / 'scores.json').write_text(json.dumps(scores))


def other_views(scores):
    scores['views'] = 'all'


def other_positives(scores):
    scores['positives']['Edema'] += 1


@pytest.mark.parametrize('edit, key', [(other_views, 'views'), (other_positives, 'positives')])
def test_rows_scored_on_other_cases_are_not_compared(tmp_path, edit, key):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.1', '0.6'], reference=1)
    for row in sweep.rows:
        made.add(row, 0)
    edit_scores(run_folder(made.output, 'finetune', sweep.rows[0], 0), edit)
    row = row_of(collect(sweep, [0], made.output), '0.1')
    assert row['compared'] == {}
    assert row['problem'] == f'scored on other cases than 0.6 ({key})'


def test_labels_that_have_changed_since_give_no_interval_over_patients(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.1', '0.6'], reference=1)
    for row in sweep.rows:
        for seed in (0, 1):
            made.add(row, seed)
    table = made.data / 'test.csv'
    lines = table.read_text().splitlines()
    labels = [line.rpartition('AP,')[2] for line in lines[1:]]
    turned = [f'{line.rpartition("AP,")[0]}AP,{new}' for line, new in
              zip(lines[1:], labels[::-1], strict=True)]  # fmt: skip
    table.write_text('\n'.join([lines[0], *turned]) + '\n')
    row = row_of(collect(sweep, [0, 1], made.output), '0.1')
    part = row['compared']['mean_of_five']
    assert part['over_patients'] == {'low': None, 'high': None, 'p': None, 'p_holm': None}
    assert part['over_seeds']['low'] is not None
    assert 'one of them has changed since' in row['problem']
    assert str(tmp_path) not in row['problem']


def test_absent_data_are_told_and_seeds_compared(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.1', '0.6'], reference=1)
    for row in sweep.rows:
        for seed in (0, 1):
            made.add(row, seed)
    (made.data / 'test.csv').unlink()
    row = row_of(collect(sweep, [0, 1], made.output), '0.1')
    assert row['problem'].startswith('no interval over patients: no such CSV file: test.csv')
    assert row['compared']['mean_of_five']['seeds'] == 2 and row['patients'] == 0


def test_error_of_normalised_patches_is_not_set_beside_that_of_pixels(tmp_path):
    made = MadeRuns(tmp_path)
    sweep = make_sweep(['pixels', 'patch_normalised'], key='MODEL.SIMMIM.TARGET')
    for row in sweep.rows:
        made.add(row, 0)
    figures = row_of(collect(sweep, [0], made.output), 'patch_normalised')['seeds'][0]['pretrain'][
        'figures'
    ]
    assert figures['target'] == 'patch_normalised'
    assert figures['reference'] == {'before': None, 'after': None, 'mean': 43.5, 'linear': 37.1}


@pytest.mark.parametrize('name', ['scores.json', 'metrics.jsonl'])
def test_a_damaged_file_of_a_finished_run_is_named(tmp_path, name):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6'])
    made.add(sweep.reference, 0)
    file = run_folder(made.output, 'finetune', sweep.reference, 0) / name
    file.write_text('{"test": {}}' if name == 'scores.json' else 'x')
    with pytest.raises(ValueError, match=str(file)):
        collect(sweep, [0], made.output)


def test_files_give_back_what_was_collected(finished, tmp_path):
    made, _, _, collected = finished
    write_rows(collected, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'reference.json', 'swept.json', 'swept_0.json', 'swept_2.json', 'swept_3.json'
    ]  # fmt: skip
    assert read_rows(tmp_path, 'swept') == collected
    for path in tmp_path.iterdir():
        assert str(made.output.parent) not in path.read_text()


def test_a_shared_run_keeps_the_seeds_of_other_sweeps(finished, tmp_path):
    made, sweep, _, collected = finished
    write_rows(collected, tmp_path)
    fewer = collect(sweep, [1], made.output, **DRAWS)
    write_rows(fewer | {'sweep': 'other'}, tmp_path)
    assert read_rows(tmp_path, 'swept') == collected
    assert read_rows(tmp_path, 'other') == fewer | {'sweep': 'other'}


def test_a_run_that_was_written_anew_does_not_pass_for_the_old_one(finished, tmp_path):
    collected = finished[-1]
    write_rows(collected, tmp_path)
    path = tmp_path / 'reference.json'
    content = json.loads(path.read_text())
    content['seeds'][0]['finetune']['figures']['scores']['Edema'] = 0.99
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'reference\.json is not what swept\.json was made with'):
        read_rows(tmp_path, 'swept')


@pytest.mark.parametrize('name, content', [('swept', '{"run": "swept"}'), ('reference', '[]')])
def test_files_of_another_kind_are_not_written_over(finished, tmp_path, name, content):
    path = tmp_path / f'{name}.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=f'{name}.json is not the file of the'):
        write_rows(finished[-1], tmp_path)
    assert path.read_text() == content


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'swept\.json cannot be read'):
        read_rows(tmp_path, 'swept')


def test_a_name_cannot_lead_out_of_the_folder(finished, tmp_path):
    with pytest.raises(ValueError, match='cannot be the name of a file'):
        write_rows(finished[-1] | {'sweep': '../swept'}, tmp_path / 'inside')
    assert not (tmp_path / 'swept.json').exists()
