"""Results of a sweep: figures, paired differences against independent computations, tables."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score
from sweep_runs import (
    SEEDS,
    MadeRuns,
    ablation_file,
    make_sweep,
    methods_file,
    reference_files,
    row_of,
)

from config import config_text, default_config
from data.labels import COMPETITION_LABELS, LABELS
from evaluation.intervals import Resamples, bootstrap_p, holm
from sweeps import results, sweep_table
from sweeps.files import ROOT, expected_config, load_config, load_sweep, run_folder
from sweeps.results import collect, read_collected, save_collected
from sweeps.row_comparison import SIGNIFICANT, enough_resamples, verdict
from sweeps.run_scores import BOOTSTRAP_SEED, pretraining_figures
from sweeps.sweep_table import (
    known_scores,
    notes,
    sweep_markdown,
    write_label_table,
    write_published_table,
    write_sweep_table,
)

pytestmark = pytest.mark.usefixtures('few_cases_select')

STRENGTHS = {'0.1': 2.5, '0.6': 1.0, '0.7': 1.01, '0.8': 0.1}
REFERENCE = {'pretrain': 'simmim', 'finetune': 'finetune'}  # section -> stage
DRAWS = 200
NAN = float('nan')
DEEP = '[' * 100_000  # JSON that is nested too deeply


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A row above the reference, one below, one inside the noise with one seed, one missing."""
    folder, published = tmp_path_factory.mktemp('runs'), {'source': 'A 2020', 'measure': 'top-1'}
    sweep = make_sweep(
        folder, [*STRENGTHS, '0.9'], reference=1, published=published | {'values': {'0.1': 82.8}}
    )
    made = MadeRuns(folder, level='image')
    predicted = {
        (row.name, seed): made.add(row, seed, strength=STRENGTHS[row.name])
        for row in sweep.rows[:4]
        for seed in (SEEDS[:1] if row.name == '0.7' else SEEDS)
    }
    return made, predicted, collect(sweep, SEEDS, made.output, resamples=DRAWS)


@pytest.fixture
def five(finished):
    return finished[-1]


def two_rows(folder: Path, *, seeds: tuple[int, ...] = (0,)):
    """Finished runs of a row and the reference."""
    made, sweep = MadeRuns(folder), make_sweep(folder, ['0.1', '0.6'], reference=1)
    for row, strength in zip(sweep.rows, (3.0, 0.1), strict=True):
        for seed in seeds:
            made.add(row, seed, strength=strength)
    return made, sweep


def scores_of(row, score):
    figures = [entry['finetune']['figures'] for entry in row['seeds']]
    return [found['scores'][score] for found in figures if found]


