"""What a run writes and prints: who is named in it, and that nothing is sent anywhere."""

import hashlib
import hmac
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import ROOT, arguments, run_folder, tiny_config

from data.records import normalise_name
from evaluation.report import SALT_FILE, HashedNames, Names, names_for, read_salt

GUARD = ROOT / 'tests' / 'guarded_commands.py'
PATIENT = re.compile(rb'patient[_ ]?\d+', re.IGNORECASE)
# What names images by purpose, where REPORT.ANONYMISE is off; the CSV files do so always.
NAMING = re.compile(r'predictions_(valid|test|holdout)(_eval)?\.csv|report\.(html|json)')
PICTURE = re.compile(r'data:image/[a-z]+;base64,[\w+/=]+', re.ASCII)
REPORT = {
    'REPORT': {'WRITE': True, 'MAPS': 0},
    'EVAL': {'RESAMPLES': 20},
    'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0},
    'DATA': {'VIEWS': 'all'},
}
MAINS = {'simmim': 'main_simmim.py', 'finetune': 'main_finetune.py'}
CALLS = 'connect,bind,sendto,sendmsg,sendmmsg'
ELSEWHERE = re.compile(r'sa_family=AF_INET6?\b(?!.*(127\.\d+\.\d+\.\d+|"::1"))')


class Session(NamedTuple):
    """What the commands of the project left behind."""

    data: Path
    outputs: Path  # a folder of runs for each kind of run; 'scored', 'hashed': of evaluate.py
    printed: str
    network: str  # what Python noted
    trace: str | None  # what the kernel noted; None without strace


def without_pictures(page: Path) -> str:
    return PICTURE.sub('', page.read_text(encoding='utf-8'))


def can_trace() -> bool:
    command = ['strace', '-f', '-e', 'trace=connect', 'true']
    return (
        bool(shutil.which('strace'))
        and not subprocess.run(command, capture_output=True, check=False, timeout=60).returncode
    )


def guarded(folder: Path, commands: list[list[str]]) -> tuple[int, str, str, str | None]:
    """Exit code, what was printed, and the uses of the network that Python and the kernel noted."""
    log, trace, asked = (folder / name for name in ('network.log', 'strace.log', 'commands.json'))
    asked.write_text(json.dumps(commands))
    command = [sys.executable, str(GUARD), str(log), str(asked)]
    traced = can_trace()
    if traced:
        options = ['--seccomp-bpf', '-f', '-qq', '-e', f'trace={CALLS}', '-o', str(trace)]
        command = ['strace', *options, *command]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
    )  # fmt: skip
    printed = done.stdout + done.stderr
    return done.returncode, printed, log.read_text(), trace.read_text() if traced else None


def session_commands(folder: Path, data: Path) -> list[list[str]]:
    """Packing, both mains on files and on the store, --eval, scores of predictions.

    What is of the store is anonymised.
    """
    outputs, store = folder / 'outputs', folder / 'store'
    cfg = {stage: tiny_config(folder / f'{stage}.yaml', stage, **REPORT) for stage in MAINS}
    commands = [['scripts/pack.py', '--data-path', str(data), '--output', str(store),
                 '--size', '48', '--workers', '1']]  # fmt: skip
    for kind, source in {'files': data, 'store': store}.items():
        options = [] if kind == 'files' else ['REPORT.ANONYMISE', 'True', 'REPORT.MAPS', '1']
        for stage, main in MAINS.items():
            own = arguments(cfg[stage], source, outputs / kind, '--opts', 'TAG', 'default')
            commands.append([main, *own, *options])
        best = run_folder(outputs / kind, 'finetune') / 'ckpt_best.pth'
        scored = ['MODEL.RESUME', str(best), 'EVAL_MODE', 'True', 'REPORT.MAPS', '0']
        commands.append([*commands[-1], *scored])
    run = run_folder(outputs / 'files', 'finetune')
    files = [run / f'predictions_valid{suffix}.csv' for suffix in ('', '_eval')]
    for kind, more in {'scored': [], 'hashed': ['--anonymise']}.items():
        command = ['scripts/evaluate.py', '--predictions', *files, '--labels', folder / 'some.csv',
                   '--output', outputs / kind, '--resamples', '20', *more,
                   '--thresholds-from', *files, data / 'valid.csv']  # fmt: skip
        commands.append([*map(str, command)])
    return commands


