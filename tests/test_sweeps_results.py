"""Results of a sweep: figures, paired differences against independent computations, tables."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats
from sweep_commands import load_script
from sweep_runs import (
    SEEDS,
    MadeRuns,
    collect_five,
    make_sweep,
    methods_file,
    row_of,
    with_rows,
)

from data.labels import COMPETITION_LABELS, LABELS
from evaluation.compare import bootstrap_p, holm
from evaluation.intervals import Resamples
from sweeps.files import ROOT, expected_config, load_sweep, run_folder
from sweeps.results import (
    SIGNIFICANT,
    FinetunedRun,
    _other_row,
    collect,
    enough_resamples,
    finding_rows,
    is_augmented,
    notes,
    read_collected,
    save_collected,
    sweep_markdown,
    training_cost,
    verdict,
    write_sweep_table,
)

DRAWS = {'resamples': 40, 'bootstrap_seed': 5}
STRENGTHS = {'0.1': 1.6, '0.6': 1.0, '0.8': 1.1, '0.9': 0.9}
NAN = float('nan')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Four finished rows with three seeds, scored image by image."""
    made = MadeRuns(tmp_path_factory.mktemp('runs'), level='image')
    sweep = make_sweep([*STRENGTHS], reference=1)
    predicted = {
        (row.name, seed): made.add(row, seed, strength=STRENGTHS[row.name])
        for row in sweep.rows
        for seed in SEEDS
    }
    return made, predicted, collect(sweep, SEEDS, made.output, **DRAWS)


@pytest.fixture(scope='module')
def five(tmp_path_factory):
    return collect_five(tmp_path_factory.mktemp('runs'))


def two_rows(folder: Path, *, seeds: tuple[int, ...] = (0,), **options):
    """Finished runs of a row and the reference."""
    made, sweep = MadeRuns(folder, **options), make_sweep(['0.1', '0.6'], reference=1)
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


def brute_force(made, predicted, name, score, rows):
    """Difference of the mean AUROC over seeds from the reference, on these (repeated) rows."""
    means = []
    for which in (name, '0.6'):
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
    weights = Resamples(made.patients, resamples=40, seed=5).weights(made.patients)
    part = row_of(collected, '0.1')['compared'][score]
    everyone = np.arange(len(made.patients))
    wanted = brute_force(made, predicted, '0.1', score, everyone)
    assert part['difference'] == pytest.approx(wanted, abs=1e-5)
    drawn = [brute_force(made, predicted, '0.1', score, np.repeat(everyone, w)) for w in weights]
    found = part['over_patients']
    wanted = np.percentile(drawn, [2.5, 97.5])
    assert (found['low'], found['high']) == pytest.approx(tuple(wanted), abs=1e-5)
    fewer = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0))
    assert found['p'] == pytest.approx(min(1, 2 * (1 + fewer) / 41), abs=1e-5)


@pytest.mark.parametrize('score', ['mean_of_five', 'Pneumonia'])
def test_seed_intervals_equal_those_of_a_paired_t_test(finished, score):
    reference = scores_of(row_of(finished[-1], '0.6'), score)
    for name in ('0.1', '0.8', '0.9'):
        row = row_of(finished[-1], name)
        wanted = stats.ttest_rel(scores_of(row, score), reference).confidence_interval(0.95)
        part = row['compared'][score]
        found = part['over_seeds']
        assert (found['low'], found['high']) == pytest.approx((wanted.low, wanted.high), abs=1e-5)
        assert part['seeds'] == 3


def test_p_values_are_adjusted_over_the_rows(finished):
    rows = [row for row in finished[-1]['rows'] if row['against']]
    parts = [row['compared']['mean_of_five']['over_patients'] for row in rows]
    adjusted = holm([part['p'] for part in parts])
    assert [part['p_holm'] for part in parts] == pytest.approx(adjusted, abs=1e-5)
    assert any(part['p_holm'] > part['p'] for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    'path', sorted(ROOT.glob('scripts/comparison/*.yaml')), ids=lambda p: p.stem
)
def test_draws_suffice_for_every_row_to_be_significant(path):
    sweep = load_sweep(path)
    rows = sum(_other_row(sweep, row) != '' for row in sweep.rows)
    samples = np.linspace(0.01, 0.02, enough_resamples(rows))
    patients = {'low': 0.01, 'high': 0.02}
    adjusted = holm([bootstrap_p(samples)] * rows)[0]
    assert adjusted < SIGNIFICANT / 4
    part = {'difference': 0.015, 'over_seeds': patients}
    assert verdict(part | {'over_patients': patients | {'p_holm': adjusted}}) == 'above'


