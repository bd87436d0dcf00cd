"""What tables, LaTeX, figures and joined predictions of a sweep tell of what its runs knew."""

import copy
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from sweep_runs import MadeRuns, make_sweep
from tiny import ROOT, run_script

from evaluation.run_facts import (
    BY_HAND,
    DOUBTS,
    EPOCH,
    KNOWN,
    LABELS,
    MODE,
    ON_VALID,
    PRECISION,
    SEED,
    SEEN,
    SHARED,
    SIZE,
    WEIGHTS,
    Known,
)
from sweeps.files import Sweep, load_sweep, run_folder
from sweeps.joined import ranks_table, read_joined_known, write_ranks
from sweeps.long_table import FACT
from sweeps.tables import notices_of

ROWS, SEEDS = ('0.1', '0.6'), (0, 1)
LEAK = 'a.pth was trained with 3 of the 90 patients of test, so their scores are too high'


@pytest.fixture(scope='module')
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeRuns, Sweep]:
    folder = tmp_path_factory.mktemp('known')
    made, sweep = MadeRuns(folder), make_sweep(folder, [*ROWS], reference=1)
    for row in sweep.rows:
        for seed in SEEDS:
            made.add(row, seed, strength=1 + float(row.name))
    return made, sweep


@pytest.fixture
def made(made_once: tuple[MadeRuns, Sweep], tmp_path: Path) -> tuple[MadeRuns, Sweep]:
    runs, sweep = copy.copy(made_once[0]), made_once[1]
    runs.output = Path(shutil.copytree(runs.output, tmp_path / 'output'))
    for row in sweep.rows:
        for seed in SEEDS:
            record(runs, row, seed)
    return runs, sweep


def record(runs: MadeRuns, row: object, seed: int, doubts: dict = {}, **facts: str) -> None:  # noqa: B006
    """Write what a run knew beside its predictions."""
    known = {SEED: str(seed), SIZE: '224 px', PRECISION: 'bfloat16', LABELS: '10 % of the patients'}
    known |= {EPOCH: 'valid', WEIGHTS: f'{row.name}{seed}', MODE: 'full'}
    known |= {globals()[name.upper()]: value for name, value in facts.items()}
    file = run_folder(runs.output, 'finetune', row, seed) / 'predictions_test.json'
    content = json.loads(file.read_text())
    content['run'] = f'simmim_finetune/{file.parent.name}'
    content[KNOWN] = {'facts': known, 'doubts': dict.fromkeys(DOUBTS, []) | doubts}
    file.write_text(json.dumps(content))


def table(runs: MadeRuns, sweep: Sweep, *more: object, seeds: int = 2) -> int:
    words = ['--sweep', sweep.path, '--output', runs.output, '--resamples', 10]
    return run_script('ablate', 'table', *words, '--seeds', seeds, *more)


def pages(runs: MadeRuns) -> dict[str, str]:
    return {
        file.name: file.read_text()
        for file in runs.output.iterdir()
        if file.suffix in ('.md', '.tex')
    }