@pytest.fixture(scope='module')
def session(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One process that does all of it."""
    folder = tmp_path_factory.mktemp('alice')
    table = pd.read_csv(phantom / 'valid.csv', dtype=str)
    table['Edema'] = [str(i % 2) for i in range(len(table))]  # images of a study differ
    table[2:].to_csv(folder / 'some.csv', index=False)
    code, printed, network, trace = guarded(folder, session_commands(folder, phantom))
    assert code == 0, printed
    return Session(phantom, folder / 'outputs', printed, network, trace)


@pytest.mark.slow
def test_only_predictions_and_reports_name_patients(session: Session) -> None:
    """Console, logs, figures, curves, options, weights, pictures and files' names do not."""
    assert PATIENT.findall(session.printed.encode()) == []
    assert 'rows have no labelled row' in session.printed
    assert 'have images with different labels' in session.printed
    assert 'thresholds chosen on what is scored' in session.printed
    naming, kinds = set(), set()
    for file in (f for f in session.outputs.rglob('*') if f.is_file()):
        kinds.add(file.suffix)
        assert not PATIENT.search(str(file.relative_to(session.outputs)).encode())
        if PATIENT.search(file.read_bytes()):
            naming.add(str(file.relative_to(session.outputs)))
    plain = {name for name in naming if name.startswith(('files', 'scored'))}
    assert plain and {Path(name).name for name in plain} == {
        *(f'predictions_{s}{e}.csv' for s in ('valid', 'test', 'holdout') for e in ('', '_eval')),
        'report.html', 'report.json',
    }  # fmt: skip
    assert [name for name in naming if not NAMING.fullmatch(Path(name).name)] == []
    assert kinds >= {'.txt', '.jsonl', '.yaml', '.pth', '.png', '.json', '.csv', '.html'}
    assert list(session.outputs.rglob('events.out.tfevents.*'))


def test_weights_and_pictures_hide_nothing_from_the_search(session: Session) -> None:
    for file in session.outputs.rglob('*.pth'):
        with zipfile.ZipFile(file) as archive:
            assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
    pictures = list(session.outputs.rglob('*.png'))
    assert len(pictures) > 10
    for file in pictures:
        with Image.open(file) as picture:
            assert not {'Title', 'Description', 'Comment', 'exif'} & set(picture.info)
            assert PATIENT.findall(repr(picture.info).encode()) == []


def test_an_anonymised_report_names_nobody_and_no_place(session: Session) -> None:
    runs = run_folder(session.outputs / 'store', 'finetune')
    folders = [runs, runs / 'report_eval', session.outputs / 'hashed']
    for folder in folders:
        texts = [without_pictures(folder / 'report.html')]
        texts += [f.read_text() for f in folder.glob('report*') if f.suffix in ('.json', '.csv')]
        assert len(texts) >= 4
        for text in texts:
            assert PATIENT.search(text.encode()) is None
            for place in (session.data, session.outputs.parent, ROOT, Path.home(), 'alice'):
                assert str(place) not in text
            assert 'study1' not in text and 'view1' not in text and 'such as row' not in text
    rows = {r['name']: r['value'] for r in json.loads((runs / 'report.json').read_text())['run']}
    assert rows['Data'] == 'chexpert'
    assert rows['Checkpoint'] == 'ckpt_best.pth'
    plain = run_folder(session.outputs / 'files', 'finetune') / 'report.json'
    rows = {row['name']: row['value'] for row in json.loads(plain.read_text())['run']}
    assert rows['Data'] == f'{session.data} (chexpert)'
    report = json.loads((session.outputs / 'hashed' / 'report.json').read_text())
    assert [part['name'] for part in report['sets']] == [
        'predictions_valid',
        'predictions_valid_eval',
    ]
    assert any('rows have no labelled row in some.csv' in line for line in report['warnings'])


def named(folder: Path) -> list[tuple[str, str, str]]:
    """Set or 'map', label and kind, and name of every image or study that a report names."""
    report = json.loads((folder / 'report.json').read_text())
    found = [
        (part['name'], f'{error["label"]} {error["kind"]}', error['path'])
        for part in report['sets']
        for error in part['worst_errors']
    ]
    return found + [('map', m['file'], m['path']) for m in report['maps']]


def test_a_picture_has_one_name_in_all_reports_of_a_run(session: Session) -> None:
    run = run_folder(session.outputs / 'store', 'finetune')
    first, again = named(run), named(run / 'report_eval')
    assert len(first) > 10 and {kind for kind, *_ in first} == {'valid', 'test', 'map'}
    assert again == [entry for entry in first if entry[0] != 'map']
    key = bytes.fromhex((run / SALT_FILE).read_text())
    known = {}
    for split in ('valid', 'test'):
        for path in pd.read_csv(run / f'predictions_{split}.csv')['Path']:
            for name in (path, path.rpartition('/')[0]):
                text = normalise_name(name).encode()
                known[hmac.new(key, text, hashlib.sha256).hexdigest()[:16]] = name
    assert {name for *_, name in first} <= set(known)
    assert all(known[name].endswith('.jpg') == (kind == 'map') for kind, _, name in first)
    page = without_pictures(run / 'report.html')
    assert all(name in page for *_, name in first)


def test_the_hash_is_that_of_the_row(session: Session) -> None:
    """The study that a hash stands for has the error's probability."""
    run = run_folder(session.outputs / 'store', 'finetune')
    names = HashedNames(run)
    table = pd.read_csv(run / 'predictions_test.csv')
    studies = table.groupby(table['Path'].str.rsplit('/', n=1).str[0]).max(numeric_only=True)
    studies.index = [names(study) for study in studies.index]
    report = json.loads((run / 'report.json').read_text())
    errors = report['sets'][1]['worst_errors']
    assert len(errors) > 5
    for error in errors:
        value = studies.loc[error['path'], error['label']]
        assert value == pytest.approx(error['probability'], rel=1e-7)


def test_predictions_stay_by_path(session: Session) -> None:
    plain, hashed = (
        pd.read_csv(run_folder(session.outputs / kind, 'finetune') / 'predictions_test.csv')['Path']
        for kind in ('files', 'store')
    )
    paths = pd.read_csv(session.data / 'test.csv')['Path'].tolist()
    assert plain.tolist() == hashed.tolist() == paths


def test_without_the_option_there_is_no_salt(session: Session) -> None:
    salted = {str(f.parent.relative_to(session.outputs)) for f in session.outputs.rglob(SALT_FILE)}
    assert salted == {'store/tiny_finetune/default', 'hashed'}


@pytest.mark.parametrize('seen_by', ['Python', 'the kernel'])
def test_nothing_is_sent_anywhere(session: Session, seen_by: str) -> None:
    if seen_by == 'Python':
        assert session.network == ''
    else:
        if session.trace is None:
            pytest.skip('needs strace, and leave to trace processes')
        assert [line for line in session.trace.splitlines() if ELSEWHERE.search(line)] == []


def test_the_guards_see_an_address_elsewhere(tmp_path: Path) -> None:
    """192.0.2.1 is nobody's (RFC 5737), and choosing a datagram's address sends nothing."""
    script = tmp_path / 'script.py'
    script.write_text(
        'import socket\n'
        'for address in ("192.0.2.1", "127.0.0.1"):\n'
        '    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect((address, 9))\n'
    )
    code, printed, network, trace = guarded(tmp_path, [[str(script)]])
    assert code == 0, printed
    assert '192.0.2.1' in network and '127.0.0.1' not in network
    if trace is not None:
        (line,) = (line for line in trace.splitlines() if ELSEWHERE.search(line))
        assert '192.0.2.1' in line


def test_a_salt_is_the_owners_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / 'new' / 'run'
    key = read_salt(folder)
    file = folder / SALT_FILE
    assert len(key) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == [SALT_FILE]
    assert read_salt(folder) == key != read_salt(tmp_path / 'other')
    for bad in (b'', b'0' * 63, b'0' * 62, b'z' * 64, b'\xff' * 64, b'0' * 66):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=f'{SALT_FILE} holds no salt'):
            read_salt(folder)
        assert file.read_bytes() == bad