@pytest.mark.parametrize(
    'seeds, patients, difference, p_holm, wanted',
    [
        ((0.01, 0.05), (0.02, 0.04), 0.03, 0.01, 'above'),
        ((-0.01, 0.07), (0.02, 0.04), 0.03, 0.01, 'inside the noise'),
        ((0.01, 0.05), (0.001, 0.06), 0.03, 0.05, 'inside the noise'),
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
    part = row['compared']['mean_of_five']
    assert part['seeds'] == 1 and part['over_seeds'] == {'low': None, 'high': None}
    assert row_of(collected, '0.9')['compared'] == {} and row_of(collected, '0.9')['problem']


def test_rows_are_compared_with_the_row_they_name(tmp_path):
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


def test_rows_scored_on_other_cases_are_not_compared(tmp_path):
    made, sweep = two_rows(tmp_path)
    file = run_folder(made.output, 'finetune', sweep.rows[0], 0) / 'scores.json'
    scores = json.loads(file.read_text())
    scores['test']['selected']['views'] = 'all'
    file.write_text(json.dumps(scores))
    row = row_of(collect(sweep, [0], made.output), '0.1')
    assert row['compared'] == {} and 'views' in row['problem']


def test_without_the_labels_only_seeds_are_compared(tmp_path):
    made, sweep = two_rows(tmp_path, seeds=(0, 1))
    file = made.data / 'test.csv'
    file.unlink()
    row = row_of(collect(sweep, [0, 1], made.output), '0.1')
    part = row['compared']['mean_of_five']
    assert part['over_patients'] == {'low': None, 'high': None, 'p': None, 'p_holm': None}
    assert part['over_seeds']['low'] is not None and row['patients'] == 0
    assert row['problem'] and str(tmp_path) not in row['problem']


def test_a_damaged_file_of_a_finished_run_is_named(tmp_path):
    made, sweep = MadeRuns(tmp_path), make_sweep(['0.6'])
    made.add(sweep.reference, 0)
    file = run_folder(made.output, 'simmim', sweep.reference, 0) / 'metrics.jsonl'
    file.write_text('x')
    with pytest.raises(ValueError, match=str(file)):
        collect(sweep, [0], made.output)


def test_cost_is_epochs_times_the_median_epoch():
    records = [{'epoch': -1, 'loss': 1.0}]
    records += [{'epoch': e, 'seconds': s, 'images_per_second': 80 / s} for e, s in
                enumerate((10.0, 30.0, 20.0))]  # fmt: skip
    # Interrupted at half an epoch: 40 images in 4 seconds.
    records.append({'epoch': 3, 'seconds': 4.0, 'images_per_second': 10.0})
    wanted = {'epochs': 4, 'images': 320, 'seconds': 4 * (8 + 10 + 20 + 30 - 8 - 30) / 2}
    assert training_cost(records) == wanted
    assert training_cost(records[:1]) is None


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
    assert verdicts == ['above', '', 'inside the noise', 'below', 'n/a']
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
    assert rows[3]['mean_of_five_verdict'] == 'below'
    with pytest.raises(ValueError, match='Oedema'):
        sweep_markdown(five, ['Oedema'])


def test_saved_results_give_the_same_table(five, tmp_path):
    save_collected(five, tmp_path)
    assert read_collected(tmp_path, 'swept') == five
    for name in ('mask_ratio', 'mask_size', 'head', 'loss'):  # one file per row, as before
        collected = read_collected(ROOT / 'docs/results/nih1000', name)
        assert len(cells_of(sweep_markdown(collected))) == len(collected['rows'])
    with pytest.raises(ValueError, match='other.json'):
        read_collected(tmp_path, 'other')


def test_unfair_comparisons_are_noted(tmp_path):
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path))
    row = sweep.methods['moco']
    other = {'DATA.BATCH_SIZE': 32, 'TRAIN.ACCUMULATION_STEPS': 4, 'TRAIN.EPOCHS': 9}
    made.add_pretraining(row, 0)
    made.add_pretraining(with_rows(sweep, **{row.run: {'pretrain': other}}).methods['moco'], 1)
    collected = collect(sweep, [0, 1], made.output, resamples=2)
    found = {(d['key'], d['found'], d['expected'], *d['runs'])
             for d in collected['differences_from_files']}  # fmt: skip
    run = 'mine_moco_seed1'
    assert {('images compared at once', '32', '128', run), ('TRAIN.EPOCHS', '9', '300', run)} <= (
        found
    )
    assert any('TRAIN.EPOCHS' in note and run in note for note in notes(collected))


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


# The table of a binary task ---------------------------------------------------------------------

PLAIN = {'AUTO_AUGMENT': 'none', 'COLOR_JITTER': 0.0, 'REPROB': 0.0, 'HFLIP': 0.0}
PLAIN |= {'CROP_AREA': [1.0, 1.0]}
VALUES = {'accuracy': 0.7, 'precision': 0.8, 'f1': 8 / 11, 'recall': 4 / 6, 'auroc': 0.8125}