def test_each_table_tells_doubts_and_differences_and_clean_runs_need_no_words(made: tuple) -> None:
    runs, sweep = made
    assert table(runs, sweep) == 0
    told = ('Warning:', 'Different', 'Not recorded', 'seeds found', 'start from')
    assert not any(word in text for text in pages(runs).values() for word in told)
    for file in runs.output.glob('swept_*'):
        file.unlink()
    first, second = sweep.rows
    record(runs, first, 1, {SEEN: [LEAK], SHARED: ['4 patient(s) are in both train and test']})
    record(runs, second, 0, {BY_HAND: ['given']}, size='384 px', precision='float32')
    record(runs, second, 1, {ON_VALID: ['optimistic']}, labels='100 % of the patients')
    assert table(runs, sweep, '--scores', 'mean', 'Edema') == 0
    found = pages(runs)
    names = ('mean', 'Edema', 'all_scores', 'runs')
    assert {*found} == {f'swept_{name}.{kind}' for name in names for kind in ('md', 'tex')}
    for wanted in (
        f'Warning: {SHARED} (0.1 with seed 1): 4 patient(s) are in both train and test.',
        f'Warning: {SEEN} (0.1 with seed 1): {LEAK}.',
        f'Warning: {ON_VALID} (0.6 with seed 1): optimistic.',
        f'Warning: {BY_HAND} (0.6 with seed 0): given.',
        f'Different {SIZE}: 224 px (0.1, 0.6 with seed 1); 384 px (0.6 with seed 0).',
        f'Different {PRECISION}: bfloat16 (0.1, 0.6 with seed 1); float32 (0.6 with seed 0).',
        f'Different {LABELS}: 10 % of the patients (0.1, 0.6 with seed 0); 100 % of the patients '
        '(0.6 with seed 1).',
    ):
        for name, text in found.items():
            assert (wanted.replace('%', r'\%') if name.endswith('.tex') else wanted) in text, name
    lines = pd.read_csv(runs.output / 'swept_mean.csv').set_index('row')
    assert lines['warnings'].tolist() == [
        f'0.1: {SHARED}, {SEEN}; 0.6: {ON_VALID}, {BY_HAND}',
        f'0.6: {ON_VALID}, {BY_HAND}',
    ]


@pytest.mark.parametrize('last, told', [('100 %', False), ('99 %', True)])
def test_the_share_that_names_a_row_is_told_if_others_with_its_name_differ(last, told) -> None:
    sweep = load_sweep(ROOT / 'scripts/studies/contrastive.yaml', 'tiny')
    shares = {'moco_0.1': '10 %', 'swav_0.1': '10 %', 'moco_1': '100 %', 'swav_1': last}
    lines = [
        {'row': row, 'seed': '0', 'fold': '', 'metric': FACT, 'label': f'{fact}: {value}'}
        for row, share in shares.items()
        for fact, value in {
            **dict.fromkeys((SEED, PRECISION, EPOCH, WEIGHTS, MODE), 'equal'),
            SIZE: '80 px' if row == 'swav_1' else '64 px',
            LABELS: share,
        }.items()
    ]
    texts = [notice.text for notice in notices_of(pd.DataFrame(lines).assign(value=1), sweep)]
    assert any(text.startswith(f'Different {LABELS}: 10 % (MoCo') for text in texts) == told
    assert any(text.startswith(f'Different {SIZE}: ') for text in texts)


def test_each_figure_tells_doubts_and_differences_of_its_rows(made: tuple, monkeypatch) -> None:
    notes: dict[str, str] = {}

    def save(figure: Figure, file: object, **_: object) -> None:
        notes[Path(file.name).name] = figure.get_supxlabel()

    monkeypatch.setattr(Figure, 'savefig', save)
    runs, sweep = made
    record(runs, sweep.rows[0], 1, {SEEN: [LEAK]}, size='384 px')
    assert table(runs, sweep) == 0
    words = ['--sweep', sweep.path, '--save', runs.output]
    assert run_script('ablate', 'plot', *words) == 0
    assert len(notes) > 2
    for name, note in notes.items():
        text = ' '.join(note.split())
        assert f'Warning: {SEEN} (0.1 with seed 1).' in text, name
        assert f'Different {SIZE}: 224 px (0.1 with seed 0, 0.6); 384 px (0.1 with seed 1).' in text
    notes.clear()
    words += ['--figure', runs.output / 'one.png', '--rows', '0.6']
    assert run_script('ablate', 'plot', *words) == 0
    (note,) = notes.values()
    assert 'Bars: ' in note and 'Warning' not in note and 'Different' not in note


