"""Contrastive pre-training: options that cannot work, what the others build, and the configs."""

import pytest
from test_main_contrastive import ANY, config_of, write
from tiny import arguments

from config import check_config, default_config
from models.contrastive import METHODS, build_contrastive

TIMM = {'MODEL.TYPE': 'timm', 'MODEL.DROP_PATH_RATE': 0.0, 'MODEL.TIMM.NAME': 'resnet18'}
VIT = TIMM | {'MODEL.TIMM.NAME': 'vit_tiny_patch16_224'}
SWAV = {'CONTRASTIVE.METHOD': 'swav', 'CONTRASTIVE.LOCAL_CROPS': 6}
REFUSED = [
    {'CONTRASTIVE.METHOD': 'dino'},
    {'CONTRASTIVE.METHOD': 'byol', 'CONTRASTIVE.TEMPERATURE': 0.1},
    {'CONTRASTIVE.TEMPERATURE': 0.0},
    {'CONTRASTIVE.METHOD': 'simclr', 'CONTRASTIVE.MOMENTUM': 0.9},
    {'CONTRASTIVE.MOMENTUM': 1.0},
    {'CONTRASTIVE.DIM': 0},
    {'CONTRASTIVE.QUEUE_SIZE': 0},
    {'CONTRASTIVE.LOCAL_CROP_AREA': [0.2, 0.1]},
    {'DATA.BATCH_SIZE': 1},
    SWAV | {'CONTRASTIVE.LOCAL_SIZE': 96},
]  # fmt: skip
TAKEN = [
    SWAV | {'CONTRASTIVE.LOCAL_SIZE': 224},
    SWAV | TIMM | {'CONTRASTIVE.LOCAL_SIZE': 96},
    SWAV | VIT,
    TIMM | {'CONTRASTIVE.LOCAL_SIZE': 96},
    {'PRETRAINED': 'x.pth'},  # such as ImageNet's
    {'DATA.MASK_PATCH_SIZE': 5},  # nothing is hidden
]


def options(changes: dict) -> object:
    config = default_config()
    config.merge_from_list([item for pair in changes.items() for item in pair])
    return config


@pytest.mark.parametrize('changes', REFUSED)
def test_what_cannot_work_is_rejected(changes: dict) -> None:
    with pytest.raises(ValueError, match=list(changes)[-1]):
        check_config(options(changes), 'contrastive')


@pytest.mark.parametrize('changes', TAKEN)
def test_what_works_is_taken(changes: dict) -> None:
    check_config(options(changes), 'contrastive')


def test_a_queue_that_holds_no_whole_batches_is_refused(phantom, tmp_path, refused) -> None:
    cfg = write(tmp_path / 'run.yaml', 'moco', CONTRASTIVE={'QUEUE_SIZE': 40})
    refused('contrastive', arguments(cfg, phantom, tmp_path), 'CONTRASTIVE.QUEUE_SIZE')


def test_a_queue_in_which_every_image_meets_its_own_key_is_refused(
    phantom, tmp_path, refused
) -> None:
    """96 images: batches of 16, and a queue of 80 and of 96."""
    cfg = write(tmp_path / 'run.yaml', 'moco', CONTRASTIVE={'QUEUE_SIZE': 96})
    refused('contrastive', arguments(cfg, phantom, tmp_path), 'CONTRASTIVE.QUEUE_SIZE')
    config = config_of(write(tmp_path / 'run.yaml', 'moco', CONTRASTIVE={'QUEUE_SIZE': 80}))
    build_contrastive(config, total_steps=1, num_images=96, logger=ANY['logger'])


@pytest.mark.parametrize('prototypes, warned', [(32, 0), (33, 1)])
def test_more_prototypes_than_a_batch_can_use_are_warned_of(
    prototypes, warned, tmp_path, caplog
) -> None:
    given = {'NUM_PROTOTYPES': prototypes}
    build_contrastive(
        config_of(write(tmp_path / 'run.yaml', 'swav', CONTRASTIVE=given)), total_steps=1, **ANY
    )
    assert caplog.text.count('for batches of 16 images') == warned


def test_options_reach_the_methods(tmp_path) -> None:
    """Those given, and each method's own where none is."""
    for method in METHODS:
        model = build_contrastive(
            config_of(write(tmp_path / 'a.yaml', method)), total_steps=7, **ANY
        )
        assert type(model) is METHODS[method]
        assert model.projector[-1 if method != 'simclr' else -2].out_features == (
            256 if method == 'byol' else 128
        )
    given = {'DIM': 6, 'TEMPERATURE': 0.3, 'FREEZE_PROTOTYPES_STEPS': 5}
    config = config_of(write(tmp_path / 'b.yaml', 'swav', CONTRASTIVE=given))
    swav = build_contrastive(config, total_steps=7, **ANY)
    assert swav.prototypes.weight.shape == (8, 6)
    assert (swav.temperature, swav.freeze_prototypes_steps) == (0.3, 5)
    given = {'DIM': 6, 'TEMPERATURE': 0.3, 'MOMENTUM': 0.5}
    config = config_of(write(tmp_path / 'c.yaml', 'moco', CONTRASTIVE=given))
    moco = build_contrastive(config, total_steps=7, **ANY)
    assert moco.queue.keys.shape == (32, 6)
    assert (moco.temperature, moco.key_momentum) == (0.3, 0.5)
    config = config_of(write(tmp_path / 'd.yaml', 'byol', CONTRASTIVE={'MOMENTUM': 0.5}))
    byol = build_contrastive(config, total_steps=7, **ANY)
    assert (byol.total_steps, byol.first_momentum) == (7, 0.5)
