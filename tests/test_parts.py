"""Parts: a registry has all names of its option, and parts of one's own are found by the tools."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import SMALLEST_SWIN, config_with, run_script
from xray_splits import xray

from config import OPTIONS, REGISTRIES, Config, Own, check_config, selected_part
from data.masking import mask_generator
from data.tables.labels import LABELS
from data.tables.records import task_of
from lr_scheduler import build_scheduler
from models.build import build_model
from models.contrastive import build_contrastive
from models.losses import build_label_loss
from optimizer import build_optimizer

LOGGER = logging.getLogger('test')

ROOT = Path(__file__).resolve().parents[1]
STRIPES = """
from data.masking import MASKS


@MASKS.register('stripes')
def striped_units(rng, side, count, view, *, first):
    return list(range(first, first + count))
"""


@pytest.mark.parametrize('key', REGISTRIES)
def test_a_registry_has_all_names_of_its_option(key: str) -> None:
    registry, names = REGISTRIES[key], [*OPTIONS[key].names]
    assert [*registry] == [*registry.keys()] == names and len(registry) == len(names)
    assert all(name in registry for name in names) and 'no such part' not in registry
    assert [*registry.items()] == [(name, registry[name]) for name in names]


def test_a_mask_of_ones_own_is_shown_by_the_tool(tmp_path, add_part, capsys) -> None:
    first = Own(0, 'First hidden unit.', within='[0, 8]')
    add_part('DATA.MASK_TYPE', 'stripes', 'stripes_mask', STRIPES, 'DATA.STRIPES', {'FIRST': first})
    xray(64, 64, seed=1).save(tmp_path / 'x.png')
    words = ['--image', tmp_path / 'x.png', '--output', tmp_path / 'masks.png', '--size', 64]
    words += ['--units', 16, '--ratios', 0.5, '--types', 'stripes', '--opts', 'DATA.STRIPES.FIRST']
    # At 0 the upper half is hidden, 1 to 32 px from a visible pixel; at 4 a middle, 1 to 16 px.
    for value, distance in ((0, '16.50'), (4, '8.50')):
        assert run_script('show_masks', *words, value) == 0
        printed = capsys.readouterr().out
        assert f'stripes, 16 px, ratio 0.5: AvgDist {distance} px' in printed
        assert 'random' not in printed, 'only the types that are asked for'
    assert run_script('show_masks', *words, 9) != 0
    assert 'DATA.STRIPES.FIRST must be a number in [0, 8]' in capsys.readouterr().err


# Options of a part: module, option with its new value, section, and how the part is used. Each part
# notes its option WIDTH, as the keyword `width`.
NOTED = """
import torch
from config import REGISTRIES
from data.tables.labels import register_policy
from data.masking import random_units
from lr_scheduler import linear
from models.classifier_heads import CLASSIFIER_HEADS, LinearHead
from models.contrastive import METHODS, SimCLR
from models.losses import masked_bce, register_loss
from models.simmim import HEADS, PixelTarget, TARGETS, linear_head
from models.reconstruction_losses import LOSSES, l1

noted = []


def noting(function):
    def noted_function(*args, width, **options):
        noted.append(width)
        return function(*args, **options)
    return noted_function


class NotingHead(LinearHead):
    def __init__(self, num_features, num_classes, *, width):
        super().__init__(num_features, num_classes)
        noted.append(width)


class NotingMethod(SimCLR):
    def __init__(self, encoder, *, temperature=0.5, width):
        super().__init__(encoder, temperature=temperature)
        noted.extend([width, temperature])


PARTS = {
    'DATA.MASK_TYPE': noting(random_units),
    'MODEL.SIMMIM.HEAD': noting(linear_head),
    'MODEL.SIMMIM.TARGET': noting(PixelTarget),
    'MODEL.SIMMIM.LOSS': noting(l1),
    'MODEL.HEAD': NotingHead,
    'CONTRASTIVE.METHOD': NotingMethod,
    'TRAIN.OPTIMIZER.NAME': noting(lambda groups, options: torch.optim.SGD(groups)),
    'TRAIN.LR_SCHEDULER.NAME': noting(linear),
}
PARTS['MODEL.SIMMIM.TARGET'].own_cell = 1
PARTS['MODEL.SIMMIM.TARGET'].uses_true_statistics = False
for key, part in PARTS.items():
    REGISTRIES[key].register('mine')(part)
register_policy('mine')(noting(lambda images: 0.5))
register_loss('mine')(noting(lambda targets, labels: noted.append(labels) or masked_bce))
"""


def build_masked(config: Config) -> None:
    model = build_model(config)
    model(torch.zeros(1, 3, 32, 32), torch.ones(1, 8, 8))


def learn_labels(config: Config) -> None:
    labels = np.full((2, len(LABELS)), -1.0, np.float32)
    records = SimpleNamespace(labels=labels, sample=np.arange(2), label_names=LABELS)
    assert (task_of(config).learned(records)[:, LABELS.index('Edema')] == 0.5).all()


def build_own_loss(config: Config) -> None:
    selected_part(config, 'LOSS.NAME').check(
        config, 'finetune'
    )  # it suits without a second registration
    build_label_loss(config, np.zeros((2, len(LABELS))))


def build_run(config: Config) -> None:
    model = build_model(config, is_pretrain=False, num_outputs=2)
    build_scheduler(config, build_optimizer(config, model, LOGGER, is_pretrain=False), 4)


@pytest.mark.parametrize(
    ('key', 'use', 'noted'),
    [
        ('DATA.MASK_TYPE', lambda config: mask_generator(config)(), [5]),
        ('MODEL.SIMMIM.HEAD', build_masked, [5]),
        ('MODEL.SIMMIM.TARGET', build_masked, [5]),
        ('MODEL.SIMMIM.LOSS', build_masked, [5]),
        ('MODEL.HEAD', build_run, [5]),
        ('CONTRASTIVE.METHOD', lambda config: build_contrastive(config, total_steps=1), [5, 0.25]),
        ('TRAIN.OPTIMIZER.NAME', build_run, [5]),
        ('TRAIN.LR_SCHEDULER.NAME', build_run, [5]),
        ('DATA.UNCERTAIN', learn_labels, [5] * len(LABELS)),
        ('LOSS.NAME', build_own_loss, [LABELS, 5]),
    ],
)
def test_every_part_receives_the_options_of_the_section_with_its_name(key, use, noted, add_part):
    section = f'{key.rpartition(".")[0]}.MINE'
    for every in REGISTRIES:  # the module registers parts of several options
        add_part(every, 'mine', 'noting_parts')
    width = Own(3, 'Number that the part notes.', within='[1, inf)')
    add_part(key, 'mine', 'noting_parts', NOTED, section, {'WIDTH': width})
    options = {key: 'mine', f'{section}.WIDTH': 5, 'CONTRASTIVE.TEMPERATURE': 0.25}
    options = {key.replace('.', '__'): value for key, value in options.items()}
    config = config_with(**SMALLEST_SWIN | options)
    check_config(config)
    use(config)
    assert sorted(sys.modules['noting_parts'].noted, key=str) == sorted(noted, key=str)