def test_a_record_of_an_older_version_is_completed_by_the_run_and_named(made: tuple) -> None:
    runs, sweep = made
    for seed in SEEDS:
        file = run_folder(runs.output, 'finetune', sweep.rows[0], seed) / 'predictions_test.json'
        content = json.loads(file.read_text())
        del content[KNOWN]
        file.write_text(json.dumps(content))
    assert table(runs, sweep) == 0
    text = pages(runs)['swept_mean_of_five.md']
    wanted = [SHARED, SEEN, BY_HAND, PRECISION, WEIGHTS]
    assert f'Not recorded with the predictions (0.1): {", ".join(wanted)}.' in text
    assert f'Different {LABELS}' in text, 'the options of the run tell the share'


def test_seeds_that_are_missing_or_share_their_start_are_counted(made: tuple) -> None:
    runs, sweep = made
    shutil.rmtree(run_folder(runs.output, 'finetune', sweep.rows[0], 1))
    for seed in SEEDS:
        record(runs, sweep.rows[1], seed, weights='one')
    assert table(runs, sweep, seeds=10) == 0
    text = pages(runs)['swept_mean_of_five.md']
    assert '1 of 10 seeds found: 0 (0.1); 2 of 10 seeds found: 0, 1 (0.6).' in text
    assert '2 seeds start from 1 file(s) of weights, so the interval over seeds lacks' in text


def copy_predictions(runs: MadeRuns, one: object, other: object, *names: str) -> None:
    folders = [run_folder(runs.output, 'finetune', row, seed) for row, seed in (one, other)]
    for name in names:
        shutil.copy(folders[0] / name, folders[1] / name)


@pytest.mark.parametrize('other', [0, 1], ids=['same row', 'other row'])
def test_predictions_that_are_a_copy_of_another_seed_are_refused(made, other, capsys) -> None:
    runs, sweep = made
    rows = sweep.rows[0], sweep.rows[other]
    names = ('predictions_test.csv', 'scores.json')
    copy_predictions(runs, (rows[0], 0), (rows[1], 1), *names)
    assert table(runs, sweep) == 2
    told = capsys.readouterr().err
    assert f'{rows[1].name} with seed 1 has the same predictions as 0.1 with seed 0' in told
    # With the record of the other seed, the file is not even one of this run.
    copy_predictions(runs, (rows[0], 0), (rows[1], 1), 'predictions_test.json')
    assert table(runs, sweep) == 2
    assert 'was written by the run simmim_finetune/' in capsys.readouterr().err


def test_probes_of_equal_weights_predict_the_same_with_each_seed(made: tuple, capsys) -> None:
    runs, sweep = made
    row = sweep.rows[0]
    copy_predictions(runs, (row, 0), (row, 1), 'predictions_test.csv', 'scores.json')
    for seed in SEEDS:
        record(runs, row, seed, mode='linear_probe', weights='given')
    assert table(runs, sweep) == 0
    record(runs, row, 1, mode='linear_probe', weights='others')
    assert table(runs, sweep) == 2
    assert 'has the same predictions' in capsys.readouterr().err


def test_joined_predictions_record_what_their_runs_knew_in_the_same_file(tmp_path: Path) -> None:
    lines = pd.DataFrame({'row': 'a', 'fold': [0, 1], 'Path': ['x', 'y'], 'Edema': [0, 0]})
    run, other = Known({SEED: '7'}), Known({}, {SEEN: [LEAK]})
    known = {'a': [run, other], 'b': [run, run], 'c': [Known(), Known()]}
    file = tmp_path / 'part/seed7.parquet'
    file.parent.mkdir()
    write_ranks(file, ranks_table(lines, known))
    assert read_joined_known(tmp_path) == {'a': {7: [run, other]}, 'b': {7: [run, run]}}
    pd.read_parquet(file).to_parquet(file)  # written again by another program
    assert read_joined_known(tmp_path) == {}
    write_ranks(file, ranks_table(lines, {}).replace_schema_metadata({KNOWN: '{"a"'}))
    with pytest.raises(ValueError, match='seed7.parquet does not describe joined predictions'):
        read_joined_known(tmp_path)
