"""All options of a run: defaults, meanings, allowed values, and how they are read and checked.

Options come from the defaults below, the BASE files of the YAML file, the YAML file (`--cfg`),
`--opts KEY VALUE ...` and the other flags. Each source overrides the previous ones. `check_config`
then rejects values and combinations that cannot work, and the config is frozen.

Keys, defaults and meanings are SimMIM's. `Own` declares a key that SimMIM does not have.
"""

import argparse
import difflib
import math
import re
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, NoReturn

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


@dataclass(frozen=True)
class Option:
    """An option: its default value, its meaning and its allowed values.

    Args:
        default: Value unless a source sets another one; its type is the type of all values. {} is
            a mapping with names that the user chooses.
        meaning: What the option does, as plain sentences with units.
        one_of: Allowed values, or allowed elements of a list. (): all values of the type.
        parts: For an option that selects a part of the code, the module of each allowed value. It
            registers the part (`Registry`), and is imported when the part is used. A module for
            `suffix` is the one of all paths.
        file: Module that implements the option (`module_of`). If it has a function
            `check(config, stage)`, this checks values other than the default.
        stage: Stage of which a run uses the part; '': all stages.
        within: Interval of the number, or of each number of a list, such as '[0, 1)'.
        or_none: Type of the values of an option that may also be None.
        suffix: Text that ends in this suffix, such as the path of a file, is allowed, too.
        any_case: Whether names may also be written in upper case.
        affects: One or more of EFFECTS. None: what the section affects, or else 'weights'.
    """

    default: Any
    meaning: str
    one_of: tuple = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    file: str = ''
    stage: str = ''
    within: str = ''
    or_none: type | None = None
    suffix: str = ''
    any_case: bool = False
    affects: str | tuple[str, ...] | None = None

    @property
    def names(self) -> tuple:
        """Allowed values without paths; () if all values of the type are allowed."""
        return self.one_of or tuple(name for name in self.parts if name != self.suffix)

    @property
    def kind(self) -> type:
        """Type of the values other than None."""
        return self.or_none or type(self.default)

    @property
    def allowed(self) -> str:
        """Description of the allowed values; '' if all values of the type are allowed."""
        which = 'some of' if self.kind is list else 'one of'
        names = f'{which} {[*self.names]}' if self.names else ''
        path = f', or a path that ends in {self.suffix}' if self.suffix else ''
        return names + path + (f'a number in {self.within}' if self.within else '')

    def allows(self, value: Any) -> bool:
        """Return whether a value of the right type is allowed."""
        if value is None:
            return self.or_none is not None
        return all(map(self._allows, value if isinstance(value, (list, tuple)) else [value]))

    def part_name(self, value: Any) -> Any:
        """Return the name of a value in `parts`: a path has the name `suffix`."""
        if self.suffix and str(value).endswith(self.suffix):
            return self.suffix
        return value.lower() if self.any_case else value

    def _allows(self, value: Any) -> bool:
        name = self.part_name(value)
        is_named = not self.names or name in (*self.names, self.suffix or None)
        return is_named and (not self.within or is_inside(value, self.within))


class Own(Option):
    """An option that SimMIM does not have."""


class Section(dict):
    """Options and sections by name, which are also attributes."""

    def __init__(self, affects: str = 'weights') -> None:
        """`affects` is what its options affect unless they say otherwise."""
        super().__init__()
        self.__dict__['affects'] = affects

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f'the options have no section or option {name}') from error

    __setattr__ = dict.__setitem__


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

# Modes that fit a classifier on features of a frozen encoder, or the pixel baseline.
PROBES = ('linear_probe', 'knn', 'attentive_probe', 'pixels')
VIEWS = ('frontal', 'lateral', 'all')
FILTERS = ('bilinear', 'bicubic', 'lanczos', 'hamming')
PRETRAIN_FILTER = 'bilinear'  # resizes in pre-training, as in SimMIM
POLICIES = ('zeros', 'ones', 'ignore', 'zeros_smooth', 'ones_smooth', 'multiclass', 'self_train')
STEPS = ('equalize', 'equalize_cv', 'clahe', 'denoise', 'non_local_means')
STEPS += ('resize', 'lung_crop', 'lung_multiply')
LAYOUT_SUFFIX = '.yaml'  # of files that describe a data set
# A file in the folder of a data set -> the function that opens the images. It receives the folder
# and returns an ImageSource (data/image_source.py). Other folders contain image files.
IMAGE_SOURCES = {
    'store.json': 'data.store:open_store',
    'packing.json': 'data.store:open_store',  # not finished, which is an error
}
# Suffix of image files -> the function from their contents to an image (see data/images.py). For
# other files, the contents tell the format.
IMAGE_DECODERS = {'.dcm': 'data.dicom:read_dicom', '.dicom': 'data.dicom:read_dicom'}

_C = Section()

_C.BASE = Option(
    [''],
    'YAML files that are read before this one, relative to its folder.',
    affects='nothing',
)

