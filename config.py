"""Every option with its default and meaning; the config that a run gets."""

import argparse

from yacs.config import CfgNode

import config_merge
from config_checks import check_config as check_config
from config_dump import config_changes as config_changes
from config_dump import config_text as config_text
from config_flags import FLAG_KEYS
from config_flags import build_parser as build_parser
from config_node import Config as Config
from config_node import encoder_name as encoder_name
from config_node import encoder_node as encoder_node

CN = CfgNode

_C = Config()

# YAML files merged before this one, in order, as paths relative to its folder.
_C.BASE = ['']

_C.DATA = CN()
# Images per process and micro-batch.
_C.DATA.BATCH_SIZE = 128
# Root folder: of the CSV files and images ('chexpert'), or of a tree of images ('folder').
_C.DATA.DATA_PATH = ''
# [CheXpert] Folder on each node's own disk that a packed store is copied into first; '': none.
_C.DATA.CACHE_DIR = ''
# What DATA_PATH holds: 'imagenet' (as 'folder'), [CheXpert] 'folder', 'chexpert', 'mimic-cxr'.
_C.DATA.DATASET = 'imagenet'
# Side of the model's square input, in pixels.
_C.DATA.IMG_SIZE = 224
# Resizing in fine-tuning: 'random', 'bilinear', 'bicubic', 'lanczos', 'hamming'.
_C.DATA.INTERPOLATION = 'bicubic'
# Whether batches lie in page-locked memory, for faster copies to a GPU.
_C.DATA.PIN_MEMORY = True
# Loader processes per training process; 0 loads in the process itself.
_C.DATA.NUM_WORKERS = 8
# Side of a masking unit, in pixels: divides IMG_SIZE, is a multiple of the model's patch.
_C.DATA.MASK_PATCH_SIZE = 32
# Share of the masking units that is hidden, in (0, 1).
_C.DATA.MASK_RATIO = 0.6
# [CheXpert] Names of the label files inside DATA_PATH; the test file may be absent.
_C.DATA.TRAIN_CSV = 'train.csv'
# [CheXpert] Validation labels.
_C.DATA.VALID_CSV = 'valid.csv'
# [CheXpert] Test labels.
_C.DATA.TEST_CSV = 'test.csv'
# [CheXpert] Suffix of the images on disk where it is not the CSV's, such as '.png'; '': the CSV's.
_C.DATA.IMAGE_SUFFIX = ''
# [CheXpert] Views that are trained on: 'frontal', 'lateral', 'all'.
_C.DATA.VIEWS = 'frontal'
# [CheXpert] What is learned: 'observations' (14), 'any_finding', 'effusion' (against No Finding).
_C.DATA.TASK = 'observations'
# [CheXpert] What an uncertain mention (-1) becomes in training: a name of data.labels.POLICIES.
_C.DATA.UNCERTAIN = 'ones'
# [CheXpert] Exceptions, label: policy, such as {'Edema': 'zeros'}; replaces what BASE gave.
_C.DATA.UNCERTAIN_BY_LABEL = CN(new_allowed=True)
# [CheXpert] For 'self_train': predictions over the training images of a run with 'ignore'.
_C.DATA.SELF_TRAIN_PREDICTIONS = ''
# [CheXpert] What a blank (no mention) counts as: 'negative', 'ignore'.
_C.DATA.BLANK = 'negative'
# [CheXpert] Share of the training patients that is used, in (0, 1]; seeded, smaller inside larger.
_C.DATA.TRAIN_FRACTION = 1.0
# [CheXpert] This many training images, of the first patients; 0: as TRAIN_FRACTION says.
_C.DATA.TRAIN_IMAGES = 0
# [CheXpert] Order of fine-tuning's epochs: 'uniform', 'weighted' (by inverse label frequency).
_C.DATA.SAMPLER = 'uniform'
# [CheXpert] What an image goes through first: 'none', 'equalize', 'clahe', 'denoise'.
_C.DATA.PREPROCESS = 'none'
# [CheXpert] CSV in DATA_PATH with more columns of each patient, such as race; '': none.
_C.DATA.DEMOGRAPHICS = ''
# [CheXpert] MIMIC-CXR: whose labels are read, 'chexpert', 'negbio'.
_C.DATA.LABELLER = 'chexpert'
# [CheXpert] Share of the training patients held out in all stages, the same ones, in [0, 1).
_C.DATA.HOLDOUT_FRACTION = 0.02
# [CheXpert] Mean per channel of pixels in [0, 1]; []: 0.503 for 1 channel, ImageNet's for 3.
_C.DATA.MEAN = []
# [CheXpert] Standard deviation per channel of pixels in [0, 1]; []: 0.292, or ImageNet's for 3.
_C.DATA.STD = []
# [CheXpert] Statistics that normalise an image: 'dataset' (MEAN, STD) or 'image' (its own).
_C.DATA.NORMALIZE = 'dataset'
# [CheXpert] Which units are hidden together: 'random', 'square', 'block'.
_C.DATA.MASK_TYPE = 'random'
# [CheXpert] Whether 'folder' may pre-train on a root with train.csv or valid.csv: on scored images.
_C.DATA.ALLOW_ALL_IMAGES = False
# [CheXpert] Resizing in pre-training: 'bilinear', 'bicubic', 'lanczos', 'hamming'.
_C.DATA.PRETRAIN_INTERPOLATION = 'bilinear'
# [CheXpert] What an image that cannot be used does in training: 'error' (stop), 'skip' (another).
_C.DATA.BAD_IMAGE = 'error'
# [CheXpert] 'skip': so many different images may be bad; one more stops the run.
_C.DATA.BAD_IMAGE_LIMIT = 100

