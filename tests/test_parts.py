"""Parts: a registry has all names of its option, and parts of one's own are found by the tools."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import run_script
from xray_splits import xray

from config import OPTIONS, REGISTRIES

ROOT = Path(__file__).resolve().parents[1]
STRIPES = """
from data.masking import MASKS


@MASKS.register('stripes')
def striped_units(rng, side, count, view):
    return list(range(count))
"""


@pytest.mark.parametrize('key', REGISTRIES)
def test_a_registry_has_all_names_of_its_option(key: str) -> None:
    registry, names = REGISTRIES[key], [*OPTIONS[key].names]
    assert [*registry] == [*registry.keys()] == names and len(registry) == len(names)
    assert all(name in registry for name in names) and 'no such part' not in registry
    assert [*registry.items()] == [(name, registry[name]) for name in names]


def test_a_registry_has_names_before_their_modules_are_imported() -> None:
    code = (
        'import sys; from config import REGISTRIES; '
        'print([*REGISTRIES["MODEL.TYPE"]], "models.swin_transformer" in sys.modules)'
    )
    words = [sys.executable, '-c', code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['swin', 'vit', 'timm'] False\n"


def test_a_mask_of_ones_own_is_shown_by_the_tool(tmp_path, add_part, capsys) -> None:
    add_part('DATA.MASK_TYPE', 'stripes', 'stripes_mask', STRIPES)
    xray(64, 64, seed=1).save(tmp_path / 'x.png')
    words = ['--image', tmp_path / 'x.png', '--output', tmp_path / 'masks.png', '--size', 64]
    assert run_script('show_masks', *words, '--units', 16, '--ratios', 0.5) == 0
    assert 'stripes, 16 px, ratio 0.5: AvgDist' in capsys.readouterr().out
