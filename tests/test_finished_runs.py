"""What the folder of a run says of its options stays true, however the run is started again."""

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import SWIN, VIT, arguments, run_folder, run_main, tiny_config

import data.store
import main_finetune
from config import (
    FREE_OPTIONS,
    REPORTED_SECTIONS,
    build_parser,
    config_text,
    default_config,
    get_config,
    training_changes,
)
from engine import loop as training_step
from engine.launch import refuse_other_options
from engine.run_record import RunRecord, is_finished, read_record
from logger import read_metrics


def options(folder: Path) -> dict:
    return yaml.safe_load((folder / 'config.yaml').read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def finished(phantom, tmp_path_factory) -> Path:
    """A pre-training and a fine-tuning run that are finished; tests work on copies."""
    root = tmp_path_factory.mktemp('finished')
    for stage in ('simmim', 'finetune'):
        cfg = tiny_config(root / f'{stage}.yaml', stage, VIT)
        assert run_main(stage, arguments(cfg, phantom, root)) == 0
        assert is_finished(run_folder(root, stage))
    return root


@pytest.fixture
def output(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / 'out'))


@pytest.fixture
def again(output, phantom):
    """Starts a run once more, with other options."""

    def start(stage: str, *pairs: str, model: dict = VIT, more: tuple[str, ...] = ()) -> list[str]:
        cfg = tiny_config(output.parent / f'{stage}.yaml', stage, model)
        opts = ['--opts', *pairs] if pairs else []
        return arguments(cfg, phantom, output, *opts, *more)

    return start


# Refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'stage, pairs, parts',
    [
        ('simmim', ('DATA.MASK_RATIO', '0.3'), ['DATA.MASK_RATIO: 0.6 -> 0.3']),
        ('simmim', ('MODEL.SIMMIM.LOSS', 'l2'), ['MODEL.SIMMIM.LOSS: l1 -> l2']),
        ('finetune', ('DATA.UNCERTAIN', 'zeros'), ['DATA.UNCERTAIN: ignore -> zeros']),
        ('finetune', ('TRAIN.EPOCHS', '1', 'TRAIN.WARMUP_EPOCHS', '0'),
         ['TRAIN.EPOCHS: 2 -> 1', 'TRAIN.WARMUP_EPOCHS: 1 -> 0']),
        ('finetune', ('SEED', '1', 'TRAIN.AUTO_RESUME', 'False'), ['SEED: 0 -> 1']),
        ('simmim',
         ('SEED', '5', 'DATA.MASK_RATIO', '0.3', 'MODEL.SIMMIM.LOSS', 'l2', 'DATA.MASK_TYPE',
          'square', 'AUG.HFLIP', '0.0'), ['; and 2 more)']),
    ],
)  # fmt: skip
def test_a_finished_run_is_not_started_with_what_it_was_not_trained_with(
    stage, pairs, parts, output, again, refused
):
    folder = run_folder(output, stage)
    before = contents(folder)
    for more in ((), ('--check',)):
        refused(stage, again(stage, *pairs, more=more), folder, 'a finished run of other options',
                'choose another --tag or --output', *parts)  # fmt: skip
        assert contents(folder) == before, 'not even a line in the log'
    assert (folder / 'run.lock').read_text() == ''


@pytest.mark.parametrize('is_over', [True, False])
def test_another_model_is_refused_and_leaves_the_options(is_over, output, again, refused):
    """By its weights: there are epochs left to train."""
    folder = run_folder(output, 'simmim')
    if not is_over:
        record = read_record(folder) | {'finished': None}
        (folder / 'run.json').write_text(json.dumps(record))
    before = contents(folder)
    refused('simmim', again('simmim', 'TRAIN.EPOCHS', '3', model=SWIN), folder, 'ckpt_epoch_1.pth')
    after = contents(folder)
    for name in ('config.yaml', 'run.json', 'metrics.jsonl'):
        assert after[folder / name] == before[folder / name], name


@pytest.mark.parametrize('text', ['a: [', 'plain words', '\xff'])
def test_options_that_cannot_be_read(text, output, again, refused):
    path = run_folder(output, 'simmim') / 'config.yaml'
    path.write_text(text, encoding='latin-1')
    refused('simmim', again('simmim'), path, 'cannot be read', '--tag')
    path.unlink()
    assert run_main('simmim', again('simmim')) == 0
    assert options(path.parent)['TRAIN']['EPOCHS'] == 2


