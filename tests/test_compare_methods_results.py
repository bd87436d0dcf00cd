"""Table and figures of a sweep of methods, from runs with made-up figures."""

import csv
import io
from copy import deepcopy

import numpy as np
import pytest
import yaml
from scipy import stats
from sweep_runs import EPOCH_IMAGES, RARE, SEEDS, MadeRuns, methods_file, row_of, saved_figures
from test_sweep_results import area

from data.labels import COMPETITION_LABELS, LABELS
from evaluation.intervals import Resamples
from sweeps import results as tables
from sweeps.files import load_sweep, run_folder
from sweeps.plots import COLOURS, MARKERS, plot_labels, plot_subsets
from sweeps.results import collect, read_rows, write_rows

STRENGTHS = {'simmim': 1.0, 'moco': 2.5, 'scratch': 0.4}
DRAWS = {'resamples': 200, 'bootstrap_seed': 5}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """All runs but the last seed of moco with a tenth of the labels."""
    folder = tmp_path_factory.mktemp('runs')
    made, sweep = MadeRuns(folder, level='image'), load_sweep(methods_file(folder))
    predicted = {
        (row.name, seed): made.add(row, seed, strength=STRENGTHS[row.method] * float(row.subset))
        for row in sweep.rows
        for seed in SEEDS
        if (row.name, seed) != ('moco_0.1', 2)
    }
    return made, predicted, collect(sweep, SEEDS, made.output, **DRAWS)


@pytest.fixture
def collected(finished):
    return deepcopy(finished[-1])


@pytest.fixture
def figures(monkeypatch):
    return saved_figures(monkeypatch)


def scores_of(row, score):
    figures = [entry['finetune']['figures'] for entry in row['seeds']]
    return [found['scores'][score] for found in figures if found]


def table_of(text):
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    head, _, *rows = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_each_method_is_compared_with_the_reference_on_the_same_labels(collected):
    for subset in ('0.1', '1'):
        reference = scores_of(row_of(collected, f'simmim_{subset}'), 'Edema')
        for method in ('moco', 'scratch'):
            row = row_of(collected, f'{method}_{subset}')
            own = scores_of(row, 'Edema')
            wanted = stats.ttest_rel(own, reference[: len(own)])
            part = row['compared']['Edema']
            assert row['against'] == f'simmim_{subset}' and part['seeds'] == len(own)
            assert part['difference'] == pytest.approx(
                np.mean(own) - np.mean(reference[: len(own)]), abs=2e-6
            )
            low, high = wanted.confidence_interval(0.95)
            found = part['over_seeds']
            assert (found['low'], found['high']) == pytest.approx((low, high), rel=1e-4, abs=1e-5)
        assert row_of(collected, f'simmim_{subset}')['compared'] == {}


def test_a_method_is_compared_with_the_one_that_it_names(finished, tmp_path):
    made, _, _ = finished
    content = yaml.safe_load(methods_file(tmp_path).read_text())
    for method in ('simmim', 'moco'):
        content['methods'][method]['against'] = 'scratch'
    sweep = load_sweep(methods_file(tmp_path, methods=content['methods']))
    found = collect(sweep, SEEDS, made.output, **DRAWS)
    assert [row['against'] for row in found['rows'][3:]] == ['scratch_1', 'scratch_1', '']
    names = [row['Method'] for row in table_of(tables.markdown(found))]
    assert names[3:] == ['simmim (reference, against scratch)', 'moco (against scratch)', 'scratch']
    moco, scratch = (row_of(found, name) for name in ('moco_1', 'scratch_1'))
    wanted = np.mean(scores_of(moco, 'Edema')) - np.mean(scores_of(scratch, 'Edema'))
    assert moco['compared']['Edema']['difference'] == pytest.approx(wanted, abs=2e-6)
    for other in ('moco', 'other'):
        content['methods']['moco']['against'] = other
        with pytest.raises(ValueError, match=r"moco: against: must be one of \['simmim', 'scratch"):
            load_sweep(methods_file(tmp_path, methods=content['methods']))


@pytest.mark.parametrize(
    ('name', 'score'),
    [('simmim_1', 'mean_of_five'), ('moco_1', 'Edema'), ('moco_0.1', 'Edema')],
)
def test_interval_of_a_score_is_that_of_cases_written_out(finished, name, score):
    made, predicted, collected = finished
    weights = Resamples(made.patients, resamples=200, seed=5).weights(made.patients)
    labels = COMPETITION_LABELS if score == 'mean_of_five' else (score,)
    seeds = [seed for seed in SEEDS if (name, seed) in predicted]
    drawn = []
    for weight in weights:
        rows = np.repeat(np.arange(len(weight)), weight)
        drawn.append(np.mean([
            area(predicted[name, seed][rows, LABELS.index(label)],
                 made.targets[rows, LABELS.index(label)])
            for seed in seeds for label in labels
        ]))  # fmt: skip
    found = row_of(collected, name)['over_patients'][score]
    wanted = np.percentile(drawn, [2.5, 97.5])
    assert (found['low'], found['high']) == pytest.approx(tuple(wanted), abs=1e-5)


