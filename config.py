"""All options of a run: defaults, meanings, allowed values, and how they are read and checked.

Options come from the defaults below, the BASE files of the YAML file, the YAML file (`--cfg`),
`--opts KEY VALUE ...` and the other flags. Each source overrides the previous ones. `check_config`
then rejects values and combinations that cannot work, and the config is frozen.

Keys, defaults and meanings are SimMIM's. [CheXpert] marks the keys that SimMIM does not have.
"""

import argparse
import difflib
import math
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import yaml
from yacs.config import CfgNode
from yacs.config import CfgNode as CN


class Config(CfgNode):
    """Root node of the options. Merging follows BASE and checks keys and types."""

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        _merge_file(self, Path(cfg_filename))

    def merge_from_list(self, cfg_list: list) -> None:
        if len(cfg_list) % 2:
            raise ValueError(f'--opts needs pairs of KEY VALUE, got {cfg_list}')
        _merge(self, dict(zip(cfg_list[::2], cfg_list[1::2], strict=True)), '--opts')


_C = Config()

# YAML files that are merged before this one, in order, as paths relative to its folder.
_C.BASE = ['']

_C.DATA = CN()
# Images per process and forward pass.
_C.DATA.BATCH_SIZE = 128
# Root folder of the CSV files and images, or of a tree of images ('folder').
_C.DATA.DATA_PATH = ''
# [CheXpert] Folder on each node's local disk to which a packed store is copied; '': no copy.
_C.DATA.CACHE_DIR = ''
# [CheXpert] Layout of DATA_PATH, or a YAML file that describes it, such as 'mine.yaml'. 'folder'
# and 'imagenet' are trees of unlabelled images.
_C.DATA.DATASET = 'imagenet'
# [CheXpert] Pre-training on several data sets: list of mappings with name, dataset (as in DATASET),
# path (relative to DATA_PATH) and optionally share (of the training patients) or images (at most);
# []: only DATASET and DATA_PATH.
_C.DATA.SOURCES = []
# Side of the model's square input, in pixels.
_C.DATA.IMG_SIZE = 224
# Resize filter of fine-tuning: 'random', 'bilinear', 'bicubic', 'lanczos' or 'hamming'.
_C.DATA.INTERPOLATION = 'bicubic'
# Whether batches are placed in page-locked memory, which makes copies to a GPU faster.
_C.DATA.PIN_MEMORY = True
# Loader processes per training process; 0 loads in the training process.
_C.DATA.NUM_WORKERS = 8
# Side of a mask unit in pixels. It divides IMG_SIZE and is a multiple of the model's patch.
_C.DATA.MASK_PATCH_SIZE = 32
# Share of the mask units that are hidden, in (0, 1).
_C.DATA.MASK_RATIO = 0.6
# [CheXpert] Training labels, a file in DATA_PATH.
_C.DATA.TRAIN_CSV = 'train.csv'
# [CheXpert] Validation labels; may be absent if TEST_CSV is another file than 'test.csv'.
_C.DATA.VALID_CSV = 'valid.csv'
# [CheXpert] Test labels; this file may be absent.
_C.DATA.TEST_CSV = 'test.csv'
# [CheXpert] Suffix of the image files if it differs from the CSV's, such as '.png'; '': the CSV's.
_C.DATA.IMAGE_SUFFIX = ''
# [CheXpert] Views to train on: 'frontal', 'lateral' or 'all'.
_C.DATA.VIEWS = 'frontal'
# [CheXpert] Task of fine-tuning, such as 'observations' for all 14 labels.
_C.DATA.TASK = 'observations'
# [CheXpert] Columns of the CSV files that are the labels of 'observations'; []: all 14.
_C.DATA.LABELS = []
# [CheXpert] Policy for uncertain labels (-1) in training.
_C.DATA.UNCERTAIN = 'ones'
# [CheXpert] Policies of single labels, such as {'Edema': 'zeros'}. A later source replaces the
# whole mapping.
_C.DATA.UNCERTAIN_BY_LABEL = CN(new_allowed=True)
# [CheXpert] 'self_train': CSV file with predictions of the training images by a run with 'ignore'.
_C.DATA.SELF_TRAIN_PREDICTIONS = ''
# [CheXpert] CSV file of pseudo-labels for training patients outside the subset; '': none.
_C.DATA.PSEUDO_LABELS = ''
# [CheXpert] Training target of a label that is not mentioned.
_C.DATA.BLANK = 'negative'
# [CheXpert] Share of the training patients to use, in (0, 1]. A smaller share is a subset of a
# larger one.
_C.DATA.TRAIN_FRACTION = 1.0
# [CheXpert] Number of training images to use, patient by patient; 0: TRAIN_FRACTION decides.
_C.DATA.TRAIN_IMAGES = 0
# [CheXpert] Order of the images in fine-tuning: 'uniform', or 'weighted' by label frequency.
_C.DATA.SAMPLER = 'uniform'
# [CheXpert] Processing steps applied to every image first, in order, such as ['equalize'];
# []: none.
_C.DATA.PREPROCESS = []
# [CheXpert] CSV or .xlsx file in DATA_PATH with columns per patient, such as race; '': none.
_C.DATA.DEMOGRAPHICS = ''
# [CheXpert] Label file of MIMIC-CXR: 'chexpert' or 'negbio'.
_C.DATA.LABELLER = 'chexpert'
# [CheXpert] Share of the training patients that all stages hold out, in [0, 1).
_C.DATA.HOLDOUT_FRACTION = 0.02
# [CheXpert] Cross-validation: 'k/n' excludes fold k (from 0) of n folds of the training patients
# from all stages and scores it as the split valid instead of VALID_CSV; '': no folds.
_C.DATA.FOLD = ''
# [CheXpert] Pixel mean per channel, in [0, 1]; []: 0.503 for 1 channel, ImageNet's for 3.
_C.DATA.MEAN = []
# [CheXpert] Pixel standard deviation per channel, in (0, 1]; []: 0.292, ImageNet's for 3 channels.
_C.DATA.STD = []
# [CheXpert] Statistics that normalise an image: 'dataset' (MEAN, STD) or 'image' (its own).
_C.DATA.NORMALIZE = 'dataset'
# [CheXpert] Method that chooses the hidden mask units, such as 'random'.
_C.DATA.MASK_TYPE = 'random'
# [CheXpert] Pre-training: CSV file whose column `file` lists images to exclude, such as the
# duplicates that check_data.py finds between DATA.SOURCES; '': none.
_C.DATA.LEAVE_OUT = ''
# [CheXpert] Whether DATASET 'folder' may pre-train on a folder with label files, and thereby on
# the images that are scored later.
_C.DATA.ALLOW_ALL_IMAGES = False
# [CheXpert] Resize filter of pre-training: 'bilinear', 'bicubic', 'lanczos' or 'hamming'.
_C.DATA.PRETRAIN_INTERPOLATION = 'bilinear'
# [CheXpert] Unusable training images: 'error' stops the run, 'skip' uses another image instead.
_C.DATA.BAD_IMAGE = 'error'
# [CheXpert] With BAD_IMAGE 'skip', the run stops after this many different unusable images.
_C.DATA.BAD_IMAGE_LIMIT = 100

