"""The documentation: links, files, options and examples exist, and the site builds."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from markdown.extensions.toc import slugify
from mkdocs.commands.build import build
from mkdocs.config import load_config
from new_parts import EXAMPLE, PAGE
from page_commands import FIRST_PAGES
from sklearn.metrics import matthews_corrcoef
from tiny import ROOT, SMALLEST_SWIN, config_with
from torch import nn

from config import OPTIONS, REGISTRIES, check_config, selected_part
from data.masking import MaskGenerator
from data.tables.labels import LABELS, POLICIES, training_targets
from data.tables.records import task_of
from evaluation import metrics
from models.build import build_model
from models.contrastive import build_contrastive
from models.losses import build_label_loss
from models.reconstruction_losses import loss_terms, term_values
from tools.config_reference import options_page

DOCS = ROOT / 'docs'
SITE = sorted(DOCS.rglob('*.md'))
PAGES = [*(ROOT / name for name in FIRST_PAGES), *SITE]
FENCED = re.compile(r'^```.*?^```', re.M | re.S)
FOLDERS = (
    'configs|data|docs|engine|environments|evaluation|models|notebooks|scripts|sweeps|tests|tools'
)
FILE = re.compile(rf'`((?:{FOLDERS})/[\w./-]+)`')
LINK = re.compile(r'\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)', re.M)  # also definitions of references


def prose(path: Path) -> str:
    return FENCED.sub('', path.read_text(encoding='utf-8'))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r'^#+ +(.*)$', prose(path), re.M)
    return {slugify(heading.replace('`', ''), '-') for heading in headings}


def test_the_reading_order_has_the_sizes_of_its_files() -> None:
    page = (DOCS / 'explanation' / 'architecture.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (.*`.*\.py`.*?) \| ([\d, ]+) \|', page, re.M)
    pairs = [
        (file, int(size))
        for files, sizes in rows
        for file, size in zip(re.findall(r'`([\w/]+\.py)`', files), sizes.split(','), strict=True)
    ]
    assert len(pairs) > 20
    for file, size in pairs:  # a reader wants the hours and not the lines
        assert len((ROOT / file).read_text(encoding='utf-8').splitlines()) == pytest.approx(
            size, rel=0.2
        ), file


def broken_links(path: Path) -> list[str]:
    """Return the relative links whose file or heading does not exist."""
    broken = []
    for link in map(''.join, LINK.findall(prose(path))):
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        is_there = target.is_file() and (not anchor or anchor in anchors(target))
        if not is_there and not re.match(r'https?:', link):
            broken.append(link)
    return broken


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_project_that_a_page_names_exist(path) -> None:
    assert [name for name in FILE.findall(prose(path)) if not (ROOT / name).exists()] == []


# The examples of new parts

SMALL = SMALLEST_SWIN | {'MODEL__IN_CHANS': 1, 'AUG__AUTO_AUGMENT': 'none'}


def images(size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(seed))


def use_mask(config, folder: Path) -> None:
    for size, unit in ((56, 8), (64, 8)):
        masks = MaskGenerator(size, unit, 4, 0.6, config.DATA.MASK_TYPE)
        assert masks(np.random.default_rng(0)).sum() == masks.count * 4


def use_head(config, folder: Path) -> None:
    encoder = SimpleNamespace(num_features=16, stride=32)
    head = selected_part(config, 'MODEL.SIMMIM.HEAD', with_options=True)(
        encoder, channels=3, cell=2
    )
    assert head(torch.zeros(2, 16, 2, 2)).shape == (2, 3, 32, 32)


def use_target(config, folder: Path) -> None:
    target = selected_part(config, 'MODEL.SIMMIM.TARGET', with_options=True)(1, cell=2, unit=8)
    assert target.of(torch.zeros(2, 1, 16, 16)).shape == (2, target.channels, 8, 8)


def use_loss(config, folder: Path) -> None:
    error = torch.tensor([0.1, -3.0]).view(1, 1, 1, 2)
    zeros, hidden = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)
    found = term_values(loss_terms(config), error, zeros, hidden)
    torch.testing.assert_close(found, error.cosh().log().mean()[None])


def use_masked_method(config, folder: Path) -> None:
    model = build_model(config, total_steps=4)
    mask = torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[:, :2, :2] = 1
    model.encoder_loaded()
    model.begin_step()
    model(images(), mask).backward()
    learned = [each for each in model.parameters() if each.requires_grad]
    assert all(each.grad.isfinite().all() for each in learned) and model.step == 1
    assert model.held_out_features(images()).shape == (3, 16)


def use_pooling(config, folder: Path) -> None:
    head = selected_part(config, 'MODEL.HEAD', with_options=True)(8, 3)
    assert head.logits(torch.zeros(2, 5, 8)).shape == (2, 3)


def use_policy(config, folder: Path) -> None:
    file = folder / 'ranges.yaml'
    file.write_text('{Edema: [0.2, 0.3]}')
    config.DATA.RANGES.FILE = str(file)
    options = {'ranges': POLICIES.options_of('ranges', config)}
    given = {'blank': 'negative', 'rows': np.arange(50), 'options': options}
    labels = np.full((50, 1), -1, np.float32)
    targets = training_targets(labels, ['ranges'], names=['Edema'], **given)
    assert 0.2 <= targets.min() < 0.22 and 0.28 < targets.max() <= 0.3
    with pytest.raises(ValueError, match='DATA.RANGES.FILE.*Fracture'):
        training_targets(labels, ['ranges'], names=['Fracture'], **given)


def use_task(config, folder: Path) -> None:
    labels = np.ones((1, len(LABELS)), np.float32)
    assert task_of(config).is_positive(labels).tolist() == [True]


def use_label_loss(config, folder: Path) -> None:
    targets = torch.tensor([[1.0, float('nan')], [0.0, 1.0]])
    loss = build_label_loss(config, targets.numpy())
    outputs = torch.zeros(2, 2, requires_grad=True)
    assert loss(outputs, targets).item() == pytest.approx(3 * 0.25 / 4)
    loss(outputs, targets).backward()
    assert outputs.grad.isfinite().all() and outputs.grad[0, 1] == 0


def use_encoder(config, folder: Path) -> None:
    config.MODEL.CONVOLUTIONS.EMBED_DIM = 8
    check_config(config, 'simmim')
    masked = build_model(config)
    assert masked(images(), torch.ones(3, 8, 8)).isfinite()
    model = build_model(config, is_pretrain=False, num_outputs=5)
    assert model(images()).shape == (3, 5)
    ids = [model.get_layer_id(name) for name, _ in model.named_parameters()]
    assert min(ids) == 0 and max(ids) == model.get_num_layers() + 1


def use_method(config, folder: Path) -> None:
    model = build_contrastive(config, total_steps=3)
    losses = [model(images(), views) for views in (images(), images(seed=1))]
    assert 0 < losses[0] < losses[1]


def use_mixer(config, folder: Path) -> None:
    mix = selected_part(config, 'AUG.MIXER', with_options=True)(config.AUG)
    targets = torch.tensor([[0.0, 1.0], [1.0, float('nan')], [0.0, 0.0]])
    mixed, found = mix(images(), targets, np.random.default_rng(0))
    assert found.isnan().tolist() == [[False, True], [False, True], [False, False]]
    share = found[0, 0].item()
    assert 0 < share < 0.2
    torch.testing.assert_close(mixed[0], (1 - share) * images()[0] + share * images()[1])


def use_optimizer(config, folder: Path) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    groups = [{'params': [weight], 'names': ['weight'], 'lr': 0.1, 'weight_decay': 0.0}]
    build = selected_part(config, 'TRAIN.OPTIMIZER.NAME', with_options=True)
    optimizer = build(groups, config.TRAIN.OPTIMIZER)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert (weight < 1).all()


def use_schedule(config, folder: Path) -> None:
    schedule = selected_part(config, 'TRAIN.LR_SCHEDULER.NAME', with_options=True)
    rate, last = schedule(config, 10, 0.0), config.TRAIN.EPOCHS * 10
    assert 1 == rate(0, 1.0) == rate(0.8 * last, 1.0) > rate(last - 1, 1.0) > rate(last, 1.0) == 0


def use_writer(config, folder: Path) -> None:
    writer = REGISTRIES['LOGGER']['csv'](folder, config, logging.getLogger('docs'))
    writer.write_scalars({'epoch/a, b': 0.5}, 3)
    writer.close(0)
    found = pd.read_csv(folder / 'curves.csv', header=None)
    assert found.to_numpy().tolist() == [[3, 'epoch/a, b', 0.5]]


USES = {
    'data/green.py': use_mask,
    'data/lungs.py': use_mask,
    'models/three_stages.py': use_head,
    'models/laplacian.py': use_target,
    'models/log_cosh.py': use_loss,
    'models/ijepa.py': use_masked_method,
    'models/max_pooling.py': use_pooling,
    'data/ranges.py': use_policy,
    'data/severity.py': use_task,
    'models/squared.py': use_label_loss,
    'models/convolutions.py': use_encoder,
    'models/barlow_twins.py': use_method,
    'data/neighbours.py': use_mixer,
    'engine/rmsprop.py': use_optimizer,
    'engine/wsd.py': use_schedule,
    'engine/curves.py': use_writer,
}


def test_measured_sizes_of_a_lower_score_stand_on_the_page_that_they_are_of() -> None:
    page = ROOT / 'docs' / 'howto' / 'lower_score.md'
    rows = [line for line in page.read_text('utf-8').splitlines() if line.startswith('| ')][2:]
    checked = 0
    for row in rows:
        figures = re.findall(r'\.\d{3}', row)
        links = re.findall(r'\[ours\]\(([^)#]+)', row)
        # Every figure is ours, or of a numbered source; a row without a figure says so.
        assert links or re.search(r'\[[12]\]', row) or 'not measured' in row, row
        text = ''.join((page.parent / link).read_text('utf-8') for link in links)
        checked += len(figures) if links else 0
        assert not links or [figure for figure in figures if figure not in text] == [], row
    assert len(rows) > 12 and checked > 12


@pytest.mark.parametrize('file', USES)
def test_an_example_is_a_file_and_lines_of_config_that_work(file, add_example, tmp_path) -> None:
    """What stands on the page is all that a part needs."""
    key, part, module = add_example(file)
    if not key:
        USES[file](module, tmp_path)
        return
    value = [part] if key == 'LOGGER' else part
    config = config_with(**SMALL | {key.replace('.', '__'): value})
    stage = {'simmim': 'simmim', 'contrastive': 'contrastive'}.get(*OPTIONS[key].stage[:1] or ['x'])
    check_config(config, stage)
    USES[file](config, tmp_path)


def test_the_example_of_a_metric_works() -> None:
    code = dict(EXAMPLE.findall(PAGE))['evaluation/metrics.py']
    try:
        exec(code, dict(vars(metrics)))
        targets, scores = np.array([1.0, 1, 0, 0, 1]), np.array([0.9, 0.2, 0.8, 0.1, 0.7])
        name = 'matthews_correlation'
        found = metrics.label_scores(scores, targets, threshold=0.5, names=[name])
        assert found[name] == pytest.approx(matthews_corrcoef(targets, scores >= 0.5))
    finally:
        metrics.METRICS.pop('matthews_correlation', None)


def test_every_example_on_the_page_is_run() -> None:
    names = {name for name, _ in EXAMPLE.findall(PAGE)}
    assert names == {*USES, 'config.py', 'evaluation/metrics.py'}
    assert PAGE.count('```python') == len(EXAMPLE.findall(PAGE))


def test_the_page_of_options_lists_every_key() -> None:
    written = (DOCS / 'reference' / 'config.md').read_text(encoding='utf-8')
    keys = [re.findall(r'^\| `([A-Z_.]+)`', page, re.M) for page in (written, options_page())]
    assert keys[0] == keys[1], 'run python tools/config_reference.py'
    assert len(keys[0]) > 150


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_is_searched_from_disk(
    tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv('NO_MKDOCS_2_WARNING', '1')
    monkeypatch.chdir(ROOT)
    site = tmp_path / 'site'
    build(load_config('mkdocs.yml', site_dir=str(site)))
    assert [record for record in caplog.records if record.levelname in ('WARNING', 'ERROR')] == []
    # A page from disk may not fetch the index, so that a script beside the page contains it.
    name, _, index = (site / 'search' / 'search_index.js').read_text().partition(' = ')
    found = {entry['location']: entry['text'] for entry in json.loads(index)['docs']}
    assert name == 'var __index' and 'torchrun' in found['howto/slurm.html']
    for file in ('index.html', 'howto/slurm.html', 'contributing.html'):
        page = site / file
        scripts = re.findall(r'<script[^>]* src="([^"]+)"', page.read_text())
        assert any('iframe-worker' in script for script in scripts)
        assert all((page.parent / script).is_file() for script in scripts)


def test_the_python_api_describes_modules_that_exist() -> None:
    page = (DOCS / 'reference' / 'api.md').read_text(encoding='utf-8')
    paths = [ROOT / name.replace('.', '/') for name in re.findall(r'^::: (\S+)$', page, re.M)]
    assert [p for p in paths if not (p.is_dir() or p.with_suffix('.py').is_file())] == []