@pytest.mark.slow
def test_other_weights_than_it_began_with(output, finished, again, refused):
    """They would not be loaded, but named in the report over the scores of the others."""
    weights = output / 'weights.pth'
    shutil.copy(run_folder(finished, 'simmim') / 'ckpt_epoch_1.pth', weights)
    given = ('--pretrained', str(weights))
    folder = run_folder(output, 'finetune')
    refused('finetune', again('finetune', more=given), folder, 'began with other weights', weights)
    more = (*given, '--tag', 'begun')
    assert run_main('finetune', again('finetune', more=more)) == 0
    assert run_main('finetune', again('finetune', more=more)) == 0
    moved = Path(shutil.copy(weights, output / 'moved.pth'))
    more = ('--pretrained', str(moved), '--tag', 'begun', '--opts', 'REPORT.WRITE', 'True',
            'REPORT.MAPS', '0', 'EVAL.RESAMPLES', '0')  # fmt: skip
    assert run_main('finetune', again('finetune', more=more)) == 0, 'the same in another place'
    report = json.loads((folder.with_name('begun') / 'report.json').read_text())
    rows = {row['name']: row['value'] for row in report['run']}
    assert rows['Started from'] == str(weights)
    weights.write_bytes(b'another')
    more = (*given, '--tag', 'begun')
    refused('finetune', again('finetune', more=more), 'other weights')
    record = folder.with_name('begun') / 'run.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'finished': None}))
    refused('finetune', again('finetune', more=more), 'other weights')


def test_a_probe_without_its_weights(output, finished, again, refused):
    """It would be fitted anew, on random ones."""
    folder = run_folder(output, 'finetune').with_name('probe')
    weights = str(run_folder(finished, 'simmim') / 'ckpt_epoch_1.pth')
    probe = ('FINETUNE.MODE', 'linear_probe')
    tag = ('--tag', 'probe')
    assert (
        run_main('finetune', again('finetune', *probe, more=('--pretrained', weights, *tag))) == 0
    )
    refused('finetune', again('finetune', *probe, more=tag), folder, "weights than PRETRAINED ''")
    options = yaml.safe_load((folder / 'config.yaml').read_text())
    (folder / 'config.yaml').write_text(
        yaml.safe_dump(options | {'PRETRAINED': 'https://example.org/a.pth'})
    )
    record = folder / 'run.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'pretrained': None}))
    more = ('--pretrained', weights, *tag)
    assert run_main('finetune', again('finetune', *probe, more=more)) == 0, 'its copy, it may be'


# Started again ---------------------------------------------------------------------------------


def test_more_epochs_are_trained_with_other_options(output, again):
    folder = run_folder(output, 'simmim')
    pairs = ('TRAIN.EPOCHS', '3', 'DATA.MASK_RATIO', '0.3')
    assert run_main('simmim', again('simmim', *pairs)) == 0
    assert options(folder)['TRAIN']['EPOCHS'] == 3
    assert options(folder)['DATA']['MASK_RATIO'] == 0.3
    assert [line['epoch'] for line in read_metrics(folder / 'metrics.jsonl')] == [-1, 0, 1, 2]
    assert is_finished(folder)


def test_more_epochs_are_not_finished_until_their_end(output, again, monkeypatch):
    def dies(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_step, '_optimizer_step', dies)
    with pytest.raises(KeyboardInterrupt):
        run_main('simmim', again('simmim', 'TRAIN.EPOCHS', '3'))
    folder = run_folder(output, 'simmim')
    assert not is_finished(folder)
    assert options(folder)['TRAIN']['EPOCHS'] == 3


def test_the_same_run_stays_finished_while_its_scores_are_made_anew(output, again, monkeypatch):
    folder = run_folder(output, 'finetune')
    before, scores = contents(folder), json.loads((folder / 'scores.json').read_text())
    (folder / 'scores.json').unlink()
    write, seen = main_finetune.FinalScores.write, []

    def watched(*args):
        seen.append(read_record(folder)['finished'])
        if len(seen) == 1:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(main_finetune.FinalScores, 'write', watched)
    first = read_record(folder)['finished']
    with pytest.raises(KeyboardInterrupt):
        run_main('finetune', again('finetune', more=('--tag', 'default')))
    assert (seen, is_finished(folder)) == ([first], True)
    assert len(read_record(folder)['starts']) == 2
    assert run_main('finetune', again('finetune')) == 0
    assert seen == [first, first]
    assert json.loads((folder / 'scores.json').read_text()) == scores
    now = options(folder)
    now['OUTPUT'] = yaml.safe_load(before[folder / 'config.yaml'])['OUTPUT']
    assert now == yaml.safe_load(before[folder / 'config.yaml'])
    starts = read_record(folder)['starts']
    assert [start['resumed_from'] for start in starts] == [None, *2 * ['ckpt_epoch_1.pth']]