_C.MODEL = CN()
# Encoder: 'swin' (reads MODEL.SWIN), 'vit' (MODEL.VIT), and (not in SimMIM) 'timm' (MODEL.TIMM).
_C.MODEL.TYPE = 'swin'
# [CheXpert] How 'swin' and 'vit' are pre-trained: 'simmim', 'mae' (ViT, visible patches alone).
_C.MODEL.PRETRAIN = 'simmim'
# Folder below OUTPUT, and the logger's name; selects nothing.
_C.MODEL.NAME = 'swin_tiny_patch4_window7_224'
# Checkpoint to go on from, a path or an https address; '': the newest in the run's folder.
_C.MODEL.RESUME = ''
# Outputs of the classifier; CheXpert's labels: 14.
_C.MODEL.NUM_CLASSES = 1000
# Dropout after embedding, attention and MLP, in [0, 1).
_C.MODEL.DROP_RATE = 0.0
# Stochastic depth of the last block, growing from 0 at the first, in [0, 1).
_C.MODEL.DROP_PATH_RATE = 0.1
# Label smoothing, in [0, 1); CheXpert's labels: 0.
_C.MODEL.LABEL_SMOOTHING = 0.1
# [CheXpert] How attention is computed: 'auto', 'eager', 'sdpa', 'triton' (windows, on a GPU).
_C.MODEL.ATTENTION = 'auto'

_C.MODEL.SWIN = CN()
# Side of a token, in pixels.
_C.MODEL.SWIN.PATCH_SIZE = 4
# Input channels: 1 (grey) or 3 (grey X-rays are repeated).
_C.MODEL.SWIN.IN_CHANS = 3
# Width of the first stage; each stage doubles it.
_C.MODEL.SWIN.EMBED_DIM = 96
# Blocks per stage.
_C.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
# Attention heads per stage; each divides its stage's width.
_C.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
# Side of an attention window, in tokens; divides each stage's side that is larger.
_C.MODEL.SWIN.WINDOW_SIZE = 7
# Width of the MLP over width of the block.
_C.MODEL.SWIN.MLP_RATIO = 4.0
# Whether queries, keys and values have a bias.
_C.MODEL.SWIN.QKV_BIAS = True
# Scale of the queries; None: 1 / sqrt(width of a head).
_C.MODEL.SWIN.QK_SCALE = None
# Whether an absolute position embedding is added.
_C.MODEL.SWIN.APE = False
# Whether a LayerNorm follows the patch embedding.
_C.MODEL.SWIN.PATCH_NORM = True

