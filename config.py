"""All options of a run: defaults, meanings and allowed values, and the command line.

Options come from the defaults below, the BASE files of the YAML file, the YAML file (`--cfg`),
`--opts KEY VALUE ...` and the other flags. Each source overrides the previous ones.

Keys, defaults and meanings are SimMIM's. `Own` declares a key that SimMIM does not have. The
package `options` reads, merges, checks and compares them.
"""

import argparse
from typing import NoReturn

from yacs.config import CfgNode

from options.checks import NO_ENCODER, PROBES, check_config, check_values, refuse_other_stage
from options.declaration import OPTIONS, Option, Own, Section, declare
from options.legacy import LEGACY_KEYS
from options.parts import (
    REGISTRIES,
    OptionError,
    import_by_name,
    make_registries,
    module_of_option,
    refuse_unless,
    selected_part,
)
from options.text import (
    config_changes,
    config_from_text,
    config_text,
    flat_options,
    options_that_affect,
)
from options.values import DEFAULTS, Config, default_config, put, value_at
from options.yaml_text import YamlLoader, load_yaml

# The mechanism, which other modules import from here, so that the options below are declared first.
__all__ = [
    'NO_ENCODER', 'PROBES', 'check_config', 'check_values', 'refuse_other_stage',
    'OPTIONS', 'Option', 'Own', 'Section', 'declare', 'LEGACY_KEYS',
    'REGISTRIES', 'OptionError', 'import_by_name', 'module_of_option', 'refuse_unless',
    'selected_part', 'config_changes', 'config_from_text', 'config_text', 'flat_options',
    'options_that_affect', 'DEFAULTS', 'Config', 'default_config', 'put', 'value_at',
    'YamlLoader', 'load_yaml',
]  # fmt: skip

