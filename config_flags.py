"""The flags of the mains, and the options that they stand for."""

import argparse

# Attribute of the parsed flags -> key.
FLAG_KEYS = {
    'batch_size': 'DATA.BATCH_SIZE',
    'data_path': 'DATA.DATA_PATH',
    'pretrained': 'PRETRAINED',
    'resume': 'MODEL.RESUME',
    'accumulation_steps': 'TRAIN.ACCUMULATION_STEPS',
    'use_checkpoint': 'TRAIN.USE_CHECKPOINT',
    'amp_opt_level': 'AMP_OPT_LEVEL',
    'output': 'OUTPUT',
    'tag': 'TAG',
    'eval': 'EVAL_MODE',
    'throughput': 'THROUGHPUT_MODE',
    'check': 'CHECK_MODE',
}


def build_parser(stage: str) -> argparse.ArgumentParser:
    """The flags of a main; stage is 'simmim', 'contrastive' or 'finetune'; not given: None."""
    what = {
        'simmim': 'SimMIM pre-training',
        'contrastive': 'Contrastive pre-training',
        'finetune': 'Fine-tuning and evaluation',
    }[stage]
    parser = argparse.ArgumentParser(
        description=f'{what}. Start it with python, or with torchrun for several processes.',
        allow_abbrev=False,
    )
    parser.set_defaults(stage=stage)
    add = parser.add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of options')
    add('--opts', nargs='+', action='extend', metavar='KEY VALUE', help='options by key, in pairs')
    add('--batch-size', type=int, help='images per process and micro-batch')
    add('--data-path', help='root folder of the data')
    add('--pretrained', help='checkpoint whose encoder the run starts from')
    add('--resume', help='checkpoint to go on from')
    add('--accumulation-steps', type=int, help='micro-batches per optimizer step')
    add('--use-checkpoint', action='store_const', const=True, help='recompute blocks, save memory')
    add('--amp-opt-level', choices=['O0', 'O1', 'O2'], help='O0: float32; O1, O2: autocast')
    add('--output', help='root of all runs; this one is in OUTPUT/MODEL.NAME/TAG')
    add('--tag', help="last part of the run's folder")
    add('--eval', action='store_const', const=True, help='evaluate only')
    add('--throughput', action='store_const', const=True, help='measure images per second only')
    add('--check', action='store_const', const=True, help='check all that the run needs, then stop')
    add('--local_rank', '--local-rank', type=int, help='accepted and ignored')
    return parser