_C.DATA = Section()
_C.DATA.BATCH_SIZE = Option(
    128, 'Images per process and forward pass.', within='[1, inf)', affects='nothing'
)
_C.DATA.DATA_PATH = Option(
    '',
    'Folder of the CSV files and images.',
    affects='nothing',
)
_C.DATA.CACHE_DIR = Own(
    '',
    "Folder on each node's own disk for a copy of a packed store; '': no copy.",
    affects='nothing',
    file='data.store_files',
)
_C.DATA.DATASET = Option(
    'imagenet',
    "Layout of DATA_PATH, or a YAML file that describes it. 'folder', 'imagenet': any images.",
    parts={
        'chexpert': 'data.chexpert',
        'folder': 'data.folder',
        'imagenet': 'data.folder',
        'mimic-cxr': 'data.mimic',
        **dict.fromkeys(
            ('brax', 'chexpert_plus', 'nih', 'padchest', 'rsna', 'vindr', LAYOUT_SUFFIX),
            'data.layouts',
        ),
    },
    suffix=LAYOUT_SUFFIX,
)
_C.DATA.SOURCES = Own(
    [],
    'Pre-training on several data sets: list of mappings with name, dataset, path (in DATA_PATH) '
    'and optionally share (of the patients) or images (at most).',
    file='data.sources',
)
_C.DATA.IMG_SIZE = Option(224, "Side of the model's square input, in pixels.", within='[1, 8192]')
_C.DATA.INTERPOLATION = Option(
    'bicubic',
    'Resize filter of fine-tuning.',
    one_of=('random', *FILTERS),
)
_C.DATA.PIN_MEMORY = Option(
    True,
    'Whether batches lie in page-locked memory, for faster copies to a GPU.',
    affects='nothing',
)
_C.DATA.NUM_WORKERS = Option(
    8,
    'Loader processes per training process.',
    within='[0, inf)',
    affects='nothing',
)
_C.DATA.MASK_PATCH_SIZE = Option(
    32,
    "Side of a mask unit in pixels; divides IMG_SIZE, and is a multiple of the model's patch.",
    within='[1, inf)',
)
_C.DATA.MASK_RATIO = Option(0.6, 'Share of the mask units that are hidden.', within='(0, 1)')
_C.DATA.TRAIN_CSV = Own(
    'train.csv',
    'Training labels, relative to DATA_PATH. For MIMIC-CXR and layouts: list of images (column '
    'Path) to which the split train is reduced.',
    affects=('weights', 'patients'),
)
# Set by hand: docs/howto/ablations.md: a fold is a pair of CSV files.
_C.DATA.VALID_CSV = Own(
    'valid.csv',
    "Validation labels, as TRAIN_CSV; may be absent if TEST_CSV is not 'test.csv'.",
    affects=('weights', 'selection'),
)
_C.DATA.TEST_CSV = Own('test.csv', 'Test labels; may be absent.')
# Set by hand: docs/howto/own_data.md: images that were converted to another format.
_C.DATA.IMAGE_SUFFIX = Own(
    '', "Suffix of the image files, such as '.png'; '': that in the CSV file."
)
_C.DATA.VIEWS = Own(
    'frontal',
    'Views to train on.',
    one_of=VIEWS,
    affects=('weights', 'selection'),
)
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
    parts=dict.fromkeys(POLICIES, 'data.labels'),
    stage='finetune',
)
# Set by hand: docs/explanation/policies.md: the best published policy differs by label.
_C.DATA.UNCERTAIN_BY_LABEL = Own(
    {},
    "Policies of single labels, such as {'Edema': 'zeros'}.",
)
_C.DATA.SELF_TRAIN_PREDICTIONS = Own(
    '',
    "'self_train': CSV file with a run's predictions of the training images.",
    affects='nothing',
)
_C.DATA.PSEUDO_LABELS = Own(
    '', "CSV file of pseudo-labels for patients outside the subset; '': none."
)
_C.DATA.BLANK = Own(
    'negative',
    'Target of a label that is not mentioned, in training and scoring.',
    parts={'negative': 'data.labels', 'ignore': 'data.labels'},
    stage='finetune',
    affects=('weights', 'selection'),
)
_C.DATA.TRAIN_FRACTION = Own(
    1.0,
    'Share of the training patients to use; smaller ones lie in larger ones.',
    within='(0, 1]',
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
)
_C.DATA.PREPROCESS = Own(
    [],
    'Processing steps that come first, in order.',
    parts=dict.fromkeys(STEPS, 'data.preprocess_steps'),
    file='data.preprocess_steps',
    affects=('weights', 'selection'),
)
_C.DATA.LUNG_MASKS = Own(
    '',
    "Folder or packed store of lung masks, under the names of the images; '': none, or they are "
    'applied in the store.',
    file='data.preprocess_steps',
    affects='nothing',
)
_C.DATA.DEMOGRAPHICS = Own(
    '',
    "CSV or .xlsx file in DATA_PATH with columns per patient, such as race; '': none.",
)
_C.DATA.LABELLER = Own(
    'chexpert',
    "Label file of MIMIC-CXR; '+radiologist': test labels by radiologists.",
    one_of=('chexpert', 'negbio', 'chexpert+radiologist', 'negbio+radiologist'),
    affects=('weights', 'selection'),
)
_C.DATA.HOLDOUT_FRACTION = Own(
    0.02,
    'Share of the training patients that are held out.',
    within='[0, 1)',
    affects='patients',
)
# Set by hand: docs/howto/own_data.md: statistics of other images.
_C.DATA.MEAN = Own(
    [],
    "Pixel mean per channel; []: 0.503 for 1 channel, ImageNet's for 3.",
    within='[0, 1]',
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
    parts={
        'random': 'data.masking',
        'square': 'data.masking',
        'block': 'data.masking',
    },
    stage='simmim',
)
_C.DATA.LEAVE_OUT = Own(
    '',
    "Pre-training: CSV file whose column `file` lists images to exclude; '': none.",
    file='data.sources',
)
# Set by hand: docs/explanation/differences.md: a folder whose scored images are not used.
_C.DATA.ALLOW_ALL_IMAGES = Own(
    False,
    "Whether DATASET 'folder' may include images that are scored later.",
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
    "Head of the classifier: 'linear' on pooled features, 'attention' on tokens (not timm).",
    parts={'linear': 'models.classifier_heads', 'attention': 'models.classifier_heads'},
    stage='finetune',
    affects='model',
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
    1000,
    'Outputs of the classifier; the default becomes the number of labels.',
    within='[0, inf)',
)
_C.MODEL.IN_CHANS = Option(3, 'Input channels: 1 (grey) or 3 (grey repeated).', one_of=(1, 3))
_C.MODEL.DROP_RATE = Option(0.0, 'Dropout after the embedding, attention and MLP.', within='[0, 1)')
_C.MODEL.DROP_PATH_RATE = Option(
    0.1,
    'Stochastic depth of the last block; the first has 0.',
    within='[0, 1)',
)
_C.MODEL.LABEL_SMOOTHING = Option(0.1, 'Label smoothing; 0 for CheXpert labels.', within='[0, 1)')

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
_C.MODEL.TIMM.NAME = Own(
    'resnet50',
    "Name of a timm model, such as 'densenet121'.",
)

