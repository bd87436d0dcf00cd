"""Figures of a sweep: what is drawn, from the recorded results in docs/results."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from sweep_runs import SEEDS, MadeRuns, methods_file, row_of

from data.labels import LABELS
from sweeps.files import ROOT, load_sweep, run_folder
from sweeps.plots import (
    COLOURS,
    MARKERS,
    SIGNIFICANT_COLOUR,
    plot_curves,
    plot_labels,
    plot_losses,
    plot_masks,
    plot_subsets,
    plot_sweep,
)
from sweeps.results import read_collected

METHODS = ('simmim', 'mae', 'moco', 'simclr', 'byol', 'swav', 'scratch')


@pytest.fixture
def methods():
    return read_collected(ROOT / 'docs/results/nih1000_methods', 'methods_small')


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved, save = [], Figure.savefig

    def keep(figure, *args, **options):
        save(figure, *args, **options)
        saved.append(figure)

    monkeypatch.setattr(Figure, 'savefig', keep)
    return saved


def scores_of(row, score):
    return [entry['finetune']['figures']['scores'][score] for entry in row['seeds']]


def points_of(axis, colour):
    """Marker of each point of a colour, its place, and the ends of its bar."""
    found = []
    for line, _, bars in axis.containers:
        segments = bars[0].get_segments() if bars else []
        for place, xy in enumerate(line.get_xydata()):
            if line.get_color() == colour:
                found.append((line.get_marker(), xy, segments[place] if segments else None))
    return found


def test_the_figure_shows_paired_differences_with_both_intervals(figures, tmp_path):
    collected = read_collected(ROOT / 'docs/results/nih1000', 'mask_ratio')
    row = row_of(collected, '0.9')
    part = row['compared']['Pneumonia']
    part |= {'verdict': 'below', 'seeds': 2, 'by_seed': [0.01, 0.02]}
    plot_sweep(tmp_path / 'new' / 'figure.png', collected, 'Pneumonia')
    (axis,) = figures[0].axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ['0.1', '0.3', '0.5', '0.6 (reference)', '0.75', '0.9']
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row is at the top
    zero, *drawn = [line.get_xydata().tolist() for line in axis.lines]
    assert [x for x, _ in zero] == [0, 0]
    ends = [[[part[noise][end], 5] for end in ('low', 'high')]
            for noise in ('over_patients', 'over_seeds')]  # fmt: skip
    by_seed = [[0.01, 5.3], [0.02, 5.3]]
    assert drawn[-4:] == [*ends, by_seed, [[part['difference'], 5]]] and len(drawn) == 3 * 5 + 1
    faces = [line.get_markerfacecolor() for line in axis.lines if line.get_marker() == 'o']
    assert faces == ['white'] * 4 + [SIGNIFICANT_COLOUR]
    assert '2 seeds' in [text.get_text() for text in axis.texts]
    assert 'reference' in axis.texts[0].get_text()
    collected['rows'].append(row | {'name': 'pixels', 'against': '', 'compared': {}})
    part |= {'verdict': 'n/a'}
    plot_sweep(tmp_path / 'figure.png', collected, 'Pneumonia')
    (axis,) = figures[1].axes
    assert 'not compared' in [text.get_text() for text in axis.texts]
    assert [line.get_marker() for line in axis.lines if line.get_marker() in 'ox'] == [*'oooox']
    assert 'no verdict' in [text.get_text() for text in figures[1].legends[0].get_texts()]
    with pytest.raises(ValueError, match='f1:Pneumonia'):
        row['seeds'][0]['finetune']['figures']['scores']['f1:Pneumonia'] = 0.5
        plot_sweep(tmp_path / 'figure.png', collected, 'f1:Pneumonia')


def test_unknown_scores_and_subsets_are_refused(methods, tmp_path):
    with pytest.raises(ValueError, match='Oedema'):
        plot_subsets(tmp_path / 'a.png', methods, 'Oedema')
    with pytest.raises(ValueError, match=r'0\.3'):
        plot_labels(tmp_path / 'a.png', methods, '0.3')


def test_the_figure_of_labels_shows_means_with_patient_intervals(methods, figures, tmp_path):
    plot_labels(tmp_path / 'labels.png', methods, '0.1')
    (axis,) = figures[0].axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ['mean of five', *LABELS]
    for number, method in enumerate(METHODS):
        row, own = row_of(methods, f'{method}_0.1'), points_of(axis, COLOURS[number])
        assert {marker for marker, _, _ in own} == {MARKERS[number]}
        (point,) = [point for point in own if abs(point[1][1] - names.index('Edema')) < 0.5]
        mean, part = np.mean(scores_of(row, 'Edema')), row['over_patients']['Edema']
        assert point[1][0] == pytest.approx(mean, abs=1e-6)
        ends = min(part['low'], mean), max(part['high'], mean)
        assert sorted(point[2][:, 0]) == pytest.approx(ends, abs=1e-6)
    faces = [handle.get_markerfacecolor() for handle in figures[0].legends[0].legend_handles]
    assert faces == [*COLOURS[:6], 'white']  # not pre-trained


def test_the_figure_of_shares_shows_means_with_seed_intervals(methods, figures, tmp_path):
    plot_subsets(tmp_path / 'shares.png', methods)
    (axis,) = figures[0].axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ['10', '100']
    for number, method in enumerate(METHODS):
        own = points_of(axis, COLOURS[number])
        for point, subset, percent in zip(own, ('0.1', '1'), (10, 100), strict=True):
            values = scores_of(row_of(methods, f'{method}_{subset}'), 'mean_of_five')
            assert point[1] == pytest.approx((percent, np.mean(values)), rel=0.15)
            interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            assert sorted(point[2][:, 1]) == pytest.approx(interval, abs=1e-5)


def test_a_figure_may_have_a_single_subset(methods, figures, tmp_path):
    rows = [row | {'subset': 'all'} for row in methods['rows'] if row['subset'] == '1']
    plot_subsets(tmp_path / 'all.png', methods | {'rows': rows})
    assert [text.get_text() for text in figures[0].axes[0].get_xticklabels()] == ['all']


def test_with_one_seed_the_figure_of_shares_shows_intervals_over_patients(
    methods, figures, tmp_path
):
    rows = [row | {'seeds': row['seeds'][:1]} for row in methods['rows']]
    plot_subsets(tmp_path / 'shares.png', methods | {'rows': rows, 'seeds': [0]}, 'Edema')
    (axis,) = figures[0].axes
    for number, method in enumerate(METHODS):
        for point, subset in zip(points_of(axis, COLOURS[number]), ('0.1', '1'), strict=True):
            part = row_of(methods, f'{method}_{subset}')['over_patients']['Edema']
            ends = min(part['low'], point[1][1]), max(part['high'], point[1][1])
            assert sorted(point[2][:, 1]) == pytest.approx(ends, abs=1e-5)


def test_the_figure_of_differences_with_subsets_only_has_compared_rows(methods, figures, tmp_path):
    plot_sweep(tmp_path / 'differences.png', methods)
    (axis,) = figures[0].axes
    compared = [row for row in methods['rows'] if row['against']]
    assert 0 < len(compared) < len(methods['rows'])
    assert len(axis.get_yticklabels()) == len(compared)


def test_all_images_are_right_of_the_greatest_number(methods, figures, tmp_path):
    subsets = {'0.1': '1000', '1': 'all'}
    rows = [row | {'subset': subsets[row['subset']]} for row in methods['rows']]
    plot_subsets(tmp_path / 'images.png', methods | {'rows': rows, 'subsets': 'images'})
    (axis,) = figures[0].axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ['1,000', 'all']
    own = [xy for _, xy, _ in points_of(axis, COLOURS[0])]
    assert own[1][0] > 2 * own[0][0]
    wanted = [
        np.mean(scores_of(row, 'mean_of_five')) for row in rows if row['method'] == METHODS[0]
    ]
    assert sorted(y for _, y in own) == pytest.approx(sorted(wanted))


def test_scores_are_drawn_by_the_distance_to_visible_pixels(figures, tmp_path):
    collected = read_collected(ROOT / 'docs/results/nih1000', 'mask_size')
    sweep = load_sweep(ROOT / 'scripts/ablations/nano/mask_size.yaml')
    plot_masks(tmp_path / 'masks.png', sweep, collected, 'Pneumonia')
    (axis,) = figures[0].axes
    drawn = {
        line.get_label(): line.get_xydata() for line in axis.lines if line.get_marker() != 'None'
    }
    assert [*drawn] == [f'random, {size} px' for size in (4, 8, 16, 32)]
    for label, ((distance, score),) in drawn.items():
        row = row_of(collected, label.split()[1])
        assert distance == row['average_distance_px']
        assert score == pytest.approx(np.mean(scores_of(row, 'Pneumonia')))
    assert {text.get_text() for text in axis.texts} == {'0.6'}


def test_only_rows_with_other_masks_are_drawn_by_distance():
    rows = {row.name for row in load_sweep(ROOT / 'scripts/studies/simmim.yaml', 'tiny').mask_rows}
    assert rows == {'reference', 'square', 'block', '4_0.4', '4_0.8', '16_0.4', '16_0.8'}


def write_records(folder, epochs):
    folder.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps({'epoch': n - 1} | epoch) + '\n' for n, epoch in enumerate(epochs))
    (folder / 'metrics.jsonl').write_text(text)


def test_curves_show_each_seed_and_the_loss_without_information(tmp_path, figures):
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path))
    simmim, moco = sweep.rows[:2]
    ends = {'holdout_feature_spread': 0.5, 'holdout_effective_rank': 1.0}
    for seed in SEEDS:
        made.add_pretraining(moco, seed)
        epochs = [{'holdout_loss': loss, 'holdout_loss_chance': 8.5} | ends
                  for loss in (9.0, 5.0, 4.0 + seed)]  # fmt: skip
        write_records(run_folder(made.output, 'contrastive', moco, seed), epochs)
    hidden = [{'holdout_l1_grey': l1, 'holdout_l1_grey_mean': 60.0} for l1 in (70.0, 30.0)]
    write_records(run_folder(made.output, 'simmim', simmim, 0), hidden)
    plot_curves(tmp_path / 'curves.png', sweep, SEEDS, made.output)
    first, second = figures[0].axes[:2]
    lines = [[*zip(*line.get_data(), strict=True)] for line in first.lines]
    assert first.get_title() == 'simmim' and lines[0] == [(0, 70.0), (1, 30.0)]
    assert [y for _, y in lines[1]] == [60.0, 60.0]
    # A contrastive loss before the first epoch is not drawn.
    drawn = [[*map(float, line.get_ydata())] for line in second.lines]
    assert drawn == [[5.0, 4.0], [8.5] * 2, [5.0, 5.0], [8.5] * 2, [5.0, 6.0], [8.5] * 2]
    assert second.get_title() == 'moco\nrank 1.0, spread 0.50'


def test_losses_of_fine_tuning_are_those_of_the_most_labels(tmp_path, figures):
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path))
    for row in sweep.rows:
        start = {'holdout_loss': 9.0}
        epochs = [start, {'loss': float(row.subset), 'holdout_loss': 3.0}, {'loss': 0.5}]
        write_records(run_folder(made.output, 'finetune', row, 0), epochs)
    plot_losses(tmp_path / 'losses.png', sweep, SEEDS, made.output)
    titles = [axis.get_title() for axis in figures[0].axes]
    assert titles == ['simmim', 'moco', 'scratch']
    lines = [[*zip(*line.get_data(), strict=True)] for line in figures[0].axes[0].lines[:2]]
    assert lines == [[(0, 9.0), (1, 3.0)], [(1, 1.0), (2, 0.5)]]