# What a changed option changes. Resuming, sweeps, reports and exports ask for these effects.
EFFECTS = {
    'weights': 'the trained weights',
    'model': 'what a model with the same weights computes',
    'outputs': 'what each output of a classifier means',
    'patients': 'which patients train the model, choose a checkpoint and are scored',
    'selection': 'which checkpoint is chosen',
    'scores': 'evaluation and the report',
    'nothing': 'neither weights nor scores: paths, division of work, saving and printing',
}
TRAINED = ('weights', 'model', 'outputs', 'patients')  # effects on the trained model
RECIPE = (*TRAINED, 'selection', 'scores')  # two runs that differ in none of these are two seeds
# Stage of a main, main_<stage>.py -> what it does.
STAGES = {
    'simmim': 'SimMIM pre-training',
    'contrastive': 'Contrastive pre-training',
    'finetune': 'Fine-tuning and evaluation',
}
# Config files that the help of the mains shows.
EXAMPLES = {
    'simmim': 'configs/swin_nano__demo/simmim_pretrain__swin_nano__img64_window4__demo.yaml',
    'contrastive': 'configs/resnet18__demo/contrastive_pretrain__resnet18__img64__moco_demo.yaml',
    'finetune': 'configs/swin_nano__demo/simmim_finetune__swin_nano__img64_window4__demo.yaml',
}
# Stages of options that more than one of them uses.
PRETRAINING = ('simmim', 'contrastive')
AUGMENTED = ('contrastive', 'finetune')  # SimMIM and MAE only crop and flip
VIEWS = ('frontal', 'lateral', 'all')
FILTERS = ('bilinear', 'bicubic', 'lanczos', 'hamming')
PRETRAIN_FILTER = 'bilinear'  # resizes in pre-training, as in SimMIM
POLICIES = ('zeros', 'ones', 'ignore', 'zeros_smooth', 'ones_smooth', 'multiclass', 'self_train')
STEPS = ('equalize', 'equalize_cv', 'clahe', 'denoise', 'non_local_means')
STEPS += ('resize', 'lung_crop', 'lung_multiply')
FUNCTION_SUFFIX = '.py'  # of files with a function that makes the table of a data set
# A file in the folder of a data set -> the function that opens the images. It receives the folder
# and returns an ImageSource (data/images/image_source.py). Other folders contain image files.
IMAGE_SOURCES = {
    'store.json': 'data.images.store:open_store',
    'packing.json': 'data.images.store:open_store',  # not finished, which is an error
}
# Suffix of image files -> the function from their contents to an image (see data/images/files.py).
# For other files, the contents tell the format.
IMAGE_DECODERS = {'.dcm': 'data.images.dicom:read_dicom', '.dicom': 'data.images.dicom:read_dicom'}
_C = Section()
_C.STAGE = Own(
    '',
    "Stage of these options; '': any. A run writes its own into config.yaml.",
    one_of=('', *STAGES),
    affects='nothing',
)
_C.BASE = Option(
    [''], 'YAML files that are read before this one, relative to its folder.', affects='nothing'
)
_C.DATA = Section()
_C.DATA.BATCH_SIZE = Option(
    128, 'Images per process and forward pass.', within='[1, inf)', affects='nothing'
)
_C.DATA.DATA_PATH = Option('', 'Folder of the CSV files and images.', affects='nothing')
_C.DATA.CACHE_DIR = Own(
    '',
    "Folder on each node's own disk for a copy of a packed store; '': no copy.",
    affects='nothing',
    file='data.images.store_files',
)
_C.DATA.DATASET = Option(
    'imagenet',
    "Data set in DATA_PATH, or a file with a function read(root) that returns its table. 'folder', "
    "'imagenet': any images.",
    parts={
        'chexpert': 'data.tables.chexpert',
        'folder': 'data.tables.folder',
        'imagenet': 'data.tables.folder',
        **dict.fromkeys(
            ('brax', 'chexpert_plus', 'mimic-cxr', 'nih', 'padchest', 'rsna', 'vindr'),
            'data.tables.data_sets',
        ),
        FUNCTION_SUFFIX: 'data.tables.data_sets',
    },
    suffix=FUNCTION_SUFFIX,
)
_C.DATA.SOURCES = Own(
    [],
    'Several data sets: list of mappings with name, dataset, path (in DATA_PATH) '
    'and optionally share (of the patients) or images (at most).',
    file='data.tables.sources',
    stage=PRETRAINING,
)
_C.DATA.IMG_SIZE = Option(224, "Side of the model's square input, in pixels.", within='[1, 8192]')
_C.DATA.INTERPOLATION = Option(
    'bicubic', 'Resize filter of fine-tuning.', one_of=('random', *FILTERS)
)
_C.DATA.PIN_MEMORY = Option(
    True,
    'Whether batches lie in page-locked memory, for faster copies to a GPU.',
    affects='nothing',
)
_C.DATA.NUM_WORKERS = Option(
    8,
    'Loader processes per training process; the default is at most its share of the usable cores.',
    within='[0, inf)',
    affects='nothing',
)
_C.DATA.MASK_PATCH_SIZE = Option(
    32,
    "Side of a mask unit in pixels; divides IMG_SIZE, and is a multiple of the model's patch.",
    within='[1, inf)',
    stage='simmim',
)
_C.DATA.MASK_RATIO = Option(
    0.6, 'Share of the mask units that are hidden.', within='(0, 1)', stage='simmim'
)
_C.DATA.TRAIN_CSV = Own(
    'train.csv',
    "Table of the training images, relative to DATA_PATH. Other data sets than 'chexpert' have "
    'tables of their own; another name than the default replaces them.',
    affects=('weights', 'patients'),
)
# Set by hand: docs/howto/ablations.md: a fold is a pair of CSV files.
_C.DATA.VALID_CSV = Own(
    'valid.csv',
    'Validation labels, as TRAIN_CSV; may be absent if there is a test split.',
    affects=('weights', 'selection'),
)
_C.DATA.TEST_CSV = Own('test.csv', 'Test labels; may be absent.')
# Set by hand: docs/howto/own_data.md: images that were converted to another format.
_C.DATA.IMAGE_SUFFIX = Own(
    '', "Suffix of the image files, such as '.png'; '': that in the CSV file."
)
_C.DATA.VIEWS = Own('frontal', 'Views to train on.', one_of=VIEWS, affects=('weights', 'selection'))
_C.DATA.TASK = Own(
    'observations',
    "What fine-tuning learns: each label on its own ('observations'), one finding against No "
    "Finding, or the class of an image ('single_label').",
    parts=dict.fromkeys(
        ('observations', 'any_finding', 'any_finding_or_none', 'effusion', 'single_label'),
        'data.tasks',
    ),
    affects='outputs',
)
_C.DATA.LABELS = Own(
    [],
    "Columns of the labels ([]: CheXpert's 14) or, for 'single_label', of the classes.",
    affects='outputs',
)
_C.DATA.UNCERTAIN = Own(
    'ones',
    'Policy for uncertain labels (-1) in training.',
    parts=dict.fromkeys(POLICIES, 'data.tables.labels'),
    stage='finetune',
)
# Set by hand: docs/explanation/policies.md: the best published policy differs by label.
_C.DATA.UNCERTAIN_BY_LABEL = Own(
    {}, "Policies of single labels, such as {'Edema': 'zeros'}.", stage='finetune'
)
_C.DATA.SELF_TRAIN_PREDICTIONS = Own(
    '',
    "'self_train': CSV file with a run's predictions of the training images.",
    affects='nothing',
    stage='finetune',
)
_C.DATA.PSEUDO_LABELS = Own(
    '', "CSV file of pseudo-labels for patients outside the subset; '': none.", stage='finetune'
)
_C.DATA.BLANK = Own(
    'negative',
    'Target of a label that is not mentioned, in training and scoring.',
    parts={'negative': 'data.tables.labels', 'ignore': 'data.tables.labels'},
    affects=('weights', 'selection'),
)
_C.DATA.TRAIN_FRACTION = Own(
    1.0, 'Share of the training patients to use; smaller ones lie in larger ones.', within='(0, 1]'
)
_C.DATA.TRAIN_IMAGES = Own(
    0,
    'Number of training images to use, patient by patient; 0: by TRAIN_FRACTION.',
    within='[0, inf)',
)
_C.DATA.SAMPLER = Own(
    'uniform',
    "Order of the images in fine-tuning: 'uniform', or 'weighted' by label.",
    one_of=('uniform', 'weighted'),
    stage='finetune',
)
_C.DATA.PREPROCESS = Own(
    [],
    'Processing steps that come first, in order.',
    parts=dict.fromkeys(STEPS, 'data.images.preprocess_steps'),
    file='data.images.preprocess_steps',
    affects=('weights', 'selection'),
)
_C.DATA.LUNG_MASKS = Own(
    '',
    "Folder or packed store of lung masks, under the names of the images; '': none, or they are "
    'applied in the store.',
    file='data.images.preprocess_steps',
    affects='nothing',
)
_C.DATA.DEMOGRAPHICS = Own(
    '',
    "CSV or .xlsx file in DATA_PATH with columns per patient, such as race; '': none.",
    stage='finetune',
)
_C.DATA.LABELLER = Own(
    'chexpert',
    "Label file of MIMIC-CXR; '+radiologist': test labels by radiologists.",
    one_of=('chexpert', 'negbio', 'chexpert+radiologist', 'negbio+radiologist'),
    affects=('weights', 'selection'),
)
_C.DATA.HOLDOUT_FRACTION = Own(
    0.02, 'Share of the training patients that are held out.', within='[0, 1)', affects='patients'
)
# Set by hand: docs/howto/own_data.md: statistics of other images.
_C.DATA.MEAN = Own(
    [], "Pixel mean per channel; []: 0.503 for 1 channel, ImageNet's for 3.", within='[0, 1]'
)
_C.DATA.STD = Own(
    [],
    "Pixel standard deviation per channel; []: 0.292 for 1 channel, ImageNet's for 3.",
    within='(0, 1]',
)
_C.DATA.NORMALIZE = Own(
    'dataset',
    "Statistics that normalise an image: MEAN and STD ('dataset'), or its own ('image').",
    one_of=('dataset', 'image'),
)
_C.DATA.MASK_TYPE = Own(
    'random',
    'Method that chooses the hidden mask units.',
    parts={'random': 'data.masking', 'square': 'data.masking', 'block': 'data.masking'},
    stage='simmim',
)
_C.DATA.LEAVE_OUT = Own(
    '',
    "Table whose column `file` or `Path`, `Study` or `Patient` lists what to leave out; '': none.",
    file='data.tables.leave_out',
)
_C.DATA.ALLOW_SHARED_PATIENTS = Own(
    False,
    'Whether a patient may be in two splits, which makes scores too high; the report says so.',
    affects='scores',
)
# Set by hand: docs/explanation/differences.md: a folder whose scored images are not used.
_C.DATA.ALLOW_ALL_IMAGES = Own(
    False, "Whether DATASET 'folder' may include images that are scored later.", stage=PRETRAINING
)
_C.MODEL = Section()
_C.MODEL.TYPE = Option(
    'swin',
    "Encoder, with options in MODEL.SWIN, .VIT or .TIMM. SimMIM has no 'timm'.",
    parts={
        'swin': 'models.swin_transformer',
        'vit': 'models.vision_transformer',
        'timm': 'models.timm_classifier',
    },
    affects='model',
)
_C.MODEL.HEAD = Own(
    'linear',
    "Head of the classifier: 'linear' on pooled features, 'attention' on tokens (not timm), "
    "'patient' on features, age, sex and view.",
    parts={
        'linear': 'models.classifier_heads',
        'attention': 'models.classifier_heads',
        'patient': 'models.patient_head',
    },
    stage='finetune',
    affects='model',
)
_C.MODEL.PATIENT = Section(stage='finetune', affects='model')
_C.MODEL.PATIENT.INPUTS = Own(
    ['age', 'sex', 'view'],
    "What 'patient' reads beside the image: some of age, sex, view, number of the study.",
    file='data.tables.metadata',
)
_C.MODEL.PRETRAIN = Own(
    'simmim',
    "Method of main_simmim.py: 'simmim', or 'mae' (ViT only).",
    parts={'simmim': 'models.simmim', 'mae': 'models.mae'},
    stage='simmim',
)
_C.MODEL.NAME = Option(
    'swin_tiny_patch4_window7_224',
    'Name of the folder below OUTPUT; it does not select a model.',
    affects='nothing',
)
_C.MODEL.RESUME = Option(
    '',
    "Checkpoint to resume from; '': the newest of the run.",
    affects='nothing',
    file='engine.simmim_checkpoint',
)
_C.MODEL.NUM_CLASSES = Option(
    1000, 'Outputs of the classifier; the default becomes the number of labels.', within='[0, inf)'
)
_C.MODEL.IN_CHANS = Option(3, 'Input channels: 1 (grey) or 3 (grey repeated).', one_of=(1, 3))
_C.MODEL.DROP_RATE = Option(0.0, 'Dropout after the embedding, attention and MLP.', within='[0, 1)')
_C.MODEL.DROP_PATH_RATE = Option(
    0.1, 'Stochastic depth of the last block; the first has 0.', within='[0, 1)'
)
_C.MODEL.LABEL_SMOOTHING = Option(
    0.1,
    'Share of the training targets that becomes 1 / classes, or 0.5 of a label on its own.',
    within='[0, 1)',
    stage='finetune',
)
_C.MODEL.SWIN = Section(affects='model')
_C.MODEL.SWIN.PATCH_SIZE = Option(4, 'Side of a token, in pixels.', within='[1, inf)')
_C.MODEL.SWIN.EMBED_DIM = Option(
    96, 'Width of the first stage; each further one doubles it.', within='[1, inf)'
)
_C.MODEL.SWIN.DEPTHS = Option([2, 2, 6, 2], 'Blocks per stage.')
_C.MODEL.SWIN.NUM_HEADS = Option([3, 6, 12, 24], 'Attention heads per stage; divide its width.')
_C.MODEL.SWIN.WINDOW_SIZE = Option(7, 'Side of an attention window, in tokens.', within='[1, inf)')
_C.MODEL.SWIN.MLP_RATIO = Option(4.0, 'Width of the MLP relative to the block.', within='(0, inf)')
_C.MODEL.SWIN.QKV_BIAS = Option(True, 'Whether queries, keys and values have a bias.')
_C.MODEL.SWIN.QK_SCALE = Option(
    None, 'Scale of the queries; None: 1 / sqrt(width of a head).', within='(0, inf)', or_none=float
)
_C.MODEL.SWIN.APE = Option(False, 'Whether absolute positions are added.')
_C.MODEL.SWIN.PATCH_NORM = Option(True, 'Whether the patch embedding ends with a LayerNorm.')
_C.MODEL.VIT = Section(affects='model')
_C.MODEL.VIT.PATCH_SIZE = Option(16, 'Side of a token, in pixels.', within='[1, inf)')
_C.MODEL.VIT.EMBED_DIM = Option(768, 'Width of the tokens.', within='[1, inf)')
_C.MODEL.VIT.DEPTH = Option(12, 'Number of blocks.', within='[1, 200]')
_C.MODEL.VIT.NUM_HEADS = Option(12, 'Attention heads; divide the width.', within='[1, inf)')
_C.MODEL.VIT.MLP_RATIO = Option(4.0, 'Width of the MLP relative to the block.', within='(0, inf)')
_C.MODEL.VIT.QKV_BIAS = Option(True, 'Whether queries and values have a bias.')
_C.MODEL.VIT.INIT_VALUES = Option(
    0.1,
    'Initial value of the layer scales; None: no layer scales.',
    within='[0, inf)',
    or_none=float,
)
_C.MODEL.VIT.USE_APE = Option(False, 'Whether absolute positions are added.')
_C.MODEL.VIT.USE_MEAN_POOLING = Option(
    False, 'Whether the classifier reads the mean of the patch tokens, not the class token.'
)
_C.MODEL.VIT.USE_RPB = Option(False, 'Whether each block has its own relative position bias.')
_C.MODEL.VIT.USE_SHARED_RPB = Option(True, 'Whether all blocks share a relative position bias.')
_C.MODEL.VIT.USE_SINCOS = Own(False, 'Whether fixed sine-cosine positions are added (MAE).')
_C.MODEL.TIMM = Section(affects='model')
_C.MODEL.TIMM.NAME = Own('resnet50', "Name of a timm model, such as 'densenet121'.")
# Set by hand: docs/explanation/speed.md: convolutional models that are not compiled.
_C.MODEL.TIMM.CHANNELS_LAST = Own(
    False,
    'Whether convolutions compute in channels-last order in training; numbers differ by rounding.',
    affects='weights',
)
_C.MODEL.SIMMIM = Section(stage='simmim')
_C.MODEL.SIMMIM.HEAD = Own(
    'linear',
    "Prediction head; SimMIM's is 'linear'.",
    parts=dict.fromkeys(
        ('linear', 'mlp', 'inverse_swin_nano', 'inverse_swin_t', 'inverse_swin_b'), 'models.simmim'
    ),
)
_C.MODEL.SIMMIM.LOSS = Own(
    'l1',
    "Distance between reconstruction and image, or a sum of several: {'l1': 1.0, 'gradient': 0.5}.",
    parts=dict.fromkeys(
        ('l1', 'l2', 'smooth_l1', 'frequency', 'gradient'), 'models.reconstruction_losses'
    ),
    weighted=True,
)
_C.MODEL.SIMMIM.FREQUENCY = Section(stage='simmim')
_C.MODEL.SIMMIM.FREQUENCY.ALPHA = Own(
    1.0, "'frequency': exponent of the errors that weigh the frequencies.", within='[0, inf)'
)
_C.MODEL.SIMMIM.LOSS_PIXELS = Own('masked', 'Pixels in the loss.', one_of=('masked', 'all'))
_C.MODEL.SIMMIM.TARGET_SIZE = Own(
    0,
    "Cells of the target along a side; 0: one per pixel, or of 8 px for 'hog'.",
    within='[0, inf)',
)
_C.MODEL.SIMMIM.TARGET = Own(
    'pixels',
    "Target: 'pixels', 'patch_normalised' (standardised mask units), 'hog' (MaskFeat).",
    parts=dict.fromkeys(('pixels', 'patch_normalised', 'hog'), 'models.simmim'),
)
_C.MODEL.MAE = Section(stage='simmim')
_C.MODEL.MAE.DECODER_EMBED_DIM = Own(
    512, 'Width of the decoder, a multiple of 4.', within='[1, inf)'
)
_C.MODEL.MAE.DECODER_DEPTH = Own(8, 'Blocks of the decoder.', within='[1, 200]')
_C.MODEL.MAE.DECODER_NUM_HEADS = Own(
    16, 'Attention heads of the decoder; divide its width.', within='[1, inf)'
)
_C.MODEL.MAE.NORM_PIX_LOSS = Own(
    False, 'Whether target patches are standardised by their own mean and deviation.'
)
_C.TRAIN = Section()
_C.TRAIN.START_EPOCH = Option(0, 'Always 0; a resumed run continues by itself.', affects='nothing')
_C.TRAIN.EPOCHS = Option(300, 'Epochs, with warm-up.', within='[1, inf)')
_C.TRAIN.AVERAGE = Own(
    0.0,
    'Decay per step of an average of the weights, which is then scored and saved; 0: none.',
    within='[0, 1)',
    file='engine.average',
    stage='finetune',
)
_C.TRAIN.WARMUP_EPOCHS = Option(20, 'Epochs of linear warm-up.', within='[0, inf)')
_C.TRAIN.WEIGHT_DECAY = Option(
    0.05, 'Weight decay, not of biases, norms and layer scales.', within='[0, inf)'
)
_C.TRAIN.BASE_LR = Option(
    5e-4, 'Peak learning rate per 512 images of the effective batch.', within='(0, inf)'
)
_C.TRAIN.WARMUP_LR = Option(5e-7, 'Learning rate at the start, per 512 images.', within='[0, inf)')
_C.TRAIN.MIN_LR = Option(
    5e-6, "Learning rate at the end of 'cosine' and 'onecycle', per 512 images.", within='[0, inf)'
)
_C.TRAIN.CLIP_GRAD = Option(5.0, 'Maximum 2-norm of the gradient; 0: no limit.', within='[0, inf)')
_C.TRAIN.CLIP_VALUE = Own(
    0.0, 'Maximum size of each element of the gradient; 0: no limit.', within='[0, inf)'
)
_C.TRAIN.AUTO_RESUME = Option(
    True, 'Whether to resume from the newest checkpoint of the run.', affects='nothing'
)
_C.TRAIN.ACCUMULATION_STEPS = Option(
    0, 'Batches per optimizer step; 0: one.', within='[0, inf)', affects='nothing'
)
_C.TRAIN.USE_CHECKPOINT = Option(
    False, 'Whether blocks are recomputed in the backward pass, to save memory.'
)
# Set by hand: docs/explanation/speed.md; tools/benchmark.py compares the values.
_C.TRAIN.COMPILE = Own(
    'auto',
    "torch.compile on a GPU: 'auto', 'none', or 'overlap': in pieces without CUDA graphs, so that "
    'processes exchange gradients during the backward pass.',
    one_of=('auto', 'overlap', 'none'),
    file='engine.compilation',
    off=('none',),
)
_C.TRAIN.LAYER_DECAY = Option(
    1.0,
    'Ratio of the learning rates of a layer and the next.',
    within='(0, 1]',
    stage='finetune',
)
_C.TRAIN.SAVE_EVERY_STEPS = Own(
    0,
    'Optimizer steps between two checkpoints within an epoch; 0: none.',
    within='[0, inf)',
    affects='nothing',
)
_C.TRAIN.SAVE_EVERY_MINUTES = Own(
    0.0,
    'Minutes between two checkpoints within an epoch; 0: none.',
    within='[0, inf)',
    affects='nothing',
)
# Set by hand: docs/howto/reproduce.md: equal bits on a GPU.
_C.TRAIN.DETERMINISTIC = Own(
    False, 'Whether to use only deterministic algorithms, which are slower.'
)
# Set by hand: docs/explanation/speed.md: slow networks between machines.
_C.TRAIN.GRADIENT_EXCHANGE = Own(
    'float32',
    'Type in which processes exchange gradients; bfloat16 halves the bytes and rounds.',
    one_of=('float32', 'bfloat16'),
)
# Set by hand: docs/faults.md: nodes that copy a store at different speeds.
_C.TRAIN.RANK_TIMEOUT_MINUTES = Own(
    10.0,
    'Minutes that a process waits for the others before it fails.',
    within='(0, inf)',
    affects='nothing',
)
_C.TRAIN.LR_SCHEDULER = Section()
_C.TRAIN.LR_SCHEDULER.NAME = Option(
    'cosine',
    "Learning rate schedule; SimMIM has no 'onecycle'.",
    parts=dict.fromkeys(('cosine', 'linear', 'step', 'multistep', 'onecycle'), 'lr_scheduler'),
)
_C.TRAIN.LR_SCHEDULER.WARMUP_PREFIX = Own(
    False, "'cosine': whether it begins after the warm-up, as in MAE, and not at step 0."
)
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = Option(
    30, "'step': epochs between two drops.", within='[1, inf)'
)
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = Option(0.1, "'step': factor of each drop.", within='(0, inf)')
_C.TRAIN.LR_SCHEDULER.GAMMA = Option(0.1, "'multistep': factor of each drop.", within='(0, inf)')
_C.TRAIN.LR_SCHEDULER.MULTISTEPS = Option(
    [], "'multistep': epochs of the drops, after the warm-up."
)
_C.TRAIN.OPTIMIZER = Section()
_C.TRAIN.OPTIMIZER.NAME = Option(
    'adamw', 'Optimizer.', parts=dict.fromkeys(('adamw', 'sgd', 'lamb'), 'optimizer'), any_case=True
)
_C.TRAIN.OPTIMIZER.EPS = Option(
    1e-8, 'AdamW, LAMB: constant in the denominator.', within='(0, inf)'
)
_C.TRAIN.OPTIMIZER.BETAS = Option(
    (0.9, 0.999), 'AdamW, LAMB: decay rates of the moments.', within='[0, 1)'
)
_C.TRAIN.OPTIMIZER.MOMENTUM = Option(0.9, 'SGD: Nesterov momentum.', within='(0, 1)')
_C.AUG = Section()
_C.AUG.COLOR_JITTER = Option(
    0.4,
    'Brightness and contrast jitter; 0: none.',
    within='[0, inf)',
    stage=AUGMENTED,
)
_C.AUG.JITTER_CONTRAST = Own(
    True, 'Whether COLOR_JITTER changes the contrast, too.', stage=AUGMENTED
)
_C.AUG.AUTO_AUGMENT = Option(
    'rand-m9-mstd0.5-inc1',
    "Policy of timm, such as 'rand-m9-mstd0.5-inc1', in place of COLOR_JITTER; 'none': none.",
    stage='finetune',
    file='data.auto_augment',
    off=('none',),
)
_C.AUG.REPROB = Option(0.25, 'Probability of random erasing.', within='[0, 1]', stage='finetune')
_C.AUG.REMODE = Option(
    'pixel',
    "Fill of an erased area: 'const' (0), 'rand' (one value per area), 'pixel' (per pixel).",
    one_of=('const', 'rand', 'pixel'),
    stage='finetune',
)
_C.AUG.RECOUNT = Option(1, 'Most erased areas per image.', within='[1, inf)', stage='finetune')
_C.AUG.MIXUP = Option(
    0.8, 'Beta parameter of Mixup; 0: no Mixup.', within='[0, inf)', stage='finetune'
)
_C.AUG.CUTMIX = Option(
    1.0, 'Beta parameter of CutMix; 0: no CutMix.', within='[0, inf)', stage='finetune'
)
_C.AUG.CUTMIX_MINMAX = Option(
    None,
    "Range of the sides of CutMix's areas, as shares, in place of CUTMIX; None: by CUTMIX.",
    within='[0, 1]',
    or_none=list,
    stage='finetune',
)
_C.AUG.MIXUP_PROB = Option(
    1.0, 'Probability that a unit of MIXUP_MODE is mixed.', within='[0, 1]', stage='finetune'
)
_C.AUG.MIXUP_SWITCH_PROB = Option(
    0.5, 'Probability of CutMix if Mixup is also on.', within='[0, 1]', stage='finetune'
)
_C.AUG.MIXUP_MODE = Option(
    'batch', 'Unit that shares a mixing ratio.', one_of=('batch', 'pair', 'elem'), stage='finetune'
)
_C.AUG.MIXER = Own(
    'mixup',
    "Way to mix the images of a batch; 'mixup': MIXUP and CUTMIX, if they are on.",
    parts={'mixup': 'data.mixing'},
    stage='finetune',
)
_C.AUG.CROP_AREA = Own(
    [],
    'Area of random crops [low, high] as a share of the image; []: from 0.67 (masked), 0.3 '
    '(contrastive), 0.08 (fine-tuning) to 1.',
    within='[0, 1]',
)
_C.AUG.HFLIP = Own(0.5, 'Probability of a horizontal flip, in all stages.', within='[0, 1]')
_C.AUG.ROTATION = Own(0.0, 'Maximum rotation in degrees.', within='[0, 180]', stage=AUGMENTED)
_C.AUG.DISTORTION = Own(
    0.0,
    'Maximum shift of a corner, in half sides.',
    within='[0, 0.66]',
    stage=AUGMENTED,
)
_C.AUG.NOISE = Own(
    0.0,
    'Gaussian noise on input and target, in grey levels of 255.',
    within='[0, 255]',
    stage='simmim',
)
_C.AUG.RANDAUGMENT = Own(
    [],
    'RandAugment as [operations, magnitude from 0 to 30]; []: none.',
    within='[0, 30]',
    stage='finetune',
)
_C.TEST = Section(affects='scores')
_C.TEST.CROP = Option(
    True,
    'Whether scored images are resized to 256/224 of the input and cropped.',
    affects=('selection', 'scores'),
)
_C.EVAL = Section(affects='scores')
_C.EVAL.EVERY = Own(1, 'Epochs between two validations; the last epoch has one.', within='[1, inf)')
_C.EVAL.VIEWS = Own(
    '', "Views to score; '': DATA.VIEWS.", one_of=('', *VIEWS), affects=('selection', 'scores')
)
_C.EVAL.LEVEL = Own(
    'study', 'Unit of evaluation.', one_of=('study', 'image'), affects=('selection', 'scores')
)
_C.EVAL.PREPROCESS = Own(
    None,
    'Steps for scored and predicted images; None: DATA.PREPROCESS.',
    one_of=STEPS,
    or_none=list,
    affects=('selection', 'scores'),
    file='data.images.preprocess_steps',
    off=([],),
)
_C.EVAL.DATA_PATH = Own(
    '',
    "Folder or packed store of the scored images, under the same names; '': DATA.DATA_PATH.",
    affects=('selection', 'scores'),
)
_C.EVAL.SELECT_ON = Own(
    'auto',
    "Patients that choose the best checkpoint: 'holdout', 'valid' (the report warns), or none "
    "('last': the last epoch); 'auto': 'holdout' with at least 200 training images, else 'last'.",
    one_of=('auto', 'holdout', 'valid', 'last'),
    affects=('selection', 'scores'),
)
_C.EVAL.INTERNAL_SHARE = Own(
    0.0,
    "Share of the held-out patients in the split 'internal', which is only scored.",
    within='[0, 1)',
    affects=('patients', 'scores'),
)
_C.EVAL.HOLDOUT_IMAGES = Own(
    256,
    'Held-out images of each data set in the validation of pre-training; 0: all.',
    within='[0, inf)',
    stage=PRETRAINING,
)
_C.EVAL.PROBE_EVERY = Own(
    0,
    'Epochs between two probes with labels of held-out patients; 0: none.',
    within='[0, inf)',
    file='evaluation.probes.online_probe',
    stage=PRETRAINING,
)
_C.EVAL.MASK_RATIO = Own(
    0.0,
    'Share of the patches of a ViT that scoring drops, the same ones of an image each time.',
    within='[0, 1)',
    affects=('selection', 'scores'),
    file='models.vision_transformer',
    stage='finetune',
)
_C.EVAL.PREDICT_TRAIN = Own(
    False, 'Whether predictions of training images are written, too.', stage='finetune'
)
_C.EVAL.THRESHOLD = Own(
    'youden',
    "Rule for the thresholds, set on held-out patients; 'half': always 0.5.",
    one_of=('half', 'youden', 'f1', 'sensitivity'),
    stage='finetune',
)
_C.EVAL.RESAMPLES = Own(
    1000,
    'Bootstrap resamples of the patients; below 200: no intervals.',
    within='[0, inf)',
    stage='finetune',
)
_C.EVAL.GROUPS = Own(
    [], 'More columns for subgroups, from the CSV files or DATA.DEMOGRAPHICS.', stage='finetune'
)
_C.LOSS = Section(stage='finetune')
_C.LOSS.NAME = Own(
    'bce',
    "Loss of fine-tuning; the 'cross_entropy' ones are for 'single_label'.",
    parts=dict.fromkeys(
        (
            *('bce', 'weighted_bce', 'focal', 'asymmetric'),
            *('cross_entropy', 'weighted_cross_entropy'),
        ),
        'models.losses',
    ),
)
_C.CONTRASTIVE = Section(stage='contrastive')
_C.CONTRASTIVE.METHOD = Own(
    'moco',
    'Method of main_contrastive.py.',
    parts=dict.fromkeys(('simclr', 'moco', 'byol', 'swav'), 'models.contrastive'),
)
_C.CONTRASTIVE.TEMPERATURE = Own(
    None, 'Temperature that divides cosines; None: by method.', within='(0, inf)', or_none=float
)
_C.CONTRASTIVE.QUEUE_SIZE = Own(
    4096, "'moco': keys in the queue, a multiple of the global batch.", within='[1, inf)'
)
_C.CONTRASTIVE.BN_GROUPS = Own(
    1, "'moco': groups with their own batch norm; divides BATCH_SIZE.", within='[1, inf)'
)
_C.CONTRASTIVE.NUM_PROTOTYPES = Own(
    3000, "'swav': prototypes, at most twice the global batch.", within='[1, inf)'
)
_C.CONTRASTIVE.FREEZE_PROTOTYPES_STEPS = Own(
    0, "'swav': steps at the start with frozen prototypes.", within='[0, inf)'
)
_C.CONTRASTIVE.LOCAL_CROPS = Own(
    0, "'swav': small crops per image beside the two views.", within='[0, inf)'
)
_C.CONTRASTIVE.LOCAL_SIZE = Own(
    0, 'Side of a small crop in pixels; 0: DATA.IMG_SIZE (Swin, ViT).', within='[0, inf)'
)
_C.CONTRASTIVE.BLUR = Own(0.5, 'Probability that a view is blurred.', within='[0, 1]')
_C.CONTRASTIVE.WEAK_VIEW = Own(False, 'Whether the second view is only cropped and flipped.')
_C.CONTRASTIVE.FIRST_CROP_AREA = Own(
    [],
    'AUG.CROP_AREA of the first view, such as [1.0, 1.0]; []: as of the second.',
    within='[0, 1]',
)
_C.FINETUNE = Section(stage='finetune')
_C.FINETUNE.MODE = Own(
    'full',
    "Trained part: 'full', 'last_layer' (the head), a classifier on features of the frozen encoder "
    "('linear_probe', 'knn', 'attentive_probe'), or no encoder: a regression on small images "
    "('pixels') or on view, age, sex and number of the study ('metadata').",
    one_of=('full', 'last_layer', *PROBES),
    file='evaluation.probes.build',
    off=('last_layer',),
)
_C.FINETUNE.MASK_RATIO = Own(
    0.0,
    'Share of the patches of a ViT that each training step drops.',
    within='[0, 1)',
    file='models.vision_transformer',
)
_C.REPORT = Section(affects='scores', stage='finetune')
_C.REPORT.WRITE = Own(
    True, 'Whether a report is written.', file='evaluation.report.run_report', off=(False,)
)
_C.REPORT.MAPS = Own(
    2,
    'Saliency maps per label and kind of case; 0: the report shows no X-rays at all.',
    within='[0, inf)',
)
_C.REPORT.COLUMNS = Own(
    [],
    'Metrics in report_scores.tex, by their names in report_scores.csv; []: those of the short '
    'tables.',
    affects='nothing',
    file='evaluation.metrics',
)
_C.REPORT.BASELINES = Own(
    {},
    'Runs or prediction files that the report compares with the model, as {name: path}.',
    affects='nothing',
)
_C.REPORT.REGIONS = Own(
    '',
    "File of boxes or masks that the report compares with the maps; '': none.",
    affects='nothing',
    file='evaluation.regions.localise',
)
_C.AMP_OPT_LEVEL = Option(
    'O1', "Precision: 'O0' float32, 'O1' and 'O2' autocast.", one_of=('O0', 'O1', 'O2')
)
# Set by hand: docs/explanation/speed.md: float32 on recent GPUs.
_C.AMP_TF32 = Own(
    False,
    "Whether a GPU computes products of 'O0' in TF32, with 10 of 23 bits of the fraction.",
    file='system.device',
)
_C.AMP_ON_CPU = Own(
    'auto',
    "Autocast to bfloat16 on a CPU; 'auto': where it has instructions for it, so that numbers "
    'differ between CPUs.',
    one_of=('auto', 'always', 'never'),
)
_C.OUTPUT = Option('output', 'Root of the run folders, OUTPUT/MODEL.NAME/TAG.', affects='nothing')
_C.TAG = Option('default', 'Last part of the run folder.', affects='nothing')
_C.SAVE_FREQ = Option(1, 'Epochs between two checkpoints.', within='[1, inf)', affects='nothing')
_C.SAVE_KEEP = Own(
    0,
    'Newest checkpoints that are kept beside the best one; 0: all.',
    within='[0, inf)',
    affects='nothing',
)
_C.LOGGER = Own(
    ['tensorboard'],
    "Programs that show the metrics; 'wandb': Weights & Biases.",
    parts={'tensorboard': 'engine.metric_writers', 'wandb': 'engine.metric_writers'},
    affects='nothing',
)
_C.PRINT_FREQ = Option(10, 'Batches between two log lines.', within='[1, inf)', affects='nothing')
_C.SEED = Option(0, 'Seed of all random numbers.', within='[0, 9.2e18]')
_C.EVAL_MODE = Option(False, 'Whether to only evaluate.', affects='nothing')
_C.THROUGHPUT_MODE = Option(
    False, 'Whether to only measure images per second.', affects='nothing', file='engine.preflight'
)
_C.CHECK_MODE = Own(
    False,
    'Whether to only check all that the run needs.',
    affects='nothing',
    file='engine.preflight',
)
_C.PRETRAINED = Option(
    '',
    'Checkpoint to start from, a path or a URL (https://, hf://), and ::KEY to choose weights in '
    "it; '': none.",
    affects='nothing',
    file='models.weights.pretrained',
)
_C.PRETRAINED_STATISTICS = Own(
    [],
    'Pixels in the training of a foreign file: [mean, deviation], or the means of all channels '
    'and then their deviations; []: assumed.',
    within='[0, 1]',
    affects='nothing',
)

