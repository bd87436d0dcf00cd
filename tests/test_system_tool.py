"""system.tool: --help is readable in a terminal of 80 columns."""

import argparse

import pytest

from system.tool import Paragraphs, at_least

COMMAND = (
    'python scripts/pack.py --data-path CheXpert-v1.0-small --output CheXpert-256 --size 256 --x'
)
FLAGS = '--to timm     a file with the names of timm\n--to onnx     a file of ONNX'


def test_paragraphs_are_wrapped_and_commands_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('COLUMNS', '80')
    about = f'{"word " * 30}\nword\n\n{COMMAND}\n\n{FLAGS}\n'
    parser = argparse.ArgumentParser(description=about, formatter_class=Paragraphs)
    shown = parser.format_help().split('\n\n')
    assert shown[1].split() == ['word'] * 31
    assert 60 < max(len(line) for line in shown[1].splitlines()) <= 80
    assert shown[2:4] == [COMMAND, FLAGS]


@pytest.mark.parametrize('text', ['0', '-5', '1.5', '', 'x'])
def test_a_number_below_the_least_is_refused(text: str) -> None:
    assert at_least(1)('1') == 1 and at_least(0)('0') == 0
    with pytest.raises(argparse.ArgumentTypeError, match='from 1'):
        at_least(1)(text)