_C.MODEL = CN()
# Encoder: 'swin' (options in MODEL.SWIN), 'vit' (MODEL.VIT) or, not in SimMIM, 'timm' (MODEL.TIMM).
_C.MODEL.TYPE = 'swin'
# [CheXpert] Method of main_simmim.py: 'simmim', or 'mae' (ViT only).
_C.MODEL.PRETRAIN = 'simmim'
# Name of the folder below OUTPUT and of the logger; it does not select a model.
_C.MODEL.NAME = 'swin_tiny_patch4_window7_224'
# Checkpoint to resume from, a path or a URL; '': the newest in the run folder.
_C.MODEL.RESUME = ''
# Outputs of the classifier. Fine-tuning replaces the default by the number of labels.
_C.MODEL.NUM_CLASSES = 1000
# Input channels of the encoder: 1 (grey) or 3 (the grey channel is repeated).
_C.MODEL.IN_CHANS = 3
# Dropout after the embedding, attention and MLP, in [0, 1).
_C.MODEL.DROP_RATE = 0.0
# Stochastic depth rate of the last block, in [0, 1). It grows linearly from 0 at the first block.
_C.MODEL.DROP_PATH_RATE = 0.1
# Label smoothing, in [0, 1). It must be 0 for the CheXpert labels.
_C.MODEL.LABEL_SMOOTHING = 0.1
# [CheXpert] Attention: 'eager', 'sdpa' (fused), or 'auto' for the faster of the two.
_C.MODEL.ATTENTION = 'auto'

_C.MODEL.SWIN = CN()
# Side of a token, in pixels.
_C.MODEL.SWIN.PATCH_SIZE = 4
# Width of the first stage. Every further stage doubles it.
_C.MODEL.SWIN.EMBED_DIM = 96
# Blocks per stage.
_C.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
# Attention heads per stage. The number divides the width of the stage.
_C.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
# Side of an attention window, in tokens.
_C.MODEL.SWIN.WINDOW_SIZE = 7
# Width of the MLP divided by the width of the block.
_C.MODEL.SWIN.MLP_RATIO = 4.0
# Whether queries, keys and values have a bias.
_C.MODEL.SWIN.QKV_BIAS = True
# Scale of the queries; None: 1 / sqrt(width of a head).
_C.MODEL.SWIN.QK_SCALE = None
# Whether an absolute position embedding is added.
_C.MODEL.SWIN.APE = False
# Whether the patch embedding ends with a LayerNorm.
_C.MODEL.SWIN.PATCH_NORM = True

_C.MODEL.VIT = CN()
# Side of a token, in pixels.
_C.MODEL.VIT.PATCH_SIZE = 16
# Width of the tokens.
_C.MODEL.VIT.EMBED_DIM = 768
# Number of blocks.
_C.MODEL.VIT.DEPTH = 12
# Attention heads. The number divides the width.
_C.MODEL.VIT.NUM_HEADS = 12
# Width of the MLP divided by the width of the block.
_C.MODEL.VIT.MLP_RATIO = 4.0
# Whether queries and values have a bias. Keys never have one.
_C.MODEL.VIT.QKV_BIAS = True
# Initial value of the layer scales; None: no layer scales.
_C.MODEL.VIT.INIT_VALUES = 0.1
# Whether an absolute position embedding is added.
_C.MODEL.VIT.USE_APE = False
# Whether the classifier reads the mean of the patch tokens instead of the class token.
_C.MODEL.VIT.USE_MEAN_POOLING = False
# Whether each block has its own relative position bias.
_C.MODEL.VIT.USE_RPB = False
# Whether all blocks share a relative position bias, in addition to the bias of USE_RPB.
_C.MODEL.VIT.USE_SHARED_RPB = True
# [CheXpert] Whether fixed sine-cosine positions are added, as in MAE.
_C.MODEL.VIT.USE_SINCOS = False

_C.MODEL.TIMM = CN()
# [CheXpert] Name of a timm model, such as 'resnet50', 'densenet121' or 'vit_small_patch16_224'.
_C.MODEL.TIMM.NAME = 'resnet50'

_C.MODEL.SIMMIM = CN()
# [CheXpert] Prediction head: 'linear' (SimMIM), 'mlp', or an inverse Swin.
_C.MODEL.SIMMIM.HEAD = 'linear'
# [CheXpert] Distance between reconstruction and image, such as 'l1'.
_C.MODEL.SIMMIM.LOSS = 'l1'
# [CheXpert] Pixels in the loss: 'masked' or 'all'.
_C.MODEL.SIMMIM.LOSS_PIXELS = 'masked'
# [CheXpert] Side of the predicted image; smaller than DATA.IMG_SIZE, each value is the mean of
# several pixels. 0: DATA.IMG_SIZE.
_C.MODEL.SIMMIM.TARGET_SIZE = 0
# [CheXpert] Prediction target, such as 'pixels' or 'patch_normalised' (standardised mask units).
_C.MODEL.SIMMIM.TARGET = 'pixels'

_C.MODEL.MAE = CN()
# [CheXpert] Width of the decoder, a multiple of 4.
_C.MODEL.MAE.DECODER_EMBED_DIM = 512
# [CheXpert] Blocks of the decoder.
_C.MODEL.MAE.DECODER_DEPTH = 8
# [CheXpert] Attention heads of the decoder. The number divides the width of the decoder.
_C.MODEL.MAE.DECODER_NUM_HEADS = 16
# [CheXpert] Whether the target patches are standardised by their own mean and deviation.
_C.MODEL.MAE.NORM_PIX_LOSS = False

_C.TRAIN = CN()
# Always 0. A resumed run continues where its checkpoint ended.
_C.TRAIN.START_EPOCH = 0
# Number of epochs, including warm-up.
_C.TRAIN.EPOCHS = 300
# Epochs of linear warm-up.
_C.TRAIN.WARMUP_EPOCHS = 20
# Weight decay. It is not applied to biases, norms, position tables and special tokens.
_C.TRAIN.WEIGHT_DECAY = 0.05
# Peak learning rate per 512 images of the effective batch.
_C.TRAIN.BASE_LR = 5e-4
# Learning rate at the start of the warm-up, per 512 images.
_C.TRAIN.WARMUP_LR = 5e-7
# Learning rate at the end of 'cosine' and 'onecycle', per 512 images. Other schedules ignore it.
_C.TRAIN.MIN_LR = 5e-6
# Maximum 2-norm of the gradient; 0: no clipping.
_C.TRAIN.CLIP_GRAD = 5.0
# Whether to resume from the newest checkpoint in the run folder.
_C.TRAIN.AUTO_RESUME = True
# Batches over which gradients are accumulated; 0 and 1: no accumulation.
_C.TRAIN.ACCUMULATION_STEPS = 0
# Whether blocks are recomputed in the backward pass, which saves memory.
_C.TRAIN.USE_CHECKPOINT = False
# [CheXpert] Results that USE_CHECKPOINT keeps: 'nothing', or the 'products' of linear layers.
_C.TRAIN.CHECKPOINT_KEEPS = 'nothing'
# [CheXpert] torch.compile: 'none', 'auto' (on a GPU if the run is long enough) or 'max' (always).
_C.TRAIN.COMPILE = 'auto'
# [CheXpert] Number format for the exchange of gradients: 'float32' or 'bfloat16'.
_C.TRAIN.GRADIENT_EXCHANGE = 'float32'
# Fine-tuning: ratio of the learning rates of a layer and the next layer, in (0, 1].
_C.TRAIN.LAYER_DECAY = 1.0
# [CheXpert] Optimizer steps between two checkpoints within an epoch; 0: none.
_C.TRAIN.SAVE_EVERY_STEPS = 0
# [CheXpert] Minutes between two checkpoints within an epoch; 0: none.
_C.TRAIN.SAVE_EVERY_MINUTES = 0.0
# [CheXpert] Non-finite loss or gradient: 'stop' ends the run, 'skip' skips the optimizer step.
_C.TRAIN.ON_NAN = 'stop'
# [CheXpert] With ON_NAN 'skip', the run stops after more than this many skipped steps.
_C.TRAIN.NAN_LIMIT = 10
# [CheXpert] Whether to use only deterministic algorithms, which are slower.
_C.TRAIN.DETERMINISTIC = False
# [CheXpert] Minutes that a process waits for the others before it fails.
_C.TRAIN.RANK_TIMEOUT_MINUTES = 30.0

