"""The table of a cross-validated sweep: joined ranks, differences and intervals."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sweep_runs import methods_file
from tiny import run_script

from config import Config, config_text, default_config
from data.folds import fold_files, write_folds
from data.predictions import write_predictions
from data.reading import read_split
from data.splits import split_patients, training_records
from evaluation import metrics
from evaluation.intervals import holm
from sweeps import plots, runner
from sweeps.files import ROOT, load_sweep
from sweeps.folds import arms_of, mean_score, save_ranks

LOGGER = logging.getLogger('fold_table')
LABELS = ('Edema', 'Pneumonia')
FOLDS, PER_FOLD = 3, 40
ENDS = ('seeds_low', 'seeds_high', 'patients_low', 'patients_high')  # columns


def draw(folder: Path) -> tuple[Path, np.ndarray]:
    """Write the label file of all images; return it and the targets."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (FOLDS * PER_FOLD, len(LABELS))).astype(float)
    table = pd.DataFrame(targets, columns=LABELS)
    table.insert(0, 'Path', names())
    table.insert(1, 'AP/PA', ['AP', 'PA', ''] * (FOLDS * PER_FOLD // 3))
    table.insert(2, 'Sex', ['Male', 'Male', 'Female', 'Female'] * (FOLDS * PER_FOLD // 4))
    table.to_csv(folder / 'all.csv', index=False)
    return folder / 'all.csv', targets


def names() -> list[str]:
    count = FOLDS * PER_FOLD
    return [f'train/patient{i // 2:05}/study{i % 2 + 1}/view1_frontal.png' for i in range(count)]


def write_run(folder: Path, values: np.ndarray, part: int) -> None:
    rows = slice(part * PER_FOLD, (part + 1) * PER_FOLD)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(
        folder / 'predictions_valid.csv',
        values[rows],
        paths=names()[rows],
        labels=LABELS,
        source={},
    )


def state(folder: Path) -> str:
    return 'finished' if folder.is_dir() else 'not started'


@pytest.fixture(scope='module')
def joined_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, dict]:
    """A sweep whose rows have finished but one: folder, targets, predictions by row."""
    tmp_path = tmp_path_factory.mktemp('joined')
    sweep = methods_file(tmp_path)
    add_method(sweep, 'pixels', 'scratch', finetune_options={'FINETUNE.MODE': 'pixels'})
    _, targets = draw(tmp_path)
    values = {}
    for number, name in enumerate(('simmim_1', 'scratch_1', 'moco_1', 'pixels_1')):
        for seed in range(2):
            rng = np.random.default_rng([number, seed])
            noise = rng.normal(scale=0.6 + 0.4 * number, size=targets.shape)
            values[name, seed] = 1 / (1 + np.exp(-targets - noise))
            if name == 'pixels_1':
                values[name, seed] = np.full_like(targets, 0.5)
            for part in range(FOLDS):
                if (name, part) == ('moco_1', 1):
                    continue  # this row has not finished
                folder = tmp_path / f'simmim_finetune/mine_{name}_seed{seed}_fold{part}'
                write_run(folder, values[name, seed], part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'folder_state', state)
        assert run('join', '--sweep', sweep, *words_of(tmp_path)) == 0
    return tmp_path, targets, values


@pytest.fixture
def joined(joined_once: tuple, tmp_path: Path, monkeypatch) -> tuple[Path, np.ndarray, dict]:
    """A copy of this sweep: sweep file, targets, predictions by row."""
    monkeypatch.setattr(runner, 'folder_state', state)
    folder, targets, values = joined_once
    return copied(folder, tmp_path) / 'mine.yaml', targets, values


def words_of(folder: Path) -> list[object]:
    """Arguments of `join` that write to the folder p."""
    return ['--output', folder, '--folds', FOLDS, '--seeds', 2, '--save', folder / 'p']


def run(*words: object) -> int:
    return run_script('ablate', *words)


def table_of(sweep: Path, *more: object, resamples: int = 10) -> int:
    """Write the tables of the joined predictions into the folder t."""
    folder = sweep.parent
    words = ['--labels', folder / 'all.csv', '--save', folder / 't', '--resamples', resamples]
    return run('table', '--sweep', sweep, '--predictions', folder / 'p', *words, *more)


def add_method(sweep: Path, name: str, like: str, **changes: object) -> None:
    """Add a method to a sweep file, or replace it: another one with changes."""
    content = yaml.safe_load(sweep.read_text())
    content['methods'][name] = content['methods'][like] | changes
    sweep.write_text(yaml.safe_dump(content, sort_keys=False))


def joined_table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / 'p/predictions.csv.gz', dtype={'row': str})


def keep(folder: Path, chosen: str) -> None:
    """Keep only some lines of the joined predictions, as `DataFrame.query` names them."""
    table = joined_table(folder).query(chosen)
    table.to_csv(folder / 'p/predictions.csv.gz', index=False)


def fold_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each fold, by counting pairs."""
    parts = values.reshape(FOLDS, PER_FOLD, -1)
    below = (parts[:, None] < parts[:, :, None]).sum(axis=2) + 0.5
    return (below / PER_FOLD).reshape(values.shape)


def test_joined_predictions_are_ranks_within_folds(joined: tuple) -> None:
    sweep, _, values = joined
    assert [path.name for path in (sweep.parent / 'p').iterdir()] == ['predictions.csv.gz']
    table = joined_table(sweep.parent)
    kinds = ('pixels_1', 'scratch_1', 'simmim_1')  # and not moco_1
    assert {*zip(table['row'], table['seed'], strict=True)} == {
        (k, s) for k in kinds for s in (0, 1)
    }
    table = table.query('row == "simmim_1" and seed == 1').set_index('Path')
    expected = fold_ranks(values['simmim_1', 1])
    np.testing.assert_allclose(table.loc[names(), [*LABELS]], expected, atol=1e-4)


def test_the_table_has_the_differences_of_scikit_learn(joined: tuple) -> None:
    sweep, targets, values = joined
    folder = sweep.parent
    assert table_of(sweep, resamples=200) == 0

    def area(name: str, seed: int) -> float:
        ranks = fold_ranks(values[name, seed])
        return np.mean([roc_auc_score(targets[:, k], ranks[:, k]) for k in range(2)])

    table = pd.read_csv(folder / 't/mine_mean.csv').set_index('row')
    own, base = ([area(name, seed) for seed in range(2)] for name in ('simmim_1', 'scratch_1'))
    # The reference of the sweep is simmim, so scratch is compared with it.
    assert table.loc['simmim_1', 'value'] == pytest.approx(np.mean(own), abs=1e-3)
    entry = table.loc['scratch_1']
    assert entry['against'] == 'simmim_1'
    assert entry['difference'] == pytest.approx(np.mean(base) - np.mean(own), abs=1e-3)
    assert entry['patients_low'] < entry['difference'] < entry['patients_high']
    assert entry['p_holm'] == pytest.approx(holm([entry['p']])[0])
    assert table.loc['pixels_1', 'value'] == 0.5
    page = (folder / 't/mine_mean.md').read_text()
    assert 'scratch_1' in page and 'Not for clinical use' in page


def test_scores_within_views_are_compared_as_others_are(joined: tuple) -> None:
    sweep, targets, values = joined
    assert table_of(sweep, '--scores', 'auroc_within_views:Edema', resamples=200) == 0
    lines = pd.read_csv(sweep.parent / 't/mine_auroc_within_views_Edema.csv').set_index('row')
    views = np.arange(len(targets)) % 3  # AP, PA, and frontal images of unknown direction

    def area(name: str, seed: int) -> float:
        ranks = fold_ranks(values[name, seed])[:, 0]
        parts = [(targets[views == v, 0], ranks[views == v]) for v in range(3)]
        pairs = [(own == 1).sum() * (own == 0).sum() for own, _ in parts]
        return np.average([roc_auc_score(*part) for part in parts], weights=pairs)

    own, base = ([area(name, seed) for seed in range(2)] for name in ('scratch_1', 'simmim_1'))
    line = lines.loc['scratch_1']
    assert line['value'] == pytest.approx(np.mean(own), abs=1e-3)
    assert line['difference'] == pytest.approx(np.mean(own) - np.mean(base), abs=1e-3)
    assert line['patients_low'] < line['difference'] < line['patients_high']
    page = (sweep.parent / 't/mine_auroc_within_views_Edema.md').read_text()
    assert 'AUROC within views, Edema' in page


def test_joined_rows_are_scored_in_groups_if_wanted(joined: tuple, capsys) -> None:
    sweep, targets, values = joined
    assert table_of(sweep, '--scores', 'Edema', '--subgroups') == 0
    lines = pd.read_csv(sweep.parent / 't/mine_Edema_subgroups.csv').set_index(['group', 'row'])
    chosen = np.arange(len(targets)) % 4 < 2
    areas = [roc_auc_score(targets[chosen, 0], fold_ranks(values['simmim_1', s])[chosen, 0])
             for s in range(2)]  # fmt: skip
    assert lines.loc[('Sex: Male', 'simmim_1'), 'value'] == pytest.approx(np.mean(areas), abs=1e-3)
    assert 'View: Frontal PA' in lines.index.get_level_values('group')
    assert table_of(sweep) == 0
    assert '_subgroups' not in capsys.readouterr().out.rpartition('mine_Edema')[2]


def test_an_image_in_two_folds_is_refused(joined: tuple) -> None:
    sweep, targets, _ = joined
    folder = sweep.parent / 'simmim_finetune/mine_simmim_1_seed0_fold2'
    write_run(folder, targets, 0)
    first = sweep.parent / 'simmim_finetune/mine_simmim_1_seed0_fold0/predictions_valid.csv'
    files = [first, folder / 'predictions_valid.csv']
    with pytest.raises(ValueError, match='patient00000') as caught:
        save_ranks(sweep.parent / 'x.csv.gz', {('simmim_1', 0): files})
    assert 'fold0' in str(caught.value) and not (sweep.parent / 'x.csv.gz').exists()


def test_rows_with_other_labels_are_not_joined_into_one_table(joined: tuple, capsys) -> None:
    folder = joined[0].parent
    before = (folder / 'p/predictions.csv.gz').read_bytes()
    for file in folder.glob('simmim_finetune/*seed1*/predictions_valid*'):
        file.write_text(file.read_text().replace('Pneumonia', 'TB'))
    assert run('join', '--sweep', joined[0], *words_of(folder)) == 2
    error = capsys.readouterr().err
    assert 'predictions.csv.gz' in error and 'TB' in error
    assert (folder / 'p/predictions.csv.gz').read_bytes() == before


def test_a_join_replaces_its_rows_and_seeds_and_keeps_the_others(joined: tuple) -> None:
    sweep, targets, _ = joined
    folder = sweep.parent
    before = joined_table(folder)
    for part in range(FOLDS):
        write_run(folder / f'simmim_finetune/mine_simmim_1_seed1_fold{part}', targets, part)
    shutil.rmtree(folder / 'simmim_finetune/mine_scratch_1_seed0_fold2')
    assert run('join', '--sweep', sweep, *words_of(folder)) == 0
    after = joined_table(folder)
    changed = (before['row'] == 'simmim_1') & (before['seed'] == 1)
    pd.testing.assert_frame_equal(before[~changed], after[~changed])
    assert not before[changed].equals(after[changed])


def test_seeds_beyond_those_of_the_scale_are_left_out_and_named(joined: tuple, caplog) -> None:
    sweep, folder = joined[0], joined[0].parent
    content = yaml.safe_load(sweep.read_text()) | {'scales': {'all': {'seeds': 1}}}
    sweep.write_text(yaml.safe_dump(content))
    for more, seeds in (([], 2), (['--scale', 'all', '--seeds', 2], 2), (['--scale', 'all'], 1)):
        assert table_of(sweep, *more) == 0
        table = pd.read_csv(folder / 't/mine_mean.csv')
        assert {*table['seeds']} == {seeds}
        assert ('seeds [1] are left out' in caplog.text) == (seeds == 1)


def test_a_join_in_which_every_run_misses_a_fold_names_them(joined: tuple, capsys) -> None:
    sweep, folder = joined[0], joined[0].parent
    words = ['--output', folder, '--folds', FOLDS + 1, '--seeds', 2, '--save', folder / 'none']
    assert run('join', '--sweep', sweep, *words) == 2
    error = capsys.readouterr().err
    assert str(folder) in error and '3/4 not started' in error
    assert not (folder / 'none').exists()


def test_joined_runs_are_listed_and_those_of_earlier_parts_stay(joined: tuple) -> None:
    folder = joined[0].parent
    runs = folder / 'p/runs.csv'
    runs.write_text('run,code,seed,minutes,images\nearlier,0071e23,0,2.5,30\n')
    for name in ('simmim_pretrain/mine_simmim_seed1', 'simmim_finetune/mine_scratch_1_seed0_fold2'):
        record = {'code': '71e5123', 'seed': 1, 'seconds': 90, 'data': {'images': 5700}}
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps(record | {'finished': '2026-01-01T00:00:00'})
        (folder / name / 'run.json').write_text(text)
    (folder / 'simmim_pretrain/mine_simmim_seed1/metrics.jsonl').write_text(
        '{"epoch": 0, "holdout_l1_grey": 20}\n{"epoch": 4, "holdout_l1_grey": 17.5}\n'
    )
    for _ in range(2):
        assert run('join', '--sweep', joined[0], *words_of(folder)) == 0
    table = pd.read_csv(runs, index_col='run', dtype={'code': str})
    assert table['code'].tolist() == ['0071e23', '71e5123', '71e5123']  # and not numbers
    names = ['earlier', 'mine_scratch_1_seed0_fold2', 'mine_simmim_seed1']
    assert table.index.tolist() == names and table['minutes'].tolist() == [2.5, 1.5, 1.5]
    assert table['holdout_l1_grey'].tolist()[-1] == 17.5


def test_a_difference_over_some_of_the_seeds_says_so(joined: tuple) -> None:
    keep(joined[0].parent, 'row != "simmim_1" or seed == 0')
    assert table_of(joined[0]) == 0
    assert ' (1 of 2 seeds) |' in (joined[0].parent / 't/mine_mean.md').read_text()


def test_rows_are_compared_with_the_pixels_unless_only_named_rows_are(joined: tuple) -> None:
    sweep, targets, values = joined
    folder = sweep.parent
    add_method(sweep, 'scratch', 'scratch', against=['simmim', 'pixels'])
    assert table_of(sweep) == 0
    table = pd.read_csv(folder / 't/mine_Edema.csv').set_index(['row', 'against'])
    entry = table.loc[('scratch_1', 'pixels_1')]
    own = [roc_auc_score(targets[:, 0], fold_ranks(values['scratch_1', s])[:, 0]) for s in range(2)]
    assert entry['difference'] == pytest.approx(np.mean(own) - 0.5, abs=1e-3)
    assert ('scratch_1', 'simmim_1') in table.index
    assert table_of(sweep, '--row', 'scratch_1', 'simmim_1') == 0
    named = pd.read_csv(folder / 't/mine_Edema.csv')
    assert named['against'].dropna().tolist() == ['simmim_1']
    assert table_of(sweep, '--row', 'scratch_1', 'pixels_1') == 0
    named = pd.read_csv(folder / 't/mine_Edema.csv')
    assert named['against'].dropna().tolist() == ['pixels_1']
    assert table_of(sweep, '--row', 'scratch_1', 'simmim_1', '--against', 'pixels') == 0
    named = pd.read_csv(folder / 't/mine_Edema.csv').set_index('row')['against']
    assert named.dropna().to_dict() == {'simmim_1': 'pixels_1', 'scratch_1': 'pixels_1'}


def test_figures_show_the_differences_of_the_table(joined: tuple, monkeypatch) -> None:
    folder = joined[0].parent
    add_method(joined[0], 'scratch', 'scratch', against=['pixels'])
    assert table_of(joined[0], '--scores', 'Edema', resamples=200) == 0
    drawn, new_figure = [], plots.new_figure
    monkeypatch.setattr(plots, 'new_figure', lambda *a: drawn.append(new_figure(*a)) or drawn[-1])
    words = ['plot', '--sweep', joined[0], '--save', folder / 't', '--scores', 'Edema']
    assert run(*words, '--figure', folder / 'd.png', '--pairs', 'scratch_1/pixels_1') == 0
    assert run(*words, '--figure', folder / 's.png') == 0
    (differences,), (scores,) = (figure.axes for figure in drawn)
    line = pd.read_csv(folder / 't/mine_Edema.csv').set_index('row').loc['scratch_1']
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
    assert (folder / 's.png').stat().st_size > 10_000


def line_of(axis: object, number: int) -> list[float]:
    return [*axis.lines[number].get_xdata()]


@pytest.mark.parametrize(
    'words, error',
    [
        (['--scores', 'Edema', '--pairs', 'moco_1/simmim_1'], "compare 'moco_1/simmim_1'"),
        (['--scores', 'Oedema'], 'mine_Oedema.csv does not exist'),
        (['--scores', 'Pneumonia'], 'by_seed'),
        (['--scores', 'Fracture'], "has no row 'gone_1'"),
    ],
)
def test_figures_that_the_tables_do_not_have_are_refused(words, error, joined, capsys) -> None:
    folder = joined[0].parent
    assert table_of(joined[0], '--scores', 'Edema') == 0
    (folder / 't/mine_Pneumonia.csv').write_text('a,b\n1,2\n')
    of_another_sweep = (folder / 't/mine_Edema.csv').read_text().replace('scratch_1', 'gone_1')
    (folder / 't/mine_Fracture.csv').write_text(of_another_sweep)
    assert run('plot', '--sweep', joined[0], '--save', folder / 't', *words) == 2
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
def test_tables_that_the_predictions_do_not_have_are_refused(words, error, joined, capsys) -> None:
    assert table_of(joined[0], *words) == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize('change', [{'row': 'x'}, {'seed': 'x'}, None])
def test_a_table_of_predictions_that_is_none_is_named(change, joined, capsys) -> None:
    file = joined[0].parent / 'p/predictions.csv.gz'
    file.unlink()
    if change:
        pd.DataFrame({'Path': ['a'], 'Edema': [0.5]} | change).to_csv(file, index=False)
    assert table_of(joined[0]) == 2
    assert str(file) in capsys.readouterr().err


@pytest.fixture(scope='module')
def two_settings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Two settings of one pre-training; on fold 0 each one is right about the other's patients.

    Returns the folder and row -> predictions of all images by the runs of each fold.
    """
    tmp_path = tmp_path_factory.mktemp('settings')
    sweep = methods_file(tmp_path)
    add_method(sweep, 'simmim_low', 'simmim', finetune_options={'TRAIN.BASE_LR': 0.001})
    # More than another rate.
    add_method(sweep, 'other', 'simmim', finetune_options={'MODEL.HEAD': 'attention'})
    _, targets = draw(tmp_path)
    for image in map(tmp_path.joinpath, names()):
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    config = config_of(tmp_path, 0)
    config.DATA.TRAIN_CSV = 'all.csv'
    write_folds(config, tmp_path / 'folds', FOLDS)
    (valid, _), noise = folds_of(tmp_path, 0), np.random.default_rng(1).random(targets.shape) / 10
    is_valid = np.isin(names(), valid)[:, None]
    right, wrong = targets * 0.9 + noise, (1 - targets) * 0.9 + noise
    values = {
        'simmim_1': [np.where(is_valid, right, wrong), right, right],
        'simmim_low_1': [np.where(is_valid, wrong, right), wrong, wrong],
        'other_1': [noise] * FOLDS,
        'scratch_1': [noise] * FOLDS,
    }
    for name, by_fold in values.items():
        for part in range(FOLDS):
            for seed in range(2):
                folder = tmp_path / f'simmim_finetune/mine_{name}_seed{seed}_fold{part}'
                folder.mkdir(parents=True)
                (folder / 'config.yaml').write_text(config_text(config_of(tmp_path, part)))
                for split, wanted in zip(('valid', 'train'), folds_of(tmp_path, part), strict=True):
                    chosen = np.flatnonzero(np.isin(names(), wanted))
                    paths = np.array(names())[chosen]
                    file = folder / f'predictions_{split}.csv'
                    write_predictions(
                        file, by_fold[part][chosen], paths=paths, labels=LABELS, source={}
                    )
    return tmp_path, values


@pytest.fixture
def settings(two_settings: tuple, tmp_path: Path, monkeypatch) -> tuple[Path, dict]:
    """A copy of these runs: sweep file and predictions."""
    monkeypatch.setattr(runner, 'folder_state', state)
    return copied(two_settings[0], tmp_path) / 'mine.yaml', two_settings[1]


@pytest.fixture(scope='module')
def tuned(two_settings: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of these runs with their joined predictions."""
    folder = copied(two_settings[0], tmp_path_factory.mktemp('tuned'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'folder_state', state)
        assert run('join', '--sweep', folder / 'mine.yaml', *words_of(folder), '--tune') == 0
    return folder


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, dirs_exist_ok=True))


def config_of(folder: Path, part: int) -> Config:
    """The options of a run that learned from a third of the training patients."""
    config = default_config()
    train, valid = map(str, fold_files(folder / 'folds', part))
    options = {'DATA_PATH': str(folder), 'DATASET': 'chexpert', 'TRAIN_CSV': train}
    options |= {'LABELS': list(LABELS), 'VALID_CSV': valid, 'TRAIN_FRACTION': 0.34}
    for key, value in (options | {'VIEWS': 'all', 'HOLDOUT_FRACTION': 0.0}).items():
        config.DATA[key] = value
    return config


def folds_of(folder: Path, part: int) -> list[np.ndarray]:
    """The images of the patients who are scored in a fold, and of all the others."""
    config = config_of(folder, part)
    return [read_split(config, split, LOGGER).path for split in ('valid', 'train')]


def test_tuning_takes_the_setting_that_is_best_on_patients_who_were_not_learned(
    settings: tuple,
) -> None:
    """In fold 0 the first setting is only right about patients whom it scores."""
    sweep, values = settings
    folder = sweep.parent
    words = [*words_of(folder), '--tune']
    assert run('join', '--sweep', sweep, *words) == 0
    assert table_of(sweep, '--tune', '--resamples', 200) == 0
    choices = pd.read_csv(folder / 't/tuning.csv')
    taken = ['simmim_low_1', 'simmim_1', 'simmim_1']
    assert list(choices[choices['chosen']]['candidate']) == taken
    table = pd.read_csv(folder / 't/mine_Edema.csv').set_index('row')
    assert {*table.index} == {'simmim_1', 'other_1', 'scratch_1'}
    ranks = np.empty(len(names()))
    for part, name in enumerate(taken):
        is_valid = np.isin(names(), folds_of(folder, part)[0])
        ranks[is_valid] = (rankdata(values[name][part][is_valid, 0]) - 0.5) / is_valid.sum()
    targets = pd.read_csv(folder / 'all.csv').set_index('Path')
    wanted = roc_auc_score(targets.loc[names(), 'Edema'], ranks)
    assert table.loc['simmim_1', 'value'] == pytest.approx(wanted, abs=1e-3)
    scores = pd.read_csv(folder / 'p/tuning.csv')
    assert {*scores['row']} == {'simmim_1', 'simmim_low_1'}


def test_a_sweep_may_be_joined_in_parts(settings: tuple) -> None:
    sweep, _ = settings
    folder = sweep.parent
    words = ['--sweep', sweep, '--output', folder, '--folds', FOLDS, '--tune', '--save']
    assert run('join', *words, folder / 'whole', '--seeds', 2) == 0
    assert run('join', *words, folder / 'parts', '--seeds', 1) == 0
    for gone in (folder / 'simmim_finetune').glob('*_seed0_*'):
        shutil.rmtree(gone)
    assert run('join', *words, folder / 'parts', '--seeds', 2) == 0
    files = {path.name: path.read_bytes() for path in (folder / 'whole').iterdir()}
    assert files == {path.name: path.read_bytes() for path in (folder / 'parts').iterdir()}


@pytest.mark.parametrize(('select_on', 'fraction'), [('last', 0.34), ('last', 1), ('auto', 0.34)])
def test_held_out_patients_count_in_tuning_if_they_select_no_epoch(
    settings: tuple, select_on: str, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, 'FEW_CASES', 5)
    sweep, _ = settings
    folder = sweep.parent
    config = config_of(folder, 0)
    config.EVAL.SELECT_ON, config.DATA.TRAIN_FRACTION = select_on, fraction
    config.DATA.HOLDOUT_FRACTION = 0.4
    train, held_out, _ = split_patients(config, read_split(config, 'train', LOGGER))
    learned = training_records(config, train).path
    seen = np.concatenate([train.path[~np.isin(train.path, learned)], held_out.path])
    seen = seen if select_on == 'last' else np.setdiff1d(seen, held_out.path)
    run = folder / 'simmim_finetune/mine_scratch_1_seed0_fold0'
    (run / 'config.yaml').write_text(config_text(config))
    noise = np.random.default_rng(2).random((len(names()), len(LABELS)))
    for split, paths in (('train', train.path), ('holdout', held_out.path)):
        own = noise[[names().index(path) for path in paths]]
        write_predictions(
            run / f'predictions_{split}.csv', own, paths=paths, labels=LABELS, source={}
        )
    targets = pd.read_csv(folder / 'all.csv').set_index('Path').loc[seen, [*LABELS]].to_numpy()
    scores = [
        roc_auc_score(targets[:, k], noise[[names().index(path) for path in seen], k])
        for k in range(len(LABELS))
        if min(targets[:, k].sum(), (1 - targets[:, k]).sum()) >= 5
    ]
    assert scores and mean_score(run) == pytest.approx(np.mean(scores), abs=1e-6)


def test_rows_that_do_not_differ_are_one_candidate(tmp_path: Path) -> None:
    """A share sets the epochs of both rows, so they are the same with this share."""
    sweep = methods_file(tmp_path)
    add_method(sweep, 'simmim_low', 'simmim', finetune_options={'TRAIN.BASE_LR': 0.001})
    add_method(sweep, 'long', 'simmim', schedule={'TRAIN.EPOCHS': 60})
    arms = arms_of(load_sweep(sweep))
    assert arms == [['simmim_0.1', 'simmim_low_0.1'], ['simmim_1', 'simmim_low_1']]


def test_rows_from_other_weights_are_no_rates_of_each_other(tmp_path: Path) -> None:
    sweep = methods_file(tmp_path)
    low = {'TRAIN.LAYER_DECAY': 0.9, 'TRAIN.BASE_LR': 0.001}
    add_method(sweep, 'imagenet', 'scratch', weights='IMAGENET')
    add_method(sweep, 'imagenet_low', 'imagenet', finetune_options=low)
    add_method(sweep, 'scratch_low', 'scratch', finetune_options=low)
    arms = [arm for arm in arms_of(load_sweep(sweep)) if arm[0].endswith('_1')]
    assert arms == [['scratch_1', 'scratch_low_1'], ['imagenet_1', 'imagenet_low_1']]
    shares = [[f'scratch_{share}', f'scratch_low_rate_{share}'] for share in ('0.1', '1')]
    assert arms_of(load_sweep(ROOT / 'scripts/ablations/nano/pretraining.yaml')) == shares


def spoil(folder: Path, change: str) -> None:
    """Take away what a choice of rates needs."""
    tuning = folder / 'p/tuning.csv'
    if change == 'all scores':
        tuning.write_text(tuning.read_text().splitlines()[0])
    elif change == 'the file':
        tuning.unlink()
    elif change == 'the scores of a seed':
        lines = [line for line in tuning.read_text().splitlines() if 'simmim_low_1,1' not in line]
        tuning.write_text('\n'.join(lines))
    elif change:
        keep(folder, f'not ({change})')


@pytest.mark.parametrize(
    ('change', 'words', 'part'),
    [
        ('', ['--row', 'simmim_low_1'], 'simmim_low_1 is a rate of simmim_1'),
        ('all scores', ['--row', 'simmim_1'], 'tuning.csv has no scores of simmim_1'),
        ('the file', [], 'tuning.csv'),
        ('the scores of a seed', [], 'simmim_low_1'),
        ('row == "simmim_low_1"', [], 'simmim_low_1'),
        (f'row == "simmim_low_1" and seed == 0 and Path == "{names()[3]}"', [], 'simmim_low_1'),
    ],
)
def test_a_rate_is_chosen_only_among_complete_rows(
    change: str, words: list[str], part: str, tuned: Path, tmp_path: Path, capsys
) -> None:
    spoil(copied(tuned, tmp_path), change)
    assert table_of(tmp_path / 'mine.yaml', '--tune', *words) == 2
    assert part in capsys.readouterr().err


def test_runs_with_few_cases_that_they_did_not_learn_from_choose_no_rate(
    settings: tuple, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(metrics, 'FEW_CASES', 1000)
    words = [*words_of(settings[0].parent), '--tune']
    assert run('join', '--sweep', settings[0], *words) == 2
    assert 'simmim_1_seed0_fold0' in capsys.readouterr().err
