"""The YAML files under configs/ load, build their models and name their own commands.

Those of the ablations are checked with their sweeps, in test_sweeps_files.py.
"""

import argparse
import re
from pathlib import Path

import pytest
import torch

from config import build_parser, default_config, get_config
from models import build_model
from models.contrastive import build_contrastive

ROOT = Path(__file__).parents[1]
YAMLS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'configs').rglob('*.yaml')
    if path.parent.name not in ('base', 'datasets') and not path.parent.name.endswith('__ablations')
)
CHEXPERT = [path for path in YAMLS if '__chexpert_' in path]
NINE = [path for path in YAMLS if re.fullmatch(r'.*__\d+ep\.yaml', path)]
NAMED = CHEXPERT + NINE

# Trainable parameters. SimMIM's own: as recorded for its 3 channels and 1000 classes.
# Swin-B, 1 channel: pre-training loses 2 channels of 128 x 4 x 4 weights in the patch embedding and
# of 1024 x (1024 + 1) in the decoder; fine-tuning the former, and 986 x (1024 + 1) of the head.
PARAMETERS = {
    'pretrain__swin_base__img192_window6__100ep': 89_874_104,
    'pretrain__swin_base__img192_window6__800ep': 89_874_104,
    'pretrain__swin_large__img192_window12__800ep': 199_881_204,
    'pretrain__vit_base__img224__800ep': 86_256_720,
    'finetune__swin_base__img192_window6__100ep': 87_750_176,
    'finetune__swin_base__img224_window7__100ep': 87_768_224,
    'finetune__swin_base__img224_window7__800ep': 87_768_224,
    'finetune__swin_large__img224_window14__800ep': 196_794_556,
    'finetune__vit_base__img224__800ep': 86_530_984,
    'pretrain__swin_base__img192_window6__chexpert_800ep': 87_770_808,
    'pretrain__swin_base__img224_window7__chexpert_800ep': 87_788_856,
    'pretrain__vit_base__img224__chexpert_800ep': 85_469_776,
    'pretrain__swin_tiny__img192_window6__chexpert_100ep': 28_297_210,
    'pretrain__vit_small__img224__chexpert_100ep': 21_501_352,
    'pretrain__vit_tiny__img224__chexpert_20ep': 5_442_388,
    'finetune__swin_base__img192_window6__chexpert_800ep': 86_735_430,
    'finetune__swin_base__img224_window7__chexpert_800ep': 86_753_478,
    'finetune__vit_base__img224__chexpert_800ep': 85_379_534,
    # Larger tables of relative positions: 529 and 961 rows of 376 heads instead of 169.
    'finetune__swin_base__img384_window12__chexpert_highres': 86_888_838,
    'finetune__swin_base__img512_window16__chexpert_highres': 87_051_270,
    # timm's 88,591,464, less 2 channels of 128 x 4 x 4 and 986 labels.
    'finetune__convnext_base__img512__chexpert_highres': 87_576_718,
    'finetune__swin_tiny__img192_window6__chexpert_100ep': 27_520_424,
    'finetune__vit_small__img224__chexpert_100ep': 21_456_110,
    'finetune__vit_tiny__img224__chexpert_20ep': 5_419_646,
    # Dinov2Model of transformers: 86,580,480, less (37^2 - 16^2) x 768 positions, a mask token, 2
    # channels of 768 x 14 x 14 and 12 x 768 biases of keys; and there is a head for 14 labels.
    'finetune__rad_dino__img224__chexpert_30ep': 85_425_422,
    # torchvision's 25,557,032 and 7,978,856, less 2 channels of 64 x 7 x 7 and 986 labels.
    'finetune__resnet50__img224__chexpert_20ep': 23_530_446,
    'finetune__densenet121__img320__chexpert_3ep': 6_961_934,
}


def stem(path: str) -> str:
    return Path(path).stem


def is_pretrain(path: str) -> bool:
    return 'pretrain' in stem(path)


def stage_of(path: str) -> str:
    if not is_pretrain(path):
        return 'finetune'
    return 'contrastive' if stem(path).startswith('contrastive_') else 'simmim'


def load(path: str, stage: str | None):
    return get_config(argparse.Namespace(cfg=str(ROOT / path), stage=stage))


def opening(path: str) -> str:
    """The comment that a YAML opens with, continued lines joined."""
    lines = (ROOT / path).read_text().splitlines()
    comment = []
    for line in lines:
        if not line.startswith('#'):
            break
        comment.append(line.lstrip('# '))
    return '\n'.join(comment).replace('\\\n', '')


@pytest.mark.parametrize('path', YAMLS, ids=stem)
def test_it_loads_for_its_stage_and_builds_its_model(path) -> None:
    stage = stage_of(path)
    config = load(path, None if path in NINE else stage)
    with torch.device('meta'):
        if stage == 'contrastive':
            model = build_contrastive(config, total_steps=1)
        else:
            model = build_model(config, is_pretrain=is_pretrain(path))
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    expected = PARAMETERS.get(stem(path).removeprefix('simmim_'))
    assert expected is None if path not in NAMED else count == expected


@pytest.mark.parametrize('path', NAMED, ids=stem)
def test_names_follow_simmim(path) -> None:
    config = load(path, None)
    stage, model, size, schedule = stem(path).split('__')
    assert config.TAG == stem(path)
    assert config.MODEL.NAME == stage
    assert Path(path).parent.name == f'{model}__{schedule}'
    window = f'_window{config.MODEL.SWIN.WINDOW_SIZE}' if config.MODEL.TYPE == 'swin' else ''
    assert size == f'img{config.DATA.IMG_SIZE}{window}'
    if is_pretrain(path):
        assert schedule.endswith(f'{config.TRAIN.EPOCHS}ep')


@pytest.mark.parametrize('path', NAMED, ids=stem)
def test_the_opening_gives_a_command_that_parses_or_says_that_there_is_none(path) -> None:
    text = opening(path)
    assert 'Hardware: ' in text and 'Time: ' in text and 'Result: ' in text
    command = re.search(r'^(?:torchrun|python) .*?(main_\w+\.py) (.*)$', text, re.MULTILINE)
    if path in NINE and not is_pretrain(path):
        assert command is None
        return
    stage = 'simmim' if is_pretrain(path) else 'finetune'
    assert command[1] == f'main_{stage}.py'
    args = build_parser(stage).parse_args(command[2].split())
    assert args.cfg == path and args.data_path == 'DIR'
    assert args.pretrained == (None if is_pretrain(path) else 'CKPT')


@pytest.mark.parametrize('path', CHEXPERT, ids=stem)
def test_chexpert_options_suit_grey_images_and_their_labels(path) -> None:
    config = load(path, None if is_pretrain(path) else 'finetune')
    assert config.DATA.DATASET == 'chexpert'
    assert config.MODEL.IN_CHANS == 1
    if is_pretrain(path):
        assert config.AUG.HFLIP == 0.5 and config.AUG.CROP_AREA == []
        return
    aug, is_binary = config.AUG, config.DATA.TASK != 'observations'
    assert config.MODEL.NUM_CLASSES == (1 if is_binary else 14)
    assert (aug.AUTO_AUGMENT, aug.REPROB, aug.MIXUP, aug.CUTMIX) == ('none', 0, 0, 0)
    assert aug.HFLIP == (0.5 if is_binary else 0.0)
    assert aug.CROP_AREA == [0.5, 1.0] and 0 < aug.COLOR_JITTER < default_config().AUG.COLOR_JITTER
    assert config.TEST.CROP is False
