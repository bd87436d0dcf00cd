"""Log files per rank, and records of epochs that stay valid JSON."""

import json
import math

import pytest
import torch
from mistakes import config_of
from tiny import arguments, run_folder, run_main

from logger import ScalarLog, create_logger, read_metrics


def test_only_rank_0_speaks_and_every_rank_writes(tmp_path, capsys):
    create_logger(tmp_path, 0, name='first').info('from rank 0')
    create_logger(tmp_path, 1, name='second').info('from rank 1')
    shown = capsys.readouterr().out
    assert 'from rank 0' in shown
    assert 'from rank 1' not in shown
    assert 'INFO from rank 1' in (tmp_path / 'log_rank1.txt').read_text()


def test_a_new_logger_of_the_same_name_goes_on_in_its_file(tmp_path):
    for number in (1, 2):
        create_logger(tmp_path, 0, name='again').info(f'start {number}')
    lines = (tmp_path / 'log_rank0.txt').read_text().splitlines()
    assert [line.split('INFO ')[1] for line in lines] == ['start 1', 'start 2']


def test_records_are_json_whatever_the_figures(tmp_path):
    scalars = ScalarLog(tmp_path)
    scalars.write_epoch({'epoch': 0, 'loss': math.nan, 'auroc': {'a': 0.5, 'b': math.inf}})
    scalars.close()
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert json.loads(text) == {'epoch': 0, 'loss': None, 'auroc': {'a': 0.5, 'b': None}}


def test_a_resumed_run_does_not_repeat_records(tmp_path):
    scalars = ScalarLog(tmp_path)
    for epoch in (-1, 0, 1, 2):
        scalars.write_epoch({'epoch': epoch, 'loss': 1.0})
    scalars.forget_from(1)
    scalars.write_epoch({'epoch': 1, 'loss': 2.0})
    scalars.close()
    records = read_metrics(tmp_path / 'metrics.jsonl')
    assert [(r['epoch'], r['loss']) for r in records] == [(-1, 1.0), (0, 1.0), (1, 2.0)]


def test_other_ranks_write_no_scalars(tmp_path):
    ScalarLog(tmp_path, enabled=False).write_epoch({'epoch': 0, 'loss': 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason='a run on the CPU')
def test_memory_is_told_of_gpus_alone(eight, tmp_path):
    assert run_main('simmim', arguments(config_of(tmp_path, 'simmim'), eight, tmp_path)) == 0
    lines = (run_folder(tmp_path, 'simmim') / 'log_rank0.txt').read_text().splitlines()
    told = [line for line in lines if ' Train: [' in line]
    assert told and all(line.endswith(' images/s') for line in told)