_C.TRAIN.LR_SCHEDULER = CN()
# Learning rate schedule: 'cosine', 'linear', 'step', 'multistep' or, not in SimMIM, 'onecycle'.
_C.TRAIN.LR_SCHEDULER.NAME = 'cosine'
# [CheXpert] 'cosine': whether the cosine begins at the end of the warm-up, as in MAE, and not at
# step 0.
_C.TRAIN.LR_SCHEDULER.WARMUP_PREFIX = False
# 'step': epochs between two drops.
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30
# 'step': factor of each drop.
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1
# 'multistep': factor of each drop.
_C.TRAIN.LR_SCHEDULER.GAMMA = 0.1
# 'multistep': epochs of the drops, ascending, the first one not before the end of the warm-up.
_C.TRAIN.LR_SCHEDULER.MULTISTEPS = []

_C.TRAIN.OPTIMIZER = CN()
# Optimizer: 'adamw' or 'sgd', in upper or lower case.
_C.TRAIN.OPTIMIZER.NAME = 'adamw'
# AdamW: constant added to the denominator.
_C.TRAIN.OPTIMIZER.EPS = 1e-8
# AdamW: decay rates of the first and second moment, each in [0, 1).
_C.TRAIN.OPTIMIZER.BETAS = (0.9, 0.999)
# SGD: Nesterov momentum, in (0, 1).
_C.TRAIN.OPTIMIZER.MOMENTUM = 0.9

_C.AUG = CN()
# Brightness and contrast jitter; 0: none. Not for SimMIM and MAE, nor with AUTO_AUGMENT.
_C.AUG.COLOR_JITTER = 0.4
# timm's augmentation policy as in SimMIM. It must be 'none' for the CheXpert labels.
_C.AUG.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'
# Fine-tuning: probability of random erasing.
_C.AUG.REPROB = 0.25
# Fill of an erased area: 'const' (0), 'rand' (a random value per area) or 'pixel' (per pixel).
_C.AUG.REMODE = 'pixel'
# Maximum number of erased areas per image, at least 1.
_C.AUG.RECOUNT = 1
# Beta parameter of Mixup. It must be 0 for the CheXpert labels.
_C.AUG.MIXUP = 0.8
# Beta parameter of CutMix. It must be 0 for the CheXpert labels.
_C.AUG.CUTMIX = 1.0
# Range [low, high] of CutMix's area ratio. It must be None for the CheXpert labels.
_C.AUG.CUTMIX_MINMAX = None
# Probability that a batch is mixed.
_C.AUG.MIXUP_PROB = 1.0
# Probability of CutMix if Mixup is also on.
_C.AUG.MIXUP_SWITCH_PROB = 0.5
# Unit that shares a mixing ratio: 'batch', 'pair' or 'elem'.
_C.AUG.MIXUP_MODE = 'batch'
# [CheXpert] Area of random crops [low, high] as a share of the image; []: [0.67, 1] in masked
# pre-training, [0.3, 1] in contrastive pre-training, [0.08, 1] in fine-tuning.
_C.AUG.CROP_AREA = []
# [CheXpert] Probability of a horizontal flip, in all stages.
_C.AUG.HFLIP = 0.5
# [CheXpert] Maximum rotation in degrees; 0: none. Not for SimMIM and MAE.
_C.AUG.ROTATION = 0.0
# [CheXpert] Maximum shift as a share of the side; 0: none. Not for SimMIM and MAE.
_C.AUG.TRANSLATE = 0.0
# [CheXpert] Range of scale factors [low, high]; []: none. Not for SimMIM and MAE.
_C.AUG.SCALE = []
# [CheXpert] Maximum shear in degrees; 0: none. Not for SimMIM and MAE.
_C.AUG.SHEAR = 0.0
# [CheXpert] Maximum shift of a corner as a share of half the side; 0: none. Not for SimMIM and MAE.
_C.AUG.DISTORTION = 0.0
# [CheXpert] Fine-tuning: RandAugment as [number of operations, magnitude from 0 to 30]; []: none.
_C.AUG.RANDAUGMENT = []

_C.TEST = CN()
# Evaluation: resize to 256/224 of the input and crop the centre; False: resize the whole image.
_C.TEST.CROP = True

_C.EVAL = CN()
# [CheXpert] Epochs between two validations, at least 1. The last epoch is always validated.
_C.EVAL.EVERY = 1
# [CheXpert] Views to evaluate: 'frontal', 'lateral' or 'all'; '': as DATA.VIEWS.
_C.EVAL.VIEWS = ''
# [CheXpert] Unit of evaluation: 'study' or 'image'.
_C.EVAL.LEVEL = 'study'
# [CheXpert] Probability of a study: the 'max' or 'mean' over its images.
_C.EVAL.AGGREGATE = 'max'
# [CheXpert] Patients that choose the best checkpoint: 'holdout', 'valid' (the report warns), or
# 'last' (no choice: the last epoch); 'auto': 'holdout' with at least 200 training images, else
# 'last', because otherwise more labelled images would choose the epoch than train the model.
_C.EVAL.SELECT_ON = 'auto'
# [CheXpert] Share of the held-out patients that form the split 'internal', which is only scored
# and chooses no checkpoint, threshold or probe. Its labels are the training labels.
_C.EVAL.INTERNAL_SHARE = 0.0
# [CheXpert] Mean AUROC that chooses the best checkpoint: over the 'five' competition tasks or
# 'all' labels; 'auto': the five if all are defined. Labels with fewer than 20 positives or
# negatives among the patients that choose are left out; without any other, the last epoch is used.
_C.EVAL.SELECT = 'auto'
# [CheXpert] Held-out images of each data set that pre-training validates on; 0: all.
_C.EVAL.HOLDOUT_IMAGES = 256
# [CheXpert] Test-time augmentation: 'none', or 'crops' (mean over centre and corner crops).
_C.EVAL.TTA = 'none'
# [CheXpert] Whether predictions are averaged over the image and the mirrored image.
_C.EVAL.TTA_FLIP = False
# [CheXpert] Paths of checkpoints whose probabilities --eval averages; []: a single checkpoint.
_C.EVAL.ENSEMBLE = []
# [CheXpert] Whether predictions of the training images are also written.
_C.EVAL.PREDICT_TRAIN = False
# [CheXpert] Rule for the thresholds, which are set on the held-out patients; 'half' is always 0.5.
_C.EVAL.THRESHOLD = 'youden'
# [CheXpert] Sensitivity that the rule 'sensitivity' aims at, in (0, 1).
_C.EVAL.SENSITIVITY = 0.9
# [CheXpert] Bootstrap resamples of the patients for each interval; 0: no intervals.
_C.EVAL.RESAMPLES = 1000
# [CheXpert] Additional columns for subgroups, from the CSV files or DATA.DEMOGRAPHICS, such as
# ['RACE'].
_C.EVAL.GROUPS = []
# [CheXpert] Lower ends of the age bands, in years.
_C.EVAL.AGE_BANDS = [0, 40, 60, 80]