_C.MODEL.SIMMIM = Section()
_C.MODEL.SIMMIM.HEAD = Own(
    'linear',
    "Prediction head; SimMIM's is 'linear'.",
    parts=dict.fromkeys(
        ('linear', 'mlp', 'inverse_swin_nano', 'inverse_swin_t', 'inverse_swin_b'), 'models.simmim'
    ),
    stage='simmim',
)
_C.MODEL.SIMMIM.LOSS = Own(
    'l1',
    'Distance between reconstruction and image.',
    parts=dict.fromkeys(('l1', 'l2', 'smooth_l1'), 'models.simmim'),
    stage='simmim',
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
    stage='simmim',
)

_C.MODEL.MAE = Section()
_C.MODEL.MAE.DECODER_EMBED_DIM = Own(
    512, 'Width of the decoder, a multiple of 4.', within='[1, inf)'
)
_C.MODEL.MAE.DECODER_DEPTH = Own(8, 'Blocks of the decoder.', within='[1, 200]')
_C.MODEL.MAE.DECODER_NUM_HEADS = Own(
    16,
    'Attention heads of the decoder; divide its width.',
    within='[1, inf)',
)
_C.MODEL.MAE.NORM_PIX_LOSS = Own(
    False, 'Whether target patches are standardised by their own mean and deviation.'
)

_C.TRAIN = Section()
_C.TRAIN.START_EPOCH = Option(0, 'Always 0; a resumed run continues by itself.', affects='nothing')
_C.TRAIN.EPOCHS = Option(300, 'Epochs, with warm-up.', within='[1, inf)')
_C.TRAIN.AVERAGE = Own(
    0.0,
    'Fine-tuning: decay per step of an average of the weights, which is then scored and saved; 0: '
    'none.',
    within='[0, 1)',
    file='engine.average',
)
_C.TRAIN.WARMUP_EPOCHS = Option(20, 'Epochs of linear warm-up.', within='[0, inf)')
_C.TRAIN.WEIGHT_DECAY = Option(
    0.05,
    'Weight decay, not of biases, norms and layer scales.',
    within='[0, inf)',
)
_C.TRAIN.BASE_LR = Option(
    5e-4, 'Peak learning rate per 512 images of the effective batch.', within='(0, inf)'
)
_C.TRAIN.WARMUP_LR = Option(5e-7, 'Learning rate at the start, per 512 images.', within='[0, inf)')
_C.TRAIN.MIN_LR = Option(
    5e-6,
    "Learning rate at the end of 'cosine' and 'onecycle', per 512 images.",
    within='[0, inf)',
)
_C.TRAIN.CLIP_GRAD = Option(5.0, 'Maximum 2-norm of the gradient; 0: no limit.', within='[0, inf)')
_C.TRAIN.CLIP_VALUE = Own(
    0.0,
    'Maximum size of each element of the gradient; 0: no limit.',
    within='[0, inf)',
)
_C.TRAIN.AUTO_RESUME = Option(
    True,
    'Whether to resume from the newest checkpoint of the run.',
    affects='nothing',
)
_C.TRAIN.ACCUMULATION_STEPS = Option(
    0,
    'Batches per optimizer step; 0: one.',
    within='[0, inf)',
    affects='nothing',
)
_C.TRAIN.USE_CHECKPOINT = Option(
    False, 'Whether blocks are recomputed in the backward pass, to save memory.'
)
# Set by hand: docs/explanation/speed.md; tools/benchmark.py compares the values.
_C.TRAIN.COMPILE = Own(
    'auto',
    "torch.compile: 'auto' (on a GPU, not on a CPU) or 'none'.",
    one_of=('auto', 'none'),
    file='engine.compilation',
)
_C.TRAIN.LAYER_DECAY = Option(
    1.0,
    'Fine-tuning: ratio of the learning rates of a layer and the next.',
    within='(0, 1]',
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
    False,
    "'cosine': whether it begins after the warm-up, as in MAE, and not at step 0.",
)
_C.TRAIN.LR_SCHEDULER.DECAY_EPOCHS = Option(
    30, "'step': epochs between two drops.", within='[1, inf)'
)
_C.TRAIN.LR_SCHEDULER.DECAY_RATE = Option(0.1, "'step': factor of each drop.", within='(0, inf)')
_C.TRAIN.LR_SCHEDULER.GAMMA = Option(0.1, "'multistep': factor of each drop.", within='(0, inf)')
_C.TRAIN.LR_SCHEDULER.MULTISTEPS = Option(
    [],
    "'multistep': epochs of the drops, after the warm-up.",
)

