"""Options that cannot work are refused by their key before anything is built."""

from argparse import Namespace

import pytest
from tiny import LABELS_DECIDE, MAE, SWIN, VIT, tiny_config

from config import get_config

RESNET = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'resnet18'}}
HOG = {'MODEL.SIMMIM.TARGET': 'hog'}
PATCHES = {'MODEL.SIMMIM.TARGET': 'patch_normalised'}
NANO = {'MODEL.SIMMIM.HEAD': 'inverse_swin_nano'}
EFFUSION = {'DATA.TASK': 'effusion'}
SINGLE = {'DATA.TASK': 'single_label', 'DATA.LABELS': ['a', 'b']}
OWN = {'DATA.LABELS': ['a']}
CROPS = {'CONTRASTIVE.METHOD': 'swav', 'CONTRASTIVE.LOCAL_CROPS': 6}
PROBE = {'FINETUNE.MODE': 'linear_probe'}
THIRD = {'DATA.UNCERTAIN': 'multiclass'}
EDEMA = 'DATA.UNCERTAIN_BY_LABEL'

REFUSED = [  # stage, model, options, what the message names
    ('simmim', MAE, {'MODEL.TYPE': 'swin', 'MODEL.SWIN.WINDOW_SIZE': 4}, 'MODEL.TYPE'),
    ('simmim', MAE, {'MODEL.VIT.USE_SINCOS': False}, 'MODEL.VIT.USE_SINCOS'),
    ('simmim', MAE, {'DATA.MASK_PATCH_SIZE': 4}, 'DATA.MASK_PATCH_SIZE'),
    ('simmim', MAE, {'MODEL.MAE.DECODER_NUM_HEADS': 3}, 'MODEL.MAE.DECODER_NUM_HEADS'),
    ('simmim', VIT, {'MODEL.VIT.NUM_HEADS': 0}, 'MODEL.VIT.NUM_HEADS'),
    ('simmim', VIT, HOG | NANO, 'MODEL.SIMMIM.TARGET_SIZE '),
    ('simmim', VIT, {'MODEL.SIMMIM.TARGET_SIZE': 5}, 'MODEL.SIMMIM.TARGET_SIZE '),
    ('simmim', VIT, {'MODEL.SIMMIM.TARGET_SIZE': 4} | NANO, 'MODEL.SIMMIM.TARGET_SIZE '),
    ('simmim', VIT, {'MODEL.SIMMIM.TARGET_SIZE': 4} | PATCHES, 'MODEL.SIMMIM.TARGET '),
    ('contrastive', SWIN, {'CONTRASTIVE.METHOD': 'byol', 'CONTRASTIVE.TEMPERATURE': 0.1}, 'TEMPER'),
    ('contrastive', SWIN, {'DATA.BATCH_SIZE': 1}, 'DATA.BATCH_SIZE'),
    ('contrastive', SWIN, {'DATA.BATCH_SIZE': 64, 'CONTRASTIVE.BN_GROUPS': 24}, 'BN_GROUPS'),
    ('contrastive', SWIN, {'DATA.BATCH_SIZE': 64, 'CONTRASTIVE.BN_GROUPS': 64}, 'BN_GROUPS'),
    ('contrastive', SWIN, CROPS | {'CONTRASTIVE.LOCAL_SIZE': 96}, 'CONTRASTIVE.LOCAL_SIZE'),
    ('finetune', SWIN, {'FINETUNE.MASK_RATIO': 0.5}, 'FINETUNE.MASK_RATIO'),
    ('finetune', VIT, {'EVAL.MASK_RATIO': 0.5}, 'EVAL.MASK_RATIO'),  # with relative positions
    ('finetune', MAE, PROBE | {'FINETUNE.MASK_RATIO': 0.5}, 'MASK_RATIO'),
    ('finetune', MAE, {'FINETUNE.MODE': 'knn', 'EVAL.MASK_RATIO': 0.5}, 'EVAL.MASK_RATIO'),
    ('finetune', MAE, {'FINETUNE.MASK_RATIO': 0.95}, 'FINETUNE.MASK_RATIO'),  # leaves none of 16
    ('finetune', RESNET, {'MODEL.TIMM.NAME': 'resnet5O'}, 'MODEL.TIMM.NAME'),
    ('finetune', RESNET, {'MODEL.IN_CHANS': 2}, 'MODEL.IN_CHANS'),
    ('finetune', RESNET, {'MODEL.TIMM.NAME': 'densenet121', 'MODEL.DROP_PATH_RATE': 0.1},
     'MODEL.DROP_PATH_RATE'),
    ('finetune', RESNET, {'MODEL.TIMM.NAME': 'test_vit', 'MODEL.TIMM.CHANNELS_LAST': True},
     'MODEL.TIMM.CHANNELS_LAST'),
    ('simmim', VIT, {'AMP_TF32': True}, 'AMP_TF32'),  # with O1
    ('finetune', VIT, PROBE | {'AMP_OPT_LEVEL': 'O0', 'AMP_TF32': True}, 'AMP_TF32'),
    ('finetune', VIT, {'DATA.PREPROCESS': ['resize', 'resize']}, 'DATA.PREPROCESS'),
    ('finetune', VIT, {'EVAL.PREPROCESS': ['lung_crop', 'lung_multiply']}, 'EVAL.PREPROCESS'),
    ('finetune', VIT, {'DATA.UNCERTAIN': 'u_ones'}, 'DATA.UNCERTAIN'),
    ('finetune', VIT, {EDEMA: {'Edema': 'one'}}, f"{EDEMA}.*'Edema'"),
    ('finetune', VIT, {'DATA.UNCERTAIN': 'multiclass', 'LOSS.NAME': 'asymmetric'}, 'LOSS.NAME'),
    ('finetune', VIT, {'DATA.UNCERTAIN': 'self_train'}, 'DATA.SELF_TRAIN_PREDICTIONS'),
    ('finetune', VIT, {'DATA.PSEUDO_LABELS': 'x.csv'}, 'DATA.TRAIN_FRACTION'),
    ('finetune', VIT, {'DATA.DATASET': 'folder'}, 'DATA.DATASET'),
    ('finetune', VIT, THIRD | {'MODEL.LABEL_SMOOTHING': 0.1}, 'MODEL.LABEL_SMOOTHING'),
    ('finetune', VIT, THIRD | {'AUG.MIXUP': 0.8}, 'AUG.MIXUP'),
    ('finetune', VIT, THIRD | {'AUG.CUTMIX': 1.0}, 'AUG.CUTMIX '),
    ('finetune', VIT, THIRD | {'AUG.CUTMIX_MINMAX': [0.2, 0.8]}, 'AUG.CUTMIX_MINMAX'),
    ('finetune', VIT, {'AUG.CUTMIX_MINMAX': [0.5, 0.51]}, 'AUG.CUTMIX_MINMAX'),
    ('finetune', VIT, {'AUG.MIXUP': 0.8, 'DATA.BATCH_SIZE': 1}, 'DATA.BATCH_SIZE'),
    ('finetune', VIT, {'AUG.AUTO_AUGMENT': 'rand-q5'}, 'AUG.AUTO_AUGMENT'),
    ('finetune', VIT, {'AUG.AUTO_AUGMENT': ''}, 'AUG.AUTO_AUGMENT'),
    ('finetune', VIT, {'AUG.AUTO_AUGMENT': 'original', 'AUG.RANDAUGMENT': [2, 9]}, 'RANDAUGMENT'),
    ('finetune', VIT, {'DATA.HOLDOUT_FRACTION': 0}, 'DATA.HOLDOUT_FRACTION'),
    ('finetune', VIT, PROBE | {'EVAL.SELECT_ON': 'last', 'DATA.HOLDOUT_FRACTION': 0}, 'HOLDOUT_FR'),
    ('finetune', VIT, PROBE | {'MODEL.RESUME': 'x.pth'}, 'MODEL.RESUME'),
    ('finetune', VIT, PROBE | {'DATA.SAMPLER': 'weighted'}, 'DATA.SAMPLER'),
    ('finetune', VIT, {'THROUGHPUT_MODE': True, 'CHECK_MODE': True}, 'THROUGHPUT_MODE'),
    ('finetune', VIT, EFFUSION | {'MODEL.NUM_CLASSES': 14}, 'MODEL.NUM_CLASSES'),
    ('finetune', VIT, EFFUSION | {'DATA.UNCERTAIN': 'multiclass'}, 'DATA.UNCERTAIN'),
    ('finetune', VIT, EFFUSION | {EDEMA: {'Edema': 'ones'}}, 'BY_LABEL'),
    ('finetune', VIT, {'DATA.TASK': 'single_label'}, 'DATA.LABELS'),
    ('finetune', VIT, SINGLE | {'LOSS.NAME': 'focal'}, 'focal'),
    ('finetune', VIT, {'LOSS.NAME': 'cross_entropy'}, 'LOSS.NAME'),
    ('finetune', VIT, {'REPORT.COLUMNS': ['auroc', 'AUC']}, 'REPORT.COLUMNS'),
    ('finetune', VIT, OWN | {'MODEL.NUM_CLASSES': 14}, 'MODEL.NUM_CLASSES'),
    ('finetune', VIT, OWN | {'DATA.TASK': 'any_finding'}, 'DATA.LABELS'),
    ('finetune', VIT, OWN | {EDEMA: {'Edema': 'ones'}}, 'Edema'),
    ('finetune', VIT, {'DATA.LABELS': ['Heart/size', 'heart_size']}, 'DATA.LABELS'),
    ('finetune', VIT, {'DATA.LABELS': ['Path']}, 'DATA.LABELS'),
]  # fmt: skip


@pytest.mark.parametrize(('stage', 'model', 'options', 'named'), REFUSED)
def test_options_that_cannot_work_are_refused_by_their_key(tmp_path, stage, model, options, named):
    """Without them, the same config is accepted."""
    sections = {'MODEL': LABELS_DECIDE} if stage == 'finetune' else {}
    cfg = str(tiny_config(tmp_path / 'c.yaml', stage, model, DATA={'TRAIN_IMAGES': 0}, **sections))
    get_config(Namespace(cfg=cfg, stage=stage, opts=[]))
    words = [str(word) for pair in options.items() for word in pair]
    with pytest.raises(ValueError, match=named):
        get_config(Namespace(cfg=cfg, stage=stage, opts=words))