_C.MODEL.VIT = CN()
# Side of a token, in pixels.
_C.MODEL.VIT.PATCH_SIZE = 16
# Input channels: 1 (grey) or 3 (grey X-rays are repeated).
_C.MODEL.VIT.IN_CHANS = 3
# Width.
_C.MODEL.VIT.EMBED_DIM = 768
# Blocks.
_C.MODEL.VIT.DEPTH = 12
# Attention heads; they divide the width.
_C.MODEL.VIT.NUM_HEADS = 12
# Width of the MLP over width of the block (SimMIM's 4, which fractions may replace).
_C.MODEL.VIT.MLP_RATIO = 4.0
# Whether queries and values have a bias (keys never have).
_C.MODEL.VIT.QKV_BIAS = True
# Start of the layer scales; None: no layer scales.
_C.MODEL.VIT.INIT_VALUES = 0.1
# Whether an absolute position embedding is added.
_C.MODEL.VIT.USE_APE = False
# Whether the classifier reads the mean of the patch tokens, not the class token.
_C.MODEL.VIT.USE_MEAN_POOLING = False
# Whether each block has a relative position bias of its own.
_C.MODEL.VIT.USE_RPB = False
# Whether all blocks share one relative position bias (with USE_RPB: added to it).
_C.MODEL.VIT.USE_SHARED_RPB = True
# [CheXpert] Whether fixed sine-cosine positions are added (MAE's); USE_APE learns them.
_C.MODEL.VIT.USE_SINCOS = False

_C.MODEL.TIMM = CN()
# [CheXpert] A classifier of timm, such as 'resnet50', 'densenet121', 'vit_small_patch16_224'.
_C.MODEL.TIMM.NAME = 'resnet50'
# [CheXpert] Input channels: 1 (grey) or 3 (grey X-rays are repeated).
_C.MODEL.TIMM.IN_CHANS = 3

_C.MODEL.SIMMIM = CN()
# [CheXpert] Head: 'linear', 'mlp', 'inverse_swin_nano', 'inverse_swin_t', 'inverse_swin_b'.
_C.MODEL.SIMMIM.HEAD = 'linear'
# [CheXpert] Distance of reconstruction and image: 'l1', 'l2', 'smooth_l1'.
_C.MODEL.SIMMIM.LOSS = 'l1'
# [CheXpert] Pixels that the loss counts: 'masked', 'all'.
_C.MODEL.SIMMIM.LOSS_PIXELS = 'masked'
# [CheXpert] Side of what is predicted, in values, each an average of pixels; 0: DATA.IMG_SIZE.
_C.MODEL.SIMMIM.TARGET_SIZE = 0
# [CheXpert] What is predicted: 'pixels', 'patch_normalised' (each masking unit standardised).
_C.MODEL.SIMMIM.TARGET = 'pixels'

_C.MODEL.MAE = CN()
# [CheXpert] Width of the decoder.
_C.MODEL.MAE.DECODER_EMBED_DIM = 512
# [CheXpert] Blocks of the decoder.
_C.MODEL.MAE.DECODER_DEPTH = 8
# [CheXpert] Attention heads of the decoder; they divide its width.
_C.MODEL.MAE.DECODER_NUM_HEADS = 16
# [CheXpert] Whether each patch is predicted less its mean, over its standard deviation.
_C.MODEL.MAE.NORM_PIX_LOSS = False