declare(_C, DEFAULTS)
make_registries()
_C = DEFAULTS  # from here on the node of default values, as in SimMIM

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
    'throughput': ('THROUGHPUT_MODE', 'only measure images per second of the forward pass'),
    'check': ('CHECK_MODE', 'only check everything that the run needs'),
}
FLAG_KEYS = {flag: key for flag, (key, _) in FLAGS.items()}
GREY_STATISTICS = (0.503,), (0.292,)  # 870 images of CheXpert-v1.0-small
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Classes in the checkpoints of SimMIM and MAE that the safe loader must accept.
CHECKPOINT_GLOBALS = [CfgNode, argparse.Namespace]


def get_config(args: argparse.Namespace) -> Config:
    """Read, check and freeze the options of a run.

    Args:
        args: Flags as parsed by `build_parser`. Flags may be absent or None.

    Raises:
        ValueError: If a key or value is wrong. The message names the key and the source.
    """
    config, stage = read_config(args), getattr(args, 'stage', None)
    # Before the checks, which compare the number of outputs with the labels of the task.
    fit_to_task(config, stage)
    check_config(config, stage)
    # Nothing may change options later, so config.yaml always repeats the run.
    config.freeze()
    return config


def read_config(args: argparse.Namespace) -> Config:
    """Read the options of a run as `get_config`, with the checks that import no other code."""
    config, stage = default_config(), getattr(args, 'stage', None)
    # Later sources win: defaults, BASE files, --cfg, --opts, flags.
    config.merge_from_file(args.cfg)
    config.merge_from_list(getattr(args, 'opts', None) or [])
    for flag, key in FLAG_KEYS.items():
        value = getattr(args, flag, None)
        # None is an absent flag; 0 and False are values.
        if value is not None:
            put(config, key, value, '--' + flag.replace('_', '-'))
    if stage:
        refuse_other_stage(config, stage)
        config.STAGE = stage
    check_values(config, stage)
    return config