_C.LOSS = CN()
# [CheXpert] Loss of fine-tuning, such as 'bce'.
_C.LOSS.NAME = 'bce'
# [CheXpert] 'focal': exponent.
_C.LOSS.GAMMA = 2.0
# [CheXpert] 'focal': weight of positives, in [0, 1]; negatives get 1 - ALPHA. None: both 1.
_C.LOSS.ALPHA = None
# [CheXpert] 'asymmetric': exponent of positives.
_C.LOSS.GAMMA_POS = 0.0
# [CheXpert] 'asymmetric': exponent of negatives.
_C.LOSS.GAMMA_NEG = 4.0
# [CheXpert] 'asymmetric': negatives below this probability have no loss, in [0, 1).
_C.LOSS.CLIP = 0.05

_C.CONTRASTIVE = CN()
# [CheXpert] Method of main_contrastive.py.
_C.CONTRASTIVE.METHOD = 'moco'
# [CheXpert] Width of the projections; None: the default of the method.
_C.CONTRASTIVE.DIM = None
# [CheXpert] Temperature that divides cosines; None: the default of the method.
_C.CONTRASTIVE.TEMPERATURE = None
# [CheXpert] Momentum of the averaged encoder, in [0, 1); None: the published value of the method,
# or in short runs a smaller value that leaves about 1 % of the initial weights.
_C.CONTRASTIVE.MOMENTUM = None
# [CheXpert] 'moco': keys in the queue, a multiple of the global batch.
_C.CONTRASTIVE.QUEUE_SIZE = 4096
# [CheXpert] 'moco': groups of a batch with separate batch norm statistics; divides BATCH_SIZE.
_C.CONTRASTIVE.BN_GROUPS = 1
# [CheXpert] 'swav': number of prototypes, at most twice the images of the global batch.
_C.CONTRASTIVE.NUM_PROTOTYPES = 3000
# [CheXpert] 'swav': optimizer steps at the start for which the prototypes are frozen.
_C.CONTRASTIVE.FREEZE_PROTOTYPES_STEPS = 0
# [CheXpert] 'swav': small crops per image in addition to the two views; 0: none.
_C.CONTRASTIVE.LOCAL_CROPS = 0
# [CheXpert] Area of a small crop [low, high] as a share of the image.
_C.CONTRASTIVE.LOCAL_CROP_AREA = [0.05, 0.14]
# [CheXpert] Side of a small crop in pixels; 0: DATA.IMG_SIZE, the only size for Swin and ViT.
_C.CONTRASTIVE.LOCAL_SIZE = 0
# [CheXpert] Probability that a view is blurred.
_C.CONTRASTIVE.BLUR = 0.5
# [CheXpert] Whether the second view is only cropped and flipped.
_C.CONTRASTIVE.WEAK_VIEW = False

_C.FINETUNE = CN()
# [CheXpert] Trained part: the 'full' model, the 'last_layer', or a classifier ('linear_probe',
# 'knn') on the features of the frozen encoder.
_C.FINETUNE.MODE = 'full'
# [CheXpert] Share of the patch tokens of a ViT that each training step drops, as MAE's encoder does
# in pre-training, in [0, 1). Evaluation uses all tokens.
_C.FINETUNE.MASK_RATIO = 0.0

_C.REPORT = CN()
# [CheXpert] Whether fine-tuning and --eval write report.html and its data.
_C.REPORT.WRITE = True
# [CheXpert] Saliency maps per label and kind of case (true or false, positive or negative); 0: the
# report shows no X-rays at all, not even thumbnails of the worst errors.
_C.REPORT.MAPS = 2
# [CheXpert] Saliency method: 'grad_cam', or 'rollout' (ViT only, the same map for all labels).
_C.REPORT.METHOD = 'grad_cam'
# [CheXpert] Whether a logistic regression on pixels is scored next to the model. It reads up to
# 20,000 training images and all scored images again.
_C.REPORT.PIXEL_FLOOR = False
# [CheXpert] Whether reports name images by salted hashes. predictions_*.csv keep the paths.
_C.REPORT.ANONYMISE = False

# Precision: 'O0' is float32; 'O1' and 'O2' are autocast. SimMIM's default '' has its flag's 'O1'.
_C.AMP_OPT_LEVEL = 'O1'
# [CheXpert] Autocast to bfloat16 on a CPU: 'never', 'always', or 'auto', which is 'always' on a CPU
# with instructions for bfloat16 (AVX512-BF16 or AMX). 'auto' gives other numbers on another CPU.
_C.AMP_ON_CPU = 'auto'
# Root of all run folders; a run writes to OUTPUT/MODEL.NAME/TAG. SimMIM's flag has this default.
_C.OUTPUT = 'output'
# Last part of the run folder.
_C.TAG = 'default'
# Epochs between two checkpoints, at least 1.
_C.SAVE_FREQ = 1
# [CheXpert] Number of newest checkpoints that are kept in addition to the best one; 0: all.
_C.SAVE_KEEP = 0
# Batches between two log lines, at least 1.
_C.PRINT_FREQ = 10
# Seed of all random numbers, at least 0.
_C.SEED = 0
# Whether to only evaluate.
_C.EVAL_MODE = False
# Whether to only measure the throughput in images per second.
_C.THROUGHPUT_MODE = False
# [CheXpert] Whether to only check everything that the run needs.
_C.CHECK_MODE = False
# Checkpoint whose weights the run starts from, a path or a URL (https://, hf://); '': none.
_C.PRETRAINED = ''

# Keys that may be None, with the type of all other values.
OR_NONE = {
    'MODEL.SWIN.QK_SCALE': float,
    'MODEL.VIT.INIT_VALUES': float,
    'AUG.CUTMIX_MINMAX': list,
    'LOSS.ALPHA': float,
    'CONTRASTIVE.DIM': int,
    'CONTRASTIVE.TEMPERATURE': float,
    'CONTRASTIVE.MOMENTUM': float,
}
# Keys whose value is a mapping with names that the user chooses.
MAPPINGS = ('DATA.UNCERTAIN_BY_LABEL',)
# Keys of SimMIM that are still accepted, with their replacements; None: the key has no effect. An
# encoder's IN_CHANS only has an effect if MODEL.TYPE selects the encoder.
LEGACY_KEYS = {
    'MODEL.SWIN.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.VIT.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.TIMM.IN_CHANS': 'MODEL.IN_CHANS',
    'LOCAL_RANK': None,
}
# Name of a flag -> (key, help text).
FLAGS = {
    'batch_size': ('DATA.BATCH_SIZE', 'images per process and forward pass'),
    'data_path': ('DATA.DATA_PATH', 'root folder of the data'),
    'pretrained': ('PRETRAINED', 'checkpoint whose encoder the run starts from'),
    'resume': ('MODEL.RESUME', 'checkpoint to resume from'),
    'accumulation_steps': ('TRAIN.ACCUMULATION_STEPS', 'batches per optimizer step'),
    'use_checkpoint': ('TRAIN.USE_CHECKPOINT', 'gradient checkpointing'),
    'amp_opt_level': ('AMP_OPT_LEVEL', 'O0: float32; O1, O2: autocast'),
    'output': ('OUTPUT', 'root of all run folders; this run writes to OUTPUT/MODEL.NAME/TAG'),
    'tag': ('TAG', 'last part of the run folder'),
    'eval': ('EVAL_MODE', 'only evaluate'),
    'throughput': ('THROUGHPUT_MODE', 'only measure images per second'),
    'check': ('CHECK_MODE', 'only check everything that the run needs'),
}
FLAG_KEYS = {flag: key for flag, (key, _) in FLAGS.items()}
# Keys whose value is a list of names. Earlier versions wrote one name, or 'none' for an empty list.
NAME_LISTS = ('DATA.PREPROCESS',)
# Values that earlier versions wrote, as text, with the values that replace them.
EARLIER_VALUES = {'AMP_ON_CPU': {'True': 'always', 'False': 'never'}}
# Classes in the checkpoints of SimMIM and MAE that the safe loader must accept.
CHECKPOINT_GLOBALS = [CfgNode, argparse.Namespace]
# libyaml reads a config about ten times as fast as the loader in Python.
YAML_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
YAML_LENGTH, YAML_DEPTH = 1_000_000, 20  # largest file in characters, and deepest nesting


