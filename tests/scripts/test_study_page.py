"""The page of a study: what is in its folder, under the headings of the study, and what lacks."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tiny import ROOT, load_script, run_script

from config import config_text
from scripts.phantom import make_phantom
from scripts.phantom_mimic import make_mimic_phantom
from sweeps.files import expected_config, load_sweep

PHANTOMS = {'mae_resnet': make_mimic_phantom, 'contrastive': make_phantom, 'simmim': make_phantom}
SOURCES = sorted((ROOT / 'scripts/studies/pages').glob('*.md'))


def write(folder: Path, *names: str, text: str = '') -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == '.png':
            Image.new('L', (8, 8)).save(file)
        else:
            file.write_text(text)


def filled(folder: Path, source: str, **words: str) -> tuple[str, list[str]]:
    return load_script('studies/page').fill(source, folder, words)


def test_a_figure_shows_its_pages_in_order_and_links_its_other_forms(tmp_path: Path) -> None:
    pages = [f'a/b_{number}' for number in range(1, 10)]
    write(tmp_path, *(f'{page}.png' for page in pages), 'a/b_1.svg', 'a/b_9.pdf', 'a/b_labels.png')
    text, missing = filled(tmp_path, '![Curves](a/b.png)\n')
    assert '<b>Figure 1.</b> Curves (9 pages)</span></summary>' in text and not missing
    assert filled(tmp_path, '![Curves](a/b_1.png)')[0].startswith('**Figure 1.** Curves\n')
    assert re.findall(r'!\[Figure 1\]\(([^)]*)\)', text) == [f'{page}.png' for page in pages]
    assert '[b_1.svg](a/b_1.svg)' in text and '[b_9.pdf](a/b_9.pdf)' in text


@pytest.mark.parametrize('rows', [12, 13])
def test_a_long_table_is_folded_and_keeps_its_notes(tmp_path: Path, rows: int) -> None:
    lines = ['| row | AUROC |', '| --- | --- |', *(f'| r{n} | .5 |' for n in range(rows))]
    write(tmp_path, 'a.md', text='\n'.join(lines) + '\n\n- Few cases.\n')
    write(tmp_path, 'a.tex', 'a.csv')
    text, _ = filled(tmp_path, '![A & B](a.md)\n')
    assert ('<details' in text) == (rows > 12)
    assert all(line in text for line in [*lines, '- Few cases.', '[a.tex](a.tex)'])
    assert ('Table 1.</b> A &amp; B (13 rows)' if rows > 12 else '**Table 1.** A & B') in text


def test_what_is_not_finished_is_named_and_has_no_number(tmp_path: Path) -> None:
    write(tmp_path, 'b.png')
    text, missing = filled(tmp_path, '![Masks](a.png)\n\n![Losses](b.png)\n')
    assert missing == ['a.png']
    assert '> **Not finished:** Masks (`a.png`)' in text and '**Figure 1.** Losses' in text


def test_the_page_shows_the_maps_of_the_best_and_the_worst_row(tmp_path: Path) -> None:
    script, sweep = load_script('studies/page'), ROOT / 'scripts/studies/simmim.yaml'
    table = pd.DataFrame({'row': ['mlp', 'l2', 'block', 'mlp'], 'value': [0.6, 0.8, 0.7, 0.6]})
    table.to_csv(tmp_path / 'simmim_mean_of_five.csv')
    runs = tmp_path / 'simmim_finetune'
    write(runs, *(f'tiny_simmim_{row}_seed3/maps/edema.png' for row in ('mlp', 'l2', 'block')))
    found = script.best_and_worst(script.load_sweep(sweep, 'tiny'), tmp_path)
    assert found == {
        'BEST_ROW': 'L2 loss',
        'BEST_RUN': 'simmim_finetune/tiny_simmim_l2_seed3',
        'WORST_ROW': 'MLP head',
        'WORST_RUN': 'simmim_finetune/tiny_simmim_mlp_seed3',
    }
    text, missing = filled(tmp_path, '![BEST_ROW: where](BEST_RUN/maps/*.png)\n', **found)
    assert text.startswith('**Figure 1.** L2 loss: where\n') and not missing
    assert f'src="{found["BEST_RUN"]}/maps/edema.png"' in text and '>edema</figcaption>' in text


def test_reconstructions_have_the_titles_of_their_rows(tmp_path: Path, capsys) -> None:
    words = ['mae_resnet', '--scale', 'tiny', '--output', tmp_path, '--reconstructions']
    assert run_script('studies/page', *words) == 0 and capsys.readouterr().out == '\n'
    run = tmp_path / 'simmim_pretrain/mae_resnet_ours_pretrained_0.25_seed0'
    write(run, 'reconstructions/epoch_29.png')
    assert run_script('studies/page', *words) == 0
    assert capsys.readouterr().out == f'ours: own MAE, 25 %={run}\n'


def test_a_report_is_a_link_once_it_is_there(tmp_path: Path) -> None:
    source = '![Report](BEST_RUN/report.html)'
    assert filled(tmp_path, source)[1] == ['BEST_RUN/report.html']
    write(tmp_path, 'run/report.html')
    assert filled(tmp_path, source, BEST_RUN='run') == ('[Report](run/report.html)', [])


def test_all_pages_of_a_table_in_latex_are_linked(tmp_path: Path) -> None:
    write(tmp_path, 'a.md', text='| row |\n| --- |\n| b |\n')
    write(tmp_path, 'a.csv', 'a_1.tex', 'a_2.tex', 'a_losses.tex')
    text, _ = filled(tmp_path, '![Scores](a.md)')
    assert re.findall(r'\]\(([^)]*)\)', text) == ['a.md', 'a.csv', 'a_1.tex', 'a_2.tex']


def test_what_the_source_does_not_name_is_linked_at_the_end(tmp_path: Path) -> None:
    write(tmp_path, 'a.png', 'a.pdf', 'a_kappa.csv', 'data/c.png', 'data/d.csv', 'index.md')
    write(tmp_path, 'runs/one/e.png', 'phantom/train.csv', 'log.txt')
    text, _ = filled(tmp_path, '![A](a.png)\n\n![C](data/c.png)')
    listed = load_script('studies/page').others(tmp_path, text)
    assert re.findall(r'\]\(([^)]*)\)', listed) == ['a_kappa.csv', 'data/d.csv']
    assert load_script('studies/page').others(tmp_path, text + listed) == ''


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_page_of_committed_results_says_what_its_scores_are_of(tmp_path: Path, capsys) -> None:
    for file in (ROOT / 'docs/results/study_simmim').iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert run_script('studies/page', 'simmim', '--scale', 'tiny', '--output', tmp_path) == 0
    page, text = (tmp_path / 'index.html').read_text(), (tmp_path / 'index.md').read_text()
    tags = Tags()
    tags.feed(page)
    shown = {values['src'] for tag, values in tags.found if tag == 'img'}
    assert shown == {'simmim_masks.png', 'simmim_mean_of_five_differences.png'}
    headings = [values['id'] for tag, values in tags.found if tag == 'h2']
    chapters = ['data', 'methods', 'results', 'subgroups', 'images']
    assert headings == [*chapters, 'other-tables-and-figures']
    links = {values['href'] for tag, values in tags.found if tag == 'a'}
    assert {f'#{name}' for name in headings} <= links
    files = {link for link in links if not link.startswith('#')}
    assert {file.name for file in tmp_path.glob('*.csv')} <= files
    assert all((tmp_path / file).is_file() for file in files)
    for word in ('Not for clinical use', 'Synthetic X-rays', 'seeds 0, 1', '10 rows', '200 synth'):
        assert word in page and word in text
    lacking = capsys.readouterr().out.count('not finished: ')
    assert f'{lacking} parts are not finished' in page and page.count('Not finished:') == lacking


def test_a_study_that_has_no_score_yet_has_a_page(tmp_path: Path) -> None:
    assert run_script('studies/page', 'contrastive', '--scale', 'full', '--output', tmp_path) == 0
    assert 'No score is finished' in (tmp_path / 'index.md').read_text()


@pytest.mark.parametrize('source', SOURCES, ids=lambda file: file.stem)
def test_each_part_of_a_page_stands_alone_in_its_paragraph(source: Path) -> None:
    text = source.read_text()
    parts = load_script('studies/page').PART.findall(text)
    assert len(parts) == text.count('![') > 10
    assert all(f'\n\n![{caption}]({name})\n' in text for caption, name in parts)


@pytest.mark.parametrize('study', PHANTOMS)
def test_each_part_about_the_data_of_a_study_is_made(study: str, tmp_path: Path) -> None:
    """A part that the data set cannot have would be called unfinished for ever."""
    PHANTOMS[study](tmp_path / 'phantom', num_train=8, num_valid=3, num_test=3, size=40)
    row = load_sweep(ROOT / f'scripts/studies/{study}.yaml', 'tiny').rows[0]
    file = tmp_path / 'config.yaml'
    file.write_text(config_text(expected_config(row, 'finetune')))
    words = ['--data-path', tmp_path / 'phantom', '--output', tmp_path / 'data', '--cfg', file]
    opts = ['DATA.TRAIN_IMAGES', 4] if study == 'mae_resnet' else ['DATA.TRAIN_IMAGES', 0]
    assert run_script('describe_data', *words, '--examples', 1, '--opts', *opts) == 0
    source = (ROOT / f'scripts/studies/pages/{study}.md').read_text()
    text, missing = filled(tmp_path, source)
    assert '](data/targets.md)' in text
    assert not [name for name in missing if name.startswith('data/')]
