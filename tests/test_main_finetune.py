"""main_finetune.py: the selected checkpoint is the run's own, and chosen by valid scores."""

import json
import logging
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from mistakes import edit, linked
from tiny import MAE, VIT, arguments, finished_run, run_folder, run_main, tiny_config

import main_finetune
from data.loader import XrayDataset, sample_rng
from data.tables.predictions import read_predictions
from data.transforms import EvalTransform
from engine import preflight
from engine.run_record import RunRecord
from evaluation import metrics
from evaluation.inference import load_classifier
from models.vision_transformer import Block
from sweeps.files import load_config
from sweeps.run_scores import scored_records
from utils import read_checkpoint

pytestmark = pytest.mark.usefixtures('few_cases_select')
MAE_ENCODER = {key: value for key, value in MAE.items() if key != 'PRETRAIN'}


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Scores on the held-out patients after each epoch, in order; they replace the real ones."""
    given: list[float] = []

    def figures(self, run, model, epoch):
        return {'score': given.pop(0)} if epoch >= 0 else {}

    monkeypatch.setattr(main_finetune.Selection, '__call__', figures)
    return given


def finetune(phantom: Path, output: Path, *more: str, epochs: int = 3) -> Path:
    train = {'EPOCHS': epochs, 'WARMUP_EPOCHS': 0}
    return finished_run('finetune', phantom, output, *more, model=VIT, TRAIN=train)


def scored(folder: Path) -> str:
    return Path(json.loads((folder / 'predictions_test.json').read_text())['checkpoint']).name


def test_the_best_of_epochs_that_were_given_up_is_not_scored(phantom, tmp_path, scores) -> None:
    """A run that resumes from an older checkpoint leaves the newer ones and their best behind."""
    scores += [0.6, 0.5, 0.9]
    folder = finetune(phantom, tmp_path / 'out')
    assert scored(folder) == 'ckpt_best.pth'
    again = ('--tag', 'again', '--resume', str(tmp_path / 'first.pth'))
    shutil.copy(folder / 'ckpt_epoch_0.pth', tmp_path / 'first.pth')
    shutil.copytree(folder, folder.with_name('again'))
    (folder.with_name('again') / 'run.json').unlink()
    scores += [0.3, 0.4]
    folder = finetune(phantom, tmp_path / 'out', *again).with_name('again')
    assert scores == []
    assert read_checkpoint(folder / 'ckpt_best.pth')['best_score'] == 0.9
    assert scored(folder) == 'ckpt_epoch_2.pth'
    finetune(phantom, tmp_path / 'out', '--tag', 'again', '--eval')
    source = json.loads((folder / 'predictions_test_eval.json').read_text())
    assert Path(source['checkpoint']).name == 'ckpt_epoch_2.pth'


def test_the_log_and_the_scores_say_what_selected_the_epoch(one_epoch: Path) -> None:
    scores = json.loads((one_epoch / 'scores.json').read_text())['test']
    record = json.loads((one_epoch / 'metrics.jsonl').read_text().splitlines()[-1])
    counted = scores['selected']['selecting_labels']
    held_out = json.loads((one_epoch / 'predictions_holdout.json').read_text())
    assert scores['selected']['selected_on'] == 'holdout'
    assert scores['selected']['selecting_images'] == held_out['rows']
    assert 'selected_on' not in scores['last']
    area = np.mean([record['holdout_auroc'][label] for label in counted])
    assert record['score'] == pytest.approx(area)
    log = ' '.join((one_epoch / 'log_rank0.txt').read_text().split())
    assert f'holdout mean AUROC of {len(counted)} labels {record["score"]:.4f}' in log


@pytest.mark.parametrize('reason', ['cases', 'images'])
def test_too_few_images_or_cases_use_the_last_epoch(reason, phantom, tmp_path, monkeypatch, capsys):
    more = ['--opts', 'EVAL.SELECT_ON', 'auto']
    if reason == 'cases':
        monkeypatch.setattr(metrics, 'FEW_CASES', 1000)
        more = []
    folder = finetune(phantom, tmp_path / 'out', *more, epochs=1)
    assert not (folder / 'ckpt_best.pth').exists()
    scores = json.loads((folder / 'scores.json').read_text())
    assert {split: set(found) for split, found in scores.items()} == {
        'valid': {'last'}, 'test': {'last'}
    }  # fmt: skip
    log = ' '.join(capsys.readouterr().out.split())
    assert 'the last epoch is used' in log
    assert ('Edema (' in log.split('last epoch is used')[0]) == (reason == 'cases')
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert all(('score' in record) == (reason == 'images') for record in records)


@pytest.mark.slow
def test_new_scores_of_a_finished_run_leave_its_selection(phantom, tmp_path, scores) -> None:
    scores += [0.6, 0.5]
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT)
    argv = arguments(cfg, phantom, tmp_path)
    with patch.object(RunRecord, 'save', autospec=True, side_effect=RunRecord.save) as save:
        assert run_main('finetune', argv) == 0
    assert save.call_count == 3  # after each epoch and at the end: a kill loses little time
    folder = run_folder(tmp_path, 'finetune')
    kept = ('ckpt_best.pth', 'metrics.jsonl')
    before = {name: (folder / name).read_bytes() for name in kept}
    new = ('EVAL.VIEWS', 'all', 'EVAL.LEVEL', 'image')
    assert run_main('finetune', [*argv, '--opts', *new]) == 0
    assert {name: (folder / name).read_bytes() for name in kept} == before
    found = json.loads((folder / 'scores.json').read_text())
    assert {*found['test']} == {'last', 'selected'}
    assert found['test']['selected']['level'] == load_config(folder).EVAL.LEVEL == 'image'
    # Without its regular checkpoints, as after --keep best, the run would begin again.
    for path in folder.glob('ckpt_epoch_*'):
        path.unlink()
    for more in ([], ['--opts', 'TRAIN.EPOCHS', '6']):
        assert run_main('finetune', [*argv, *more]) == 2
    assert {name: (folder / name).read_bytes() for name in kept} == before


@pytest.fixture(scope='module')
def one_epoch(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(phantom, tmp_path_factory.mktemp('one'), epochs=1)


def test_a_report_tells_what_is_doubtful_about_the_scored_images(one_epoch, phantom, tmp_path):
    data = Path(shutil.copytree(phantom, tmp_path / phantom.name))
    table = pd.read_csv(data / 'test.csv', dtype=str)
    table.loc[3, ['No Finding', 'Fracture']] = '1.0'
    table.to_csv(data / 'test.csv', index=False)
    words = ['--eval', '--resume', str(one_epoch / 'ckpt_epoch_0.pth'), '--opts', 'EVAL.VIEWS']
    words += ['all', 'REPORT.WRITE', 'True', 'REPORT.MAPS', '0', 'EVAL.RESAMPLES', '0']
    folder = finished_run('finetune', data, tmp_path / 'run', *words, model=VIT)
    log = ' '.join((folder / 'log_rank0.txt').read_text().split())
    report = json.loads((folder / 'report_eval' / 'report.json').read_text())
    for warning in (
        'test: 3 of 13 images are lateral, but the model was trained on frontal images only',
        f'1 of 13 rows have both No Finding and a finding, such as {table.Path[3]}',
    ):
        assert warning in log
        assert any(warning in line for line in report['warnings'])


@pytest.mark.parametrize(
    'option, value',
    [
        ('DATA.TRAIN_CSV', 'fold.csv'),
        ('EVAL.INTERNAL_SHARE', '0.5'),
        ('MODEL.VIT.INIT_VALUES', '0.5'),
    ],
)
def test_other_models_or_patients_are_refused(option, value, phantom, tmp_path, one_epoch, refused):
    data = linked(phantom, tmp_path / phantom.name)
    shutil.copy(data / 'train.csv', data / 'fold.csv')
    cfg = tiny_config(tmp_path / 'r.yaml', 'finetune', VIT)
    more = ['--resume', str(one_epoch / 'ckpt_epoch_0.pth'), '--opts', option, value]
    refused('finetune', arguments(cfg, data, tmp_path / 'out', *more), f'{option}: ')


def test_shared_patients_are_refused_or_named(phantom, tmp_path, monkeypatch, capfd, refused):
    monkeypatch.setattr(preflight, 'LOADER_SECONDS', 0.05)
    (name, *train), (_, *valid) = (
        (phantom / f'{split}.csv').read_text().splitlines() for split in ('train', 'valid')
    )
    (tmp_path / 'both.csv').write_text('\n'.join([name, *valid, *train]))
    cfg = tiny_config(tmp_path / 'run.yaml', 'finetune', VIT)
    more = ['--check', '--opts', 'DATA.VALID_CSV', str(tmp_path / 'both.csv')]
    argv = arguments(cfg, phantom, tmp_path, *more)
    refused('finetune', argv, 'in both train and valid', 'DATA.ALLOW_SHARED_PATIENTS True')
    assert run_main('finetune', [*argv, 'DATA.ALLOW_SHARED_PATIENTS', 'True']) == 0
    log, table = ' '.join(capfd.readouterr().out.split()).split('preflight')
    assert 'in both train and valid' in log and 'in both train and valid' in table
    assert 'X-rays that are in two splits were not searched' in table, 'and so no copies are known'
    assert 'scripts/check_data.py' in table.split('were not searched')[1]


def test_fine_tuning_drops_patches_in_training_alone(phantom, tmp_path, monkeypatch) -> None:
    """Of 4 x 4 patches and the class token; the scores are those of a run without the option."""
    tokens: dict[bool, set[int]] = {True: set(), False: set()}
    plain_forward = Block.forward

    def forward(block: Block, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        tokens[torch.is_grad_enabled()].add(x.shape[1])
        return plain_forward(block, x, bias)

    monkeypatch.setattr(Block, 'forward', forward)
    options = {'FINETUNE': {'MASK_RATIO': 0.7}, 'TRAIN': {'EPOCHS': 1}, 'model': MAE_ENCODER}
    folder = finished_run('finetune', phantom, tmp_path, **options)
    assert tokens == {True: {1 + 4}, False: {1 + 16}}
    trained = (folder / 'predictions_test.csv').read_text()
    more = ['--eval', '--opts', 'FINETUNE.MASK_RATIO', '0']
    finished_run('finetune', phantom, tmp_path, *more, **options)
    assert (folder / 'predictions_test_eval.csv').read_text() == trained


def test_scoring_drops_the_same_patches_in_every_batch_and_run(phantom, tmp_path) -> None:
    """The predictions are those of a model whose other patches are removed by hand."""
    options = {'FINETUNE': {'MASK_RATIO': 0.5}, 'TRAIN': {'EPOCHS': 1}, 'EVAL': {'MASK_RATIO': 0.7}}
    options['EVAL']['SELECT_ON'], options['model'] = 'last', MAE_ENCODER
    folder = finished_run('finetune', phantom, tmp_path, **options)
    trained = read_predictions(folder / 'predictions_test.csv').probabilities
    more = ['DATA.BATCH_SIZE', '3', 'SEED', '7', 'REPORT.WRITE', 'True']
    more += ['REPORT.MAPS', '0', 'EVAL.RESAMPLES', '0']
    finished_run('finetune', phantom, tmp_path, '--eval', '--opts', *more, **options)
    again = read_predictions(folder / 'predictions_test_eval.csv').probabilities
    np.testing.assert_allclose(again, trained, rtol=1e-5)
    assert 'EVAL.MASK_RATIO' in (folder / 'report_eval' / 'report.html').read_text()
    config = load_config(folder)
    encoder = load_classifier(
        config, folder / 'ckpt_epoch_0.pth', torch.device('cpu'), logging.getLogger()
    ).eval()
    records = scored_records(config, 'test', logging.getLogger())
    dataset = XrayDataset(records, EvalTransform(config), seed=0)
    for place in (0, 5):
        row = records.sample[place]
        kept = sorted(sample_rng(0, 0, int(row)).permutation(16)[:4])  # 12 of 16 are dropped
        with torch.no_grad():
            tokens = encoder.patch_embed(dataset[0, place][None]) + encoder.pos_embed[:, 1:]
            x = torch.cat([encoder.cls_token + encoder.pos_embed[:, :1], tokens[:, kept]], dim=1)
            for block in encoder.blocks:
                x = block(x)
            wanted = encoder.head(encoder.norm(x)[:, 0]).sigmoid()[0]
        np.testing.assert_allclose(trained[place], wanted, rtol=1e-4)


@pytest.mark.parametrize('mode', ['full', 'linear_probe'])
def test_throughput_is_measured_on_a_training_batch(mode, phantom, tmp_path, monkeypatch, capsys):
    """A process may have no validation images, and the others fewer than DATA.BATCH_SIZE."""
    data = linked(phantom, tmp_path / 'CheXpert-phantom')
    edit(data / 'valid.csv', lambda rows: rows.__delitem__(slice(2, None)))
    shapes, to_device = [], preflight.to_device

    def noting(batch, device):
        given = to_device(batch, device)
        shapes.extend(images.shape for images in given)
        return given

    monkeypatch.setattr(preflight, 'to_device', noting)
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', VIT, FINETUNE={'MODE': mode})
    assert run_main('finetune', [*arguments(cfg, data, tmp_path / 'out'), '--throughput']) == 0
    assert shapes == [(4, 1, 32, 32)]
    assert 'throughput' in capsys.readouterr().out