def default_config() -> Config:
    """Return an unfrozen copy of the default options."""
    return _C.clone()


def get_config(args: argparse.Namespace) -> Config:
    """Read, check and freeze the options of a run.

    Args:
        args: Flags as parsed by `build_parser`. Flags may be absent or None.

    Raises:
        ValueError: If a key or value is wrong. The message names the key and the source.
    """
    config = default_config()
    config.merge_from_file(args.cfg)
    config.merge_from_list(getattr(args, 'opts', None) or [])
    for flag, key in FLAG_KEYS.items():
        value = getattr(args, flag, None)
        if value is not None:
            put(config, key, value, '--' + flag.replace('_', '-'))
    stage = getattr(args, 'stage', None)
    count_classes(config, stage)
    check_config(config, stage)
    config.freeze()
    return config


def count_classes(config: Config, stage: str | None) -> None:
    """Set MODEL.NUM_CLASSES of a fine-tuning run to the number of labels, unless it was set."""
    tasks = REGISTRIES.get('DATA.TASK', {})
    is_default = config.MODEL.NUM_CLASSES == _C.MODEL.NUM_CLASSES
    if stage == 'finetune' and is_default and config.DATA.TASK in tasks:
        labels = config.DATA.LABELS or tasks[config.DATA.TASK].labels
        config.MODEL.NUM_CLASSES = len(labels)


def build_parser(stage: str) -> argparse.ArgumentParser:
    """Build the parser of a stage: 'simmim', 'contrastive' or 'finetune'. Absent flags are None."""
    title = {
        'simmim': 'SimMIM pre-training',
        'contrastive': 'Contrastive pre-training',
        'finetune': 'Fine-tuning and evaluation',
    }[stage]
    parser = argparse.ArgumentParser(
        description=f'{title}. Start it with python, or with torchrun for several processes.',
        allow_abbrev=False,
    )
    parser.set_defaults(stage=stage)
    add = parser.add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of options')
    add('--opts', nargs='+', action='extend', metavar='KEY VALUE', help='pairs of key and value')
    for flag, (key, text) in FLAGS.items():
        kind = type(value_at(_C, key))
        value = {'type': kind, 'choices': CHOICES.get(key)}
        options = {'action': 'store_const', 'const': True} if kind is bool else value
        add(f'--{flag.replace("_", "-")}', help=text, **options)
    add('--local_rank', '--local-rank', type=int, help='accepted and ignored')
    return parser


def encoder_node(config: CfgNode) -> CfgNode:
    """Return the options of the encoder that MODEL.TYPE selects."""
    return config.MODEL[config.MODEL.TYPE.upper()]


def encoder_name(config: CfgNode) -> str:
    """Return MODEL.TYPE, or MODEL.TIMM.NAME for a timm model."""
    return config.MODEL.TIMM.NAME if config.MODEL.TYPE == 'timm' else config.MODEL.TYPE