def finetuned(folder: Path, **sections) -> Path:
    """Write config.yaml, run.json and report.json of a run of a binary task."""
    config = {'MODEL': {'TYPE': 'vit'}, 'AUG': PLAIN} | sections
    config['DATA'] = {'TASK': 'any_finding', 'TRAIN_IMAGES': 1000} | config.get('DATA', {})
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    (folder / 'run.json').write_text(json.dumps({'finished': 'now'}))
    scores = {name: {'value': value, 'low': None, 'high': None} for name, value in VALUES.items()}
    scores['auroc'] |= {'low': 0.55, 'high': 0.9996}
    entry = {'label': 'Any Finding', 'n': 10, 'positives': 6, 'scores': scores}
    test = {'name': 'test', 'level': 'image', 'views': 'frontal', 'labels': [entry]}
    (folder / 'report.json').write_text(json.dumps({'sets': [test]}))
    return folder


@pytest.mark.parametrize(
    'stage, sections, title',
    [
        ('simmim', {'MODEL': {'PRETRAIN': 'mae'}}, 'MAE'),
        ('contrastive', {'CONTRASTIVE': {'METHOD': 'swav'}}, 'SwAV'),
        ('finetune', {}, 'n/a'),
    ],
)
def test_the_method_of_pretraining_is_that_of_its_run(tmp_path, stage, sections, title):
    before = finetuned(tmp_path / 'before', **sections)
    (before / 'run.json').write_text(json.dumps({'stage': stage}))
    folder = finetuned(tmp_path / 'r', PRETRAINED=str(before / 'ckpt_epoch_9.pth'))
    (row,) = finding_rows([FinetunedRun(folder, None)])
    assert row['pretraining'] == title


def test_the_finding_table_is_printed_and_written(tmp_path, capsys):
    script = load_script('finding_table')
    folder, table = finetuned(tmp_path / 'a'), tmp_path / 'table.csv'
    words = [str(folder), '--masked', '0.75', '--csv', str(table)]
    assert script.main(script.parse_args(words)) == 0
    printed = capsys.readouterr().out
    assert (
        '| 1,000 | vit, width 768 | no | - | 0.75 | 0.700 | 0.800 | 0.727 | 0.667 '
        '| 0.812 (0.550 to 1.000) | 10 images (6 positive), frontal, test |'
    ) in printed
    # Fradkin and Boxer 2023.
    assert '| 1,000 | MAE ViT-B | yes | MAE | 0.75 | 0.710 | 0.695 | 0.739 | 0.788 |' in printed
    with open(table, newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['source'] for row in rows] == ['run'] + ['published'] * 12
    assert float(rows[0]['f1']) == 8 / 11 and float(rows[0]['auroc_high']) == 0.9996
    assert rows[0]['precision_low'] == rows[1]['run'] == ''


@pytest.mark.slow
def test_the_finding_table_of_a_sweep_has_its_finished_runs(tmp_path, capsys):
    script, path = load_script('finding_table'), ROOT / 'scripts/comparison/mae_resnet.yaml'
    rows = {row.name: row for row in load_sweep(path).rows}
    before = finetuned(run_folder(tmp_path, 'simmim', rows['mae_0.25_1000'], 1),
                       DATA={'MASK_RATIO': 0.25}, MODEL={'PRETRAIN': 'mae'})  # fmt: skip
    (before / 'run.json').write_text(json.dumps({'stage': 'simmim', 'finished': 'now'}))
    finetuned(run_folder(tmp_path, 'finetune', rows['mae_0.25_1000'], 1), PRETRAINED='gone/x.pth')
    words = ['--sweep', str(path), '--output', str(tmp_path), '--seeds', '2']
    assert script.main(script.parse_args(words)) == 0
    printed = capsys.readouterr()
    own = [line for line in printed.out.splitlines() if str(tmp_path) in line]
    assert [line.split(' | ')[:5] for line in own] == [
        ['| 1,000', 'vit, width 768', 'no', 'MAE', '0.25']
    ]
    assert len(printed.err.splitlines()) == 2 * len(rows) - 1


def test_runs_of_other_tasks_are_refused(tmp_path):
    good = FinetunedRun(finetuned(tmp_path / 'good'), None)
    many = FinetunedRun(finetuned(tmp_path / 'a', DATA={'TASK': 'observations'}), None)
    other = FinetunedRun(finetuned(tmp_path / 'b', DATA={'TASK': 'effusion'}), None)
    with pytest.raises(ValueError, match='DATA.TASK'):
        finding_rows([good, many])
    with pytest.raises(ValueError, match='Pleural Effusion'):
        finding_rows([other])
    with pytest.raises(ValueError, match='holdout'):
        finding_rows([good], 'holdout')
    (good.folder / 'report.json').unlink()
    with pytest.raises(ValueError, match=r'report\.json'):
        finding_rows([good])


@pytest.mark.slow
def test_every_augmentation_of_the_study_is_found():
    sweep = load_sweep(ROOT / 'scripts/comparison/mae_resnet.yaml')
    for row in sweep.rows:
        config = expected_config(sweep, row, 'finetune')
        assert is_augmented(config) == ('plain' not in row.name)
