"""The table of a cross-validated sweep: joined ranks, differences and intervals."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sweep_runs import methods_file
from tiny import config_with, run_script

from config import Config, config_text
from data.tables.folds import fold_files, write_folds
from data.tables.groups import UNPROJECTED
from data.tables.predictions import write_predictions
from data.tables.reading import read_split
from data.tables.splits import split_patients, training_records
from evaluation import metrics
from evaluation.intervals import holm
from sweeps import plots, runner
from sweeps.files import ROOT, load_sweep
from sweeps.folds import arms_of, mean_score
from sweeps.joined import join_ranks, read_ranks

LOGGER = logging.getLogger('fold_table')
LABELS = ('Edema', 'Pneumonia')
FOLDS, PER_FOLD = 3, 40
PATH = 'train/patient{:05}/study{}/view1_frontal.png'
NAMES = np.array([PATH.format(i // 2, i % 2 + 1) for i in range(FOLDS * PER_FOLD)])
TARGETS = np.random.default_rng(0).integers(0, 2, (len(NAMES), len(LABELS))).astype(float)
ROWS = ('simmim_1', 'scratch_1', 'moco_1', 'pixels_1')


@pytest.fixture(scope='module', autouse=True)
def runs_without_a_record() -> Iterator[None]:
    """A run has finished if its folder exists."""

    def state(folder: Path) -> str:
        return 'finished' if folder.is_dir() else 'not started'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'folder_state', state)
        yield


def write_labels(folder: Path) -> None:
    table = pd.DataFrame(TARGETS, columns=LABELS)
    table.insert(0, 'Path', NAMES)
    table.insert(1, 'AP/PA', ['AP', 'PA', ''] * (len(NAMES) // 3))
    table.insert(2, 'Sex', ['Male', 'Male', 'Female', 'Female'] * (len(NAMES) // 4))
    table.to_csv(folder / 'all.csv', index=False)


def predicted(row: str, seed: int) -> np.ndarray:
    """The predictions of a run for all images. Later rows know less of the targets."""
    number = ROWS.index(row)
    rng = np.random.default_rng([number, seed])
    noise = rng.normal(scale=0.6 + 0.4 * number, size=TARGETS.shape)
    return np.full_like(TARGETS, 0.5) if row == 'pixels_1' else expit(TARGETS + noise)


def write_run(folder: Path, values: np.ndarray, part: int) -> None:
    rows = slice(part * PER_FOLD, (part + 1) * PER_FOLD)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / 'predictions_valid.csv', values[rows], NAMES[rows])


def save(file: Path, values: np.ndarray, paths: np.ndarray) -> None:
    write_predictions(file, values, paths=paths, labels=LABELS, source={})


@pytest.fixture(scope='module')
def joined_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose rows have finished but one."""
    folder = tmp_path_factory.mktemp('joined')
    sweep = methods_file(folder)
    add_method(sweep, 'pixels', 'scratch', finetune_options={'FINETUNE.MODE': 'pixels'})
    write_labels(folder)
    for row in ROWS:
        for seed in range(2):
            for part in range(FOLDS):
                if (row, part) != ('moco_1', 1):
                    name = f'simmim_finetune/mine_{row}_seed{seed}_fold{part}'
                    write_run(folder / name, predicted(row, seed), part)
    assert join(folder) == 0
    return folder


@pytest.fixture
def joined(joined_once: Path, tmp_path: Path) -> Path:
    """A copy of this sweep."""
    return copied(joined_once, tmp_path)


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))


def run(command: str, folder: Path, *words: object) -> int:
    return run_script('ablate', command, '--sweep', folder / 'mine.yaml', *words)


def join(folder: Path, *more: object) -> int:
    """Join predictions into the folder p, unless the words name another one."""
    words = ['--output', folder, '--folds', FOLDS, '--seeds', 2, '--save', folder / 'p']
    return run('join', folder, *words, *more)


def table_of(folder: Path, *more: object) -> int:
    """Write the tables of the joined predictions into the folder t."""
    words = ['--predictions', folder / 'p', '--labels', folder / 'all.csv', '--save', folder / 't']
    return run('table', folder, *words, '--resamples', 10, *more)


def lines_of(folder: Path, score: str) -> pd.DataFrame:
    return pd.read_csv(folder / f't/mine_{score}.csv').set_index('row')