def fit_to_task(config: Config, stage: str | None) -> None:
    """Set MODEL.NUM_CLASSES and LOSS.NAME of a fine-tuning run by its task, unless they are set."""
    if stage != 'finetune':
        return
    task = selected_part(config, 'DATA.TASK')
    if config.MODEL.NUM_CLASSES == _C.MODEL.NUM_CLASSES:
        config.MODEL.NUM_CLASSES = len(task(config).labels)
    if config.LOSS.NAME == _C.LOSS.NAME:
        config.LOSS.NAME = task.loss


class Parser(argparse.ArgumentParser):
    """A parser whose error names what replaces the flags of other projects."""

    def error(self, message: str) -> NoReturn:
        _, _, unknown = message.partition('unrecognized arguments: ')
        for flag in [word.partition('=')[0] for word in unknown.split() if word.startswith('--')]:
            name = flag.removeprefix('--').replace('-', '_')
            names = (name, f'base_{name}')  # --lr is TRAIN.BASE_LR
            keys = [key for key in OPTIONS if key.rpartition('.')[2].lower() in names]
            if name in FLAGS:
                message += f'; {flag} is --{name.replace("_", "-")} here'
            elif keys:
                message += f'; {flag} is an option here: --opts {" or ".join(keys)} VALUE'
        super().error(message)