def test_the_table_says_method_labels_images_and_minutes(collected):
    rows = table_of(tables.markdown(collected))
    assert [(row['Method'], row['labels']) for row in rows] == [
        (method, share)
        for share in ('10 %', '100 %')
        for method in ('simmim (reference)', 'moco', 'scratch')
    ]
    # Two epochs of 10 seconds.
    assert [row['pre-training images seen'] for row in rows] == ['160', '160', 'none'] * 2
    assert [row['pre-training minutes'] for row in rows] == ['0.3', '0.3', 'none'] * 2
    assert [row['held-out L1 (grey levels)'] for row in rows] == [
        '21.00 ± 1.00', 'none', 'none'
    ] * 2  # fmt: skip
    assert [row['finished seeds'] for row in rows] == ['3 of 3', '2 of 3'] + ['3 of 3'] * 4
    assert [row['verdict'] for row in rows][3:] == ['', 'above', 'below']
    notes = tables.markdown_notes(collected)
    assert any('compared with simmim where no other is named' in note for note in notes)
    assert any('without evaluation, on a CPU; means over the seeds' in note for note in notes)
    assert not any('in more than this sweep varies' in note for note in notes)
    differ = [note for note in notes if 'differ from the sweep' in note]
    # As MadeRuns has it.
    assert [note.partition('in: ')[2] for note in differ] == [
        'EVAL.LEVEL image for study (pre-training); EVAL.LEVEL image for study (contrastive '
        'pre-training); EVAL.LEVEL image for study (fine-tuning).'
    ]
    assert notes[-1] == '- Not for clinical use.'


def test_csv_has_what_pretraining_took(collected):
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(collected))))
    assert [(r['method'], r['subset'], r['pretraining']) for r in rows[:3]] == [
        ('simmim', '0.1', 'simmim'), ('moco', '0.1', 'contrastive'), ('scratch', '0.1', '')
    ]  # fmt: skip
    assert [r['pretrain_images'] for r in rows[:3]] == [str(2.0 * EPOCH_IMAGES)] * 2 + ['']
    assert [r['pretrain_seconds'] for r in rows[:3]] == ['20.0'] * 2 + ['']


def test_table_and_figures_are_made_of_files_alone(collected, tmp_path):
    write_rows(collected, tmp_path)
    again = read_rows(tmp_path, 'mine')
    for make in (tables.markdown, tables.csv_text, tables.latex):
        assert make(again) == make(collected)
    for draw in (plot_labels, plot_subsets):
        for name, results in (('a', collected), ('b', again)):
            draw(tmp_path / f'{name}.svg', results)
        assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def points_of(axis):
    """Colour and marker of each point, its place, and its bar's ends or None."""
    found = []
    for container in axis.containers:
        line, _, bars = container
        segments = bars[0].get_segments() if bars else []
        for place, (x, y) in enumerate(line.get_xydata()):
            bar = segments[place] if segments else None
            found.append((line.get_color(), line.get_marker(), (x, y), bar))
    return found