@pytest.mark.parametrize('is_over', [True, False])
def test_where_nothing_is_trained_only_what_is_reported_changes(is_over, output, again):
    """Also where it was ended in the midst of its scores."""
    folder = run_folder(output, 'finetune')
    record, before = read_record(folder), options(folder)
    pairs = ['EVAL.LEVEL', 'image', 'DATA.BATCH_SIZE', '2', 'DATA.NUM_WORKERS', '0']
    if not is_over:
        (folder / 'run.json').write_text(json.dumps(record | {'finished': None}))
        pairs += ['DATA.UNCERTAIN', 'zeros']
    assert run_main('finetune', again('finetune', *pairs)) == 0
    assert is_finished(folder)
    before['EVAL']['LEVEL'] = 'image'
    assert options(folder) == before


def test_a_run_that_is_not_finished_goes_on_with_other_options(output, again):
    folder = run_folder(output, 'simmim')
    (folder / 'ckpt_epoch_1.pth').unlink()
    record = read_record(folder) | {'finished': None}
    (folder / 'run.json').write_text(json.dumps(record))
    assert run_main('simmim', again('simmim', 'DATA.MASK_RATIO', '0.3')) == 0
    assert options(folder)['DATA']['MASK_RATIO'] == 0.3


# Values ----------------------------------------------------------------------------------------


def changed(pairs: list) -> str:
    config = default_config()
    config.merge_from_list(pairs)
    return config_text(config)


def test_the_options_that_are_free_are_options():
    config = default_config()
    lines = training_changes(config_text(config), '{}', '{}')
    keys = {line.partition(':')[0] for line in lines}
    for key in FREE_OPTIONS:
        node = config
        for name in key.split('.'):
            node = node[name]
        assert key not in keys
    assert set(config) >= set(REPORTED_SECTIONS)
    assert {'DATA.MASK_RATIO', 'SEED', 'AMP_OPT_LEVEL', 'TRAIN.EPOCHS', 'FINETUNE.MODE'} <= keys
    assert not [key for key in keys if key.startswith(('EVAL', 'TEST', 'REPORT', 'SAVE', 'OUTPUT'))]


def test_options_of_a_finished_run(tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps({'finished': '2026-01-01T00:00:00+00:00'}))
    refuse_other_options(tmp_path, changed(['SEED', 4]))
    (tmp_path / 'config.yaml').write_text(changed([]))
    refuse_other_options(tmp_path, changed(['PRINT_FREQ', 3, 'OUTPUT', 'b', 'EVAL.LEVEL', 'image']))
    refuse_other_options(tmp_path, changed(['SEED', 4, 'TRAIN.EPOCHS', 301]))
    for epochs in (299, 300):
        with pytest.raises(ValueError, match='SEED: 0 -> 4'):
            refuse_other_options(tmp_path, changed(['SEED', 4, 'TRAIN.EPOCHS', epochs]))
    old = yaml.safe_load(changed([]))
    del old['MODEL']['SIMMIM']['TARGET'], old['LOSS']  # of a version that did not have them
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(old))
    refuse_other_options(tmp_path, changed([]))
    with pytest.raises(ValueError, match='LOSS.NAME: None -> focal'):
        refuse_other_options(tmp_path, changed(['LOSS.NAME', 'focal']))
    by_label = {'UNCERTAIN_BY_LABEL': {'Edema': 'zeros'}}
    with pytest.raises(ValueError, match='UNCERTAIN_BY_LABEL.Edema: None -> zeros'):
        refuse_other_options(tmp_path, changed(['DATA.UNCERTAIN_BY_LABEL', {'Edema': 'zeros'}]))
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(old | {'DATA': old['DATA'] | by_label}))
    refuse_other_options(tmp_path, changed(['DATA.UNCERTAIN_BY_LABEL', {'Edema': 'zeros'}]))
    with pytest.raises(ValueError, match='UNCERTAIN_BY_LABEL.Edema: zeros -> None'):
        refuse_other_options(tmp_path, changed([]))
    (tmp_path / 'run.json').write_text('{"finished": null}')
    refuse_other_options(tmp_path, changed(['SEED', 4]))


def test_a_full_disk_is_warned_of_and_written_to_later(phantom, tmp_path, log, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, 'No space left on device')

    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    words = arguments(cfg, phantom, tmp_path)
    config = get_config(build_parser('simmim').parse_args(words))
    from data import build_loader

    logger = logging.getLogger('test')
    record = RunRecord(tmp_path / 'run', {'code': 'a', 'stage': 'simmim'}, logger)
    record.folder.mkdir()
    record.describe(config, build_loader(config, logger, is_pretrain=True))
    assert list(record.folder.iterdir()) == [], 'nothing is accepted yet'
    with monkeypatch.context() as patch:
        patch.setattr(data.store_files, 'replace_file', full)
        record.begin(None)
    warned = [entry.message for entry in log.records if 'cannot be written' in entry.message]
    assert warned == [
        f'{record.folder}/{name} cannot be written (No space left on device)'
        for name in ('run.json', 'config.yaml')
    ]
    record.close()
    assert (record.folder / 'config.yaml').read_text() == config_text(config)