def mask_units(config: CfgNode) -> tuple[int, int]:
    """Return the number of mask units of an image and the number of hidden ones."""
    data = config.DATA
    units = (data.IMG_SIZE // data.MASK_PATCH_SIZE) ** 2
    return units, num_hidden(units, data.MASK_RATIO, data.MASK_TYPE)


def num_hidden(units: int, mask_ratio: float, mask_type: str) -> int:
    """Return the number of hidden mask units. The attribute `ratio` of a mask type comes first."""
    draw = REGISTRIES.get('DATA.MASK_TYPE', {}).get(mask_type)
    return math.ceil(units * getattr(draw, 'ratio', mask_ratio))


# Allowed values ----------------------------------------------------------------------------------

PROBES = ('linear_probe', 'knn')  # modes that fit a classifier on features of a frozen encoder
VIEWS = ('frontal', 'lateral', 'all')
FEW_TRAINING_IMAGES = 200  # with fewer, EVAL.SELECT_ON 'auto' chooses no checkpoint
FILTERS = ('bilinear', 'bicubic', 'lanczos', 'hamming')

# Allowed values of options that have no registry.
CHOICES = {
    'DATA.SAMPLER': ('uniform', 'weighted'),
    'DATA.LABELLER': ('chexpert', 'negbio'),
    'DATA.INTERPOLATION': ('random', *FILTERS),
    'DATA.PRETRAIN_INTERPOLATION': FILTERS,
    'DATA.VIEWS': VIEWS,
    'DATA.BAD_IMAGE': ('error', 'skip'),
    'DATA.NORMALIZE': ('dataset', 'image'),
    'MODEL.ATTENTION': ('auto', 'eager', 'sdpa'),
    'MODEL.IN_CHANS': (1, 3),
    'MODEL.SIMMIM.LOSS_PIXELS': ('masked', 'all'),
    'TRAIN.ON_NAN': ('stop', 'skip'),
    'TRAIN.CHECKPOINT_KEEPS': ('nothing', 'products'),
    'TRAIN.COMPILE': ('none', 'auto', 'max'),
    'TRAIN.GRADIENT_EXCHANGE': ('float32', 'bfloat16'),
    'AUG.REMODE': ('const', 'rand', 'pixel'),
    'AUG.MIXUP_MODE': ('batch', 'pair', 'elem'),
    'EVAL.VIEWS': ('', *VIEWS),
    'EVAL.LEVEL': ('study', 'image'),
    'EVAL.AGGREGATE': ('max', 'mean'),
    'EVAL.TTA': ('none', 'crops'),
    'EVAL.SELECT_ON': ('auto', 'holdout', 'valid', 'last'),
    'EVAL.SELECT': ('auto', 'five', 'all'),
    'FINETUNE.MODE': ('full', 'last_layer', *PROBES),
    'AMP_OPT_LEVEL': ('O0', 'O1', 'O2'),
    'AMP_ON_CPU': ('auto', 'always', 'never'),
}
# Interval -> keys whose number, or every number of whose list, must lie in the interval.
RANGES = {
    '[1, inf)': (
        'DATA.BATCH_SIZE DATA.MASK_PATCH_SIZE MODEL.SWIN.PATCH_SIZE '
        'MODEL.SWIN.EMBED_DIM MODEL.SWIN.WINDOW_SIZE MODEL.VIT.PATCH_SIZE MODEL.VIT.EMBED_DIM '
        'MODEL.VIT.NUM_HEADS TRAIN.EPOCHS TRAIN.LR_SCHEDULER.DECAY_EPOCHS '
        'AUG.RECOUNT SAVE_FREQ PRINT_FREQ MODEL.MAE.DECODER_EMBED_DIM '
        'MODEL.MAE.DECODER_NUM_HEADS CONTRASTIVE.DIM CONTRASTIVE.QUEUE_SIZE '
        'CONTRASTIVE.NUM_PROTOTYPES CONTRASTIVE.BN_GROUPS EVAL.EVERY'
    ),
    '[0, inf)': (
        'DATA.NUM_WORKERS DATA.TRAIN_IMAGES MODEL.NUM_CLASSES MODEL.VIT.INIT_VALUES '
        'TRAIN.WARMUP_EPOCHS TRAIN.WEIGHT_DECAY TRAIN.WARMUP_LR TRAIN.MIN_LR '
        'TRAIN.CLIP_GRAD TRAIN.ACCUMULATION_STEPS TRAIN.SAVE_EVERY_STEPS '
        'TRAIN.SAVE_EVERY_MINUTES TRAIN.NAN_LIMIT DATA.BAD_IMAGE_LIMIT SAVE_KEEP AUG.COLOR_JITTER '
        'AUG.MIXUP AUG.CUTMIX EVAL.HOLDOUT_IMAGES EVAL.RESAMPLES EVAL.AGE_BANDS LOSS.GAMMA '
        'LOSS.GAMMA_POS LOSS.GAMMA_NEG MODEL.SIMMIM.TARGET_SIZE REPORT.MAPS '
        'CONTRASTIVE.FREEZE_PROTOTYPES_STEPS CONTRASTIVE.LOCAL_CROPS CONTRASTIVE.LOCAL_SIZE'
    ),
    '(0, inf)': (
        'MODEL.SWIN.MLP_RATIO MODEL.SWIN.QK_SCALE MODEL.VIT.MLP_RATIO TRAIN.BASE_LR '
        'TRAIN.RANK_TIMEOUT_MINUTES TRAIN.OPTIMIZER.EPS TRAIN.LR_SCHEDULER.DECAY_RATE '
        'TRAIN.LR_SCHEDULER.GAMMA AUG.SCALE CONTRASTIVE.TEMPERATURE'
    ),
    '(0, 1]': 'DATA.TRAIN_FRACTION DATA.STD TRAIN.LAYER_DECAY',
    '(0, 1)': 'DATA.MASK_RATIO TRAIN.OPTIMIZER.MOMENTUM EVAL.SENSITIVITY',
    '[0, 1)': (
        'DATA.HOLDOUT_FRACTION EVAL.INTERNAL_SHARE MODEL.DROP_RATE MODEL.DROP_PATH_RATE '
        'MODEL.LABEL_SMOOTHING TRAIN.OPTIMIZER.BETAS AUG.TRANSLATE LOSS.CLIP CONTRASTIVE.MOMENTUM '
        'FINETUNE.MASK_RATIO'
    ),
    '[0, 1]': (
        'DATA.MEAN AUG.REPROB AUG.MIXUP_PROB AUG.MIXUP_SWITCH_PROB AUG.HFLIP AUG.CROP_AREA '
        'AUG.CUTMIX_MINMAX LOSS.ALPHA CONTRASTIVE.BLUR CONTRASTIVE.LOCAL_CROP_AREA'
    ),
    '[0, 0.66]': 'AUG.DISTORTION',
    '[0, 180]': 'AUG.ROTATION',
    '[0, 90)': 'AUG.SHEAR',
    '[1, 200]': 'MODEL.VIT.DEPTH MODEL.MAE.DECODER_DEPTH',
    '[1, 8192]': 'DATA.IMG_SIZE',
    '[0, 9.2e18]': 'SEED',
}
# Options that mix images or targets, with the only value that works for CheXpert: an image has
# several labels, and some are unknown.
CHEXPERT_VALUES = {
    'MODEL.LABEL_SMOOTHING': 0.0,
    'AUG.AUTO_AUGMENT': 'none',
    'AUG.MIXUP': 0.0,
    'AUG.CUTMIX': 0.0,
    'AUG.CUTMIX_MINMAX': None,
}

Check = Callable[[Any, str | None], None]
CHECKS: list[Check] = []  # filled when a module with `register_check` is imported


class Registry(dict):
    """Maps the values that an option allows to the parts that they select.

    The module that defines the parts fills the registry: `MASKS = Registry('DATA.MASK_TYPE')`, then
    `@MASKS.register('random')` before each part. If the selected part has a function
    `check(config, stage)`, `check_config` calls it.

    Args:
        key: Option that selects a part.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        REGISTRIES[key] = self

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that adds a part under a name."""

        def add(part: Any) -> Any:
            assert name not in self, f'{self.key} {name!r} is registered twice'
            self[name] = part
            return part

        return add


REGISTRIES: dict[str, Registry] = {}  # by option, filled when a module with parts is imported


def register_check(check: Check) -> Check:
    """Register a function (config, stage or None) that `check_config` calls, as a decorator."""
    CHECKS.append(check)
    return check


def add_options(section: str, options: dict[str, Any]) -> None:
    """Declare the options of a part in the module of the part, before a config is read.

    Args:
        section: Key of a new or existing section, such as 'MODEL.CONVNEXT'.
        options: Default values by name.
    """
    parent, _, name = section.rpartition('.')
    node = value_at(_C, parent) if parent else _C
    node.setdefault(name, CN()).update(options)


def allowed_values(key: str) -> tuple | None:
    """Return the allowed values of an option from its registry or CHOICES; None for any value."""
    return tuple(REGISTRIES[key]) if key in REGISTRIES else CHOICES.get(key)


def check_config(config: Config, stage: str | None = None) -> None:
    """Reject values and combinations of options that cannot work, before anything is built.

    Args:
        config: Run configuration.
        stage: 'simmim', 'contrastive' or 'finetune' adds the checks of that stage.

    Raises:
        ValueError: At the first problem. The message names the key, the value and the allowed
            values.
    """
    for key in {**CHOICES, **REGISTRIES}:
        parts = REGISTRIES.get(key, CHOICES.get(key))
        holds = all(name in parts for name in _chosen(config, key))
        which, others = 'some' if key in NAME_LISTS else 'one', getattr(parts, 'others', '')
        require(holds, config, key, f'{which} of {list(parts)}{others}')
    for interval, keys in RANGES.items():
        for key in keys.split():
            holds = _is_inside(value_at(config, key), interval)
            require(holds, config, key, f'a number in {interval}')
    _check_names(config)
    _check_data_options(config)
    _check_schedule(config)
    if stage == 'finetune':
        _check_finetuning(config)
    for key, parts in REGISTRIES.items():
        for name in _chosen(config, key):
            if hasattr(parts[name], 'check'):
                parts[name].check(config, stage)
    for check in CHECKS:
        check(config, stage)


def require(holds: bool, config: CfgNode, key: str, allowed: str) -> None:
    """Raise a ValueError with the key, its value and the allowed values, unless `holds` is true."""
    if not holds:
        raise ValueError(f'{key} must be {allowed}, got {value_at(config, key)!r}')


def _chosen(config: CfgNode, key: str) -> list:
    """Return the value of a key as a list of names."""
    value = value_at(config, key)
    return value if key in NAME_LISTS else [value]


def _is_inside(value: Any, interval: str) -> bool:
    """Return whether a number, or each number of a list, lies in an interval like '[0, 1)'."""
    if value is None:
        return True
    low, high = map(float, interval[1:-1].split(','))
    return all(
        type(number) in (int, float)
        and low <= number <= high
        and (number != low or interval[0] == '[')
        and (number != high or interval[-1] == ']')
        for number in (value if isinstance(value, (list, tuple)) else [value])
    )


def _check_names(config: Config) -> None:
    """Check the mode of the run, and values that name files, folders or columns."""
    modes = [key for key in ('EVAL_MODE', 'THROUGHPUT_MODE', 'CHECK_MODE') if config[key]]
    if len(modes) > 1:
        require(False, config, modes[1], f'False with {modes[0]}')
    for key in ('MODEL.NAME', 'TAG'):
        path = PurePath(value_at(config, key))
        holds = not path.is_absolute() and '..' not in path.parts
        require(holds, config, key, 'a relative path without .. below OUTPUT')
    for key in ('EVAL.ENSEMBLE', 'EVAL.GROUPS'):
        holds = all(isinstance(name, str) and name for name in value_at(config, key))
        require(holds, config, key, 'a list of names')
    holds = config.DATA.IMAGE_SUFFIX[:1] in ('', '.')
    require(holds, config, 'DATA.IMAGE_SUFFIX', "empty, or a suffix such as '.png'")


def _check_data_options(config: Config) -> None:
    data, channels = config.DATA, config.MODEL.IN_CHANS
    for key in ('MEAN', 'STD'):
        holds = len(data[key]) == (channels if data.MEAN or data.STD else 0)
        allowed = f'{channels} numbers, one per channel, or [] for both MEAN and STD'
        require(holds, config, f'DATA.{key}', allowed)
    holds = data.TRAIN_FRACTION == 1 or data.TRAIN_IMAGES == 0
    require(holds, config, 'DATA.TRAIN_IMAGES', '0 if DATA.TRAIN_FRACTION is below 1')
    part, _, parts = data.FOLD.partition('/')
    are_numbers = part.isdecimal() and parts.isdecimal()
    holds = not data.FOLD or (are_numbers and int(part) < int(parts) > 1)
    require(holds, config, 'DATA.FOLD', "empty, or 'k/n' with k from 0 to n - 1, such as '0/5'")
    for key, off in (('CROP_AREA', []), ('SCALE', []), ('CUTMIX_MINMAX', None)):
        pair = config.AUG[key]
        holds = pair == off or (len(pair) == 2 and 0 < pair[0] <= pair[1])
        require(holds, config, f'AUG.{key}', f'[low, high] with 0 < low <= high, or {off}')
    operations = config.AUG.RANDAUGMENT
    holds = not operations or (
        len(operations) == 2
        and all(type(number) is int for number in operations)
        and operations[0] >= 1
        and 0 <= operations[1] <= 30
    )
    allowed = '[number of operations (at least 1), magnitude (0 to 30)], or []'
    require(holds, config, 'AUG.RANDAUGMENT', allowed)
    bands = config.EVAL.AGE_BANDS
    holds = bool(bands) and bands == sorted(set(bands))
    require(holds, config, 'EVAL.AGE_BANDS', 'ascending ages such as [0, 40, 60, 80]')


def _check_schedule(config: Config) -> None:
    train, schedule = config.TRAIN, config.TRAIN.LR_SCHEDULER
    require(train.START_EPOCH == 0, config, 'TRAIN.START_EPOCH', '0')
    latest = train.EPOCHS
    if schedule.NAME == 'multistep':
        steps = schedule.MULTISTEPS
        holds = bool(steps) and _is_inside(steps, '[1, inf)') and steps == sorted(steps)
        require(holds, config, 'TRAIN.LR_SCHEDULER.MULTISTEPS', 'ascending epochs such as [700]')
        latest = min(latest, steps[0])
    allowed = f'at most {latest}, the number of epochs or the epoch of the first drop'
    require(train.WARMUP_EPOCHS <= latest, config, 'TRAIN.WARMUP_EPOCHS', allowed)


def _check_finetuning(config: Config) -> None:
    for key, works in CHEXPERT_VALUES.items():
        require(value_at(config, key) == works, config, key, f'{works!r} with CheXpert labels')
    is_probe = config.FINETUNE.MODE in PROBES and not config.EVAL_MODE
    needs_holdout = is_probe or config.EVAL.SELECT_ON == 'holdout'
    holds = config.DATA.HOLDOUT_FRACTION > 0 or not needs_holdout
    reason = f'FINETUNE.MODE {config.FINETUNE.MODE}' if is_probe else 'EVAL.SELECT_ON holdout'
    require(holds, config, 'DATA.HOLDOUT_FRACTION', f'above 0 with {reason}')
    holds = not (is_probe and config.MODEL.RESUME)
    allowed = 'empty with a probe (use --pretrained for the encoder)'
    require(holds, config, 'MODEL.RESUME', allowed)
    encoder = REGISTRIES.get('MODEL.TYPE', {}).get(config.MODEL.TYPE)
    is_global = getattr(encoder, 'attends_globally', True)
    holds = config.REPORT.METHOD == 'grad_cam' or is_global
    allowed = "'grad_cam' for an encoder without global attention"
    require(holds, config, 'REPORT.METHOD', allowed)
    holds = not config.FINETUNE.MASK_RATIO or (is_global and config.FINETUNE.MODE not in PROBES)
    allowed = "0 with a probe and for an encoder other than 'vit'"
    require(holds, config, 'FINETUNE.MASK_RATIO', allowed)


def selecting_split(config: Config, num_images: int) -> str:
    """Return the value of EVAL.SELECT_ON for a number of training images, with 'auto' resolved."""
    if config.EVAL.SELECT_ON != 'auto':
        return config.EVAL.SELECT_ON
    chooses = config.DATA.HOLDOUT_FRACTION and num_images >= FEW_TRAINING_IMAGES
    return 'holdout' if chooses else 'last'


# Options as text ---------------------------------------------------------------------------------

# Options that do not change the trained model: paths, division of work, saving and printing.
FREE_OPTIONS = (
    *('OUTPUT', 'MODEL.NAME', 'TAG', 'PRETRAINED', 'MODEL.RESUME', 'TRAIN.AUTO_RESUME'),
    *('TRAIN.START_EPOCH', 'DATA.DATA_PATH', 'DATA.CACHE_DIR', 'DATA.NUM_WORKERS'),
    *('DATA.PIN_MEMORY', 'DATA.SELF_TRAIN_PREDICTIONS', 'DATA.BATCH_SIZE', 'SAVE_FREQ'),
    *('TRAIN.ACCUMULATION_STEPS', 'PRINT_FREQ', 'SAVE_KEEP', 'TRAIN.SAVE_EVERY_STEPS'),
    *('TRAIN.SAVE_EVERY_MINUTES', 'TRAIN.RANK_TIMEOUT_MINUTES', 'EVAL_MODE', 'THROUGHPUT_MODE'),
    'CHECK_MODE',
)
# Sections that only affect evaluation and the report.
REPORTED_SECTIONS = ('TEST', 'EVAL', 'REPORT')
# Options that decide which patients train the model, choose a checkpoint and are scored.
PATIENT_OPTIONS = ('DATA.FOLD', 'DATA.HOLDOUT_FRACTION', 'EVAL.INTERNAL_SHARE')
# Options that decide what each output of a classifier means.
OUTPUT_OPTIONS = ('DATA.TASK', 'DATA.LABELS')
# Options that decide which score selects the checkpoint.
SELECTION_OPTIONS = ('EVAL.SELECT', 'EVAL.SELECT_ON', 'EVAL.LEVEL', 'EVAL.AGGREGATE', 'EVAL.VIEWS')
SELECTION_OPTIONS += ('EVAL.TTA', 'EVAL.TTA_FLIP', 'DATA.VIEWS', 'DATA.BLANK')


def config_text(config: CfgNode) -> str:
    """Return the options as YAML that repeats the run if used as --cfg. BASE is already merged."""
    plain = config.clone()
    plain.defrost()
    plain.BASE = ['']
    return plain.dump(sort_keys=False)


def config_from_text(text: str) -> Config:
    """Read the options that `config_text` wrote, without keys that no longer exist.

    Raises:
        ValueError: If the text is not a mapping, or a value has the wrong type.
    """
    config = default_config()
    known = dict(_flatten(config))
    for key, value in flat_options(text).items():
        if key in known:
            put(config, key, value, 'the saved options')
    return config


def config_changes(before: str, after: str) -> list[str]:
    """List the options that differ between two texts of `config_text` as 'KEY: old -> new'.

    An option that did not exist yet when a text was written counts as having its default value.
    """
    old, new = flat_options(before), flat_options(after)
    added = {key: value for key, value in _flatten(_C) if key in old or key in new}
    old, new = {**added, **old}, {**added, **new}
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f'{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}' for key in keys]


