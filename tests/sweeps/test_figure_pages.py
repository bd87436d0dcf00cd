"""Figures of every command: their legends and notes say what is true; which files are written."""

import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sweep_runs import make_sweep, methods_file
from tiny import ROOT, run_script

from data.describe import charts, figures
from evaluation.saliency import plot_prediction
from sweeps import curves, plots
from sweeps.files import Row, Sweep, in_order, load_sweep, plan, run_folder
from sweeps.long_table import SYNTHETIC
from sweeps.tables import FACTS, score_title
from system.pages import (
    encode_figure,
    new_figure,
    note_on_images,
    page_files,
    split_pages,
)

SWEEPS = sorted([*ROOT.glob('scripts/comparison/*.yaml'), *ROOT.glob('scripts/studies/*.yaml')])
ABLATION, *ABLATIONS = sorted(ROOT.glob('scripts/ablations/**/*.yaml'))
GROUPS = [f'Age: {n} to {n + 9}' for n in range(0, 100, 10)]
LABELS = [f'Finding number {n}' for n in range(40)]


@pytest.fixture
def saved(monkeypatch) -> list[Figure]:
    """The figures that a test saves, without drawing them."""
    found: list[Figure] = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: found.append(figure))
    return found


def long_table(sweep: Sweep, labels: Sequence[str] = LABELS) -> pd.DataFrame:
    """A made-up long table: labels, their mean, and the mean in 10 groups."""
    rng, lines = np.random.default_rng(0), []
    for row in sweep.rows:
        places = [(label, '') for label in [*labels, 'mean']] + [('mean', g) for g in GROUPS]
        for label, group in places:
            value = rng.uniform(0.5, 0.9)
            line = {'row': row.name, 'label': label, 'group': group, 'metric': 'auroc'}
            for end, number in (('', value), ('low', value - 0.1), ('high', value + 0.1)):
                lines.append(line | {'seed': '', 'resample': end, 'value': number})
            seeds = [{'seed': str(s), 'resample': '', 'value': value + s / 100} for s in range(3)]
            lines += [line | seed for seed in seeds]
            if label == 'mean':  # fewer labels are defined in some of the groups
                count = {'metric': 'auroc_labels', 'seed': '0', 'resample': '', 'value': 30}
                lines.append(line | count | ({} if group in GROUPS[:3] else {'value': 40}))
    return pd.DataFrame(lines)


def score_table(sweep: Sweep) -> pd.DataFrame:
    """A made-up result of `read_lines`, in which each row is compared with two others."""
    lines = []
    for n, row in enumerate(sweep.rows):
        for against in (sweep.rows[0].name, sweep.rows[1].name):
            line = {'row': row.name, 'against': against, 'score': 'mean', 'verdict': 'above'}
            line |= {'value': 0.7 + n / 1000, 'low': 0.6, 'high': 0.8, 'by_seed': [0.1, 0.1]}
            line |= {'difference': 0.1, 'patients_low': 0.0, 'patients_high': 0.2}
            lines.append(line | {'seeds_low': 0.05, 'seeds_high': 0.15})
    return pd.DataFrame(lines)


def make_curve(
    output: Path, stage: str, row: Row, epochs: list[int], *, seed: int = 0, **losses: float
) -> None:
    """Write the losses of a run, which grow by 1 an epoch: `losses`, or a held-out loss from 0."""
    folder = run_folder(output, stage, row, seed)
    folder.mkdir(parents=True, exist_ok=True)
    first = losses or {'holdout_loss': 0}
    lines = [
        json.dumps({'epoch': n} | {name: start + n + 1 for name, start in first.items()})
        for n in epochs
    ]
    (folder / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in lines))