_C.TRAIN.OPTIMIZER = Section()
_C.TRAIN.OPTIMIZER.NAME = Option(
    'adamw',
    'Optimizer.',
    parts=dict.fromkeys(('adamw', 'sgd', 'lamb'), 'optimizer'),
    any_case=True,
)
_C.TRAIN.OPTIMIZER.EPS = Option(
    1e-8, 'AdamW, LAMB: constant in the denominator.', within='(0, inf)'
)
_C.TRAIN.OPTIMIZER.BETAS = Option(
    (0.9, 0.999),
    'AdamW, LAMB: decay rates of the moments.',
    within='[0, 1)',
)
_C.TRAIN.OPTIMIZER.MOMENTUM = Option(0.9, 'SGD: Nesterov momentum.', within='(0, 1)')

_C.AUG = Section()
_C.AUG.COLOR_JITTER = Option(
    0.4,
    'Brightness and contrast jitter; 0: none. Not for SimMIM and MAE.',
    within='[0, inf)',
)
_C.AUG.JITTER_CONTRAST = Own(True, 'Whether COLOR_JITTER changes the contrast, too.')
_C.AUG.AUTO_AUGMENT = Option(
    'rand-m9-mstd0.5-inc1',
    "timm's augmentation policy; 'none' for CheXpert labels.",
)
_C.AUG.REPROB = Option(0.25, 'Fine-tuning: probability of random erasing.', within='[0, 1]')
_C.AUG.REMODE = Option(
    'pixel',
    "Fill of an erased area: 'const' (0), 'rand' (one value per area), 'pixel' (per pixel).",
    one_of=('const', 'rand', 'pixel'),
)
_C.AUG.RECOUNT = Option(1, 'Most erased areas per image.', within='[1, inf)')
_C.AUG.MIXUP = Option(0.8, 'Beta parameter of Mixup; 0 for CheXpert labels.', within='[0, inf)')
_C.AUG.CUTMIX = Option(1.0, 'Beta parameter of CutMix; 0 for CheXpert labels.', within='[0, inf)')
_C.AUG.CUTMIX_MINMAX = Option(
    None,
    "Range of CutMix's area ratio; None for CheXpert labels.",
    within='[0, 1]',
    or_none=list,
)
_C.AUG.MIXUP_PROB = Option(1.0, 'Probability that a batch is mixed.', within='[0, 1]')
_C.AUG.MIXUP_SWITCH_PROB = Option(
    0.5, 'Probability of CutMix if Mixup is also on.', within='[0, 1]'
)
_C.AUG.MIXUP_MODE = Option(
    'batch',
    'Unit that shares a mixing ratio.',
    one_of=('batch', 'pair', 'elem'),
)
_C.AUG.CROP_AREA = Own(
    [],
    'Area of random crops [low, high] as a share of the image; []: from 0.67 (masked), 0.3 '
    '(contrastive), 0.08 (fine-tuning) to 1.',
    within='[0, 1]',
)
_C.AUG.HFLIP = Own(0.5, 'Probability of a horizontal flip, in all stages.', within='[0, 1]')
_C.AUG.ROTATION = Own(
    0.0, 'Maximum rotation in degrees. Not for SimMIM and MAE.', within='[0, 180]'
)
_C.AUG.DISTORTION = Own(
    0.0,
    'Maximum shift of a corner, in half sides. Not for SimMIM and MAE.',
    within='[0, 0.66]',
)
_C.AUG.NOISE = Own(
    0.0,
    'SimMIM and MAE: Gaussian noise on input and target, in grey levels of 255.',
    within='[0, 255]',
)
_C.AUG.RANDAUGMENT = Own(
    [],
    'Fine-tuning: RandAugment as [operations, magnitude from 0 to 30]; []: none.',
    within='[0, 30]',
)

_C.TEST = Section(affects='scores')
_C.TEST.CROP = Option(
    True,
    'Whether scored images are resized to 256/224 of the input and cropped.',
    affects=('selection', 'scores'),
)

_C.EVAL = Section(affects='scores')
_C.EVAL.EVERY = Own(
    1,
    'Epochs between two validations; the last epoch has one.',
    within='[1, inf)',
)
_C.EVAL.VIEWS = Own(
    '',
    "Views to score; '': DATA.VIEWS.",
    one_of=('', *VIEWS),
    affects=('selection', 'scores'),
)
_C.EVAL.LEVEL = Own(
    'study',
    'Unit of evaluation.',
    one_of=('study', 'image'),
    affects=('selection', 'scores'),
)
_C.EVAL.PREPROCESS = Own(
    None,
    'Steps for scored and predicted images; None: DATA.PREPROCESS.',
    one_of=STEPS,
    or_none=list,
    affects=('selection', 'scores'),
    file='data.preprocess_steps',
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
)
_C.EVAL.PROBE_EVERY = Own(
    0,
    'Pre-training: epochs between two probes with labels of held-out patients; 0: none.',
    within='[0, inf)',
    file='evaluation.online_probe',
)
_C.EVAL.MASK_RATIO = Own(
    0.0,
    'Share of the patches of a ViT that scoring drops, the same ones of an image each time.',
    within='[0, 1)',
    affects=('selection', 'scores'),
    file='models.vision_transformer',
)
_C.EVAL.PREDICT_TRAIN = Own(False, 'Whether predictions of training images are written, too.')
_C.EVAL.THRESHOLD = Own(
    'youden',
    "Rule for the thresholds, set on held-out patients; 'half': always 0.5.",
    one_of=('half', 'youden', 'f1', 'sensitivity'),
    stage='finetune',
)
_C.EVAL.RESAMPLES = Own(
    1000,
    'Bootstrap resamples of the patients; 0: no intervals.',
    within='[0, inf)',
)
_C.EVAL.GROUPS = Own(
    [],
    'More columns for subgroups, from the CSV files or DATA.DEMOGRAPHICS.',
)

_C.LOSS = Section()
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
    stage='finetune',
)