def build_parser(stage: str) -> argparse.ArgumentParser:
    """Build the parser of a stage: 'simmim', 'contrastive' or 'finetune'. Absent flags are None."""
    parser = Parser(
        description=f'{STAGES[stage]}. Start it with python, or with torchrun for several '
        'processes.',
        epilog=f'Example: --cfg {EXAMPLES[stage]} --data-path DIR --tag first --check. '
        'configs/ has more files (docs/reference/configs.md), and docs/reference/config.md the '
        'keys of --opts.',
        allow_abbrev=False,
    )
    parser.set_defaults(stage=stage)
    add = parser.add_argument
    add('--cfg', required=True, metavar='FILE', help='YAML file of options')
    add('--opts', nargs='+', action='extend', metavar='KEY VALUE', help='pairs of key and value')
    for flag, (key, text) in FLAGS.items():
        kind = OPTIONS[key].kind
        value = {'type': kind, 'choices': OPTIONS[key].names or None}
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


def pixel_statistics(config: CfgNode) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation per channel, for pixels in [0, 1]."""
    mean, std = GREY_STATISTICS if config.MODEL.IN_CHANS == 1 else IMAGENET_STATISTICS
    return tuple(config.DATA.MEAN) or mean, tuple(config.DATA.STD) or std


def scored_steps(config: CfgNode) -> list[str]:
    """Return the steps for scored images: EVAL.PREPROCESS, or DATA.PREPROCESS if it is None."""
    steps = config.EVAL.PREPROCESS
    return config.DATA.PREPROCESS if steps is None else steps