@pytest.fixture(scope='module')
def methods(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Three methods with a tenth and all of the labels."""
    return load_sweep(methods_file(tmp_path_factory.mktemp('sweep')))


@pytest.fixture
def table(methods: Sweep) -> pd.DataFrame:
    return long_table(methods)


def test_curves_of_contrastive_methods_begin_after_an_epoch(methods, tmp_path, saved) -> None:
    """Before it, MoCo has no images to compare with, and its loss is 0."""
    for row in methods.rows[:2]:
        make_curve(tmp_path, row.pretraining, row, [-1, 0])
    curves.plot_curves(tmp_path / 'c.png', methods, [0], tmp_path, pretrain=True)
    epochs = {axis.get_title(): [*axis.lines[0].get_xdata()] for axis in saved[0].axes}
    assert epochs == {'simmim': [0, 1], 'moco': [1]}
    note = saved[0].get_supxlabel()
    assert 'held-out patients' in note and 'training images.' not in note.replace('\n', ' ')


def test_curves_name_a_training_loss_that_is_not_the_held_out_one(methods, tmp_path, saved) -> None:
    focal = load_sweep(ROOT / 'scripts/studies/contrastive.yaml', 'tiny')
    for sweep in (focal, methods):
        make_curve(tmp_path, 'finetune', sweep.rows[0], [0])
        curves.plot_curves(tmp_path / 'c.png', sweep, [0], tmp_path, pretrain=False)
    notes = [' '.join(figure.get_supxlabel().split()) for figure in saved]
    assert 'another loss (focal) than held-out patients (bce)' in notes[0]
    assert 'another' not in notes[1] and 'Labelled: 10 % of the labels.' in notes[1]


def test_curves_are_those_of_the_runs_with_the_most_labels(methods: Sweep, tmp_path: Path) -> None:
    def found(seed: int = 0) -> list[Row]:
        return curves.rows_with_curves(methods, [seed], tmp_path, pretrain=False)

    assert found() == []
    few, many = ([row for row in methods.rows if row.subset == share] for share in ('0.1', '1'))
    for row in few:
        make_curve(tmp_path, 'finetune', row, [0])
    assert found() == few
    make_curve(tmp_path, 'finetune', many[1], [0])
    assert found() == many[1:2]
    assert found(seed=1) == []


def test_curves_are_means_with_a_band_from_the_lowest_to_the_highest_seed(
    methods: Sweep, tmp_path: Path, saved
) -> None:
    row = methods.rows[0]
    for seed, start in enumerate((0, 1, 5)):
        make_curve(tmp_path, 'finetune', row, [0, 1], seed=seed, holdout_loss=start)
    curves.plot_curves(tmp_path / 'c.png', methods, range(3), tmp_path, pretrain=False)
    (axis,) = saved[0].axes
    assert [[*line.get_ydata()] for line in axis.lines] == [[3, 4]]
    (band,) = axis.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert corners == {(1, 1), (2, 2), (1, 6), (2, 7)}
    assert axis.get_ylabel() == 'mean loss'
    note = ' '.join(saved[0].get_supxlabel().split())
    assert 'mean over 3 seeds; bands: from the lowest to the highest.' in note
    assert note.endswith('Not for clinical use.')


def test_curves_of_the_same_loss_share_the_axis_and_others_have_their_own(
    tmp_path: Path, saved
) -> None:
    sweep = load_sweep(ROOT / 'scripts/studies/contrastive.yaml', 'tiny')
    rows = {row.method: row for row in sweep.rows if row.subset == '1'}
    for method, start in {'moco': 1, 'moco_as_stated': 9, 'byol': 2}.items():
        make_curve(tmp_path, 'contrastive', rows[method], [0, 1], holdout_loss=start)
        make_curve(tmp_path, 'finetune', rows[method], [0, 1], holdout_loss=start)
    for pretrain in (True, False):
        curves.plot_curves(tmp_path / 'c.png', sweep, [0], tmp_path, pretrain=pretrain)
    spans = [
        {axis.get_title(): axis.get_ylim() for axis in figure.axes if axis.get_title()}
        for figure in saved
    ]
    before, after = spans
    assert before['MoCo'] == before['MoCo as stated'] != before['BYOL']
    assert before['MoCo'][0] < 2 and before['MoCo'][1] > 11 > before['BYOL'][1]
    assert len({*after.values()}) == 1


def test_a_huge_loss_before_training_does_not_hide_the_others(tmp_path: Path, saved) -> None:
    """As of Inception V3 from random weights, beside five networks."""
    sweep = load_sweep(ROOT / 'scripts/studies/contrastive.yaml', 'tiny')
    rows = {row.method: row for row in sweep.rows if row.subset == '1'}
    for method, start in {'inception_v3': 2.1e6, 'resnet50': 0.7}.items():
        folder = run_folder(tmp_path, 'finetune', rows[method], 0)
        folder.mkdir(parents=True)
        losses = enumerate((start, 0.6, 0.5), start=-1)
        records = [json.dumps({'epoch': epoch, 'holdout_loss': loss}) for epoch, loss in losses]
        (folder / 'metrics.jsonl').write_text('\n'.join(records))
    curves.plot_curves(tmp_path / 'c.png', sweep, [0], tmp_path, pretrain=False)
    for axis in (axis for axis in saved[0].axes if axis.get_title()):
        assert 0.4 < axis.get_ylim()[0] < 0.5 and 0.7 < axis.get_ylim()[1] < 0.8
    note = ' '.join(saved[0].get_supxlabel().split())
    assert 'Before training beyond the axis: Inception V3.' in note


def test_a_loss_that_is_worse_than_chance_is_named(tmp_path: Path, saved) -> None:
    sweep = load_sweep(ROOT / 'scripts/studies/contrastive.yaml', 'tiny')
    rows = {row.method: row for row in sweep.rows if row.subset == '1'}
    for method, loss in {'swav': 2.3125, 'moco': 2.2}.items():
        folder = run_folder(tmp_path, 'contrastive', rows[method], 0)
        folder.mkdir(parents=True)
        record = {'epoch': 0, 'holdout_loss': loss, 'holdout_loss_chance': 2.3026}
        (folder / 'metrics.jsonl').write_text(json.dumps(record))
    curves.plot_curves(tmp_path / 'c.png', sweep, [0], tmp_path, pretrain=True)
    drawn = {axis.get_title(): axis for axis in saved[0].axes if axis.get_title()}
    for axis in drawn.values():
        (chance,) = (line for line in axis.lines if line.get_linestyle() == ':')
        assert [*chance.get_ydata()] == [2.3026, 2.3026]
        assert axis.get_ylim()[0] < 2.3026 < axis.get_ylim()[1]
    note = ' '.join(saved[0].get_supxlabel().split())
    assert 'Dotted: chance' in note and 'Worse than chance at the end: SwAV.' in note


def test_errors_under_own_masks_are_not_called_as_those_under_shared_masks(
    tmp_path: Path, saved
) -> None:
    sweep = load_sweep(ROOT / 'scripts/studies/simmim.yaml', 'tiny')
    make_curve(tmp_path, 'simmim', sweep.rows[0], [0], holdout_l1_grey=32, loss=1)
    curves.plot_curves(tmp_path / 'c.png', sweep, [0], tmp_path, pretrain=True)
    (axis,) = saved[0].axes
    assert [[*line.get_ydata()] for line in axis.lines] == [[33]]
    assert axis.get_ylabel() == 'L1, own masks\n(grey levels)'
    assert 'under its own masks' in ' '.join(saved[0].get_supxlabel().split())
    assert FACTS['held_out_l1'][0] == 'held-out L1, shared masks (grey levels)'


def test_a_row_has_one_colour_in_figures_of_masks_and_is_named_without_a_score(
    tmp_path: Path, saved, monkeypatch
) -> None:
    sweep = load_sweep(ROOT / 'scripts/studies/simmim.yaml', 'full')
    monkeypatch.setattr(plots, 'NUM_MASKS', 2)
    table, few = long_table(sweep, LABELS[:2]), [row.name for row in sweep.mask_rows[-2:]]
    for drawn in (table, table[table['row'].isin(few)]):
        plots.plot_masks(tmp_path / 'masks.png', drawn, sweep, 'mean')
    whole, fewer = (
        {line.get_label(): line[0].get_color() for line in figure.axes[0].containers}
        for figure in saved
    )
    assert fewer.items() < whole.items()
    assert 'Without a score: ' in ' '.join(saved[1].get_supxlabel().split())


class Made:
    """Records of 20 images in memory, which are positive for 14 labels."""

    root = 'made'
    path = file = patient = np.array([f'p{n}' for n in range(20)], object)
    labels = np.ones((20, 14), np.float32)
    label_names = tuple(LABELS[:14])

    def __len__(self) -> int:
        return len(self.path)

    @staticmethod
    def reader(files: object) -> Callable[[int], Image.Image]:
        return lambda index: Image.fromarray(np.full((280, 200), 90, np.uint8))


@pytest.fixture
def records(monkeypatch) -> Made:
    monkeypatch.setattr(figures, 'images_of', lambda records: records)
    return Made()


def test_examples_of_data_name_all_labels(records: Made, monkeypatch) -> None:
    found = figures.plot_examples(records, 1, 0)
    steps = SimpleNamespace(steps=('resize',) * 2, setup=None)
    monkeypatch.setattr(figures, 'apply_steps', lambda image, *_: image)
    assert figures.plot_steps(records, steps, 1, 0)
    titles = [axis.get_title(loc='left') for figure in found.values() for axis in figure.axes]
    assert sum(title.startswith('Finding') for title in titles) == 14


def test_images_of_other_shapes_leave_no_gaps(records: Made, monkeypatch) -> None:
    """All images of a line have its height, and the next line begins below their titles."""
    sizes = [(280, 200), (200, 300), (250, 250)]
    monkeypatch.setattr(
        Made, 'reader', lambda *_: lambda n: Image.fromarray(np.zeros(sizes[n % 3], np.uint8))
    )
    lines = []
    for figure in figures.plot_examples(records, 3, 0).values():
        boxes = [axis.get_position() for axis in figure.axes]
        assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
        tall, tops = figure.get_figheight(), sorted({round(box.y1, 9) for box in boxes})[::-1]
        of_lines = [[box for box in boxes if round(box.y1, 9) == top] for top in tops]
        lines += of_lines
        for line in of_lines:
            assert len({round(box.height, 9) for box in line}) == 1
            assert all(a.x1 < b.x0 for a, b in itertools.pairwise(line))
        gaps = [(a[0].y0 - b[0].y1) * tall for a, b in itertools.pairwise(of_lines)]
        assert gaps == pytest.approx([figures.TITLE_HEIGHT] * len(gaps))
    assert [len(line) for line in lines] == [6] * 7  # two labels with three images each


@pytest.mark.parametrize('root, synthetic', [('CheXpert-phantom', True), ('CheXpert', False)])
def test_figures_say_if_images_are_synthetic(root, synthetic, records, saved, tmp_path) -> None:
    records.path = np.array([f'{root}/valid/patient{n}.jpg' for n in range(20)], object)
    counts = pd.DataFrame({'column': ['All', 'Edema'], 'group': ['All', 'positive']})
    counts = counts.assign(split='valid', images=20)
    ages = pd.DataFrame({'split': 'valid', 'age': ['0-39'], 'sex': 'Male', 'images': [20]})
    note = note_on_images(records.path)
    found = figures.plot_examples(records, 1, 0) | charts.plot_counts(counts, ages, ['Edema'], note)
    image, file = np.zeros((64, 64), np.uint8), f'{root}/valid/patient0.jpg'
    plot_prediction(tmp_path / 'p', {'a': image, 'b': image}, {}, {'A': 0.5}, title='', file=file)
    for figure in (*found.values(), saved[0]):
        assert ('Synthetic X-rays.' in figure.get_supxlabel()) == synthetic
        assert 'Not for clinical use.' in figure.get_supxlabel()


def test_a_map_has_its_true_label_and_a_bar_of_its_own_height(saved, tmp_path: Path) -> None:
    image, values = np.zeros((64, 64), np.uint8), np.linspace(0, 1, 4096).reshape(64, 64)
    probabilities = {'Edema': 0.25, 'Rare': 0.5, 'C': 0.75}
    truth = {'Edema': 1, 'Rare': np.nan, 'C': 0}
    images, maps = {'a': image, 'b': image}, dict.fromkeys(probabilities, values)
    plot_prediction(tmp_path / 'p', images, maps, probabilities, title='', truth=truth)
    plot_prediction(tmp_path / 'p', images, maps, probabilities, title='')
    known, unknown = saved[0], saved[-1]
    titles = [axis.get_title(loc='left') for axis in known.findobj(Axes)]
    assert [title for title in titles if title] == [
        'Edema\nprobability 0.250, true label: positive',
        'Rare\nprobability 0.500, true label: not scored',
        'C\nprobability 0.750, true label: negative',
    ]
    assert 'C\nprobability 0.750' in [axis.get_title(loc='left') for axis in unknown.findobj(Axes)]
    known.canvas.draw()
    bars = [axis for axis in known.findobj(Axes) if axis.get_ylabel() == 'relative importance']
    found = {axis.get_title(loc='left')[:1]: axis.get_window_extent() for axis in known.axes}
    for bar, label in zip(bars, ('E', 'C'), strict=True):
        box = bar.get_window_extent()
        assert box.height == pytest.approx(found[label].height, abs=1)
        assert box.width < 0.1 * found[label].width


def test_nothing_is_written_if_a_later_page_is_refused(tmp_path: Path, capsys) -> None:
    runs = [tmp_path / f'run{n}' for n in range(31)]
    for run in runs:
        file = run / 'reconstructions' / 'epoch_1.png'
        file.parent.mkdir(parents=True)
        Image.linear_gradient('L').save(file)
    words = ['--image', file, '--output', tmp_path / 'new' / 'm.png', '--size', 64]
    words += ['--units', 8, 16, 32, '--ratios', 0.1, 0.5, 0.99]
    assert run_script('show_masks', *words) == 2
    assert '0.99' in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:99])
    assert run_script('show_reconstructions', *runs, '--output', tmp_path / 'r.png') == 2
    assert 'truncated' in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted(runs)


def test_charts_of_counts_show_the_shares_and_nothing_that_is_unknown() -> None:
    kinds = {'positive': 50, 'uncertain': 30, 'negative': 40, 'blank': 80}
    counts = {('All', 'All'): 200, ('Race', 'A Race'): 3, ('Insurance', 'unknown'): 200}
    counts |= {(label, kind): images for label in LABELS[:2] for kind, images in kinds.items()}
    counts = [('train', *names, images) for names, images in counts.items()]
    counts = pd.DataFrame(counts, columns=['split', 'column', 'group', 'images'])
    ages = pd.DataFrame({'split': ['train'], 'age': ['0-39'], 'sex': 'F', 'images': [4]})
    found = charts.plot_counts(counts, ages, LABELS[:2])
    panels = {axis.get_title(): axis for axis in found['labels'].axes}
    bars = {bars.get_label(): [bar.get_width() for bar in bars] for bars in
            panels['train: 200'].containers}  # fmt: skip
    assert bars == {kind: [images / 2] * 2 for kind, images in kinds.items()}
    (axis,) = found['groups'].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ['A Race']


def test_every_split_has_bars_for_its_ages_in_the_order_of_age() -> None:
    """Bands that train lacks are not the last ones, and unknown ages and sexes are bars."""
    ages = [('train', '40-59', 'Male', 3), ('train', '80 and over', 'unknown', 2)]
    ages += [('valid', '0-39', 'Female', 4), ('test', 'unknown', 'unknown', 5)]
    ages = pd.DataFrame(ages, columns=['split', 'age', 'sex', 'images'])
    splits = dict.fromkeys(ages['split'], 5)
    counts = [(split, 'All', 'All', images) for split, images in splits.items()]
    counts += [(split, 'Edema', 'positive', images) for split, images in splits.items()]
    counts += [(split, 'Age', age, images) for split, age, _, images in ages.to_numpy()]
    counts = pd.DataFrame(counts, columns=['split', 'column', 'group', 'images'])
    found = charts.plot_counts(counts, ages, ['Edema'])
    bands = ['0-39', '40-59', '80 and over', 'unknown']
    for axis, split in zip(found['ages'].axes, splits, strict=True):
        assert [text.get_text() for text in axis.get_xticklabels()] == bands
        drawn = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axis.containers}
        assert [*drawn] == ['Female', 'Male', 'unknown']
        of_split = ages[ages['split'] == split]
        assert sum(map(sum, drawn.values())) == of_split['images'].sum()
        for _, age, sex, images in of_split.to_numpy():
            assert drawn[sex][bands.index(age)] == images
    (axis,) = found['groups'].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == bands


def test_pages_have_all_items_in_order_and_about_as_many_each() -> None:
    for count in range(40):
        pages = split_pages([*range(count)], 8)
        assert [item for page in pages for item in page] == [*range(count)]
        lengths = [len(page) for page in pages]
        assert max(lengths) <= 8 and max(lengths) - min(lengths) <= 1
    assert page_files(Path('a/b.png'), 1) == [Path('a/b.png')]
    assert page_files(Path('a/b.png'), 2) == [Path('a/b_1.png'), Path('a/b_2.png')]


@pytest.mark.parametrize(
    'path',
    [*SWEEPS, ABLATION, *(pytest.param(path, marks=pytest.mark.slow) for path in ABLATIONS)],
    ids=lambda path: path.stem,
)
def test_legends_say_what_the_runs_start_from(path: Path, monkeypatch) -> None:
    """The commands of the runs say it: --pretrained names a run of the sweep, or a file."""
    monkeypatch.setattr(
        'config.check_config', lambda *_: None
    )  # tests/sweeps/test_sweeps_files.py does
    scales = [*(yaml.safe_load(path.read_text()).get('scales') or [''])]
    sweep = load_sweep(path, scales[-1])  # which has all rows
    names = {row.weights for row in sweep.rows if row.weights}
    environment = dict(os.environ) | dict.fromkeys(names, '/files/weights.pth')
    jobs = plan(sweep, seeds=[0], data='/data', output='/runs', environment=environment)
    folders = {job.folder: job for job in jobs}
    for row in sweep.rows:
        job = folders[run_folder('/runs', 'finetune', row, 0)]
        wanted = plots.RANDOM
        if job.config.FINETUNE.MODE in ('pixels', 'metadata'):
            wanted = plots.NO_NETWORK
        elif job.config.PRETRAINED:
            wanted = plots.HERE if job.config.PRETRAINED.startswith('/runs/') else plots.FROM_FILE
        assert plots.start_of(row) == wanted, row.name
        assert plots.starts_note(sweep, [row.name]).lower() == f'{plots.STARTS[wanted][1]}.'.lower()


def texts(folder: Path) -> dict[str, list[str]]:
    return {
        path.stem: re.findall(r'<text[^>]*>([^<]*)</text>', path.read_text())
        for path in folder.glob('*.svg')
    }


@pytest.mark.parametrize('labels, has_mean', [(LABELS[:1], False), (LABELS[:2], True)])
def test_a_single_label_has_no_mean_and_unscored_labels_are_named(
    labels: list[str], has_mean: bool, methods: Sweep, table: pd.DataFrame, tmp_path: Path
) -> None:
    counted = pd.DataFrame({'label': [*LABELS[:2], 'Rare'], 'metric': 'positives', 'value': 3.0})
    counted.loc[2, 'value'] = 0
    counted = counted.assign(row='simmim_1', seed='0', group='', resample='')
    table = table[table['label'].isin([*labels, 'mean'])]
    plots.plot_labels(tmp_path / 'l.svg', pd.concat([table, counted]), methods)
    found = texts(tmp_path)['l']
    assert ('mean of 40 labels' in found) == has_mean
    assert 'Without an AUROC: Rare.' in ' '.join(found)  # others were not asked for


def test_labels_are_drawn_for_the_most_labels_that_were_scored(methods, table, tmp_path) -> None:
    plots.plot_labels(tmp_path / 'l.svg', table[table['row'].str.endswith('_0.1')], methods)
    assert any('labelled: 10 % of the labels' in text for text in texts(tmp_path)['l_1'])


def legend_of(figure: Figure) -> dict[str, tuple]:
    (legend,) = figure.legends
    lines = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {text.get_text(): (line.get_color(), line.get_marker()) for text, line in lines}


def test_a_method_has_one_colour_and_is_named_if_it_has_no_score(methods, tmp_path, saved) -> None:
    table = long_table(methods, LABELS[:2])
    some, lines = (t.query('row != "simmim_1"') for t in (table, score_table(methods)))
    for drawn in (table, some):
        plots.plot_labels(tmp_path / 'l.png', drawn, methods)
        plots.plot_subsets(tmp_path / 's.png', drawn, methods, 'mean')
    whole, shares, fewer, fewer_shares = map(legend_of, saved)
    assert whole == shares == fewer_shares == fewer | {'simmim': whole['simmim']}
    plots.plot_scores(tmp_path / 'm.png', lines, methods)
    plots.plot_differences(tmp_path / 'd.png', lines, methods, rows=methods.rows)
    notes = [' '.join(figure.get_supxlabel().split()) for figure in saved]
    assert not any('Without' in note for note in notes[:2])
    assert 'Without a score: simmim.' in notes[2]  # of the rows with all labels
    for note, what in zip(notes[3:], ('score', 'score', 'difference'), strict=True):
        assert f'Without a {what}: simmim (all labels).' in note


def test_a_share_with_one_seed_has_no_bar_which_the_note_explains(methods, tmp_path, saved) -> None:
    table = long_table(methods, LABELS[:2])
    few = table[(table['row'] != 'moco_1') | ~table['seed'].isin(['1', '2'])]
    for drawn in (table, few):
        plots.plot_subsets(tmp_path / 's.png', drawn, methods, 'mean')
    # Rows that are not drawn do not choose the kind of the bars.
    one = table[~table['row'].str.startswith('moco') | ~table['seed'].isin(['1', '2'])]
    plots.plot_subsets(tmp_path / 's.png', one, in_order(methods, ['moco']), 'mean')
    notes = [' '.join(figure.get_supxlabel().split()) for figure in saved]
    assert '95 % over patients' in notes[2]
    assert 'none:' not in notes[0] and 'none: one seed, or equal values of all seeds.' in notes[1]


def test_a_difference_of_one_seed_says_so(methods, tmp_path: Path) -> None:
    lines = score_table(methods)
    lines.at[0, 'by_seed'] = [0.1]
    plots.plot_differences(tmp_path / 'd.svg', lines, methods)
    found = texts(tmp_path)['d']
    assert '1 seed' in found and '1 seeds' not in found


def without_mean(table: pd.DataFrame, groups: list[str]) -> pd.DataFrame:
    """Leave out the means of some groups, of which only the numbers of cases are known."""
    counts = [
        {'row': 'moco_1', 'label': '', 'group': group, 'metric': 'cases', 'seed': '0', 'value': 9}
        for group in groups
    ]
    known = table[~table['group'].isin(groups)]
    return pd.concat([known, pd.DataFrame(counts)])


def test_groups_with_few_cases_are_named_and_not_drawn(methods, table, tmp_path: Path) -> None:
    table.loc[table['metric'] == 'auroc', 'value'] += 0.2
    table = table[table['group'].isin(['', *GROUPS[:6]])]
    plots.plot_groups(tmp_path / 'g.svg', without_mean(table, GROUPS[:3]), methods, 'mean')
    found = texts(tmp_path)['g']
    assert [text for text in found if text.startswith('Age: ')] == GROUPS[3:6]
    assert 'everyone' in found
    assert f'Too few cases of a label: {", ".join(GROUPS[:3])}.' in ' '.join(found)
    assert not any('dotted: chance' in text for text in found), 'all values are above'
    table.loc[table['group'] == GROUPS[4], 'value'] = 0.45
    plots.plot_groups(tmp_path / 'g.svg', table, methods, 'mean')
    assert any('dotted: chance' in text for text in texts(tmp_path)['g'])


def test_groups_of_other_labels_than_everyone_have_their_number(methods, table, tmp_path) -> None:
    """The first three groups have a mean over 30 labels, the others and everyone over 40."""
    plots.plot_groups(tmp_path / 'g.svg', table, methods, 'mean')
    found = texts(tmp_path)['g']
    names = [text for text in found if text.startswith('Age: ')]
    assert names[2:4] == [f'{GROUPS[2]} (30 labels)', f'{GROUPS[3]} (40 labels)']
    assert 'everyone' not in found
    assert 'The mean of everyone is over 40 labels and is not drawn.' in ' '.join(found)
    # A long name of the axis has several lines.
    assert 'AUROC, mean of 30 to 40 labels; labelled: all labels' in ' '.join(found)
    assert not any('labels; labelled: all labels' in text for text in found)


def test_notes_say_why_a_score_has_no_bar() -> None:
    scored = pd.DataFrame({'value': [0.7, np.nan], 'low': [0.6, np.nan]})
    assert plots.bars_note(scored) == 'Bars: 95 % over patients, of the mean over seeds.'
    assert plots.bars_note(scored.assign(low=np.nan)).endswith('none: too few cases or resamples.')


def test_many_groups_with_few_cases_leave_room_for_the_others(methods, table, tmp_path) -> None:
    few = [f'Hospital: number {n}' for n in range(60)]
    plots.plot_groups(tmp_path / 'g.svg', without_mean(table, few), methods, 'mean')
    text = ' '.join(texts(tmp_path)['g'])
    assert 'mean of 30 to 40 labels' in text  # of the groups that are drawn
    assert f'{few[0]}, {few[1]}' in text and few[-1] not in text
    assert re.search(r'and \d+ more', text)


def test_dollar_signs_of_names_are_no_formulas(tmp_path: Path) -> None:
    name = 'US$ 5 and US$ 6 $_$ {'
    titles = {'moco': name, 'simmim': 'SimMIM', 'scratch': 'scratch'}
    sweep = load_sweep(methods_file(tmp_path, title=f'{name} ' * 12, titles=titles))
    plots.plot_labels(tmp_path / 'labels.svg', long_table(sweep, [name, 'b']), sweep)
    found = texts(tmp_path)['labels']
    assert found.count(name) == 2  # the row and the label
    assert max(map(len, found)) < 110  # the title has several lines
    figure = new_figure(2)
    figure.subplots().set_title(name)
    assert name in encode_figure(figure)['.svg'].decode()


def test_figures_of_phantoms_say_so(methods: Sweep, tmp_path: Path, saved) -> None:
    sweep, lines, scores = methods, score_table(methods), long_table(methods, LABELS[:2])
    fact = {'row': 'moco_1', 'label': '', 'group': '', 'metric': SYNTHETIC, 'seed': '0'}
    phantoms = pd.concat([scores, pd.DataFrame([fact | {'resample': '', 'value': 1.0}])])
    make_curve(tmp_path, sweep.rows[0].pretraining, sweep.rows[0], [0])
    for table in (scores, phantoms):
        path = tmp_path / 'f.svg'
        plots.plot_scores(path, lines, sweep, table)
        plots.plot_differences(path, lines, sweep, table)
        plots.plot_labels(path, table, sweep)
        plots.plot_groups(path, table, sweep, 'mean')
        plots.plot_subsets(path, table, sweep, 'mean')
        curves.plot_curves(path, sweep, [0], tmp_path, pretrain=True, scores=table)
        notes = [' '.join(figure.get_supxlabel().split()) for figure in saved]
        assert ['Synthetic X-rays.' in note for note in notes] == [table is phantoms] * 6
        saved.clear()


def test_plot_draws_what_the_tables_have_and_removes_the_rest(
    tmp_path: Path, capsys, saved
) -> None:
    sweep = make_sweep(tmp_path, ['0.1', '0.6', '0.8'], reference=1)
    table = long_table(sweep, LABELS[:2]).assign(fold='', split='test', level='study')
    table[table['group'] == ''].to_csv(tmp_path / 'swept_scores.csv', index=False)
    lines = score_table(sweep)[['row', 'score', 'value', 'low', 'high']].assign(against='')
    lines.iloc[2:].to_csv(tmp_path / 'swept_mean.csv', index=False)  # as of rows without reference
    gone = ('mean_differences', 'mean_differences_2', 'subgroups', 'masks')
    for name in gone:
        (tmp_path / f'swept_{name}.png').touch()
    assert run_script('ablate', 'plot', '--sweep', sweep.path, '--save', tmp_path) == 0
    assert {path.stem for path in tmp_path.glob('*.png')} == {'swept_mean', 'swept_labels'}
    assert 'no figure of differences' in capsys.readouterr().err
    # The only label of a binary task would repeat the figure of the score.
    table = table[(table['group'] == '') & (table['label'] != LABELS[0])]
    table.to_csv(tmp_path / 'swept_scores.csv', index=False)
    assert run_script('ablate', 'plot', '--sweep', sweep.path, '--save', tmp_path) == 0
    assert {path.stem for path in tmp_path.glob('*.png')} == {'swept_mean'}


def test_plot_writes_the_named_rows_only_and_removes_old_pages(
    methods: Sweep, table: pd.DataFrame, tmp_path: Path, capsys, only_svg
) -> None:
    facts = {'labels': '', 'seeds': 2, 'sd': 0.01, 'p': 0.01, 'p_holm': 0.02, 'by_seed': '0.1 0.1'}
    score_table(methods).assign(**facts).to_csv(tmp_path / 'mine_mean.csv', index=False)
    table = table.assign(fold='', split='test', level='study')
    table.to_csv(tmp_path / 'mine_scores.csv', index=False)
    for name in ('labels_7.png', 'mean_2.png', 'mean_1.png', 'mean_1.csv'):
        (tmp_path / f'mine_{name}').touch()
    words = ['plot', '--sweep', methods.path, '--save', tmp_path]
    assert run_script('ablate', *words, '--rows', 'moco', 'scratch_1') == 0
    names = {path.name for path in tmp_path.glob('*.png')}
    assert {f'mine_{n}.png' for n in ('mean', 'mean_differences', 'shares')} <= names
    assert 'mine_labels_7.png' not in names and 'mine_labels_1.png' in names
    assert 'mine_mean_2.png' not in names and 'mine_mean_1.png' in names  # of another table
    # A single share has no figure by share, and the earlier one is removed.
    assert run_script('ablate', *words, '--rows', 'moco_1', 'scratch_1') == 0
    assert not [*tmp_path.glob('mine_shares*')]
    figure = tmp_path / 'one.svg'
    assert run_script('ablate', *words, '--rows', 'scratch', 'moco_1', '--figure', figure) == 0
    found = texts(tmp_path)['one']
    drawn = [text for text in found if text in ('scratch', 'moco', 'simmim')]
    assert drawn == ['scratch', 'scratch', 'moco']
    assert 'AUROC, mean of 40 labels' in found
    assert score_title('mean', table, in_groups=True) == 'AUROC, mean of 30 to 40 labels'
    assert run_script('ablate', *words, '--rows', 'mae') == 2
    assert "got 'mae'" in capsys.readouterr().err