def flat_options(text: str) -> dict[str, Any]:
    """Read options from YAML as {dotted key: value}, with LEGACY_KEYS replaced and no key checked.

    Raises:
        ValueError: If the text is not a mapping.
    """
    options = _with_current_keys(_read_options(text), _C.MODEL.TYPE)
    return {key: _current_value(key, value) for key, value in options.items()}


def load_yaml(text: str, *, as_text: bool = False) -> Any:
    """Read YAML text as plain values.

    Args:
        text: YAML text without aliases, which could make a short text fill the memory.
        as_text: Whether to leave all values as text, so that `yes` and `1.0` stay as written.

    Raises:
        ValueError: If the text is not YAML, is too long or too deep, or contains aliases or Python
            objects.
    """
    loader, depth = yaml.BaseLoader if as_text else YAML_LOADER, 0
    if len(text) > YAML_LENGTH:
        raise ValueError(f'{len(text):,} characters of YAML; {YAML_LENGTH:,} are allowed')
    try:
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(
                    f'*{event.anchor} is an alias; put text that begins with * in quotes'
                )
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                raise ValueError(f'more than {YAML_DEPTH} nested values')
        return yaml.load(text, loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f'this is not plain YAML: {" ".join(str(error).split())}') from error


def _shown(value: Any) -> str:
    return str(value) or "''"


