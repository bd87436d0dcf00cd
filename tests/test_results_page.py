"""docs/results.md shows what the JSON files beside it hold."""

import re
from pathlib import Path

from test_readme import load_script

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = load_script(ROOT / 'scripts/results_page.py')
PAGE = (ROOT / 'docs/results.md').read_text()


def test_the_page_is_made_from_its_files() -> None:
    assert SCRIPT.page_text(PAGE) == PAGE


def test_times_are_those_of_each_run_once() -> None:
    assert PAGE.count('<!-- times -->') == 1

    def sweep(*minutes: float) -> dict:
        runs = [
            {'state': 'finished', 'provenance': {'finished': f'{m}', 'seconds': 60 * m}}
            for m in minutes
        ]
        unfinished = {'state': 'missing', 'provenance': None}
        seeds = [{'pretrain': run, 'finetune': run} for run in (*runs, unfinished)]
        return {'rows': [{'seeds': [*seeds, {'pretrain': None, 'finetune': runs[0]}]}]}

    assert SCRIPT.times([sweep(9, 3), sweep(9, 4.5, 1)]) == (
        'Minutes from the start of training to the end of the run: '
        'pre-training 1.0 to 9.0 (median 3.8), fine-tuning 1.0 to 9.0 (median 3.8).'
    )


def test_every_table_has_its_figure_and_files() -> None:
    names = SCRIPT.PART.findall(PAGE)
    assert names
    for name in names:
        assert (SCRIPT.FOLDER / f'{name}.png').is_file()
        assert (ROOT / f'scripts/ablations/nano/{name}.yaml').is_file()
        assert PAGE.count(f'results/nih1000/{name}.png') == 1


def test_a_changed_figure_changes_the_page(monkeypatch, tmp_path) -> None:
    for path in SCRIPT.FOLDER.glob('*.json'):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = SCRIPT.PART.findall(PAGE)[0]
    file = tmp_path / f'{name}.json'
    file.write_text(re.sub(r'"title": "[^"]*"', '"title": "Another title"', file.read_text()))
    monkeypatch.setattr(SCRIPT, 'FOLDER', tmp_path)
    assert '| Another title |' in SCRIPT.page_text(PAGE)