_C.TRAIN = CN()
# Always 0: a resumed run begins where its checkpoint ended.
_C.TRAIN.START_EPOCH = 0
# Epochs in all.
_C.TRAIN.EPOCHS = 300
# Epochs of linear warm-up, inside EPOCHS.
_C.TRAIN.WARMUP_EPOCHS = 20
# Weight decay; free of it: biases, norms, position tables and tokens as the model says.
_C.TRAIN.WEIGHT_DECAY = 0.05
# Peak learning rate per 512 images of the global batch.
_C.TRAIN.BASE_LR = 5e-4
# Rate at the start of the warm-up, per 512 images.
_C.TRAIN.WARMUP_LR = 5e-7
# Rate at the end of 'cosine' and 'onecycle', per 512 images; other schedules ignore it.
_C.TRAIN.MIN_LR = 5e-6
# Greatest 2-norm of the gradient; 0: not clipped.
_C.TRAIN.CLIP_GRAD = 5.0
# Whether to go on from the newest checkpoint in the run's folder.
_C.TRAIN.AUTO_RESUME = True
# Micro-batches per optimizer step; 0 and 1: no accumulation.
_C.TRAIN.ACCUMULATION_STEPS = 0
# Whether blocks are computed again in the backward pass, to save memory.
_C.TRAIN.USE_CHECKPOINT = False
# [CheXpert] What USE_CHECKPOINT keeps beside a block's input: 'nothing', 'products' (of linears).
_C.TRAIN.CHECKPOINT_KEEPS = 'nothing'
# [CheXpert] Compiled steps: 'none', 'auto' (on a GPU, if the run is long enough), 'max' (always).
_C.TRAIN.COMPILE = 'auto'
# [CheXpert] How processes exchange gradients: 'float32', 'bfloat16' (half the bytes, rounded).
_C.TRAIN.GRADIENT_EXCHANGE = 'float32'
# Fine-tuning: rate of a layer over that of the next one, in (0, 1].
_C.TRAIN.LAYER_DECAY = 1.0
# [CheXpert] Checkpoints inside an epoch, every this many optimizer steps; 0: none.
_C.TRAIN.SAVE_EVERY_STEPS = 0
# [CheXpert] Checkpoints inside an epoch, every this many minutes; 0: none.
_C.TRAIN.SAVE_EVERY_MINUTES = 0.0
# [CheXpert] What a loss or gradient that is not finite does: 'stop', 'skip' (that step).
_C.TRAIN.ON_NAN = 'stop'
# [CheXpert] 'skip': so many steps of the run may be skipped; one more stops it.
_C.TRAIN.NAN_LIMIT = 10
# [CheXpert] Whether only deterministic algorithms run: bit for bit the same on one machine, slower.
_C.TRAIN.DETERMINISTIC = False
# [CheXpert] Minutes that a process waits for the others before it ends with an error.
_C.TRAIN.RANK_TIMEOUT_MINUTES = 30.0

_C.TRAIN.LR_SCHEDULER = CN()
# 'cosine', 'linear', 'step', 'multistep', and (not in SimMIM) 'onecycle'.
_C.TRAIN.LR_SCHEDULER.NAME = 'cosine'
# 'step': epochs between two drops.
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30
# 'step': factor of a drop.
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1
# 'multistep': factor of a drop.
_C.TRAIN.LR_SCHEDULER.GAMMA = 0.1
# 'multistep': epochs of the drops, ascending, the first not before the warm-up's end.
_C.TRAIN.LR_SCHEDULER.MULTISTEPS = []

_C.TRAIN.OPTIMIZER = CN()
# 'adamw', 'sgd', in any case.
_C.TRAIN.OPTIMIZER.NAME = 'adamw'
# AdamW: added to the denominator.
_C.TRAIN.OPTIMIZER.EPS = 1e-8
# AdamW: decay of the first and second moments, each in [0, 1).
_C.TRAIN.OPTIMIZER.BETAS = (0.9, 0.999)
# SGD: Nesterov momentum, in (0, 1).
_C.TRAIN.OPTIMIZER.MOMENTUM = 0.9

