"""The node that holds the options of a run."""

import math
from pathlib import Path

from yacs.config import CfgNode

import config_merge


class Config(CfgNode):
    """The root node: whichever way it is merged, keys and types are checked, BASE is followed."""

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        config_merge.merge_file(self, Path(cfg_filename))

    def merge_from_list(self, cfg_list: list) -> None:
        config_merge.merge_pairs(self, cfg_list, '--opts')

    def merge_from_other_cfg(self, cfg_other: dict) -> None:
        config_merge.merge_mapping(self, cfg_other, 'the other config')


def encoder_node(config: CfgNode) -> CfgNode:
    """The options of the encoder that MODEL.TYPE names."""
    nodes = {'swin': config.MODEL.SWIN, 'vit': config.MODEL.VIT, 'timm': config.MODEL.TIMM}
    if config.MODEL.TYPE not in nodes:
        raise ValueError(f'MODEL.TYPE must be one of {list(nodes)}, got {config.MODEL.TYPE!r}')
    return nodes[config.MODEL.TYPE]


def encoder_name(config: CfgNode) -> str:
    """MODEL.TYPE, or the name of timm's model."""
    return config.MODEL.TIMM.NAME if config.MODEL.TYPE == 'timm' else config.MODEL.TYPE


def mask_units(config: CfgNode) -> tuple[int, int]:
    """Masking units of an image, and how many of them every mask of pre-training hides."""
    units = (config.DATA.IMG_SIZE // config.DATA.MASK_PATCH_SIZE) ** 2
    return units, math.ceil(units * config.DATA.MASK_RATIO)
