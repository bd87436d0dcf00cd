"""The table of a cross-validated sweep: joined ranks, differences and intervals."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from sweep_runs import methods_file

from data.predictions import write_predictions
from evaluation import metrics
from evaluation.compare import holm
from scripts import fold_table
from sweeps.folds import save_ranks

LABELS = ('Edema', 'Pneumonia')
FOLDS, PER_FOLD = 3, 40


def draw(folder: Path) -> tuple[Path, np.ndarray]:
    """Write the label file of all images; return it and the targets."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (FOLDS * PER_FOLD, len(LABELS))).astype(float)
    table = pd.DataFrame(targets, columns=LABELS)
    table.insert(0, 'Path', names())
    table.to_csv(folder / 'all.csv', index=False)
    return folder / 'all.csv', targets


def names() -> list[str]:
    count = FOLDS * PER_FOLD
    return [f'train/patient{i // 2:05}/study{i % 2 + 1}/view1_frontal.png' for i in range(count)]


def write_run(folder: Path, values: np.ndarray, part: int, kind: str = '') -> None:
    rows = slice(part * PER_FOLD, (part + 1) * PER_FOLD)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(
        folder / f'predictions_valid{kind}.csv',
        values[rows],
        paths=names()[rows],
        labels=LABELS,
        source={},
    )


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, dict]:
    """A sweep whose rows have finished but one: sweep file, targets, predictions by row."""
    sweep = methods_file(tmp_path)
    _, targets = draw(tmp_path)
    values = {}
    for number, name in enumerate(('simmim_1', 'scratch_1', 'moco_1')):
        for seed in range(2):
            rng = np.random.default_rng([number, seed])
            noise = rng.normal(scale=0.6 + 0.4 * number, size=targets.shape)
            values[name, seed] = 1 / (1 + np.exp(-targets - noise))
            for part in range(FOLDS):
                if (name, part) == ('moco_1', 1):
                    continue  # this row has not finished
                folder = tmp_path / f'simmim_finetune/mine_{name}_seed{seed}_fold{part}'
                write_run(folder, values[name, seed], part)
                if name == 'scratch_1':
                    write_run(folder, np.full_like(targets, 0.5), part, '_pixels')
    monkeypatch.setattr(fold_table, 'is_finished', Path.is_dir)
    arguments = ['--output', tmp_path, '--folds', FOLDS, '--seeds', 2, '--save', tmp_path / 'p']
    assert run('join', '--sweep', sweep, *arguments) == 0
    return sweep, targets, values


def run(*words: object) -> int:
    return fold_table.main(fold_table.parse_args([*map(str, words)]))


def table_of(sweep: Path, *more: object, resamples: int = 10) -> int:
    """Write the tables of the joined predictions into the folder t."""
    folder = sweep.parent
    words = ['--labels', folder / 'all.csv', '--save', folder / 't', '--resamples', resamples]
    return run('table', '--sweep', sweep, '--predictions', folder / 'p', *words, *more)