def cells_of(text):
    """Rows of a Markdown table, by column."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    head, _, *rows = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def brute_force(made, predicted, score, rows):
    """Difference of the mean AUROC over seeds of two rows, on these (repeated) cases."""
    means = []
    for which in ('0.1', '0.6'):
        areas = []
        for label in COMPETITION_LABELS if score == 'mean_of_five' else (score,):
            k = LABELS.index(label)
            targets = made.targets[rows, k]
            for seed in SEEDS:
                p = predicted[which, seed][rows, k]
                above = p[targets == 1][:, None] - p[targets == 0][None]
                areas.append(np.mean((above > 0) + (above == 0) / 2))
        means.append(np.mean(areas))
    return means[0] - means[1]


@pytest.mark.parametrize('score', ['mean_of_five', 'Edema'])
def test_patient_intervals_equal_those_of_repeated_cases(finished, score):
    made, predicted, collected = finished
    draws = Resamples(made.patients, resamples=DRAWS, seed=BOOTSTRAP_SEED)
    part = row_of(collected, '0.1')['compared'][score]
    everyone = np.arange(len(made.patients))
    wanted = brute_force(made, predicted, score, everyone)
    assert part['difference'] == pytest.approx(wanted, abs=1e-5)
    drawn = [
        brute_force(made, predicted, score, np.repeat(everyone, weights))
        for weights in draws.weights(made.patients)
    ]
    found = part['over_patients']
    wanted = np.percentile(drawn, [2.5, 97.5])
    assert (found['low'], found['high']) == pytest.approx(tuple(wanted), abs=1e-5)
    fewer = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0))
    assert found['p'] == pytest.approx(min(1, 2 * (1 + fewer) / (1 + DRAWS)), abs=1e-5)


def test_seed_intervals_equal_those_of_a_paired_t_test(five):
    for score in ('mean_of_five', 'Pneumonia'):
        reference = scores_of(row_of(five, '0.6'), score)
        for name in ('0.1', '0.8'):
            row = row_of(five, name)
            wanted = stats.ttest_rel(scores_of(row, score), reference).confidence_interval(0.95)
            found = row['compared'][score]['over_seeds']
            expected = pytest.approx((wanted.low, wanted.high), abs=1e-5)
            assert (found['low'], found['high']) == expected


def test_draws_suffice_for_every_row_to_be_significant():
    samples = np.linspace(0.01, 0.02, enough_resamples(35))
    assert holm([bootstrap_p(samples)] * 35)[0] < SIGNIFICANT / 4


@pytest.mark.parametrize(
    'seeds, patients, difference, p_holm, wanted',
    [
        ((0.01, 0.05), (0.02, 0.04), 0.03, 0.01, 'above'),
        ((-0.01, 0.07), (0.02, 0.04), 0.03, 0.01, 'inside the noise'),
        ((0.01, 0.05), (0.001, 0.06), 0.03, 0.05, 'not significant after correction'),
        ((NAN, NAN), (0.02, 0.04), 0.03, 0.01, 'n/a'),
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


def test_unfinished_and_missing_runs_are_listed(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(tmp_path, ['0.1', '0.6'], reference=1)
    made.add(sweep.rows[0], 0)
    made.add(sweep.rows[0], 1, finished=False)
    collected = collect(sweep, SEEDS, made.output, resamples=2)
    row = row_of(collected, '0.1')
    states = [(e['pretrain']['state'], e['finetune']['state']) for e in row['seeds']]
    assert states == [
        ('finished', 'finished'), ('finished', 'unfinished'), ('missing', 'missing')
    ]  # fmt: skip
    assert row['compared'] == {} and row['problem']
    assert any('0.1' in note and 'seed 1' in note for note in notes(collected))


def test_a_note_states_the_training_images_of_each_share_and_marks_few_cases(tmp_path, monkeypatch):
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 20)

    def runs(subset, counts):
        training = [
            {'images': n, 'positives': {'Edema': few}, 'negatives': {'Edema': n - few}}
            for n, few in counts
        ]
        seeds = [{'finetune': {'training': each}} for each in training]
        older = {'finetune': {'state': 'finished'}}  # of a file without counts
        return {
            'name': f'a_{subset}',
            'subset': subset,
            'seeds': [*seeds, older, {'finetune': None}],
        }

    rows = [runs('0.01', [(14, 3), (12, 1)]), runs('1', [(718, 90)]), runs('0.5', [])]
    collected = {'subsets': 'shares', 'rows': rows}
    (note,) = sweep_table._training_notes(collected)
    assert '1 %: 12 to 14 (few cases: Edema 1 positive)' in note
    assert '100 %: 718.' in note and '50 %' not in note


def test_rows_are_compared_with_the_best_of_the_rows_they_name(tmp_path):
    few = {'TRAIN.LAYER_DECAY': 1.0}
    rows = {'all': {}, 'few': {'finetune': few, 'against_best_of': ['few_low', 'few_scratch']}}
    rows['few_low'] = {'pretrain': 'none', 'finetune': few | {'TRAIN.LAYER_DECAY': 0.9}}
    rows['few_scratch'] = {'pretrain': 'none', 'finetune': few}
    made, sweep = MadeRuns(tmp_path), load_sweep(ablation_file(tmp_path, rows))
    for row, strength in zip(sweep.rows, (1.0, 0.8, 0.1, 0.2), strict=True):
        made.add(row, 0, strength=strength)
    collected = collect(sweep, [0], made.output, resamples=2)
    few, base, low = (row_of(collected, name) for name in ('few', 'few_scratch', 'few_low'))
    assert few['against'] == 'few_scratch' and base['against'] == low['against'] == ''
    assert few['compared']['Edema']['difference'] == pytest.approx(
        scores_of(few, 'Edema')[0] - scores_of(base, 'Edema')[0], abs=2e-6
    )
    assert few['seeds'][0]['pretrain']['figures']['l1'] == 20  # of the shared pre-training
    assert base['seeds'][0]['pretrain'] is None


def test_without_held_out_scores_each_of_several_rows_is_compared(tmp_path):
    """With few held-out cases no score is written, and the better row is unknown."""
    rows = {'all': {'against_best_of': ['low', 'none']}}
    rows |= {
        name: {'pretrain': 'none', 'finetune': {'TRAIN.LAYER_DECAY': decay}}
        for name, decay in (('low', 0.9), ('none', 1.0))
    }
    made, sweep = MadeRuns(tmp_path), load_sweep(ablation_file(tmp_path, rows))
    for row in sweep.rows:
        made.add(row, 0)
        file = run_folder(made.output, 'finetune', row, 0) / 'metrics.jsonl'
        file.write_text(json.dumps({'epoch': 0}))
    collected = collect(sweep, [0], made.output, resamples=2)
    assert [row['against'] for row in collected['rows'] if row['against']] == ['low', 'none']


def test_the_better_row_is_that_of_the_scored_epochs(tmp_path):
    rows = {'all': {'against_best_of': ['low', 'none']}}
    rows |= {
        name: {'pretrain': 'none', 'finetune': {'TRAIN.LAYER_DECAY': decay}}
        for name, decay in (('low', 0.9), ('none', 1.0))
    }
    made, sweep = MadeRuns(tmp_path), load_sweep(ablation_file(tmp_path, rows))
    for row, scores in zip(sweep.rows, ((0.5, 0.5), (0.9, 0.6), (0.6, 0.7)), strict=True):
        made.add(row, 0)
        folder = run_folder(made.output, 'finetune', row, 0)
        records = [json.dumps({'epoch': n, 'score': score}) for n, score in enumerate(scores)]
        (folder / 'metrics.jsonl').write_text('\n'.join(records))
    assert collect(sweep, [0], made.output, resamples=2)['rows'][0]['against'] == 'low'
    for row in sweep.rows:  # without a selection, the last epoch counts
        file = run_folder(made.output, 'finetune', row, 0) / 'scores.json'
        file.write_text(file.read_text().replace('"last": null, "selected"', '"last"'))
    assert collect(sweep, [0], made.output, resamples=2)['rows'][0]['against'] == 'none'


def test_rows_are_compared_with_each_of_the_rows_they_name(tmp_path):
    rows = {'all': {}, 'low': {'pretrain': 'none'}, 'none': {'pretrain': 'none'}}
    rows['none']['finetune'] = {'TRAIN.LAYER_DECAY': 1.0}
    rows['low'] |= {'finetune': {'TRAIN.LAYER_DECAY': 0.9}, 'against': 'all'}
    rows['all'] = {'against': ['low', 'none'], 'against_best_of': ['none', 'low']}
    made, sweep = MadeRuns(tmp_path), load_sweep(ablation_file(tmp_path, rows))
    for row, strength in zip(sweep.rows, (3.0, 0.1, 0.2), strict=True):
        for seed in (0, 1):
            made.add(row, seed, strength=strength)
    collected = collect(sweep, [0, 1], made.output, resamples=50)
    entries = [row for row in collected['rows'] if row['name'] == 'all']
    # 'none' has the better held-out score; a row is not compared twice with the same row.
    assert [entry['against'] for entry in entries] == ['none', 'low']
    means = {row['name']: np.mean(scores_of(row, 'Edema')) for row in collected['rows']}
    for entry in entries:
        wanted = means['all'] - means[entry['against']]
        assert entry['compared']['Edema']['difference'] == pytest.approx(wanted, abs=2e-6)
    compared = [row['compared']['Edema'] for row in collected['rows'] if row['compared']]
    patients = [part['over_patients'] for part in compared]
    assert len(compared) == 3
    adjusted = pytest.approx(holm([part['p'] for part in patients]), abs=1e-5)
    assert [part['p_holm'] for part in patients] == adjusted
    titles = [cells['Masked share'] for cells in cells_of(sweep_markdown(collected))]
    assert titles[:2] == ['all (reference, against none)', 'all (reference, against low)']
    assert sweep_markdown(collected).count('all is not finished') == 0


def pixel_runs(folder, *, scored=True):
    """Runs of a sweep whose rows are compared with the logistic regression on pixels."""
    made = MadeRuns(folder, level='image')
    files = {section: str(reference_files()[s]) for section, s in REFERENCE.items()}
    scratch = {'finetune': files['finetune'], 'finetune_options': {'REPORT.PIXEL_FLOOR': True}}
    methods = {'simmim': files | {'against': ['scratch', 'pixels']}, 'scratch': scratch}
    changes = {'reference': 'scratch', 'methods': methods, 'shares': {1: {}}}
    sweep, predicted = load_sweep(methods_file(folder, **changes)), {}
    for row in sweep.rows:
        for seed in (0, 1):
            predicted[row.method, seed] = made.add(row, seed, strength=2.0)
            if scored and row.method == 'scratch':
                predicted['pixels', seed] = made.add_pixels(row, seed, strength=0.5)
    return made, sweep, predicted


def test_a_row_is_compared_with_the_pixels(tmp_path):
    made, sweep, predicted = pixel_runs(tmp_path)
    collected = collect(sweep, [0, 1], made.output, resamples=DRAWS)
    names = [(row['name'], row['against']) for row in collected['rows']]
    assert names == [
        ('simmim_1', 'scratch_1'), ('simmim_1', 'pixels_1'), ('scratch_1', ''), ('pixels_1', '')
    ]  # fmt: skip
    part, edema = collected['rows'][1]['compared']['Edema'], LABELS.index('Edema')
    drawn = [
        np.mean([
            roc_auc_score(made.targets[:, edema], values[:, edema], sample_weight=w) * sign
            for (name, _), values in predicted.items()
            if (sign := {'simmim': 2, 'pixels': -2, 'scratch': 0}[name])
        ])
        for w in Resamples(made.patients, resamples=DRAWS, seed=BOOTSTRAP_SEED).score_weights(
            made.patients
        )
    ]  # fmt: skip
    assert part['difference'] == pytest.approx(drawn[0], abs=1e-5)
    found = [part['over_patients'][end] for end in ('low', 'high')]
    assert found == pytest.approx(np.percentile(drawn[1:], [2.5, 97.5]), abs=1e-5)
    text = sweep_markdown(collected)
    assert 'logistic regression on pixels of at most 1,234 training images' in text
    lines = cells_of(text)
    assert [line['Method'] for line in lines][1:] == [
        'simmim (against pixels)', 'scratch (reference)', 'pixels'
    ]  # fmt: skip


def test_pixels_that_no_run_has_scored_are_listed_as_missing(tmp_path):
    made, sweep, _ = pixel_runs(tmp_path, scored=False)
    collected = collect(sweep, [0, 1], made.output, resamples=2)
    assert collected['rows'][1]['compared'] == {}
    assert 'pixels_1' in collected['rows'][1]['problem']


def test_the_table_shows_the_last_epoch_and_what_selected_the_checkpoint(tmp_path):
    made, sweep = two_rows(tmp_path, seeds=(0, 1))
    for seed, images in ((0, 82), (1, 84)):
        folder = run_folder(made.output, 'finetune', sweep.rows[0], seed)
        file = folder / 'scores.json'
        scores = json.loads(file.read_text())
        scores['test']['last'] = made.scores(made.probabilities(0.5, seed))
        scores['test']['selected'] |= {'selected_on': 'holdout', 'selecting_images': images}
        file.write_text(json.dumps(scores))
        held_out = [{'epoch': -1, 'score': 0.9}, {'epoch': 0}]
        held_out += [{'epoch': n, 'score': s} for n, s in ((1, 0.5 + seed / 4), (2, 0.6))]
        text = ''.join(f'{json.dumps(record)}\n' for record in held_out)
        (folder / 'metrics.jsonl').write_text(text)
    collected = collect(sweep, [0, 1], made.output, resamples=2)
    row, other = cells_of(sweep_markdown(collected, ['Edema']))
    assert row['checkpoint'] == 'epoch 3, 2 of 3, selected on 82 to 84 held-out images'
    last = [
        entry['finetune']['figures']['last']['Edema'] for entry in collected['rows'][0]['seeds']
    ]
    assert row['AUROC, Edema: last epoch'] == f'{np.mean(last):.3f} ± {np.std(last, ddof=1):.3f}'
    assert last != scores_of(collected['rows'][0], 'Edema')
    assert other['AUROC, Edema: last epoch'] == 'not scored'
    assert other['checkpoint'] == 'epoch 1, 1 of 2, selected on unknown held-out images'
    path = write_sweep_table(collected, tmp_path, ['Edema'])
    line = next(csv.DictReader(path.with_suffix('.csv').open()))
    assert (line['selected_epoch'], line['selecting_images']) == ('3 2', '82 84')
    assert float(line['Edema_last_mean']) == pytest.approx(np.mean(last), abs=1e-5)


def test_a_run_without_a_selection_shows_its_last_epoch(tmp_path):
    made, sweep = two_rows(tmp_path)
    for number, each in enumerate(sweep.rows):
        file = run_folder(made.output, 'finetune', each, 0) / 'scores.json'
        scores = json.loads(file.read_text())['test']
        file.write_text(json.dumps({'test': {'last': scores['selected']}}))
        row, _ = cells_of(sweep_markdown(collect(sweep, [0], made.output, resamples=2)))
        assert row['checkpoint'] == 'last of 2 epochs'
        if number == 0:
            assert row['AUROC, mean of five: last epoch'] == row['AUROC, mean of five']
    assert 'AUROC, mean of five: last epoch' not in row  # nothing was selected in any row
    assert 'held-out score' not in row


def test_a_probe_has_no_epochs_and_no_metrics(tmp_path):
    made, sweep = two_rows(tmp_path)
    folder = run_folder(made.output, 'finetune', sweep.rows[0], 0)
    (folder / 'metrics.jsonl').unlink()
    options = (folder / 'config.yaml').read_text()
    (folder / 'config.yaml').write_text(options.replace('MODE: full', 'MODE: linear_probe'))
    row, _ = cells_of(sweep_markdown(collect(sweep, [0], made.output, resamples=2)))
    assert (row['checkpoint'], row['AUROC, mean of five: last epoch']) == ('no epochs', '')


def footnotes_of(text):
    """Mark -> reason of the notes below a table."""
    lines = [line.removeprefix('- ').partition(': ') for line in text.splitlines()]
    return {mark: reason for mark, _, reason in lines if mark.startswith('note ')}


def test_each_missing_interval_and_verdict_has_a_reason(five):
    text, score = sweep_markdown(five), 'AUROC, mean of five'
    rows, reasons = cells_of(text), footnotes_of(text)
    one, none = rows[2], rows[4]  # a single seed; no finished run
    assert (
        one[f'{score}: difference (95 % over seeds)'].endswith('(note 1)')
        and 'seed' in reasons['note 1']
    )
    assert (
        none[f'{score}: verdict']
        == none[f'{score}: difference (95 % over patients)']
        == 'n/a (note 2)'
    )
    assert reasons['note 2'] == f'0.9: {row_of(five, "0.9")["problem"]}.'
    assert text.count(reasons['note 2']) == 1


def test_too_few_cases_are_the_reason_for_a_missing_interval(tmp_path):
    made, sweep = two_rows(tmp_path, seeds=(0, 1))
    collected = collect(sweep, [0, 1], made.output, resamples=20)
    part = row_of(collected, '0.1')['compared']['Edema']
    part['over_patients'] |= {'low': None, 'high': None}
    part['verdict'] = 'n/a'
    text = sweep_markdown(collected, ['Edema'])
    row, reasons = cells_of(text)[0], footnotes_of(text)
    assert row['AUROC, Edema: verdict'] == 'n/a (note 1)'
    assert row['AUROC, Edema: difference (95 % over patients)'].endswith('(note 1)')
    positives = int(made.scores(made.probabilities(1, 0))['positives']['Edema'])
    negatives = int(made.scores(made.probabilities(1, 0))['negatives']['Edema'])
    assert f'Edema has {positives} positives and {negatives} negatives' in reasons['note 1']
    text = sweep_markdown(collected, ['Fracture'])  # has no positive
    assert cells_of(text)[0]['AUROC, Fracture: verdict'] == 'n/a (note 1)'
    assert 'Fracture' in footnotes_of(text)['note 1']


def test_a_label_with_few_cases_has_no_verdict(tmp_path, monkeypatch):
    # So that few resamples are enough.
    monkeypatch.setattr('sweeps.row_comparison.SIGNIFICANT', 0.3)
    made, sweep = two_rows(tmp_path, seeds=(0, 1, 2))
    positives = made.targets.sum(axis=0)
    label = LABELS[int(np.argmin(np.where(positives, positives, np.inf)))]
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', int(positives[LABELS.index(label)]) + 1)
    collected = collect(sweep, SEEDS, made.output, resamples=DRAWS)
    compared = row_of(collected, '0.1')['compared']
    assert compared[label]['over_patients']['low'] is None and compared[label]['verdict'] == 'n/a'
    text = sweep_markdown(collected, [label])
    assert cells_of(text)[0][f'AUROC, {label}: verdict'] == 'n/a (note 1)'
    few = f'{positives[LABELS.index(label)]:.0f} positives'
    assert f'Few cases, which make a score unreliable: {label} {few}' in text


@pytest.mark.parametrize('key, value', [('views', 'all'), ('negatives', {'Edema': 3})])
def test_rows_scored_on_other_cases_are_not_compared(key, value, tmp_path):
    """With DATA.BLANK ignore, a label has other negatives in as many rows."""
    made, sweep = two_rows(tmp_path)
    file = run_folder(made.output, 'finetune', sweep.rows[0], 0) / 'scores.json'
    scores = json.loads(file.read_text())
    scores['test']['selected'][key] = value
    file.write_text(json.dumps(scores))
    row = row_of(collect(sweep, [0], made.output), '0.1')
    assert row['compared'] == {} and f'({key})' in row['problem']


def test_without_the_labels_only_seeds_are_compared(tmp_path):
    made, sweep = two_rows(tmp_path, seeds=(0, 1))
    (made.data / 'test.csv').unlink()
    row = row_of(collect(sweep, [0, 1], made.output), '0.1')
    part = row['compared']['mean_of_five']
    assert part['over_patients'] == {'low': None, 'high': None, 'p': None, 'p_holm': None}
    assert part['over_seeds']['low'] is not None and row['problem']


def test_a_damaged_seed_in_no_pair_spares_the_comparison(tmp_path):
    made, sweep = two_rows(tmp_path)
    made.add(sweep.rows[0], 1, strength=3.0)
    (run_folder(made.output, 'finetune', sweep.rows[0], 1) / 'predictions_test.csv').write_text('x')
    row = row_of(collect(sweep, [0, 1], made.output), '0.1')
    assert row['compared']['mean_of_five']['over_patients']['p'] < SIGNIFICANT
    assert row['over_patients'] == {} and 'predictions_test.csv' in row['problem']


def test_the_problem_names_the_run_that_keeps_rows_from_being_compared(tmp_path):
    made, sweep = two_rows(tmp_path)
    made.add(sweep.rows[0], 1, strength=3.0)
    for row, seed in ((sweep.rows[0], 1), (sweep.reference, 0)):
        folder = run_folder(made.output, 'finetune', row, seed)
        (folder / 'predictions_test.csv').write_text('x')
    row = row_of(collect(sweep, [0, 1], made.output), '0.1')
    assert str(folder) in row['problem'] and row['compared']['Edema']['verdict'] == 'n/a'


@pytest.mark.parametrize('name', ['report.json', 'scores.json'])
@pytest.mark.parametrize('content', ['x', DEEP])
def test_a_damaged_file_of_a_finished_run_is_named(name, content, tmp_path):
    made, sweep = two_rows(tmp_path)
    folder = run_folder(made.output, 'finetune', sweep.reference, 0)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)):
        collect(sweep, [0], made.output)


def test_a_split_without_scores_is_named(tmp_path):
    made, sweep = two_rows(tmp_path)
    file = run_folder(made.output, 'finetune', sweep.reference, 0) / 'scores.json'
    with pytest.raises(ValueError, match='on test, .* on internal'):
        collect(sweep, [0], made.output, split='internal')
    file.write_text('{"other": {}}')
    with pytest.raises(ValueError, match='no split'):
        collect(sweep, [0], made.output)


def test_files_are_compared_within_a_stage(tmp_path):
    made, sweep = two_rows(tmp_path)

    def read(stage, name):
        file = run_folder(made.output, stage, sweep.reference, 0) / 'run.json'
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {'data': {'files': {'train.csv': name}}}))
        return [n for n in notes(collect(sweep, [0], made.output)) if 'train.csv' in n]

    others = [row for row in sweep.rows if row is not sweep.reference]
    for row in others:
        file = run_folder(made.output, 'simmim', row, 0) / 'run.json'
        file.write_text(file.read_text().replace('ba5e', 'c0de'))
    assert read('simmim', 'c0de') == []
    assert 'fine-tuning' in read('finetune', 'other')[0]


def test_the_number_of_labels_is_no_difference_from_the_files(tmp_path):
    sweep = make_sweep(tmp_path, ['0.1', '0.6'])
    assert expected_config(sweep.reference, 'finetune').MODEL.NUM_CLASSES == 14
    assert expected_config(sweep.reference, 'simmim').MODEL.NUM_CLASSES == 1000


def test_cost_is_epochs_times_the_median_epoch():
    records = [{'epoch': -1, 'loss': 1.0}]
    records += [{'epoch': e, 'seconds': s, 'images_per_second': 80 / s} for e, s in
                enumerate((10.0, 30.0, 20.0))]  # fmt: skip
    # Interrupted at half an epoch: 40 images in 4 seconds.
    records.append({'epoch': 3, 'seconds': 4.0, 'images_per_second': 10.0})
    figures = pretraining_figures(records)
    assert figures['images'] == 320
    assert figures['seconds'] == 4 * (8 + 10 + 20 + 30 - 8 - 30) / 2


# Tables -----------------------------------------------------------------------------------------


def test_the_markdown_table_shows_what_was_found(five):
    rows = cells_of(sweep_markdown(five))
    names = [row['Masked share'] for row in rows]
    assert names == ['0.1', '0.6 (reference)', '0.7', '0.8', '0.9']
    # held-out L1 is 20 + seed in the last epoch
    l1 = [row['held-out L1 (grey levels)'] for row in rows]
    assert l1 == ['21.00 ± 1.00'] * 2 + ['20.00', '21.00 ± 1.00', 'n/a']
    score = 'AUROC, mean of five'
    verdicts = [row[f'{score}: verdict'] for row in rows]
    assert verdicts == ['above', '', 'inside the noise', 'below', 'n/a (note 2)']
    assert [row['finished seeds'][0] for row in rows] == ['3', '3', '1', '3', '0']
    assert [row['published, context only'] for row in rows] == ['82.8', '', '', '', '']
    values = scores_of(five['rows'][0], 'mean_of_five')
    assert rows[0][score] == f'{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}'
    part = five['rows'][3]['compared']['mean_of_five']
    low, high = (-part['over_patients'][end] for end in ('low', 'high'))
    wanted = f'−{-part["difference"]:.3f} (−{low:.3f} to −{high:.3f})'
    assert rows[3][f'{score}: difference (95 % over patients)'] == wanted


def test_the_csv_has_unrounded_numbers(five, tmp_path):
    path = write_sweep_table(five, tmp_path, ['Edema', 'mean_of_five'])
    assert path.read_text() == sweep_markdown(five, ['Edema', 'mean_of_five'])
    with open(tmp_path / 'swept.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    part = five['rows'][3]['compared']['Edema']
    assert float(rows[3]['Edema_difference']) == part['difference']
    assert float(rows[3]['Edema_p_holm']) == part['over_patients']['p_holm']
    assert rows[4]['Edema_mean'] == rows[2]['Edema_over_seeds_low'] == ''
    with pytest.raises(ValueError, match='Oedema'):
        sweep_markdown(five, ['Oedema'])


def test_saved_results_give_the_same_table(five, tmp_path):
    save_collected(five, tmp_path)
    assert read_collected(tmp_path, 'swept') == five
    for name in ('nih1000/mask_ratio', 'nih1000_methods/methods_small'):
        collected = read_collected((ROOT / 'docs/results' / name).parent, Path(name).name)
        assert len(cells_of(sweep_markdown(collected))) == len(collected['rows'])
    with pytest.raises(ValueError, match='other.json'):
        read_collected(tmp_path, 'other')


def test_a_file_that_is_not_of_saved_results_is_named(five, tmp_path):
    older = {key: value for key, value in five.items() if key != 'subsets'}
    others = [{}, [], older, five | {'sweep': 'other'}, five | {'rows': [{}]}]
    for content in (*map(json.dumps, others), DEEP):
        (tmp_path / 'swept.json').write_text(content)
        with pytest.raises(ValueError, match='swept.json'):
            read_collected(tmp_path, 'swept')


def test_metrics_at_the_threshold_come_from_the_report(tmp_path):
    made, sweep = two_rows(tmp_path)
    entry = {'label': 'Edema', 'scores': {name: {'value': 0.75} for name in
             ('recall', 'specificity', 'precision', 'f1', 'accuracy')}}  # fmt: skip
    means = {'five': None, 'labels': {'f1': {'value': 0.25}, 'ece': {'value': 1}}}
    folder = run_folder(made.output, 'finetune', sweep.rows[0], 0)
    report = {'sets': [{'name': 'valid'}, {'name': 'test', 'labels': [entry], 'means': means}]}
    (folder / 'report.json').write_text(json.dumps(report))
    collected = collect(sweep, [0], made.output, resamples=2)
    rows = cells_of(sweep_markdown(collected, ['Edema', 'f1:Edema', 'accuracy:Edema']))
    assert [row['F1, Edema'] for row in rows] == ['0.750', 'n/a']
    assert 'f1:Edema' not in collected['rows'][0]['compared']
    (row, _) = cells_of(sweep_markdown(collected, ['f1:mean_of_defined']))
    assert row[f'F1, mean of {len(LABELS) - 1} labels'] == '0.250'
    assert 'ece:mean_of_defined' not in known_scores(collected)  # lower is better
    with pytest.raises(ValueError, match='kappa:Edema'):  # not in the report
        sweep_markdown(collected, ['kappa:Edema'])


def test_published_scores_stand_next_to_ours_with_intervals(tmp_path):
    """Of a single label, at the threshold of the report; over the mean of two seeds."""
    made, scores = MadeRuns(tmp_path, level='image'), ['Edema', 'f1:Edema']
    files = {section: str(reference_files()[stage]) for section, stage in REFERENCE.items()}
    methods = {'simmim': files | {'finetune_options': {'DATA.LABELS': "['Edema']"}}}
    published = {
        'source': 'A 2020',
        'measure': 'AUROC and F1',
        'values': {'simmim_all': [0.8, 0.7]},
    }
    changes = {'methods': methods, 'shares': None, 'images': {50: {}, 'all': {}}}
    sweep = load_sweep(methods_file(tmp_path, published=published, scores=scores, **changes))
    edema, predicted = LABELS.index('Edema'), []
    for row in sweep.rows:
        for seed in (0, 1):
            p = made.add(row, seed, strength=2.0)[:, edema]
            f1 = {'value': f1_score(made.targets[:, edema], p >= 0.6)}
            label = {'label': 'Edema', 'threshold': 0.6, 'scores': {'f1': f1}}
            means = {'five': None, 'labels': None}
            report = {'sets': [{'name': 'test', 'labels': [label], 'means': means}]}
            folder = run_folder(made.output, 'finetune', row, seed)
            (folder / 'report.json').write_text(json.dumps(report))
            predicted += [p] if row.subset == 'all' else []
    collected = collect(sweep, [0, 1], made.output, resamples=DRAWS)
    assert not any(row['problem'] for row in collected['rows'])
    page = write_published_table(collected, scores, tmp_path)
    first, last = csv.DictReader(page.with_suffix('.csv').open())
    assert (first['row'], first['Edema_published']) == ('simmim_50', '')
    assert (last['Edema_published'], last['f1:Edema_published']) == ('0.8', '0.7')
    drawn = [
        np.mean([f1_score(made.targets[:, edema], p >= 0.6, sample_weight=w) for p in predicted])
        for w in Resamples(made.patients, resamples=DRAWS, seed=BOOTSTRAP_SEED).weights(
            made.patients
        )
    ]
    ends = [float(last[f'f1:Edema_{end}']) for end in ('low', 'high')]
    assert ends == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-5)
    for label, known in (('Edema', True), ('Any Finding', False)):
        other = replace(sweep, published=sweep.published | {'label': label})
        assert bool(collect(other, [0, 1], made.output, resamples=2)['published']) == known
    cells = cells_of(page.read_text())[1]
    assert cells['labels'] == 'all images' and cells['F1, Edema, published'] == '0.700'
    assert cells['F1, Edema'] == f'{float(last["f1:Edema"]):.3f} ({ends[0]:.3f} to {ends[1]:.3f})'


def test_runs_that_differ_from_the_files_are_noted(tmp_path):
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path))
    row = next(row for row in sweep.rows if row.method == 'moco')
    other = {'DATA.BATCH_SIZE': 32, 'TRAIN.ACCUMULATION_STEPS': 4, 'TRAIN.EPOCHS': 9}
    made.add_pretraining(row, 0)
    made.add_pretraining(row, 1, **other)
    collected = collect(sweep, [0, 1], made.output, resamples=2)
    run = 'mine_moco_seed1'
    changes = {d['change'] for d in collected['differences_from_files'] if d['runs'] == [run]}
    assert {'TRAIN.EPOCHS: 300 -> 9', 'images compared at once: 128 -> 32'} <= changes
    assert any('TRAIN.EPOCHS' in note and run in note for note in notes(collected))


def test_rows_of_other_held_out_images_are_marked(tmp_path):
    views = {'all': {'pretrain': {'DATA.VIEWS': 'all'}}, 'frontal': {}}
    keys = {'pretrain': ['DATA.VIEWS']}
    made, sweep = MadeRuns(tmp_path), load_sweep(ablation_file(tmp_path, views, keys=keys))
    for row in sweep.rows:
        made.add_pretraining(row, 0)
    file = run_folder(made.output, 'simmim', sweep.rows[0], 0) / 'metrics.jsonl'
    file.write_text(file.read_text().replace('43.5', '99.5'))
    text = sweep_markdown(collect(sweep, [0], made.output))
    l1 = [row['held-out L1 (grey levels)'] for row in cells_of(text)]
    assert l1 == ['20.00 *', '20.00'] and 'mean of the visible pixels 43.50,' in text


@pytest.mark.parametrize('kind', ['ablation', 'methods'])
def test_a_supervised_row_may_be_the_reference(kind, tmp_path):
    made = MadeRuns(tmp_path, level='image')
    files = {section: str(reference_files()[s]) for section, s in REFERENCE.items()}
    if kind == 'methods':
        sweep = load_sweep(methods_file(tmp_path, reference='scratch', shares={1: {}}))
    else:
        rows = {'simmim_1': {}, 'scratch_1': {'pretrain': 'none'}}
        reference = files | {'row': 'scratch_1'}
        sweep = load_sweep(ablation_file(tmp_path, rows, reference=reference))
    predicted = {}
    for row in sweep.rows:
        for seed in (0, 1):
            strength = 2.0 if row.pretraining else 1.0
            predicted[row.name, seed] = made.add(row, seed, strength=strength)
    collected = collect(sweep, [0, 1], made.output, resamples=50)
    assert collected['reference'] == 'scratch_1'
    found = row_of(collected, 'simmim_1')['compared']['Edema']
    edema, pairs = LABELS.index('Edema'), [('simmim_1', 1), ('scratch_1', -1)]
    areas = [
        sign * roc_auc_score(made.targets[:, edema], predicted[name, seed][:, edema])
        for name, sign in pairs
        for seed in (0, 1)
    ]
    assert found['difference'] == pytest.approx(sum(areas) / 2, abs=1e-5)
    cells = cells_of(sweep_markdown(collected))
    assert [row[sweep.title] for row in cells if 'reference' in row[sweep.title]] == [
        f'{sweep.reference.method or "scratch_1"} (reference)'
    ]


@pytest.mark.slow
def test_methods_are_compared_on_the_same_labels(tmp_path):
    made, sweep = MadeRuns(tmp_path, level='image'), load_sweep(methods_file(tmp_path))
    strengths = {'simmim': 1.0, 'moco': 2.5, 'scratch': 0.2}
    for row in sweep.rows:
        for seed in SEEDS:
            made.add(row, seed, strength=strengths[row.method])
    collected = collect(sweep, SEEDS, made.output, resamples=200)
    rows = cells_of(sweep_markdown(collected))
    assert [(row['Method'], row['labels']) for row in rows] == [
        (method, share)
        for share in ('10 %', '100 %')
        for method in ('simmim (reference)', 'moco', 'scratch')
    ]
    # Two epochs of 80 images in 10 seconds.
    assert [row['images seen in pre-training'] for row in rows[:3]] == ['160', '160', 'none']
    assert [row['minutes of pre-training'] for row in rows[:3]] == ['0.3', '0.3', 'none']
    assert [row['AUROC, mean of five: verdict'] for row in rows] == ['', 'above', 'below'] * 2
    moco, simmim = (row_of(collected, name) for name in ('moco_0.1', 'simmim_0.1'))
    wanted = np.mean(scores_of(moco, 'Edema')) - np.mean(scores_of(simmim, 'Edema'))
    assert moco['compared']['Edema']['difference'] == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(
    'options, words',
    [
        ([], []),
        (['MODEL.SIMMIM.TARGET', 'patch_normalised'], ['normalised patches']),
        (['MODEL.SIMMIM.TARGET', 'hog'], ['hog']),
        (['MODEL.SIMMIM.TARGET_SIZE', 48], ['several pixels']),
        (['EVAL.HOLDOUT_IMAGES', 3], ['EVAL.HOLDOUT_IMAGES']),
    ],
)
def test_errors_of_other_targets_or_images_are_not_compared(options, words):
    reference = default_config()
    config = default_config()
    config.merge_from_list(options)
    caveats = [*results._l1_caveats(config, reference)]
    assert len(caveats) == len(words)
    assert all(word in caveat for word, caveat in zip(words, caveats, strict=True))


def test_rows_that_are_scored_with_dropped_patches_are_marked_in_all_tables(tmp_path, monkeypatch):
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 20)
    made, sweep = two_rows(tmp_path)
    folder = run_folder(made.output, 'finetune', sweep.rows[0], 0)
    config = load_config(folder)
    config.EVAL.MASK_RATIO = 0.75
    (folder / 'config.yaml').write_text(config_text(config))
    collected = collect(sweep, [0], made.output, resamples=DRAWS)
    text = sweep_markdown(collected)
    assert '| 0.1 † |' in text and '| 0.6 † |' not in text and '† ' in text
    assert 'EVAL.MASK_RATIO): 0.1 75 %.' in text
    published = collected | {'published': {'source': '', 'measure': '', 'note': '', 'values': {}}}
    published['subsets'] = 'images'
    for row in published['rows']:
        row |= {'subset': 'all', 'method': row['name']}
    table = write_published_table(published, ['mean_of_defined'], tmp_path).read_text()
    assert '| 0.1 † |' in table and 'EVAL.MASK_RATIO): 0.1 75 %.' in table
    labels = write_label_table(published, tmp_path).read_text()
    assert '| 0.1 † |' in labels and 'EVAL.MASK_RATIO): 0.1 75 %.' in labels
    assert 'Few cases' in labels and ' positives) |' in labels and 'clinical' in labels


def test_the_best_row_is_that_of_the_mean_over_seeds(tmp_path):
    rows = {'all': {'against_best_of': ['low', 'none']}}
    rows |= {
        name: {'pretrain': 'none', 'finetune': {'TRAIN.LAYER_DECAY': decay}}
        for name, decay in (('low', 0.9), ('none', 1.0))
    }
    made, sweep = MadeRuns(tmp_path), load_sweep(ablation_file(tmp_path, rows))
    for row, scores in zip(sweep.rows, ((0.5, 0.5), (0.9, 0.5), (0.75, 0.75)), strict=True):
        for seed, score in enumerate(scores):
            made.add(row, seed)
            folder = run_folder(made.output, 'finetune', row, seed)
            (folder / 'metrics.jsonl').write_text(json.dumps({'epoch': 0, 'score': score}))
    assert collect(sweep, [0, 1], made.output, resamples=2)['rows'][0]['against'] == 'none'
