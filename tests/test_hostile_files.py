"""Checkpoints and config files cannot run code."""

import ast
import os
from pathlib import Path

import pytest
import torch
from tiny import ROOT

from utils import read_checkpoint

SOURCES = sorted(
    path
    for path in (*ROOT.glob('*.py'), *(ROOT / 'tests').rglob('*.py'), *ROOT.glob('*/*.py'))
    if 'tests' not in path.relative_to(ROOT).parts
)


class Payload:
    """Pickled, it asks the reader to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_no_source_reads_pickles_or_yaml_that_can_run_code() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                unsafe = name in (
                    *('pickle.load', 'pickle.loads', 'pd.read_pickle', 'joblib.load'),
                    *('yaml.load', 'yaml.unsafe_load', 'yaml.full_load', 'eval', 'exec'),
                )
                loads = name.endswith(('torch.load', 'load_state_dict_from_url'))
                unsafe |= loads and given.get('weights_only') != 'True'
                unsafe |= name == 'np.load' and 'allow_pickle' not in given
                unsafe |= given.get('allow_pickle', 'False') != 'False'
                found += [f'{path.name}: {name}'] * unsafe
    assert len(SOURCES) > 60 and found == []


@pytest.mark.parametrize('place', ['model', 'config', 'SimMIM config', 'optimizer'])
def test_a_pickle_that_would_run_code_does_not(place: str, tmp_path: Path) -> None:
    from yacs.config import CfgNode

    payload = Payload(tmp_path / 'it_ran')
    contents = {'model': {'a': torch.ones(1)}}
    if place == 'SimMIM config':
        contents['config'] = CfgNode({'DATA': CfgNode({'A': 1})})
        dict.__setitem__(contents['config'].DATA, 'B', [payload])
    else:
        contents[place] = {'a': payload}
    torch.save(contents, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=r'c\.pth: refused, it holds a pickled object of'):
        read_checkpoint(tmp_path / 'c.pth')
    assert not (tmp_path / 'it_ran').exists()
