"""tools/full_size.py: a data set in CheXpert's form, and what a command needs."""

import json

import pandas as pd
import pytest

from data.tables.chexpert import read_csv
from data.tables.labels import LABELS
from tools.full_size import NAME, main, parse_args


def test_a_made_data_set_is_read_and_a_command_is_measured(tmp_path, capfd, monkeypatch) -> None:
    data = tmp_path / 'data'
    assert main(parse_args(['make', str(data), '--images', '1000'])) == 0
    records = [read_csv(data / NAME, f'{split}.csv', labels=LABELS, look_up='all')
               for split in ('train', 'valid')]  # fmt: skip
    assert [*map(len, records)] == [766, 234]
    train = records[0]
    assert len(train) / len({*train.patient}) == pytest.approx(3.5, abs=0.3)
    assert (train.view == 'lateral').mean() == pytest.approx(0.145, abs=0.06)
    assert not {*train.patient} & {*records[1].patient}
    predictions = pd.read_csv(data / 'predictions.csv')
    assert [*predictions] == ['Path', *LABELS] and len(predictions) == 766
    capfd.readouterr()
    code = 'kept = bytes(range(256)) * 2**19; sum(range(10**7))'  # 128 MiB
    commands = {'fill': ['-c', code], 'other': ['-c', '1 / 0']}
    monkeypatch.setattr('tools.full_size.commands', lambda *_: commands)
    words = ['measure', str(data), str(tmp_path / 'out'), '--only', 'fill']
    assert main(parse_args(words)) == 0
    (line,) = capfd.readouterr().out.splitlines()
    found = json.loads(line)
    assert found['name'] == 'fill' and found['exit'] == 0
    assert found['cpu_s'] > 0 and 128 < found['peak_mib'] < 256