def add_method(sweep: Path, name: str, like: str, **changes: object) -> None:
    """Add a method to a sweep file, or replace it: another one with changes."""
    content = yaml.safe_load(sweep.read_text())
    content['methods'][name] = content['methods'][like] | changes
    sweep.write_text(yaml.safe_dump(content, sort_keys=False))


def joined_table(folder: Path) -> pd.DataFrame:
    files = {seed: folder / f'p/seed{seed}.parquet' for seed in range(2)}
    return pd.concat([pd.read_parquet(file).assign(seed=seed) for seed, file in files.items()])


def keep(file: Path, chosen: str) -> None:
    """Keep only some lines of a table, as `DataFrame.query` names them."""
    if file.suffix == '.csv':
        pd.read_csv(file).query(chosen).to_csv(file, index=False)
    else:
        pd.read_parquet(file).query(chosen).to_parquet(file, index=False)


def fold_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each fold, by counting pairs."""
    parts = values.reshape(FOLDS, PER_FOLD, -1)
    below = (parts[:, None] < parts[:, :, None]).sum(axis=2) + 0.5
    return (below / PER_FOLD).reshape(values.shape)


def area(row: str, images: slice | np.ndarray = slice(None), label: int = 0) -> float:
    """The mean AUROC of both seeds by scikit-learn."""
    ranks = [fold_ranks(predicted(row, seed))[images, label] for seed in range(2)]
    return np.mean([roc_auc_score(TARGETS[images, label], seed_ranks) for seed_ranks in ranks])


def test_joined_predictions_are_ranks_within_folds(joined: Path) -> None:
    assert sorted(path.name for path in (joined / 'p').iterdir()) == [
        'seed0.parquet',
        'seed1.parquet',
    ]
    table = joined_table(joined).set_index(['row', 'seed'])
    finished = ('pixels_1', 'scratch_1', 'simmim_1')  # and not moco_1
    assert {*table.index} == {(row, seed) for row in finished for seed in (0, 1)}
    lower = table.loc[('simmim_1', 1)].set_index('Path').loc[NAMES]
    assert lower['fold'].tolist() == [part for part in range(FOLDS) for _ in range(PER_FOLD)]
    found = (lower[[*LABELS]] + 0.5) / PER_FOLD
    np.testing.assert_allclose(found, fold_ranks(predicted('simmim_1', 1)))


def test_joined_predictions_are_read_as_ranks_of_four_digits(joined: Path) -> None:
    found = read_ranks(joined / 'p', {*ROWS})
    assert {row: [*seeds] for row, seeds in found.items()} == {
        row: [0, 1] for row in ('pixels_1', 'scratch_1', 'simmim_1')
    }
    for (row, seed), ties in {('simmim_1', 1): 0.5, ('pixels_1', 0): PER_FOLD / 2}.items():
        predictions = found[row][seed]
        assert predictions.names.tolist() == [*NAMES] and predictions.labels == LABELS
        ranks = fold_ranks(predicted(row, seed)) + (ties - 0.5) / PER_FOLD
        wanted = [[float(f'{rank:.4g}') for rank in line] for line in ranks]
        assert predictions.probabilities.tolist() == wanted


def test_a_file_of_joined_predictions_is_one_group_of_sorted_whole_numbers(joined: Path) -> None:
    file = pq.ParquetFile(joined / 'p/seed0.parquet')
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types == {
        'row': 'string',
        'fold': 'uint16',
        'Path': 'string',
        'Edema': 'uint32',
        'Pneumonia': 'uint32',
    }
    assert file.num_row_groups == 1
    columns = [file.metadata.row_group(0).column(number) for number in range(len(types))]
    assert {column.compression for column in columns} == {'ZSTD'}
    lines = file.read().to_pandas()[['row', 'fold', 'Path']]
    assert lines.equals(lines.sort_values(['row', 'fold', 'Path']))


def test_a_file_of_a_seed_without_new_predictions_is_not_written(joined: Path) -> None:
    files = [joined / f'p/seed{seed}.parquet' for seed in range(2)]
    before = [file.stat() for file in files]
    write_run(joined / 'simmim_finetune/mine_moco_1_seed1_fold1', predicted('moco_1', 1), 1)
    assert join(joined) == 0
    assert [file.stat().st_ino == old.st_ino for file, old in zip(files, before, strict=True)] == [
        True,
        False,
    ]
    assert 'moco_1' in pd.read_parquet(files[1])['row'].unique()


def test_joined_predictions_of_a_study_may_be_in_several_folders(joined: Path, capsys) -> None:
    assert table_of(joined) == 0
    wanted = {file.name: file.read_bytes() for file in (joined / 't').iterdir()}
    shutil.rmtree(joined / 't')
    for name, chosen in (('cnn', 'row == "scratch_1"'), ('vit', 'row != "scratch_1"')):
        shutil.copytree(joined / 'p', joined / 'parts' / name)
        for file in (joined / 'parts' / name).iterdir():
            keep(file, chosen)
    shutil.rmtree(joined / 'p')
    (joined / 'parts').rename(joined / 'p')
    assert table_of(joined) == 0
    assert {file.name: file.read_bytes() for file in (joined / 't').iterdir()} == wanted
    second = joined / 'p/vit/again/seed1.parquet'
    second.parent.mkdir()
    shutil.copy(joined / 'p/cnn/seed1.parquet', second)
    assert table_of(joined) == 2
    error = capsys.readouterr().err
    first = joined / 'p/cnn/seed1.parquet'
    assert f'{first} and {second} both have scratch_1 with seed 1' in error
    pd.read_parquet(second).rename(columns={'Edema': 'TB'}).to_parquet(second)
    assert table_of(joined) == 2
    assert f'and {second} have different columns' in capsys.readouterr().err


def test_scores_and_differences_are_those_of_scikit_learn(joined: Path) -> None:
    """Of all images, within views and in groups. The reference of the sweep is simmim."""
    scores = ['--scores', 'Edema', 'mean', 'auroc_within_views:Edema']
    assert table_of(joined, *scores, '--subgroups', '--resamples', 200) == 0
    # AP and PA; the projection of the others is unknown.
    views = [np.arange(len(TARGETS)) % 3 == view for view in range(2)]
    pairs = [(TARGETS[view, 0] == 1).sum() * (TARGETS[view, 0] == 0).sum() for view in views]
    for score, area_of in (
        ('mean', lambda row: np.mean([area(row, label=k) for k in range(2)])),
        ('Edema', area),
        (
            'auroc_within_views_Edema',
            lambda row: np.average([area(row, view) for view in views], weights=pairs),
        ),
    ):
        lines = lines_of(joined, score)
        assert lines.loc['simmim_1', 'value'] == pytest.approx(area_of('simmim_1'), abs=1e-3)
        line = lines.loc['scratch_1']
        wanted = area_of('scratch_1') - area_of('simmim_1')
        assert line['against'] == 'simmim_1'
        assert line['difference'] == pytest.approx(wanted, abs=1e-3)
        assert line['patients_low'] < line['difference'] < line['patients_high']
        assert line['p_holm'] == pytest.approx(holm([line['p']])[0])
        assert lines.loc['pixels_1', 'value'] == 0.5
    groups = pd.read_csv(joined / 't/mine_Edema_subgroups.csv').set_index(['group', 'row'])
    male = area('simmim_1', np.arange(len(TARGETS)) % 4 < 2)
    assert groups.loc[('Sex: Male', 'simmim_1'), 'value'] == pytest.approx(male, abs=1e-3)
    names = groups.index.get_level_values('group')
    assert {'View: Frontal PA', f'View: {UNPROJECTED}'} <= {*names}
    within = lines_of(joined, 'auroc_within_views_Edema')
    assert {*within['remark']} == {'80 of 120 cases'} and 'remark' not in lines_of(joined, 'Edema')
    for page in ('mine_auroc_within_views_Edema', 'mine_all_scores'):
        for suffix in ('.md', '.tex'):
            text = (joined / f't/{page}{suffix}').read_text()
            assert text.count('(80 of 120 cases)') == 3  # a line of each row
    assert 'Not for clinical use' in (joined / 't/mine_mean.md').read_text()


def test_an_image_in_two_folds_is_refused(joined: Path) -> None:
    first, third = (joined / f'simmim_finetune/mine_simmim_1_seed0_fold{part}' for part in (0, 2))
    write_run(third, TARGETS, 0)
    with pytest.raises(ValueError, match='patient00000.*fold0'):
        join_ranks([folder / 'predictions_valid.csv' for folder in (first, third)])


def test_rows_with_other_labels_are_not_joined_into_one_table(joined: Path, capsys) -> None:
    before = joined_table(joined)
    for file in joined.glob('simmim_finetune/*seed1*/predictions_valid*'):
        file.write_text(file.read_text().replace('Pneumonia', 'TB'))
    assert join(joined) == 2
    error = capsys.readouterr().err
    assert 'seed1.parquet' in error and 'TB' in error
    pd.testing.assert_frame_equal(joined_table(joined), before)


def test_a_join_replaces_its_rows_and_seeds_and_keeps_the_others(joined: Path) -> None:
    before = joined_table(joined)
    for part in range(FOLDS):
        write_run(joined / f'simmim_finetune/mine_simmim_1_seed1_fold{part}', TARGETS, part)
    shutil.rmtree(joined / 'simmim_finetune/mine_scratch_1_seed0_fold2')
    assert join(joined) == 0
    after = joined_table(joined)
    changed = (before['row'] == 'simmim_1') & (before['seed'] == 1)
    pd.testing.assert_frame_equal(before[~changed], after[~changed])
    assert not before[changed].equals(after[changed])


@pytest.mark.parametrize(
    'more, seeds', [([], 2), (['--scale', 'all', '--seeds', 2], 2), (['--scale', 'all'], 1)]
)
def test_seeds_beyond_the_scale_are_left_out_and_named(more, seeds, joined, caplog) -> None:
    sweep = joined / 'mine.yaml'
    content = yaml.safe_load(sweep.read_text()) | {'scales': {'all': {'seeds': 1}}}
    sweep.write_text(yaml.safe_dump(content))
    assert table_of(joined, *more) == 0
    assert {*lines_of(joined, 'mean')['seeds']} == {seeds}
    assert ('seeds [1] are left out' in caplog.text) == (seeds == 1)


def test_a_join_in_which_every_run_misses_a_fold_names_them(joined: Path, capsys) -> None:
    assert join(joined, '--folds', FOLDS + 1, '--save', joined / 'none') == 2
    error = capsys.readouterr().err
    assert str(joined) in error and '3/4 not started' in error
    assert not (joined / 'none').exists()


def test_joined_runs_are_listed_and_those_of_earlier_parts_stay(joined: Path) -> None:
    runs = joined / 'p/runs.csv'
    runs.write_text('run,code,seed,minutes,images\nearlier,0071e23,0,2.5,30\n')
    for name in ('simmim_pretrain/mine_simmim_seed1', 'simmim_finetune/mine_scratch_1_seed0_fold2'):
        record = {'code': '71e5123', 'seed': 1, 'seconds': 90, 'data': {'images': 5700}}
        (joined / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps(record | {'finished': '2026-01-01T00:00:00'})
        (joined / name / 'run.json').write_text(text)
    epochs = '{"epoch": 0, "holdout_l1_grey": 20}\n{"epoch": 4, "holdout_l1_grey": 17.5}\n'
    (joined / 'simmim_pretrain/mine_simmim_seed1/metrics.jsonl').write_text(epochs)
    for _ in range(2):
        assert join(joined) == 0
    table = pd.read_csv(runs, index_col='run', dtype={'code': str})
    assert table['code'].tolist() == ['0071e23', '71e5123', '71e5123']  # and not numbers
    names = ['earlier', 'mine_scratch_1_seed0_fold2', 'mine_simmim_seed1']
    assert table.index.tolist() == names and table['minutes'].tolist() == [2.5, 1.5, 1.5]
    assert table['holdout_l1_grey'].tolist()[-1] == 17.5


def test_a_difference_over_some_of_the_seeds_says_so(joined: Path) -> None:
    keep(joined / 'p/seed1.parquet', 'row != "simmim_1"')
    assert table_of(joined) == 0
    assert ' (1 of 2 seeds) |' in (joined / 't/mine_mean.md').read_text()
    assert not [*(joined / 't').glob('*_subgroups*')], 'only if they are wanted'


@pytest.mark.parametrize(
    'words, pairs',
    [
        ([], ['scratch_1 simmim_1', 'scratch_1 pixels_1']),
        (['--row', 'scratch_1', 'simmim_1'], ['scratch_1 simmim_1']),
        (['--row', 'scratch_1', 'pixels_1'], ['scratch_1 pixels_1']),
        (['--row', 'scratch_1', 'simmim_1', '--against', 'pixels'],
         ['scratch_1 pixels_1', 'simmim_1 pixels_1']),
        (['--row', 'scratch_1', 'simmim_1', '--against', 'pixels', 'simmim'],
         ['scratch_1 pixels_1', 'scratch_1 simmim_1', 'pixels_1 simmim_1']),
    ],
)  # fmt: skip
def test_rows_are_compared_with_the_pixels_unless_only_named_rows_are(words, pairs, joined) -> None:
    add_method(joined / 'mine.yaml', 'scratch', 'scratch', against=['simmim', 'pixels'])
    assert table_of(joined, '--scores', 'Edema', *words) == 0
    table = lines_of(joined, 'Edema').dropna(subset='against')
    assert {*(table.index + ' ' + table['against'])} == {*pairs}
    of_pixels = table[table['against'] == 'pixels_1']
    wanted = [area(row) - 0.5 for row in of_pixels.index]
    assert of_pixels['difference'].tolist() == pytest.approx(wanted, abs=1e-3)


def test_a_table_of_some_rows_shows_the_baselines_of_their_shares(joined: Path) -> None:
    sweep = joined / 'mine.yaml'
    content = yaml.safe_load(sweep.read_text())
    content['shares'] = {share: content['shares'][1] for share in (0.1, 1)}
    sweep.write_text(yaml.safe_dump(content))
    for file in (joined / 'p').glob('*.parquet'):
        table = pd.read_parquet(file)
        fewer = table.assign(row=table['row'].str.replace('_1', '_0.1'))
        pd.concat([table, fewer]).to_parquet(file, index=False)
    words = ['--scores', 'Edema', '--against', 'pixels', '--row', 'scratch_0.1']
    assert table_of(joined, *words) == 0
    assert lines_of(joined, 'Edema').index.tolist() == ['scratch_0.1', 'pixels_0.1']


def test_figures_show_the_differences_of_the_table(joined: Path, monkeypatch) -> None:
    add_method(joined / 'mine.yaml', 'scratch', 'scratch', against=['pixels'])
    assert table_of(joined, '--scores', 'Edema', '--resamples', 200) == 0
    drawn, new_figure = [], plots.new_figure
    monkeypatch.setattr(plots, 'new_figure', lambda *a: drawn.append(new_figure(*a)) or drawn[-1])
    words = ['--save', joined / 't', '--scores', 'Edema', '--figure']
    assert run('plot', joined, *words, joined / 'd.png', '--pairs', 'scratch_1/pixels_1') == 0
    assert run('plot', joined, *words, joined / 's.png') == 0
    (differences,), (scores,) = (figure.axes for figure in drawn)
    line = lines_of(joined, 'Edema').loc['scratch_1']
    assert line_of(differences, -1) == [line['difference']]
    for line_number, noise in ((1, 'patients'), (2, 'seeds')):
        wanted = [line[f'{noise}_low'], line[f'{noise}_high']]
        assert line_of(differences, line_number) == pytest.approx(wanted)
    assert [text.get_text() for text in differences.get_yticklabels()] == [
        'All labels: scratch − pixel\nbaseline'
    ]
    number = [text.get_text() for text in scores.get_yticklabels()].index('scratch')
    assert line_of(scores, number) == [line['value']]
    (interval,) = scores.collections[number].get_segments()
    assert interval[:, 0] == pytest.approx([line['low'], line['high']])
    assert line_of(scores, -1) == [0.5, 0.5]  # the pixels
    assert (joined / 's.png').stat().st_size > 10_000


def line_of(axis: object, number: int) -> list[float]:
    return [*axis.lines[number].get_xdata()]


def test_figures_that_the_tables_do_not_have_are_refused(joined: Path, capsys) -> None:
    assert table_of(joined, '--scores', 'Edema') == 0
    (joined / 't/mine_Pneumonia.csv').write_text('a,b\n1,2\n')
    of_another_sweep = (joined / 't/mine_Edema.csv').read_text().replace('scratch_1', 'gone_1')
    (joined / 't/mine_Fracture.csv').write_text(of_another_sweep)
    for words, error in (
        (['Edema', '--pairs', 'moco_1/simmim_1'], "compare 'moco_1/simmim_1'"),
        (['Oedema'], 'mine_Oedema.csv does not exist'),
        (['Pneumonia'], "it lacks ['row', 'against'"),
        (['Fracture'], "has no row 'gone_1'"),
    ):
        assert run('plot', joined, '--save', joined / 't', '--scores', *words) == 2
        assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    'words, error',
    [
        (['--scores', 'Oedema'], "got 'Oedema'"),
        (['--scores', 'wrong:Edema'], "got 'wrong:Edema'"),
        (['--scores', 'mean_of_five'], 'no run has a defined mean_of_five'),
        (['--row', 'swav'], 'swav'),
        (['--against', 'swav'], "got 'swav'"),
        (['--tune'], 'tuning.csv'),
        (['--labels', 'none.csv'], 'none.csv'),
    ],
)
def test_tables_that_predictions_do_not_have_are_refused(words, error, joined_once, capsys) -> None:
    assert table_of(joined_once, *words) == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize('columns', [['row', 'Path'], ['fold', 'Path'], ['row', 'fold'], None])
def test_a_file_of_joined_predictions_that_is_none_is_named(columns, joined, capsys) -> None:
    file = joined / 'p/seed0.parquet'
    if columns:
        pd.DataFrame({name: ['0'] for name in columns} | {'Edema': [1]}).to_parquet(file)
    else:
        file.write_bytes(b'row,fold,Path\n')
    assert table_of(joined) == 2
    assert str(file) in capsys.readouterr().err


def test_a_folder_without_joined_predictions_is_named(joined: Path, capsys) -> None:
    for file in (joined / 'p').iterdir():
        file.unlink()
    assert table_of(joined) == 2
    assert f'{joined / "p"} has no seed*.parquet' in capsys.readouterr().err


@pytest.fixture(scope='module')
def two_settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Two settings of one pre-training; on fold 0 each one is right about the other's patients.

    Returns the folder and row -> predictions of all images by the runs of each fold.
    """
    folder = tmp_path_factory.mktemp('settings')
    sweep = methods_file(folder)
    add_method(sweep, 'simmim_low', 'simmim', finetune_options={'TRAIN.BASE_LR': 0.001})
    # More than another rate.
    add_method(sweep, 'other', 'simmim', finetune_options={'MODEL.HEAD': 'attention'})
    write_labels(folder)
    for image in map(folder.joinpath, NAMES):
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    write_folds(config_of(folder, 0, DATA__TRAIN_CSV='all.csv'), folder / 'folds', FOLDS)
    noise = np.random.default_rng(1).random(TARGETS.shape) / 10
    is_valid = np.isin(NAMES, folds_of(folder, 0)[0])[:, None]
    right, wrong = TARGETS * 0.9 + noise, (1 - TARGETS) * 0.9 + noise
    values = {
        'simmim_1': [np.where(is_valid, right, wrong), right, right],
        'simmim_low_1': [np.where(is_valid, wrong, right), wrong, wrong],
        'other_1': [noise] * FOLDS,
        'scratch_1': [noise] * FOLDS,
    }
    for part in range(FOLDS):
        config = config_text(config_of(folder, part))
        chosen = [np.isin(NAMES, paths) for paths in folds_of(folder, part)]
        for name, by_fold in values.items():
            for seed in range(2):
                run_folder = folder / f'simmim_finetune/mine_{name}_seed{seed}_fold{part}'
                run_folder.mkdir(parents=True)
                (run_folder / 'config.yaml').write_text(config)
                for split, rows in zip(('valid', 'train'), chosen, strict=True):
                    file = run_folder / f'predictions_{split}.csv'
                    # Trainings with two seeds are never equal.
                    own = by_fold[part] * (1 - seed * noise[::-1] / 10)
                    save(file, own[rows], NAMES[rows])
    return folder, values


