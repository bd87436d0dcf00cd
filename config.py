"""The config that a run gets; defaults and meanings of the options that are the run's own.

Those of its nodes are in config_data.py, config_model.py and config_training.py.
"""

import argparse

from yacs.config import CfgNode

import config_merge
from config_checks import check_config as check_config
from config_data import AUG, DATA, TEST
from config_dump import config_changes as config_changes
from config_dump import config_text as config_text
from config_flags import FLAG_KEYS
from config_flags import build_parser as build_parser
from config_model import CONTRASTIVE, LOSS, MODEL
from config_node import Config as Config
from config_node import encoder_name as encoder_name
from config_node import encoder_node as encoder_node
from config_node import mask_units as mask_units
from config_training import EVAL, FINETUNE, REPORT, TRAIN

_C = Config()

# YAML files merged before this one, in order, as paths relative to its folder.
_C.BASE = ['']

_C.DATA = DATA
_C.MODEL = MODEL
_C.TRAIN = TRAIN
_C.AUG = AUG
_C.TEST = TEST
_C.EVAL = EVAL
_C.LOSS = LOSS
_C.CONTRASTIVE = CONTRASTIVE
_C.FINETUNE = FINETUNE
_C.REPORT = REPORT

# Mixed precision: 'O0' float32; 'O1', 'O2' autocast. (SimMIM's '' was its flag's O1 in effect.)
_C.AMP_OPT_LEVEL = 'O1'
# [CheXpert] Whether that holds on a CPU, too, if it has instructions for bfloat16; else float32.
_C.AMP_ON_CPU = False
# Root of all runs' folders; this run's is OUTPUT/MODEL.NAME/TAG. (SimMIM: its flag's `output`.)
_C.OUTPUT = 'output'
# Last part of the run's folder.
_C.TAG = 'default'
# Epochs between two checkpoints, at least 1.
_C.SAVE_FREQ = 1
# [CheXpert] Newest checkpoints that are kept, beside the best one; 0: all.
_C.SAVE_KEEP = 0
# Micro-batches between two lines of the log, at least 1.
_C.PRINT_FREQ = 10
# Seed of everything that is random, at least 0.
_C.SEED = 0
# Whether to evaluate only.
_C.EVAL_MODE = False
# Whether to measure images per second only.
_C.THROUGHPUT_MODE = False
# [CheXpert] Whether to check all that the run needs, and then stop.
_C.CHECK_MODE = False
# SimMIM's rank on the machine; not used, torchrun's environment decides.
_C.LOCAL_RANK = 0
# Checkpoint whose weights the run starts from, a path or an https address; '': none.
_C.PRETRAINED = ''

# The classes that SimMIM's and MAE's own checkpoints hold besides tensors, for the safe loader.
CHECKPOINT_GLOBALS = [CfgNode, argparse.Namespace]


def default_config() -> Config:
    """All options at their defaults: a copy, not frozen."""
    return _C.clone()


def get_config(args: argparse.Namespace) -> Config:
    """The run's options: defaults < BASE < --cfg < --opts < flags; checked, then frozen."""
    config = default_config()
    config.merge_from_file(args.cfg)
    config.merge_from_list(getattr(args, 'opts', None) or [])
    for flag, key in FLAG_KEYS.items():
        value = getattr(args, flag, None)
        if value is not None:
            config_merge.put(config, key, value, '--' + flag.replace('_', '-'))
    check_config(config, getattr(args, 'stage', None))
    config.freeze()
    return config