_C.CONTRASTIVE = Section()
_C.CONTRASTIVE.METHOD = Own(
    'moco',
    'Method of main_contrastive.py.',
    parts=dict.fromkeys(('simclr', 'moco', 'byol', 'swav'), 'models.contrastive'),
    stage='contrastive',
)
_C.CONTRASTIVE.TEMPERATURE = Own(
    None,
    'Temperature that divides cosines; None: by method.',
    within='(0, inf)',
    or_none=float,
)
_C.CONTRASTIVE.QUEUE_SIZE = Own(
    4096, "'moco': keys in the queue, a multiple of the global batch.", within='[1, inf)'
)
_C.CONTRASTIVE.BN_GROUPS = Own(
    1,
    "'moco': groups with their own batch norm; divides BATCH_SIZE.",
    within='[1, inf)',
)
_C.CONTRASTIVE.NUM_PROTOTYPES = Own(
    3000,
    "'swav': prototypes, at most twice the global batch.",
    within='[1, inf)',
)
_C.CONTRASTIVE.FREEZE_PROTOTYPES_STEPS = Own(
    0,
    "'swav': steps at the start with frozen prototypes.",
    within='[0, inf)',
)
_C.CONTRASTIVE.LOCAL_CROPS = Own(
    0, "'swav': small crops per image beside the two views.", within='[0, inf)'
)
_C.CONTRASTIVE.LOCAL_SIZE = Own(
    0,
    'Side of a small crop in pixels; 0: DATA.IMG_SIZE (Swin, ViT).',
    within='[0, inf)',
)
_C.CONTRASTIVE.BLUR = Own(0.5, 'Probability that a view is blurred.', within='[0, 1]')
_C.CONTRASTIVE.WEAK_VIEW = Own(False, 'Whether the second view is only cropped and flipped.')
_C.CONTRASTIVE.FIRST_CROP_AREA = Own(
    [],
    'AUG.CROP_AREA of the first view, such as [1.0, 1.0]; []: as of the second.',
    within='[0, 1]',
)

_C.FINETUNE = Section()
_C.FINETUNE.MODE = Own(
    'full',
    "Trained part: 'full', 'last_layer' (the head), a classifier on features of the frozen encoder "
    "('linear_probe', 'knn', 'attentive_probe'), or no encoder: the pixel baseline ('pixels').",
    one_of=('full', 'last_layer', *PROBES),
    file='evaluation.probes',
)
_C.FINETUNE.MASK_RATIO = Own(
    0.0,
    'Share of the patches of a ViT that each training step drops.',
    within='[0, 1)',
    file='models.vision_transformer',
)

_C.REPORT = Section(affects='scores')
_C.REPORT.WRITE = Own(
    True,
    'Whether a report is written.',
    file='evaluation.run_report',
)
_C.REPORT.MAPS = Own(
    2,
    'Saliency maps per label and kind of case; 0: the report shows no X-rays at all.',
    within='[0, inf)',
)
_C.REPORT.BASELINES = Own(
    {},
    'Runs or prediction files that the report compares with the model, as {name: path}.',
    affects='nothing',
)

_C.AMP_OPT_LEVEL = Option(
    'O1',
    "Precision: 'O0' float32, 'O1' and 'O2' autocast.",
    one_of=('O0', 'O1', 'O2'),
)
_C.AMP_ON_CPU = Own(
    'auto',
    "Autocast to bfloat16 on a CPU; 'auto': where it has instructions for it, so that numbers "
    'differ between CPUs.',
    one_of=('auto', 'always', 'never'),
)
_C.OUTPUT = Option(
    'output',
    'Root of the run folders, OUTPUT/MODEL.NAME/TAG.',
    affects='nothing',
)
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
    False,
    'Whether to only measure images per second.',
    affects='nothing',
    file='engine.preflight',
)
_C.CHECK_MODE = Own(
    False,
    'Whether to only check all that the run needs.',
    affects='nothing',
    file='engine.preflight',
)
_C.PRETRAINED = Option(
    '',
    "Checkpoint to start from, a path or a URL (https://, hf://); '': none.",
    affects='nothing',
    file='models.pretrained',
)
_C.PRETRAINED_STATISTICS = Own(
    [],
    'Pixels in the training of a foreign file: [mean, deviation], or the means of all channels '
    'and then their deviations; []: assumed.',
    within='[0, 1]',
    affects='nothing',
)


OPTIONS: dict[str, Option] = {}  # by dotted key


def _declare(options: dict[str, Any], node: CfgNode, section: str = '') -> None:
    """Add options to OPTIONS, and their default values to the node of their section."""
    for name, entry in options.items():
        key = f'{section}{name}'
        if isinstance(entry, Option):
            affects = (
                getattr(options, 'affects', 'weights') if entry.affects is None else entry.affects
            )
            OPTIONS[key] = replace(
                entry, affects=(affects,) if isinstance(affects, str) else affects
            )
            node[name] = CN(new_allowed=True) if entry.default == {} else entry.default
        else:
            node[name] = CN()
            _declare(entry, node[name], f'{key}.')


_defaults = Config()
_declare(_C, _defaults)
_C = _defaults  # from here on the node of default values, as in SimMIM


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
    'throughput': ('THROUGHPUT_MODE', 'only measure images per second of the forward pass'),
    'check': ('CHECK_MODE', 'only check everything that the run needs'),
}
FLAG_KEYS = {flag: key for flag, (key, _) in FLAGS.items()}
# Values that earlier versions wrote, as text, with the values that replace them.
EARLIER_VALUES = {
    'AMP_ON_CPU': {'True': 'always', 'False': 'never'},
    'DATA.PREPROCESS': {'none': []},
    'TRAIN.COMPILE': {'max': 'auto'},
}
GREY_STATISTICS = (0.503,), (0.292,)  # 870 images of CheXpert-v1.0-small
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Classes in the checkpoints of SimMIM and MAE that the safe loader must accept.
CHECKPOINT_GLOBALS = [CfgNode, argparse.Namespace]
YAML_LENGTH, YAML_DEPTH = 250_000, 20  # largest file in characters, and deepest nesting