def fold_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each fold, by counting pairs."""
    parts = values.reshape(FOLDS, PER_FOLD, -1)
    below = (parts[:, None] < parts[:, :, None]).sum(axis=2) + 0.5
    return (below / PER_FOLD).reshape(values.shape)


def test_joined_predictions_are_ranks_within_folds(joined: tuple) -> None:
    sweep, _, values = joined
    files = sorted(path.name for path in (sweep.parent / 'p').iterdir())
    kinds = ('pixels_1', 'scratch_1', 'simmim_1')  # and not moco_1
    assert files == [f'{kind}_seed{seed}.csv.gz' for kind in kinds for seed in range(2)]
    table = pd.read_csv(sweep.parent / 'p/simmim_1_seed1.csv.gz').set_index('Path')
    expected = fold_ranks(values['simmim_1', 1])
    np.testing.assert_allclose(table.loc[names(), [*LABELS]], expected, atol=1e-4)


def test_the_table_has_the_differences_of_scikit_learn(joined: tuple) -> None:
    sweep, targets, values = joined
    folder = sweep.parent
    assert table_of(sweep, resamples=50) == 0

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


def test_an_image_in_two_folds_is_refused(joined: tuple) -> None:
    sweep, targets, _ = joined
    folder = sweep.parent / 'simmim_finetune/mine_simmim_1_seed0_fold2'
    write_run(folder, targets, 0)
    first = sweep.parent / 'simmim_finetune/mine_simmim_1_seed0_fold0/predictions_valid.csv'
    files = [first, folder / 'predictions_valid.csv']
    with pytest.raises(ValueError, match='patient00000') as caught:
        save_ranks(sweep.parent / 'x.csv.gz', files)
    assert 'fold0' in str(caught.value) and not (sweep.parent / 'x.csv.gz').exists()


@pytest.mark.parametrize('option', ['--folds', '--seeds'])
def test_no_folds_and_no_seeds_are_refused(option, joined: tuple, capsys) -> None:
    sweep = joined[0]
    words = ['join', '--sweep', sweep, '--output', sweep.parent, '--save', sweep.parent / 'none']
    words += ['--folds', FOLDS, '--seeds', 2, option, 0]
    assert fold_table.main(fold_table.parse_args([*map(str, words)])) == 2
    assert f'{option} 0' in capsys.readouterr().err


def test_joined_files_do_not_depend_on_the_time(joined: tuple) -> None:
    path = joined[0].parent / 'p/simmim_1_seed0.csv.gz'
    content = path.read_bytes()
    assert gzip.compress(gzip.decompress(content), mtime=0) == content


def test_a_table_of_named_rows_leaves_out_the_others(joined: tuple) -> None:
    sweep, _, _ = joined
    assert table_of(sweep, '--row', 'simmim_1') == 0
    table = pd.read_csv(sweep.parent / 't/mine_mean.csv')
    assert {*table['row']} == {'simmim_1', 'pixels_1'}
    assert table['against'].isna().all()
    assert table_of(sweep, '--row', 'simmim_1', 'swav') == 2


def test_a_mean_without_labels_and_unknown_scores_are_refused(joined: tuple, capsys) -> None:
    sweep, _, _ = joined
    assert table_of(sweep, '--cases', 1000) == 0
    tables = sorted(path.name for path in (sweep.parent / 't').glob('*.csv'))
    assert tables == ['mine_Edema.csv', 'mine_Pneumonia.csv']
    for score in ('mean', 'Oedema'):
        assert table_of(sweep, '--cases', 1000, '--scores', score) == 2
        assert f"['Edema', 'Pneumonia'], got ['{score}']" in capsys.readouterr().err


def test_rows_without_a_common_seed_are_not_compared(joined: tuple) -> None:
    sweep, _, _ = joined
    folder = sweep.parent
    (folder / 'p/simmim_1_seed0.csv.gz').unlink()
    (folder / 'p/scratch_1_seed1.csv.gz').unlink()
    assert table_of(sweep) == 0
    table = pd.read_csv(folder / 't/mine_mean.csv').set_index('row')
    assert table['against'].isna().all() and {*table['seeds']} == {1, 2}


def test_rows_are_compared_with_the_pixels_unless_only_named_rows_are(joined: tuple) -> None:
    sweep, targets, values = joined
    folder = sweep.parent
    content = yaml.safe_load(sweep.read_text())
    content['methods']['scratch']['against'] = ['simmim', 'pixels']
    content['methods']['scratch']['finetune_options']['REPORT.PIXEL_FLOOR'] = True
    sweep.write_text(yaml.safe_dump(content))
    assert table_of(sweep) == 0
    table = pd.read_csv(folder / 't/mine_Edema.csv').set_index(['row', 'against'])
    entry = table.loc[('scratch_1', 'pixels_1')]
    own = [roc_auc_score(targets[:, 0], fold_ranks(values['scratch_1', s])[:, 0]) for s in range(2)]
    assert entry['difference'] == pytest.approx(np.mean(own) - 0.5, abs=1e-3)
    assert ('scratch_1', 'simmim_1') in table.index
    assert table_of(sweep, '--row', 'scratch_1', 'simmim_1') == 0
    named = pd.read_csv(folder / 't/mine_Edema.csv')
    assert named['against'].dropna().tolist() == ['simmim_1']


def test_missing_values_have_the_mark_of_their_reason(joined: tuple) -> None:
    sweep, _, _ = joined
    for file in (sweep.parent / 'p').glob('*_seed1.csv.gz'):
        file.unlink()
    assert table_of(sweep, '--scores', 'Edema', '--against', 'pixels_1') == 0
    lines = (sweep.parent / 't/mine_Edema.md').read_text().splitlines()
    (scratch,) = [line for line in lines if line.startswith('| scratch_1')]
    assert scratch.count('n/a (note 1)') == 2  # over seeds, and the verdict
    assert any(line.startswith('- note 1: ') and 'seed' in line for line in lines)


def test_a_flag_compares_all_rows_with_one(joined: tuple, capsys) -> None:
    sweep, _, _ = joined
    assert table_of(sweep, '--against', 'scratch_1') == 0
    table = pd.read_csv(sweep.parent / 't/mine_Edema.csv').set_index('row')
    assert table['against'].dropna().to_dict() == {'simmim_1': 'scratch_1'}
    assert table_of(sweep, '--against', 'moco_1') == 2
    assert 'moco_1' in capsys.readouterr().err


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, dict]:
    """Two settings of one pre-training: the first one is right on fold 0 and wrong elsewhere."""
    sweep = methods_file(tmp_path)
    content = yaml.safe_load(sweep.read_text())
    simmim, scratch = content['methods']['simmim'], content['methods']['scratch']
    low = simmim | {'finetune_options': {'TRAIN.BASE_LR': 0.001}}
    content['methods'] = {'simmim': simmim, 'simmim_low': low, 'scratch': scratch}
    sweep.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(fold_table, 'is_finished', Path.is_dir)
    _, targets = draw(tmp_path)
    first_fold = np.arange(len(targets))[:, None] < PER_FOLD
    noise = np.random.default_rng(1).random(targets.shape) / 10
    values = {
        'simmim_1': np.where(first_fold, targets, 1 - targets) * 0.9 + noise,
        'simmim_low_1': np.where(first_fold, 0.0, targets) * 0.9 + noise,
        'scratch_1': noise,
    }
    for name in values:
        for part in range(FOLDS):
            for seed in range(2):
                folder = tmp_path / f'simmim_finetune/mine_{name}_seed{seed}_fold{part}'
                write_run(folder, values[name], part)
    return sweep, targets, values


def test_tuning_takes_for_each_fold_the_setting_that_is_best_on_the_others(settings: tuple) -> None:
    """On fold 0 the first setting is perfect, but its patients must not choose it."""
    sweep, targets, values = settings
    folder = sweep.parent
    words = ['--output', folder, '--folds', FOLDS, '--seeds', 2, '--save', folder / 'p']
    assert run('join', '--sweep', sweep, *words, '--tune', folder / 'all.csv') == 0
    files = {path.name for path in (folder / 'p').iterdir()}
    assert files == {'tuning.csv'} | {
        f'{row}_seed{seed}.csv.gz' for row in ('simmim_1', 'scratch_1') for seed in range(2)
    }
    table = pd.read_csv(folder / 'p/simmim_1_seed0.csv.gz').set_index('Path')
    np.testing.assert_allclose(
        table.loc[names(), [*LABELS]], fold_ranks(values['simmim_low_1']), atol=1e-4
    )
    choices = pd.read_csv(folder / 'p/tuning.csv')
    assert set(choices[choices['chosen']]['candidate']) == {'simmim_low_1', 'scratch_1'}
    for entry in choices.itertuples():
        others = np.arange(len(targets)) // PER_FOLD != entry.fold
        ranks = fold_ranks(values[entry.candidate])[others]
        wanted = [roc_auc_score(targets[others, k], ranks[:, k]) for k in range(2)]
        assert entry.mean_auroc == pytest.approx(np.mean(wanted), abs=1e-4)


def test_tuning_needs_the_same_seeds_and_enough_cases(
    settings: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sweep, *_ = settings
    folder = sweep.parent
    words = ['--output', folder, '--folds', FOLDS, '--seeds', 2, '--save', folder / 'p']
    words += ['--tune', folder / 'all.csv']
    monkeypatch.setattr(metrics, 'FEW_CASES', 1000)
    assert run('join', '--sweep', sweep, *words) == 2
    assert 'all.csv' in capsys.readouterr().err
    (folder / 'simmim_finetune/mine_simmim_low_1_seed1_fold0').rename(folder / 'elsewhere')
    assert run('join', '--sweep', sweep, *words) == 2
    assert 'simmim_low_1' in capsys.readouterr().err
    assert not (folder / 'p').exists()