def test_a_salt_of_another_process_is_taken(tmp_path: Path, monkeypatch) -> None:
    """It came to be after this process had looked."""
    other = '5' * 64
    link = os.link

    def late(source: str, target: Path) -> None:
        Path(target).write_text(other)
        link(source, target)

    monkeypatch.setattr(os, 'link', late)
    assert read_salt(tmp_path) == bytes.fromhex(other)
    assert [path.name for path in tmp_path.iterdir()] == [SALT_FILE]


def test_a_salt_needs_no_links(tmp_path: Path, monkeypatch) -> None:
    def refuse(source: str, target: Path) -> None:
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'link', refuse)
    assert read_salt(tmp_path) == read_salt(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SALT_FILE]


def test_names_differ_with_the_salt_and_not_with_prefix_or_suffix(tmp_path: Path) -> None:
    path = 'CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg'
    one, other = HashedNames(tmp_path / 'a'), HashedNames(tmp_path / 'b')
    assert re.fullmatch('[0-9a-f]{16}', one(path))
    assert one(path) == one('elsewhere/patient64541/study1/view1_frontal.png') != other(path)
    assert one(path) == HashedNames(tmp_path / 'a')(path)
    assert len({one(n) for n in (path, 'patient64541/study1', 'patient64541', 'ü\udce9')}) == 4
    assert one.file('/home/alice/ckpt_best.pth') == 'ckpt_best.pth'
    assert isinstance(names_for(tmp_path, anonymise=True), HashedNames)
    plain = names_for(tmp_path / 'c', anonymise=False)
    assert type(plain) is Names
    assert (plain(path), plain.file('/home/x')) == (path, '/home/x')
    assert not (tmp_path / 'c').exists()


def test_two_names_with_one_hash_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr('evaluation.report.DIGITS', 1)
    names = HashedNames(tmp_path)
    with pytest.raises(ValueError, match='two names have the hash'):
        for number in np.arange(17):
            names(f'patient{number}')