class _UniqueKeys:
    """Refuses a key that a mapping of YAML has twice; PyYAML alone drops the first value."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()  # else refused below
        names = [str(key.value) for key, _ in pairs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f'line {node.start_mark.line + 1}: {twice!r} occurs twice')
        return super().construct_mapping(node, deep)


# libyaml reads a config about ten times as fast as the loader in Python.
class YamlLoader(_UniqueKeys, getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """Reads YAML as plain values."""


def _as_number(node_kind: str) -> Callable[[YamlLoader, yaml.ScalarNode], Any]:
    """Return a constructor that leaves numbers as text which only YAML 1.1 reads as others.

    It reads 0100 as 64 and 1:40 as 100. As text they are refused where a number is expected.
    """

    def construct(loader: YamlLoader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node)
        is_other = ':' in text or (node_kind == 'int' and re.match(r'[-+]?0[\d_]', text))
        return text if is_other else getattr(loader, f'construct_yaml_{node_kind}')(node)

    return construct


for _kind in ('int', 'float'):
    YamlLoader.add_constructor(f'tag:yaml.org,2002:{_kind}', _as_number(_kind))


class _TextLoader(_UniqueKeys, yaml.BaseLoader):
    """Reads the values of YAML as text."""


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
    # Later sources win: defaults, BASE files, --cfg, --opts, flags.
    config.merge_from_file(shipped_file(args.cfg))
    config.merge_from_list(getattr(args, 'opts', None) or [])
    for flag, key in FLAG_KEYS.items():
        value = getattr(args, flag, None)
        # None is an absent flag; 0 and False are values.
        if value is not None:
            put(config, key, value, '--' + flag.replace('_', '-'))
    stage = getattr(args, 'stage', None)
    # Before the checks, which compare the number of outputs with the labels of the task.
    fit_to_task(config, stage)
    check_config(config, stage)
    # Nothing may change options later, so config.yaml always repeats the run.
    config.freeze()
    return config


def shipped_file(path: str | Path) -> Path:
    """Return the path of a config file, which may be given relative to this project."""
    own = Path(__file__).parent / path
    return own if not Path(path).exists() and own.is_file() else Path(path)


def fit_to_task(config: Config, stage: str | None) -> None:
    """Set MODEL.NUM_CLASSES and LOSS.NAME of a fine-tuning run by its task, unless they are set."""
    if stage != 'finetune':
        return
    task = part(config, 'DATA.TASK')
    if config.MODEL.NUM_CLASSES == _C.MODEL.NUM_CLASSES:
        config.MODEL.NUM_CLASSES = len(task(config).labels)
    if config.LOSS.NAME == _C.LOSS.NAME:
        config.LOSS.NAME = task.losses[0]


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
    title = {
        'simmim': 'SimMIM pre-training',
        'contrastive': 'Contrastive pre-training',
        'finetune': 'Fine-tuning and evaluation',
    }[stage]
    parser = Parser(
        description=f'{title}. Start it with python, or with torchrun for several processes.',
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


def enlarged_side(size: int) -> int:
    """Return the short side in pixels of the images from which TEST.CROP cuts the centre."""
    return int(256 / 224 * size)


# Checks ------------------------------------------------------------------------------------------

FEW_TRAINING_IMAGES = 200  # with fewer, EVAL.SELECT_ON 'auto' chooses no checkpoint
# Options that mix images or targets, with the only value that works for CheXpert: an image has
# several labels, and some are unknown.
CHEXPERT_VALUES = {
    'MODEL.LABEL_SMOOTHING': 0.0,
    'AUG.AUTO_AUGMENT': 'none',
    'AUG.MIXUP': 0.0,
    'AUG.CUTMIX': 0.0,
    'AUG.CUTMIX_MINMAX': None,
}


class OptionError(ValueError):
    """An option has a wrong value. The message names the option, the value and the allowed ones."""


class Registry(dict):
    """The parts that an option selects, by their names.

    A module with parts registers them: `MASKS = REGISTRIES['DATA.MASK_TYPE']`, then
    `@MASKS.register('random')` before each part. The option names this module (`Option.parts`),
    which is imported when one of its parts is looked up. If the selected part has a function
    `check(config, stage)`, `check_config` calls it.

    Args:
        key: Option that selects a part.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def __missing__(self, value: str) -> Any:
        """Import the module of a part; a path or an upper-case value has the name of its part."""
        option = OPTIONS[self.key]
        name = option.part_name(value)
        if name not in option.parts:
            raise OptionError(f'{self.key} must be {option.allowed}, got {value!r}')
        module = option.parts[name]
        import_module(module)
        assert name in self, f'{module} must register {name!r} as a part of {self.key}'
        return self[name]

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that adds a part under a name."""

        def add(part: Any) -> Any:
            parts = OPTIONS[self.key].parts
            assert name in parts, f'add {name!r} and its module to the parts of {self.key}'
            assert name not in self, f'{self.key} {name!r} is registered twice'
            self[name] = part
            return part

        return add


REGISTRIES = {key: Registry(key) for key, option in OPTIONS.items() if option.parts}


def part(config: CfgNode, key: str) -> Any:
    """Return the part that an option selects, or the list of parts of an option that is a list."""
    value, parts = value_at(config, key), REGISTRIES[key]
    return [parts[name] for name in value] if type(value) is list else parts[value]


def module_of(key: str) -> ModuleType:
    """Return the module that implements an option, which is imported when it is first used."""
    return import_module(OPTIONS[key].file)


def all_parts(key: str) -> dict[str, Any]:
    """Return all parts of an option by name, after importing their modules."""
    return {name: REGISTRIES[key][name] for name in OPTIONS[key].names}


def check_config(config: Config, stage: str | None = None) -> None:
    """Reject values and combinations of options that cannot work, before anything is built.

    Args:
        config: Run configuration.
        stage: 'simmim', 'contrastive' or 'finetune' adds the checks of that stage.

    Raises:
        ValueError: At the first problem. The message names the key, the value and the allowed
            values.
    """
    for key, option in OPTIONS.items():
        require(option.allows(value_at(config, key)), config, key, option.allowed)
    _check_names(config)
    _check_data_options(config)
    _check_schedule(config)
    if stage == 'finetune':
        _check_finetuning(config)
    # Only the selected parts are imported, and each one knows the rules of its own options.
    for key, option in OPTIONS.items():
        if option.parts and option.stage in ('', stage):
            selected = part(config, key)
            for each in selected if isinstance(selected, list) else [selected]:
                if hasattr(each, 'check'):
                    each.check(config, stage)
        # An option with its default switches nothing on, so its file is not needed.
        if option.file and value_at(config, key) != option.default:
            module = module_of(key)
            if hasattr(module, 'check'):
                module.check(config, stage)


def require(holds: bool, config: CfgNode, key: str, allowed: str) -> None:
    """Raise an OptionError with the key, value and allowed values, unless `holds` is true."""
    if not holds:
        raise OptionError(f'{key} must be {allowed}, got {value_at(config, key)!r}')


def is_inside(value: Any, interval: str) -> bool:
    """Return whether a number, or each number of a list, lies in an interval like '[0, 1)'."""
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
    holds = all(isinstance(name, str) and name for name in config.EVAL.GROUPS)
    require(holds, config, 'EVAL.GROUPS', 'a list of names')
    holds = config.DATA.IMAGE_SUFFIX[:1] in ('', '.')
    require(holds, config, 'DATA.IMAGE_SUFFIX', "empty, or a suffix such as '.png'")


def _check_data_options(config: Config) -> None:
    data, channels = config.DATA, config.MODEL.IN_CHANS
    for key in ('MEAN', 'STD'):
        holds = len(data[key]) == (channels if data.MEAN or data.STD else 0)
        allowed = f'{channels} numbers, one per channel, or [] for both MEAN and STD'
        require(holds, config, f'DATA.{key}', allowed)
    holds = data.TRAIN_FRACTION == 1 or data.TRAIN_IMAGES == 0
    allowed = f'0, because DATA.TRAIN_FRACTION is {data.TRAIN_FRACTION:g}: also set that to 1.0'
    require(holds, config, 'DATA.TRAIN_IMAGES', allowed)
    pairs = {'AUG.CROP_AREA': [], 'AUG.CUTMIX_MINMAX': None}
    for key, off in {**pairs, 'CONTRASTIVE.FIRST_CROP_AREA': []}.items():
        pair = value_at(config, key)
        holds = pair == off or (len(pair) == 2 and 0 < pair[0] <= pair[1])
        require(holds, config, key, f'[low, high] with 0 < low <= high, or {off}')
    operations = config.AUG.RANDAUGMENT
    holds = len(operations) in (0, 2) and all(type(number) is int for number in operations)
    allowed = 'two whole numbers, [operations, magnitude], or []'
    require(holds, config, 'AUG.RANDAUGMENT', allowed)


def _check_schedule(config: Config) -> None:
    train, schedule = config.TRAIN, config.TRAIN.LR_SCHEDULER
    require(train.START_EPOCH == 0, config, 'TRAIN.START_EPOCH', '0')
    latest = train.EPOCHS
    if schedule.NAME == 'multistep':
        steps = schedule.MULTISTEPS
        holds = bool(steps) and is_inside(steps, '[1, inf)') and steps == sorted(steps)
        require(holds, config, 'TRAIN.LR_SCHEDULER.MULTISTEPS', 'ascending epochs such as [700]')
        latest = min(latest, steps[0])
    allowed = f'at most {latest}, the number of epochs or the epoch of the first drop'
    require(train.WARMUP_EPOCHS <= latest, config, 'TRAIN.WARMUP_EPOCHS', allowed)


def _check_finetuning(config: Config) -> None:
    unsuited = any(value_at(config, key) != works for key, works in CHEXPERT_VALUES.items())
    if unsuited and 'pretrain' in config.MODEL.NAME:
        raise OptionError(
            f'--cfg is a pre-training config (MODEL.NAME {config.MODEL.NAME}), but '
            'main_finetune.py needs a fine-tuning config, such as simmim_finetune__*.yaml'
        )
    for key, works in CHEXPERT_VALUES.items():
        require(value_at(config, key) == works, config, key, f'{works!r} with CheXpert labels')
    holds = not (config.FINETUNE.MODE == 'pixels' and config.PRETRAINED)
    require(holds, config, 'PRETRAINED', "'' with FINETUNE.MODE 'pixels', which has no encoder")
    is_probe = config.FINETUNE.MODE in PROBES and not config.EVAL_MODE
    needs_holdout = is_probe or config.EVAL.SELECT_ON == 'holdout'
    holds = config.DATA.HOLDOUT_FRACTION > 0 or not needs_holdout
    reason = f'FINETUNE.MODE {config.FINETUNE.MODE}' if is_probe else 'EVAL.SELECT_ON holdout'
    require(holds, config, 'DATA.HOLDOUT_FRACTION', f'above 0 with {reason}')
    holds = not (is_probe and config.MODEL.RESUME)
    allowed = 'empty with a probe (use --pretrained for the encoder)'
    require(holds, config, 'MODEL.RESUME', allowed)
    if is_probe:
        head = 'attention' if config.FINETUNE.MODE == 'attentive_probe' else 'linear'
        allowed = f'{head!r} with FINETUNE.MODE {config.FINETUNE.MODE!r}'
        require(config.MODEL.HEAD == head, config, 'MODEL.HEAD', allowed)
        holds = config.DATA.SAMPLER == 'uniform'
        require(
            holds, config, 'DATA.SAMPLER', "'uniform' with a probe, which reads each image once"
        )


def selecting_split(config: Config, num_images: int) -> str:
    """Return the value of EVAL.SELECT_ON for a number of training images, with 'auto' resolved."""
    if config.EVAL.SELECT_ON != 'auto':
        return config.EVAL.SELECT_ON
    chooses = config.DATA.HOLDOUT_FRACTION and num_images >= FEW_TRAINING_IMAGES
    return 'holdout' if chooses else 'last'


# Options as text ---------------------------------------------------------------------------------


def options_that_affect(*effects: str) -> list[str]:
    """Return the keys of the options with one of these effects (see EFFECTS)."""
    return [key for key, option in OPTIONS.items() if {*option.affects} & {*effects}]


def config_text(config: CfgNode) -> str:
    """Return the options as YAML that repeats the run if used as --cfg. BASE is already merged."""
    plain = config.clone()
    plain.defrost()
    # The files of BASE may change later, so the text must not read them again.
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


def config_changes(before: str, after: str, *effects: str) -> list[str]:
    """List the options that differ between two texts of `config_text` as 'KEY: old -> new'.

    An option that did not exist yet when a text was written counts as having its default value.
    Options of encoders that MODEL.TYPE does not select are left out.

    Args:
        before: Text of the options.
        after: Text of the other options.
        effects: Only options with one of these effects (see EFFECTS); none: all options. An option
            that no longer exists affects the weights.
    """
    old, new = flat_options(before), flat_options(after)
    # A text of an earlier version lacks newer options, whose default keeps the earlier behaviour.
    added = {key: value for key, value in _flatten(_C) if key in old or key in new}
    old, new = {**added, **old}, {**added, **new}
    used = {old.get('MODEL.TYPE'), new.get('MODEL.TYPE')}
    encoders = OPTIONS['MODEL.TYPE'].names if None not in used else ()
    idle = tuple(f'MODEL.{name.upper()}.' for name in encoders if name not in used)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [
        f'{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}'
        for key in keys
        if not key.startswith(idle) and _has_effect(key, effects)
    ]


def _has_effect(key: str, effects: tuple[str, ...]) -> bool:
    own = OPTIONS[key].affects if key in OPTIONS else ('weights',)
    return not effects or bool({*own} & {*effects})


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
        ValueError: If the text is not YAML, is too long or too deep, or contains aliases, Python
            objects or a key that occurs twice in a mapping.
    """
    loader, depth = _TextLoader if as_text else YamlLoader, 0
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
    flat = dict(pairs := [*_flatten(options)])
    if len(flat) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'{next(key for key in flat if keys.count(key) > 1)} is given twice')
    return flat


