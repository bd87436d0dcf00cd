"""bad_images.csv of a run: each file once, whoever writes; whole lines; no formulas."""

import errno
import logging
import subprocess
import sys

import pytest
from test_bad_images import listed
from tiny import ROOT

import data.loader
from data.loader import BadImages

LOGGER = logging.getLogger('test')


LIST_MANY = """
import logging, sys
from data.bad_images import BadImages
bad = BadImages(sys.argv[1], 50, logging.getLogger())
for i in range(50):
    reason = 'a reason, with "quotes"\\nand lines ' + 'x' * 200
    bad.add(f'{(i + 7 * int(sys.argv[2])) % 50}.png', i, reason)
"""


def test_processes_list_each_file_once(tmp_path):
    command = [sys.executable, '-c', LIST_MANY, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(i)], cwd=ROOT) for i in range(3)]
    assert [process.wait(100) for process in processes] == [0] * 3
    assert [line[0] for line in listed(tmp_path)] == sorted(f'{i}.png' for i in range(50))


IS_LOCKED = """
import fcntl, sys
with open(sys.argv[1], 'a') as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('locked')
"""


def test_nobody_adds_between_a_look_and_a_line(tmp_path, monkeypatch):
    bad, looks = BadImages(tmp_path, 2, LOGGER), []

    def looked(text: str) -> set[str]:
        command = [sys.executable, '-c', IS_LOCKED, str(bad.path)]
        looks.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        return set()

    monkeypatch.setattr(data.bad_images, '_files', looked)
    bad.add('a.png', 2, 'spoilt')
    assert looks == ['locked\n']


def test_no_cell_is_a_formula(tmp_path):
    bad = BadImages(tmp_path, 9, LOGGER)
    for file in ('=1+2.png', '+a.png', '-b.png', '@c.png', 'd=e.png', 'f\n=g.png', 'h,"i.png'):
        for _ in range(2):
            bad.add(file, None, f'{file[:1]} and more')
    lines = listed(tmp_path)
    assert len(lines) == 7
    assert {line[0] for line in lines} == {
        "'=1+2.png", "'+a.png", "'-b.png", "'@c.png", 'd=e.png', 'f =g.png', 'h,"i.png'
    }  # fmt: skip
    assert not any(cell.startswith(('=', '+', '-', '@')) for line in lines for cell in line)


def test_a_line_that_was_cut_off_is_no_file_and_spoils_none(tmp_path):
    bad = BadImages(tmp_path, 2, LOGGER)
    bad.add('a.png', 2, 'spoilt')
    with bad.path.open('a') as file:
        file.write('"b,')
    bad.add('c.png', 3, 'spoilt, too')
    assert bad.path.read_text().splitlines() == [
        'file,row,reason', 'a.png,2,spoilt', '"b,', 'c.png,3,"spoilt, too"'
    ]  # fmt: skip
    bad.add('c.png', 3, 'spoilt, too')
    with pytest.raises(ValueError, match='3 different images'):
        bad.add('b,b.png', 4, 'spoilt')


def test_without_locks_lines_are_whole(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, 'no locks')

    monkeypatch.setattr('data.bad_images.fcntl.lockf', no_locks)
    bad = BadImages(tmp_path, 2, LOGGER)
    bad.add('a.png', 2, 'spoilt')
    bad.add('b.png', 3, 'spoilt')
    assert [line[0] for line in listed(tmp_path)] == ['a.png', 'b.png']


def test_a_list_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'bad_images.csv').mkdir()
    with pytest.raises(ValueError, match=r'bad_images\.csv cannot be written: Is a directory'):
        BadImages(tmp_path, 2, LOGGER).add('a.png', 2, 'spoilt')