@pytest.fixture
def settings(two_settings: tuple, tmp_path: Path) -> Path:
    """A copy of these runs."""
    return copied(two_settings[0], tmp_path)


@pytest.fixture(scope='module')
def tuned(two_settings: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of these runs with their joined predictions."""
    folder = copied(two_settings[0], tmp_path_factory.mktemp('tuned'))
    assert join(folder, '--tune') == 0
    return folder


def config_of(folder: Path, part: int, **options: object) -> Config:
    """The options of a run that learned from a third of the training patients."""
    train, valid = map(str, fold_files(folder / 'folds', part))
    data = {'DATA_PATH': str(folder), 'DATASET': 'chexpert', 'TRAIN_CSV': train}
    data |= {'LABELS': list(LABELS), 'VALID_CSV': valid, 'TRAIN_FRACTION': 0.34}
    data |= {'VIEWS': 'all', 'HOLDOUT_FRACTION': 0.0}
    return config_with(**{f'DATA__{key}': value for key, value in data.items()} | options)


def folds_of(folder: Path, part: int) -> list[np.ndarray]:
    """The images of the patients who are scored in a fold, and of all the others."""
    config = config_of(folder, part)
    return [read_split(config, split, LOGGER).path for split in ('valid', 'train')]


def test_tuning_takes_what_is_best_on_patients_not_learned(two_settings, tuned, tmp_path) -> None:
    """In fold 0 the first setting is only right about patients whom it scores."""
    folder, values = copied(tuned, tmp_path), two_settings[1]
    assert table_of(folder, '--tune') == 0
    figure = folder / 'f.svg'  # a rate that is not chosen lacks no score
    assert run('plot', folder, '--save', folder / 't', '--figure', figure) == 0
    assert 'simmim_low' not in figure.read_text()
    choices = pd.read_csv(folder / 't/tuning.csv').query('chosen')
    taken = ['simmim_low_1', 'simmim_1', 'simmim_1']
    assert choices['candidate'].tolist() == taken
    table = lines_of(folder, 'Edema')
    assert {*table.index} == {'simmim_1', 'other_1', 'scratch_1'}
    ranks = np.empty(len(NAMES))
    for part, name in enumerate(taken):
        is_valid = np.isin(NAMES, folds_of(folder, part)[0])
        ranks[is_valid] = (rankdata(values[name][part][is_valid, 0]) - 0.5) / is_valid.sum()
    wanted = roc_auc_score(TARGETS[:, 0], ranks)
    assert table.loc['simmim_1', 'value'] == pytest.approx(wanted, abs=1e-3)
    scores = pd.read_csv(folder / 'p/tuning.csv')
    assert {*scores['row']} == {'simmim_1', 'simmim_low_1'}


def test_a_sweep_may_be_joined_in_parts(settings: Path, tuned: Path) -> None:
    assert join(settings, '--tune', '--seeds', 1) == 0
    for gone in (settings / 'simmim_finetune').glob('*_seed0_*'):
        shutil.rmtree(gone)
    assert join(settings, '--tune') == 0
    whole, parts = (
        {path.name: path.read_bytes() for path in (folder / 'p').iterdir()}
        for folder in (tuned, settings)
    )
    assert parts == whole


@pytest.mark.parametrize(('select_on', 'fraction'), [('last', 0.34), ('last', 1), ('auto', 0.34)])
def test_held_out_patients_count_in_tuning_if_they_select_no_epoch(
    settings: Path, select_on: str, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, 'FEW_CASES', 5)
    options = {'EVAL__SELECT_ON': select_on, 'DATA__TRAIN_FRACTION': fraction}
    config = config_of(settings, 0, DATA__HOLDOUT_FRACTION=0.4, **options)
    train, held_out, _ = split_patients(config, read_split(config, 'train', LOGGER))
    learned = training_records(config, train).path
    seen = np.setdiff1d(train.path, learned)
    seen = np.union1d(seen, held_out.path) if select_on == 'last' else seen
    run_folder = settings / 'simmim_finetune/mine_scratch_1_seed0_fold0'
    (run_folder / 'config.yaml').write_text(config_text(config))
    noise = pd.DataFrame(np.random.default_rng(2).random(TARGETS.shape), NAMES)
    for split, paths in (('train', train.path), ('holdout', held_out.path)):
        save(run_folder / f'predictions_{split}.csv', noise.loc[paths].to_numpy(), paths)
    targets = TARGETS[np.isin(NAMES, seen)]
    scores = [
        roc_auc_score(targets[:, k], noise.loc[np.isin(NAMES, seen), k])
        for k in range(len(LABELS))
        if min(targets[:, k].sum(), (1 - targets[:, k]).sum()) >= 5
    ]
    assert scores and mean_score(run_folder) == pytest.approx(np.mean(scores), abs=1e-6)


def test_rows_that_differ_in_the_rate_alone_are_candidates(tmp_path: Path) -> None:
    """A share sets the epochs of `long`, which then equals simmim. Other weights are no rate."""
    sweep = methods_file(tmp_path)
    low = {'TRAIN.BASE_LR': 0.001}
    add_method(sweep, 'simmim_low', 'simmim', finetune_options=low)
    add_method(sweep, 'long', 'simmim', schedule={'TRAIN.EPOCHS': 60})
    add_method(sweep, 'imagenet', 'scratch', weights='IMAGENET')
    for name in ('scratch', 'imagenet'):
        options = {'TRAIN.LAYER_DECAY': 0.9} | low
        add_method(sweep, f'{name}_low', name, finetune_options=options)
    wanted = [[f'{name}_{share}', f'{name}_low_{share}'] for share in ('0.1', '1')
              for name in ('simmim', 'scratch', 'imagenet')]  # fmt: skip
    assert sorted(arms_of(load_sweep(sweep))) == sorted(wanted)
    shares = [[f'scratch_{share}', f'scratch_low_rate_{share}'] for share in ('0.1', '1')]
    assert arms_of(load_sweep(ROOT / 'scripts/ablations/nano/pretraining.yaml')) == shares


@pytest.mark.parametrize(
    ('file', 'kept', 'words', 'part'),
    [
        (None, '', ['--row', 'simmim_low_1'], 'simmim_low_1 is a rate of simmim_1'),
        ('tuning.csv', 'seed < 0', ['--row', 'simmim_1'], 'tuning.csv has no scores of simmim_1'),
        ('tuning.csv', '', [], 'tuning.csv'),
        ('tuning.csv', 'row != "simmim_low_1" or seed == 0', [], 'simmim_low_1'),
        ('seed0.parquet', 'row != "simmim_low_1"', [], 'simmim_low_1'),
        (
            'seed0.parquet',
            f'row != "simmim_low_1" or Path != "{NAMES[3]}"',
            [],
            'simmim_low_1',
        ),
    ],
)
def test_a_rate_is_chosen_only_among_complete_rows(  # noqa: PLR0913
    file: str | None, kept: str, words: list[str], part: str, tuned: Path, tmp_path: Path, capsys
) -> None:
    copied(tuned, tmp_path)
    if kept:
        keep(tmp_path / 'p' / file, kept)
    elif file:
        (tmp_path / 'p' / file).unlink()
    assert table_of(tmp_path, '--tune', *words) == 2
    assert part in capsys.readouterr().err


def test_runs_with_few_cases_not_learned_choose_no_rate(settings, monkeypatch, capsys) -> None:
    monkeypatch.setattr(metrics, 'FEW_CASES', 1000)
    assert join(settings, '--tune') == 2
    assert 'simmim_1_seed0_fold0' in capsys.readouterr().err


def test_joined_predictions_keep_what_the_run_of_each_fold_knew(tuned: Path, tmp_path) -> None:
    """Of tuned rows, each fold has the record of the row that it chose."""
    folder, seen = copied(tuned, tmp_path), 'weights that may have seen scored patients'
    for name, part in (('simmim_low_1', 0), ('simmim_low_1', 1), ('simmim_1', 2)):
        file = folder / f'simmim_finetune/mine_{name}_seed1_fold{part}/predictions_valid.json'
        known = {'facts': {'input size': f'{part} px'}, 'doubts': {seen: [f'{name} in {part}']}}
        file.write_text(json.dumps(json.loads(file.read_text()) | {'known': known}))
    assert join(folder, '--tune') == 0
    assert table_of(folder, '--tune') == 0
    text = (folder / 't/mine_Edema.md').read_text()
    # Folds 0, 1 and 2 have chosen simmim_low_1, simmim_1 and simmim_1.
    run = '(simmim / all labels with seed 1)'
    assert f'Warning: {seen} {run}: simmim_low_1 in 0; simmim_1 in 2.' in text
    assert f'Different input size: 0 px {run}; 2 px {run}.' in text
    assert table_of(folder) == 0
    text = (folder / 't/mine_Edema.md').read_text()
    for wanted in ('simmim_1 in 2', 'simmim_low_1 in 0', 'simmim_low_1 in 1'):
        assert wanted in text
    assert 'Not recorded with the predictions' in text
    # Predictions that are written again by other means have no record.
    for seed in range(2):
        keep(folder / f'p/seed{seed}.parquet', 'row == row')
    assert table_of(folder) == 0
    assert 'Warning: weights' not in (folder / 't/mine_Edema.md').read_text()


def test_a_fold_that_is_a_copy_of_another_seed_is_refused(joined: Path, capsys) -> None:
    first, copied_to = (
        joined / f'simmim_finetune/mine_scratch_1_seed{seed}_fold2/predictions_valid.csv'
        for seed in (0, 1)
    )
    shutil.copy(first, copied_to)
    assert join(joined) == 2
    told = capsys.readouterr().err
    assert str(first) in told and f'{copied_to} and' in told and 'is a copy' in told