def _flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f'{prefix}{name}'
        if isinstance(value, dict) and not _is_mapping(key):
            yield from _flatten(value, f'{key}.')
        else:
            yield key, value


def _is_mapping(key: str) -> bool:
    """Return whether the value of an option is a mapping with names that the user chooses."""
    return key in OPTIONS and OPTIONS[key].kind is dict


def _with_current_keys(options: dict[str, Any], encoder: str) -> dict[str, Any]:
    """Replace LEGACY_KEYS. `encoder` is MODEL.TYPE, unless the options set it."""
    # SimMIM has a key for the channels of each encoder; only that of the selected encoder counts.
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
    found = _find(config, key, source)
    kind = OPTIONS[key].kind if key in OPTIONS else type(found)
    typed = _current_value(key, _as_type(value, kind))
    if kind is dict and isinstance(typed, dict):
        typed = CN(dict(typed), new_allowed=True)
    elif not (
        _has_type(typed, kind) or (typed is None and key in OPTIONS and OPTIONS[key].or_none)
    ):
        allowed = 'a section of keys' if kind is CfgNode else kind.__name__
        got = f'{value!r:.100} ({type(value).__name__})'
        raise ValueError(f'{key} in {source} must be {allowed}, got {got}')
    section, _, name = key.rpartition('.')
    setattr(value_at(config, section) if section else config, name, typed)


def _current_value(key: str, value: Any) -> Any:
    """Return a value of an earlier version as it is written now."""
    earlier = EARLIER_VALUES.get(key, {})
    if str(value) in earlier:
        return copy(earlier[str(value)])
    is_list = key in OPTIONS and OPTIONS[key].kind is list and OPTIONS[key].names
    return [value] if is_list and isinstance(value, str) else value


def _as_type(value: Any, kind: type) -> Any:
    """Convert text to a literal, integers to float and lists to tuple where `kind` needs it."""
    if isinstance(value, str):
        # A string option keeps text such as '1e-4' or 'None' as it is.
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
    legacy |= {key: value for key, value in options.items() if LEGACY_KEYS.get(key)}
    if any(key in LEGACY_KEYS.values() for key in options):
        legacy.clear()
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
    close = {name for name in known if name.split('.')[-1] == key.split('.')[-1]}
    # The same name in another section is the most frequent mistake, then a wrong letter.
    close |= {*difflib.get_close_matches(key, known)}
    ratios = {name: difflib.SequenceMatcher(None, key, name).ratio() for name in sorted(close)}
    best = sorted(ratios, key=ratios.get, reverse=True)[:2]
    return f'; did you mean {" or ".join(best)}?' if best else ''