_C.AUG = CN()
# Brightness and contrast jitter, contrastive and (AUTO_AUGMENT 'none') fine-tuning; 0: off.
_C.AUG.COLOR_JITTER = 0.4
# timm policy of ImageNet fine-tuning, such as SimMIM's here; CheXpert's labels: 'none'.
_C.AUG.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'
# Fine-tuning: probability of random erasing.
_C.AUG.REPROB = 0.25
# What an erased area is filled with: 'const', 'rand' (a value per area), 'pixel' (a value each).
_C.AUG.REMODE = 'pixel'
# Erased areas per image, at least 1.
_C.AUG.RECOUNT = 1
# Beta parameter of Mixup; CheXpert's labels: 0 (off).
_C.AUG.MIXUP = 0.8
# Beta parameter of CutMix; CheXpert's labels: 0 (off).
_C.AUG.CUTMIX = 1.0
# Range of CutMix's ratio [low, high] in place of CUTMIX; CheXpert's labels: None.
_C.AUG.CUTMIX_MINMAX = None
# Probability that a batch is mixed.
_C.AUG.MIXUP_PROB = 1.0
# Probability of CutMix where both are on.
_C.AUG.MIXUP_SWITCH_PROB = 0.5
# What shares a mixing ratio: 'batch', 'pair', 'elem'.
_C.AUG.MIXUP_MODE = 'batch'
# [CheXpert] Area of crops [low, high]; []: [0.67, 1], contrastive [0.3, 1], fine-tuning [0.08, 1].
_C.AUG.CROP_AREA = []
# [CheXpert] Probability of a horizontal flip, all stages.
_C.AUG.HFLIP = 0.5
# [CheXpert] Fine-tuning: greatest rotation, in degrees; 0: none.
_C.AUG.ROTATION = 0.0
# [CheXpert] Fine-tuning: greatest shift, as a share of the side; 0: none.
_C.AUG.TRANSLATE = 0.0
# [CheXpert] Fine-tuning: range of enlargement [low, high]; []: none.
_C.AUG.SCALE = []
# [CheXpert] Fine-tuning: greatest shear, in degrees; 0: none.
_C.AUG.SHEAR = 0.0
# [CheXpert] Fine-tuning: how far corners move (perspective), as a share of half the side; 0: none.
_C.AUG.DISTORTION = 0.0

_C.TEST = CN()
# Evaluation: enlarge by 256/224 and crop the centre; False: resize the whole image to the square.
_C.TEST.CROP = True

_C.EVAL = CN()
# [CheXpert] Views that are scored: 'frontal', 'lateral', 'all'; '': as DATA.VIEWS.
_C.EVAL.VIEWS = ''
# [CheXpert] What a score counts: 'study' or 'image'.
_C.EVAL.LEVEL = 'study'
# [CheXpert] A study's probability over its images: 'max', 'mean'.
_C.EVAL.AGGREGATE = 'max'
# [CheXpert] Where the best checkpoint is chosen: 'holdout', 'valid' (the report warns of it).
_C.EVAL.SELECT_ON = 'holdout'
# [CheXpert] By which mean AUROC: 'five' (tasks), 'all' (labels), 'auto' (five where defined).
_C.EVAL.SELECT = 'auto'
# [CheXpert] Held-out images that pre-training scores after each epoch; 0: all.
_C.EVAL.HOLDOUT_IMAGES = 256
# [CheXpert] Views of an image that are averaged: 'none', 'crops' (centre and four corners).
_C.EVAL.TTA = 'none'
# [CheXpert] Whether each is averaged with its mirror image, too.
_C.EVAL.TTA_FLIP = False
# [CheXpert] Checkpoints whose probabilities --eval averages, paths; []: one checkpoint.
_C.EVAL.ENSEMBLE = []
# [CheXpert] Whether predictions over the training images are written, too.
_C.EVAL.PREDICT_TRAIN = False
# [CheXpert] Rule of the thresholds, on held-out patients: 'youden', 'f1', 'sensitivity'.
_C.EVAL.THRESHOLD = 'youden'
# [CheXpert] The sensitivity wanted by 'sensitivity'.
_C.EVAL.SENSITIVITY = 0.9
# [CheXpert] Bootstrap resamples of the patients behind each interval; 0: no intervals.
_C.EVAL.RESAMPLES = 1000
# [CheXpert] Further columns to score by, of the CSVs or of DATA.DEMOGRAPHICS, such as ['RACE'].
_C.EVAL.GROUPS = []
# [CheXpert] Where age bands begin, in years.
_C.EVAL.AGE_BANDS = [0, 40, 60, 80]