def _read_options(text: str) -> dict[str, Any]:
    options = load_yaml(text)
    if not isinstance(options, dict):
        raise ValueError(f'options must be a mapping of keys to values, got {options!r:.100}')
    return dict(_flatten(options))


def _flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f'{prefix}{name}'
        if isinstance(value, dict) and key not in MAPPINGS:
            yield from _flatten(value, f'{key}.')
        else:
            yield key, value


def _with_current_keys(options: dict[str, Any], encoder: str) -> dict[str, Any]:
    """Replace LEGACY_KEYS. `encoder` is MODEL.TYPE, unless the options set it."""
    encoder = options.get('MODEL.TYPE', encoder)
    current = {key: value for key, value in options.items() if key not in LEGACY_KEYS}
    channels = f'MODEL.{str(encoder).upper()}.IN_CHANS'
    if channels in LEGACY_KEYS and channels in options:
        current.setdefault(LEGACY_KEYS[channels], options[channels])
    return current


# Merging -----------------------------------------------------------------------------------------


def value_at(config: CfgNode, key: str) -> Any:
    """Return the value at a dotted key."""
    return _find(config, key, 'the config')


def put(config: CfgNode, key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key.

    Args:
        config: Options to change.
        key: Dotted key.
        value: Value of the default's type, or a Python literal of this type as text. Integers
            are accepted for floats.
        source: Source of the value, for error messages.

    Raises:
        ValueError: If the key does not exist or the value has the wrong type.
    """
    kind = OR_NONE.get(key) or type(_find(config, key, source))
    typed = _current_value(key, _as_type(value, kind))
    if key in MAPPINGS and isinstance(typed, dict):
        typed = CN(dict(typed), new_allowed=True)
    elif not (_has_type(typed, kind) or (typed is None and key in OR_NONE)):
        allowed = 'a section of keys' if kind is CfgNode else kind.__name__
        got = f'{value!r:.100} ({type(value).__name__})'
        raise ValueError(f'{key} in {source} must be {allowed}, got {got}')
    section, _, name = key.rpartition('.')
    setattr(value_at(config, section) if section else config, name, typed)


def _current_value(key: str, value: Any) -> Any:
    """Convert EARLIER_VALUES, and the single name that earlier versions wrote for NAME_LISTS."""
    if key in NAME_LISTS and isinstance(value, str):
        return [name for name in [value] if name != 'none']
    return EARLIER_VALUES[key].get(str(value), value) if key in EARLIER_VALUES else value


def _as_type(value: Any, kind: type) -> Any:
    """Convert text to a literal, integers to float and lists to tuple where `kind` needs it."""
    if isinstance(value, str):
        literal = _literal(value)  # PyYAML reads 1e-4 as text
        value = literal if kind is not str or isinstance(literal, str) else value
    if kind is float and type(value) is int:
        return float(value)
    if kind in (list, tuple) and isinstance(value, (list, tuple)):
        return kind(value)
    return value


def _has_type(value: Any, kind: type) -> bool:
    """Return whether a value has the type of an option and is neither a section nor infinite."""
    return type(value) is kind is not CfgNode and (kind is not float or math.isfinite(value))


def _merge_file(config: Config, path: Path, parents: tuple[Path, ...] = ()) -> None:
    """Merge a YAML file after its BASE files. `parents` is the chain of files that include it."""
    chain = (*parents, path)
    if path.resolve() in [parent.resolve() for parent in parents]:
        raise ValueError(f'BASE files form a cycle: {" -> ".join(map(str, chain))}')
    try:
        options = _read_options(path.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    put(config, 'BASE', options.get('BASE', ['']), str(path))
    names = config.BASE
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f'BASE in {path} must be a list of paths, got {names!r:.100}')
    for name in filter(None, names):
        _merge_file(config, path.parent / name, chain)
    _merge(config, options, str(path))


def _merge(config: Config, options: dict[str, Any], source: str) -> None:
    # Legacy keys are kept, because a later source may select their encoder.
    legacy = config.__dict__.setdefault('_legacy', {})
    if any(key in LEGACY_KEYS.values() for key in options):
        legacy.clear()
    legacy |= {key: value for key, value in options.items() if LEGACY_KEYS.get(key)}
    for key, value in _with_current_keys(legacy | options, config.MODEL.TYPE).items():
        put(config, key, value, source)


def _literal(text: str) -> Any:
    """Return the value of a Python literal, or the text itself if it is not a literal."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _find(config: CfgNode, key: str, source: str) -> Any:
    """Return the value at a dotted key, or raise a ValueError with similar keys."""
    node = config
    for name in key.split('.'):
        if not isinstance(node, CfgNode) or name not in node:
            raise ValueError(f'unknown key {key} in {source}{_suggestion(config, key)}')
        node = node[name]
    return node


def _suggestion(config: CfgNode, key: str) -> str:
    known = [name for name, _ in _flatten(config)]
    close = [name for name in known if name.split('.')[-1] == key.split('.')[-1]]
    close += difflib.get_close_matches(key, known)
    return f'; did you mean {" or ".join(close[:2])}?' if close else ''
