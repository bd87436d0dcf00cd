"""The recipes of docs/howto/export.md run as they stand."""

import contextlib
import io
import re

import matplotlib
import pytest
from page_commands import PAGES, python_blocks
from tiny import ROOT, run_script

PAGE = 'docs/howto/export.md'


@pytest.mark.slow
def test_the_features_of_the_shipped_weights_classify_and_are_drawn(tmp_path, monkeypatch) -> None:
    """The command, the classifier and the plot of the page, in an empty folder."""
    matplotlib.use('agg')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'examples').symlink_to(ROOT / 'examples')
    (command,) = re.findall(r'features\.py (examples/\S+ .*mae-vit.*)', PAGES[PAGE])
    assert run_script('features', *command.split()) == 0
    classify, plot = python_blocks(PAGE)[:2]
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(classify, names)
    exec(plot, names)
    stated = float(re.search(r'an AUROC of about (\.\d+)', PAGES[PAGE])[1])
    assert float(printed.getvalue().split()[1]) == pytest.approx(stated, abs=0.01)
    assert (tmp_path / 'output' / 'plane.png').stat().st_size > 5000
