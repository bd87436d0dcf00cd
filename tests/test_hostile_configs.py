"""Config files and options made to take memory or time, or to run something."""

from argparse import Namespace
from pathlib import Path

import pytest
import yaml
from tiny import tiny_config

from config import MAX_FILES, get_config, load_yaml


def config_of(path: Path) -> None:
    get_config(Namespace(cfg=str(path), stage='simmim'))


LAUGHS = 'a: &a [x, x]\n' + ''.join(
    f'{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}]\n'
    for i in range(20)
)
BAD_YAML = {
    'python object': ('TAG: !!python/object/apply:os.mkdir [it_ran]\n', 'cannot be read as plain'),
    'python name': ('TAG: !!python/name:os.system\n', 'cannot be read as plain YAML'),
    'laughs': (LAUGHS, 'stands for more than 10,000 keys and values'),
    'laughs under a key': ('DATA:\n  ' + LAUGHS.replace('\n', '\n  '), 'stands for more than'),
    'inside itself': ('TAG: &a [*a]\n', 'stands for more than'),
    'integer': ('SEED: ' + '9' * 100_000, 'an integer of 100,000 characters'),
    'hexadecimal': ('SEED: 0x' + 'f' * 100_000, 'an integer of 100,002 characters'),
    'large integer': (f'SEED: {2**65}', 'SEED in .* must be an integer, .*numbers end at 2'),
    'large for a float': (f'TRAIN: {{BASE_LR: {10**150}}}', 'TRAIN.BASE_LR in .*a finite number'),
    'file': ('# ' + 'x' * 2**17, 'more than 131,072 characters'),
    'deep': ('TAG: ' + '[' * 5000, 'cannot be read as plain YAML'),
    'control': ('TAG: "a\\nb"', 'TAG in .* must be text'),
    'NUL': ('TAG: "a\\0b"', 'TAG in .* must be text'),
    'key': (f'? {"x" * 100_000}\n: 1', 'unknown key .x{100,200}'),
    'base of no text': ('BASE: ["a\\0b"]', 'BASE in .* must be a list of paths'),
    'base nowhere': ('BASE: [gone.yaml]', r'no config file .*gone\.yaml, which BASE in .*a\.yaml'),
    'base of a device': ('BASE: [/dev/zero]', 'no config file /dev/zero, which BASE'),
    'base too long': (f'BASE: [{"x" * 3000}]', 'no config file .*x, which BASE'),
    'base is itself': ('BASE: [a.yaml]', 'BASE goes in a loop'),
}


@pytest.mark.parametrize('kind', BAD_YAML)
def test_a_config_file_that_cannot_be(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = BAD_YAML[kind]
    (tmp_path / 'a.yaml').write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        config_of(tmp_path / 'a.yaml')
    assert len(str(error.value)) < 10_000 and '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['a.yaml']


def test_aliases_that_repeat_little_are_taken() -> None:
    assert load_yaml('a: &a [1, 2]\nb: *a\nc: {<<: {d: 1}, e: *a}') == {
        'a': [1, 2],
        'b': [1, 2],
        'c': {'d': 1, 'e': [1, 2]},
    }


def test_bases_of_bases_end(tmp_path: Path) -> None:
    """Each file names the next twice: 30 files would be 2**30 readings."""
    for i in range(30):
        base = {'BASE': [f'{i + 1}.yaml'] * 2} if i < 29 else {'TAG': 'last'}
        (tmp_path / f'{i}.yaml').write_text(yaml.safe_dump(base))
    with pytest.raises(ValueError, match=rf'0\.yaml leads to more than {MAX_FILES} files'):
        config_of(tmp_path / '0.yaml')


@pytest.mark.parametrize(
    ('pair', 'message'),
    [
        (('SEED', '9' * 4000), 'SEED in --opts must be an integer'),
        (('SEED', '0x' + 'f' * 4000), 'SEED in --opts must be an integer'),
        (('SEED', '(' * 100_000), 'SEED in --opts must be an integer'),
        (('TRAIN.BASE_LR', '1' + '0' * 400), 'TRAIN.BASE_LR in --opts must be a finite number'),
        (('x' * 10**6, '1'), "unknown key 'x{199}"),
        (('TAG', 'a\nb'), 'TAG in --opts must be text'),
    ],
)
def test_options_that_cannot_be(pair: tuple[str, str], message: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path / 'run.yaml', 'simmim')
    with pytest.raises(ValueError, match=message) as error:
        get_config(Namespace(cfg=str(cfg), opts=list(pair), stage='simmim'))
    assert len(str(error.value)) < 1000 and '\n' not in str(error.value)