@pytest.mark.parametrize('subset', [None, '0.1'])
def test_the_figure_of_labels_shows_means_with_intervals(collected, figures, tmp_path, subset):
    plot_labels(tmp_path / 'new' / 'labels.png', collected, subset)
    (axis,) = figures[0].axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    shown = [f'{label} (n/a)' if label == RARE else label for label in LABELS]
    assert names == ['mean of five', *shown]
    place, number = names.index('Edema'), 0
    for number, method in enumerate(STRENGTHS):
        row = row_of(collected, f'{method}_{subset or 1}')
        own = [point for point in points_of(axis) if point[0] == COLOURS[number]]
        assert len(own) == len(names) - 1 and {point[1] for point in own} == {MARKERS[number]}
        (point,) = [point for point in own if abs(point[2][1] - place) < 0.5]
        assert point[2][0] == pytest.approx(np.mean(scores_of(row, 'Edema')), abs=1e-6)
        part = row['over_patients']['Edema']
        assert sorted(point[3][:, 0]) == pytest.approx([part['low'], part['high']], abs=1e-6)
    assert f'labelled: {100 * float(subset or 1):g} %' in axis.get_xlabel()
    said = figures[0].get_supxlabel()
    assert 'Bars: 95 % over patients' in said and 'Not for clinical use.' in said
    legend = figures[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [
        'simmim (reference)', 'moco', 'scratch'
    ]  # fmt: skip
    assert [handle.get_markerfacecolor() for handle in legend.legend_handles] == [
        COLOURS[0], COLOURS[1], 'white'
    ]  # fmt: skip


def test_the_figure_of_shares_shows_means_with_intervals_over_seeds(collected, figures, tmp_path):
    plot_subsets(tmp_path / 'shares.png', collected)
    (axis,) = figures[0].axes
    assert axis.get_xscale() == 'log' and axis.get_ylabel() == 'AUROC, mean of five'
    assert [text.get_text() for text in axis.get_xticklabels()] == ['10', '100']
    for number, method in enumerate(STRENGTHS):
        own = [point for point in points_of(axis) if point[0] == COLOURS[number]]
        for point, subset, percent in zip(own, ('0.1', '1'), (10, 100), strict=True):
            values = scores_of(row_of(collected, f'{method}_{subset}'), 'mean_of_five')
            assert point[2] == pytest.approx((percent, np.mean(values)), rel=0.1)
            interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            assert sorted(point[3][:, 1]) == pytest.approx(interval, abs=1e-5)
    assert "95 % over seeds, by Student's t" in figures[0].get_supxlabel()
    plot_subsets(tmp_path / 'edema.pdf', collected, 'Edema')
    assert figures[1].axes[0].get_ylabel() == 'AUROC, Edema'


def test_one_seed_has_no_bar_and_no_run_no_point(collected, figures, tmp_path):
    for row in collected['rows']:
        row['seeds'] = row['seeds'][:1] if row['method'] == 'moco' else []
        row['over_patients'] = {}
    plot_subsets(tmp_path / 'shares.png', collected)
    plot_labels(tmp_path / 'labels.png', collected)
    first, second = (points_of(figure.axes[0]) for figure in figures)
    assert [point[0] for point in first] == [COLOURS[1]] * 2
    assert not any(np.size(point[3]) and np.isfinite(point[3]).all() for point in first)
    assert {point[0] for point in second} == {COLOURS[1]} and len(second) == len(LABELS)
    assert figures[1].get_supxlabel().startswith('No intervals.')


def test_mistakes_are_named(collected, tmp_path):
    with pytest.raises(ValueError, match=r"shares 0\.3: there are \['0\.1', '1'\]"):
        plot_labels(tmp_path / 'a.png', collected, '0.3')
    with pytest.raises(ValueError, match=r'must end in \.png, \.pdf, \.svg'):
        plot_labels(tmp_path / 'a.bmp', collected)
    with pytest.raises(ValueError, match="no score 'Oedema'"):
        plot_subsets(tmp_path / 'a.png', collected, 'Oedema')


def test_numbers_of_images_are_shown_as_such(tmp_path, figures):
    made = MadeRuns(tmp_path)
    path = methods_file(tmp_path, shares=None, images={1000: {}, 10000: {}})
    collected = collect(load_sweep(path), [0], made.output, **DRAWS)
    assert [row['labels'] for row in table_of(tables.markdown(collected))] == [
        *['1,000 images'] * 3, *['10,000 images'] * 3
    ]  # fmt: skip
    plot_subsets(tmp_path / 'images.png', collected)
    assert figures[0].axes[0].get_xlabel() == 'labelled images'


def test_no_two_methods_are_drawn_alike():
    drawn = {(COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]) for n in range(72)}
    assert len(drawn) == 72


def test_probes_have_scores_and_no_epochs(tmp_path):
    probe = {1: {'FINETUNE.MODE': 'linear_probe'}}
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path, shares=probe))
    for row in sweep.rows:
        made.add(row, 0, strength=STRENGTHS[row.method])
        (run_folder(made.output, 'finetune', row, 0) / 'metrics.jsonl').unlink()
    found = collect(sweep, [0], made.output, **DRAWS)
    scored = [score for row in found['rows'] for score in scores_of(row, 'Edema')]
    wanted = [made.scores(s, 0)['auroc']['Edema'] for s in STRENGTHS.values()]
    assert scored == pytest.approx(wanted, abs=1e-6)
    notes = '\n'.join(tables.markdown_notes(found))
    assert r'fine-tuning (linear\_probe) of the same; DATA.TRAIN\_FRACTION 1.' in notes