_C.LOSS = CN()
# [CheXpert] Loss of the labels: 'bce', 'weighted_bce', 'focal', 'asymmetric' (models/losses.py).
_C.LOSS.NAME = 'bce'
# [CheXpert] 'focal': exponent.
_C.LOSS.GAMMA = 2.0
# [CheXpert] 'focal': weight of positives, 1 - ALPHA of negatives, in [0, 1]; None: both 1.
_C.LOSS.ALPHA = None
# [CheXpert] 'asymmetric': exponent of positives.
_C.LOSS.GAMMA_POS = 0.0
# [CheXpert] 'asymmetric': exponent of negatives.
_C.LOSS.GAMMA_NEG = 4.0
# [CheXpert] 'asymmetric': negatives of probability below this count nothing, in [0, 1).
_C.LOSS.CLIP = 0.05

_C.CONTRASTIVE = CN()
# [CheXpert] Method of main_contrastive.py: 'moco', 'simclr', 'byol', 'swav'.
_C.CONTRASTIVE.METHOD = 'moco'
# [CheXpert] Width of what is compared; None: 128, of 'byol' 256.
_C.CONTRASTIVE.DIM = None
# [CheXpert] Divides cosines; None: 0.07 'moco', 0.1 'simclr' and 'swav'; 'byol' has none.
_C.CONTRASTIVE.TEMPERATURE = None
# [CheXpert] 'moco', 'byol': share of itself that the slow encoder keeps; None: 0.999, 0.996.
_C.CONTRASTIVE.MOMENTUM = None
# [CheXpert] 'moco': keys of earlier batches, a multiple of the images of one on all processes.
_C.CONTRASTIVE.QUEUE_SIZE = 4096
# [CheXpert] 'swav': prototypes; the images of a whole batch should not be much fewer.
_C.CONTRASTIVE.NUM_PROTOTYPES = 3000
# [CheXpert] 'swav': first optimizer steps in which the prototypes do not learn.
_C.CONTRASTIVE.FREEZE_PROTOTYPES_STEPS = 0
# [CheXpert] 'swav': small crops of an image beside its two views; 0: none.
_C.CONTRASTIVE.LOCAL_CROPS = 6
# [CheXpert] Area of a small crop [low, high].
_C.CONTRASTIVE.LOCAL_CROP_AREA = [0.05, 0.14]
# [CheXpert] Side of a small crop, in pixels; 0: DATA.IMG_SIZE, all that Swin and ViT take.
_C.CONTRASTIVE.LOCAL_SIZE = 0
# [CheXpert] Probability that a view is blurred.
_C.CONTRASTIVE.BLUR = 0.5

_C.FINETUNE = CN()
# [CheXpert] What is fitted: 'full', 'last_layer' (trained); 'linear_probe', 'knn' (on features).
_C.FINETUNE.MODE = 'full'

_C.REPORT = CN()
# [CheXpert] Whether fine-tuning and --eval end with report.html and what belongs to it.
_C.REPORT.WRITE = True
# [CheXpert] Saliency maps by label and kind (true or false, positive or negative); 0: none.
_C.REPORT.MAPS = 2
# [CheXpert] How they are made: 'grad_cam', or (ViT, the same for all labels) 'rollout'.
_C.REPORT.METHOD = 'grad_cam'
# [CheXpert] Whether reports name images by salted hashes; predictions_*.csv keep their paths.
_C.REPORT.ANONYMISE = False

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
