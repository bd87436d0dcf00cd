"""The documentation: links, files, options and examples exist, and the site builds."""

import json
import logging
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from markdown.extensions.toc import slugify
from mkdocs.commands.build import build
from mkdocs.config import load_config
from sklearn.metrics import matthews_corrcoef
from test_readme import ROOT
from torch import nn

from config import OPTIONS, default_config
from data.labels import LABELS, UncertainImages
from evaluation.metrics import label_scores
from models.reconstruction_losses import Term, term_values
from tools.config_reference import options_page

DOCS = ROOT / 'docs'
SITE = sorted(DOCS.rglob('*.md'))
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *SITE]
FENCED = re.compile(r'^```.*?^```', re.M | re.S)
FOLDERS = 'configs|data|docs|engine|evaluation|models|notebooks|scripts|sweeps|tests|tools'
FILE = re.compile(rf'`((?:{FOLDERS})/[\w./-]+)`')
LINK = re.compile(r'\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)', re.M)  # also definitions of references


def prose(path: Path) -> str:
    return FENCED.sub('', path.read_text(encoding='utf-8'))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r'^#+ +(.*)$', prose(path), re.M)
    return {slugify(heading.replace('`', ''), '-') for heading in headings}


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


def use_mask(units, folder: Path) -> None:
    for side, count in ((7, 25), (8, 32), (8, 50)):
        chosen = units(np.random.default_rng(0), side, count, None)
        assert len(set(chosen.tolist())) == len(chosen) == count


def use_head(head, folder: Path) -> None:
    encoder = SimpleNamespace(num_features=8, stride=4)
    assert head(encoder, channels=3, cell=2)(torch.zeros(2, 8, 4, 4)).shape == (2, 3, 8, 8)


def use_target(target, folder: Path) -> None:
    made = target(1, cell=2, unit=8)
    assert made.of(torch.zeros(2, 1, 16, 16)).shape == (2, made.channels, 8, 8)


def use_loss(loss, folder: Path) -> None:
    terms, error = {'log_cosh': Term(1.0, loss)}, torch.tensor([0.1, -3.0]).view(1, 1, 1, 2)
    found = term_values(terms, error, torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(found, error.cosh().log().mean()[None])


def use_pooling(head, folder: Path) -> None:
    assert head(8, 3).logits(torch.zeros(2, 5, 8)).shape == (2, 3)


def use_policy(policy, folder: Path) -> None:
    images = UncertainImages(LABELS[2], np.arange(4), 0, None)
    assert set(np.ravel(policy.targets(images))) == {0.5}


def use_task(task, folder: Path) -> None:
    labels = np.ones((1, len(LABELS)), np.float32)
    assert task(default_config()).is_positive(labels).tolist() == [True]


def use_optimizer(build, folder: Path) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    groups = [{'params': [weight], 'lr': 0.1, 'weight_decay': 0.0}]
    optimizer = build(groups, default_config().TRAIN.OPTIMIZER)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert (weight < 1).all()


def use_schedule(schedule, folder: Path) -> None:
    config = default_config()
    rate, last = schedule(config, 10, 0.0), config.TRAIN.EPOCHS * 10
    assert 1 == rate(0, 1.0) > rate(last - 1, 1.0) > rate(last, 1.0) == 0


def use_writer(writer, folder: Path) -> None:
    made = writer(folder, default_config(), logging.getLogger('docs'))
    made.write_scalars({'epoch/a, b': 0.5}, 3)
    made.close(0)
    (file,) = folder.iterdir()
    assert pd.read_csv(file, header=None).to_numpy().tolist() == [[3, 'epoch/a, b', 0.5]]


def use_metric(metric, folder: Path) -> None:
    targets, scores = np.array([1.0, 1, 0, 0, 1]), np.array([0.9, 0.2, 0.8, 0.1, 0.7])
    found = label_scores(scores, targets, threshold=0.5, names=[metric.name])
    assert found[metric.name] == pytest.approx(matthews_corrcoef(targets, scores >= 0.5))


@pytest.mark.parametrize(
    ('heading', 'module', 'registry', 'use'),
    [
        ('A mask type', 'data.masking', 'MASKS', use_mask),
        ('A head of two convolutions', 'models.simmim', 'HEADS', use_head),
        ('A prediction target', 'models.simmim', 'TARGETS', use_target),
        ('A loss of pre-training', 'models.reconstruction_losses', 'LOSSES', use_loss),
        ('A head of the classifier', 'models.classifier_heads', 'CLASSIFIER_HEADS', use_pooling),
        ('A label policy', 'data.labels', 'POLICIES', use_policy),
        ('A task', 'data.tasks', 'TASKS', use_task),
        ('An optimizer', 'optimizer', 'OPTIMIZERS', use_optimizer),
        ('A schedule', 'lr_scheduler', 'SCHEDULES', use_schedule),
        ('A logger', 'logger', 'WRITERS', use_writer),
        ('A metric', 'evaluation.metrics', 'METRICS', use_metric),
    ],
)  # fmt: skip
def test_examples_of_new_parts_register_a_part_that_works(  # noqa: PLR0913
    heading, module, registry, use, monkeypatch, tmp_path
) -> None:
    page = (DOCS / 'howto' / 'extend.md').read_text(encoding='utf-8')
    code = page.split(f'## {heading}\n')[1].split('```')[1].removeprefix('python\n')
    names = vars(import_module(module))
    name = (re.search(r"register\w*\('(\w+)'", code) or re.search(r'def (\w+)', code))[1]
    before = dict(getattr(names[registry], 'data', names[registry]))
    if key := getattr(names[registry], 'key', None):  # its option declares the name
        declared = replace(OPTIONS[key], parts={**OPTIONS[key].parts, name: module})
        monkeypatch.setitem(OPTIONS, key, declared)
    try:
        exec(code, dict(names))
        use(names[registry][name], tmp_path)
    finally:
        getattr(names[registry], 'data', names[registry]).clear()
        getattr(names[registry], 'data', names[registry]).update(before)


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
