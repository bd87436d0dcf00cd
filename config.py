"""The config that a run gets; defaults and meanings of the options that are the run's own.

Those of its nodes are in config_data.py, config_model.py and config_training.py.
"""

import argparse
import difflib
import math
import os
import re
from ast import literal_eval
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

import yaml
from yacs.config import CfgNode
from yacs.config import CfgNode as CN

# ==== config_merge: Merging YAML files, KEY VALUE pairs and flags into the config: keys, types, BASE chains.

# What may stand where None may stand too.
OR_NONE = {
    'MODEL.SWIN.QK_SCALE': float,
    'MODEL.VIT.INIT_VALUES': float,
    'AUG.CUTMIX_MINMAX': list,
    'LOSS.ALPHA': float,
    'CONTRASTIVE.DIM': int,
    'CONTRASTIVE.TEMPERATURE': float,
    'CONTRASTIVE.MOMENTUM': float,
}
# Keys of SimMIM and of earlier versions, which every source still accepts, and the keys that replace
# them; '' is accepted and has no effect. A key below MODEL.SWIN, MODEL.VIT or MODEL.TIMM counts
# only where MODEL.TYPE selects this encoder.
LEGACY_KEYS = {
    'MODEL.SWIN.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.VIT.IN_CHANS': 'MODEL.IN_CHANS',
    'MODEL.TIMM.IN_CHANS': 'MODEL.IN_CHANS',
    'LOCAL_RANK': '',
}
MAX_FILES = 100  # that BASE leads to
MAX_BYTES = 2**17  # of a file; one that names all keys has about 10,000
MAX_NODES = 10_000  # of a file: keys and values, each as often as aliases repeat it
MAX_TEXT = 4096  # characters of a value: as long as a path may be
MAX_INTEGER = 2**64
CONTROL = re.compile('[\0-\x1f\x7f]')
SHOWN = 200  # characters of a value in a message
TYPE_NAMES = {
    bool: 'True or False',
    int: 'an integer',
    float: 'a finite number',
    str: 'text',
    list: 'a list',
    tuple: 'a list',
}


def merge_file(config: dict, path: Path) -> None:
    """Merge a YAML file, after the files that its BASE names."""
    _merge_file(config, path, chain=(), read=[])


def merge_mapping(config: dict, values: dict, source: str, prefix: str = '') -> None:
    """Merge nested keys; source (a file) stands in the messages."""
    for name, value in values.items():
        key = f'{prefix}{name}'
        current = _find(config, LEGACY_KEYS.get(key) or key, source) if key != 'LOCAL_RANK' else 0
        if _is_section(current) and isinstance(value, dict):
            merge_mapping(config, value, source, f'{key}.')
            continue
        if isinstance(value, str) and not isinstance(current, str):
            value = _literal(value)  # PyYAML reads 1e-4 as text
        put(config, key, value, source)


def merge_pairs(config: dict, pairs: list, source: str) -> None:
    """Merge [key, value, key, value, ...]; a value that is text is read as a Python literal."""
    if len(pairs) % 2:
        words = _shown(pairs)
        raise ValueError(f'{source} takes pairs of KEY VALUE, got {len(pairs)} words: {words}')
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        put(config, key, _literal(value) if isinstance(value, str) else value, source)


def put(config: dict, key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key, of its default's type; an integer passes for a float."""
    legacy = config.__dict__.setdefault('_legacy_values', {})
    if LEGACY_KEYS.get(key):
        legacy.setdefault('', config.MODEL.IN_CHANS)
        legacy[key] = _typed(key, value, source, int)
    elif key not in LEGACY_KEYS:
        _set(config, key, value, source)
        if key in LEGACY_KEYS.values():
            legacy.clear()
    if legacy:
        selected = f'MODEL.{config.MODEL.TYPE.upper()}.IN_CHANS'
        config.MODEL.IN_CHANS = legacy.get(selected, legacy[''])


def load_options(text: str) -> dict:
    """Read the text of a config; keys of earlier versions are renamed.

    Raises:
        ValueError: If the text is no YAML mapping.
    """
    options = load_yaml(text)
    if not isinstance(options, dict):
        raise ValueError('it is no mapping of options to values')
    options.pop('LOCAL_RANK', None)
    model = options.get('MODEL')
    if isinstance(model, dict):
        selected = str(model.get('TYPE', 'swin')).upper()
        for name in ('SWIN', 'VIT', 'TIMM'):
            section = model.get(name)
            if isinstance(section, dict) and 'IN_CHANS' in section:
                channels = section.pop('IN_CHANS')
                if name == selected:
                    model['IN_CHANS'] = channels
    return options


def _set(config: dict, key: str, value: Any, source: str) -> None:
    current = _find(config, key, source)
    if _is_section(current):
        raise ValueError(f'{key} in {source} is a section of keys, got {_shown(value)}')
    if _is_mapping(current):
        value = _mapping(key, value, source, type(current))
    elif not (value is None and key in OR_NONE):
        value = _typed(key, value, source, OR_NONE.get(key, type(current)))
    section, _, name = key.rpartition('.')
    setattr(_find(config, section, source) if section else config, name, value)


def value_at(config: dict, key: str) -> Any:
    """The value at a dotted key."""
    return _find(config, key, 'the config')


def load_yaml(text: str) -> Any:
    """Plain YAML as values; quick and small whatever the text is.

    Raises:
        ValueError: if it is no YAML, names a Python object, or is too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f'it has more than {MAX_BYTES:,} characters')
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > MAX_NODES:
            raise ValueError(f'it stands for more than {MAX_NODES:,} keys and values')
        return loader.construct_document(node)
    except Exception as error:  # '!!int x' and the like make PyYAML raise almost anything
        reason = ' '.join(str(error).split())
        raise ValueError(reason or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    """The safe loader, for integers that can be shown."""

    def construct_integer(self, node: yaml.Node) -> int:
        if len(node.value) > SHOWN:
            raise ValueError(f'an integer of {len(node.value):,} characters')
        return self.construct_yaml_int(node)


_Loader.add_constructor('tag:yaml.org,2002:int', _Loader.construct_integer)


def _count_nodes(node: yaml.Node, counts: dict[int, float]) -> float:
    """Nodes of a tree, those that aliases name each time; infinite if one is inside itself."""
    if id(node) not in counts:
        counts[id(node)] = math.inf
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in children for child in pair]
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    return counts[id(node)]


def _merge_file(config: dict, path: Path, *, chain: tuple[Path, ...], read: list[Path]) -> None:
    """Merge a file; chain is how BASE led here, `read` lists all files so far."""
    named = f', which BASE in {chain[-1]} names' if chain else ''
    if not os.path.isfile(path):
        raise ValueError(f'there is no config file {path}{named}')
    if path.resolve() in [above.resolve() for above in chain]:
        raise ValueError(f'BASE goes in a loop: {" -> ".join(map(str, (*chain, path)))}')
    read.append(path)
    if len(read) > MAX_FILES:
        raise ValueError(f'BASE in {read[0]} leads to more than {MAX_FILES} files')
    values = _read_yaml(path)
    base = values.get('BASE', [])
    if not isinstance(base, list) or not all(_is_text(name) for name in base):
        raise ValueError(
            f'BASE in {path} must be a list of paths like [base.yaml], got {_shown(base)}'
        )
    for name in filter(None, base):
        _merge_file(config, path.parent / name, chain=(*chain, path), read=read)
    merge_mapping(config, values, str(path))


def _read_yaml(path: Path) -> dict:
    try:
        with open(path, encoding='utf-8') as file:
            values = load_yaml(file.read(MAX_BYTES + 1))
    except (ValueError, OSError) as error:
        raise ValueError(f'{path} cannot be read as plain YAML: {error}') from error
    if values is None:
        raise ValueError(f'{path} is empty: a config file is a mapping of keys to values')
    if not isinstance(values, dict):
        raise ValueError(f'{path} must be a mapping of keys to values, got {_shown(values)}')
    return values


def _literal(text: str) -> Any:
    """What the text says as a Python literal, else the text itself."""
    if len(text) > MAX_TEXT:
        return text
    try:
        value = literal_eval(text)
        repr(value)  # messages show it; a ValueError for an integer of thousands of digits
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _is_text(value: Any) -> bool:
    """Whether it is text such as a name or a path may be."""
    return isinstance(value, str) and len(value) <= MAX_TEXT and not CONTROL.search(value)


def _shown(value: Any) -> str:
    """A value as messages show it, in one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'


def _is_mapping(value: Any) -> bool:
    """Whether a value is a mapping whose names the user chooses."""
    return isinstance(value, dict) and value.is_new_allowed()


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and not value.is_new_allowed()


def _find(config: dict, key: str, source: str) -> Any:
    """The value at a dotted key."""
    node = config
    for name in str(key).split('.'):
        if not _is_section(node) or name not in node:
            key = str(key)
            shown = key if _is_text(key) and len(key) <= SHOWN else _shown(key)
            raise ValueError(f'unknown key {shown} in {source}{_close_keys(config, key)}')
        node = node[name]
    return node


def _close_keys(config: dict, key: str) -> str:
    keys = list(_all_keys(config)) if len(key) <= SHOWN else []
    close = [known for known in keys if known.split('.')[-1] == key.split('.')[-1]]
    close += [known for known in difflib.get_close_matches(key, keys) if known not in close]
    return f'; did you mean {" or ".join(close[:3])}?' if close else ''


def _all_keys(node: dict, prefix: str = '') -> Iterator[str]:
    for name, value in node.items():
        if _is_section(value):
            yield from _all_keys(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}'


def _mapping(key: str, value: Any, source: str, node_type: type) -> dict:
    """The value as a node of its own, which takes the place of what stood there."""
    if not isinstance(value, dict) or not all(
        _is_text(text) for item in value.items() for text in item
    ):
        raise ValueError(
            f'{key} in {source} must be a mapping of text to text, got {_shown(value)}'
        )
    return node_type(dict(value), new_allowed=True)


def _typed(key: str, value: Any, source: str, kind: type) -> Any:
    typed = value
    if kind is float and type(value) is int and abs(value) <= MAX_INTEGER:
        typed = float(value)
    elif kind in (list, tuple) and isinstance(value, (list, tuple)):
        typed = kind(value)
    if type(typed) is kind and all(map(_is_usable, typed if kind in (list, tuple) else [typed])):
        return typed
    or_none = ' or None' if key in OR_NONE else ''
    hint = ''
    if type(typed) is kind and kind is not float:
        hint = f'; numbers end at 2**64, text at {MAX_TEXT} characters, none of them for control'
    elif kind is str:
        quoted = _shown(str(value))
        hint = f'; as text it is {quoted}' if source != '--opts' else f'; as text it is "{quoted}"'
    raise ValueError(
        f'{key} in {source} must be {TYPE_NAMES[kind]}{or_none}, '
        f'got {_shown(value)} ({type(value).__name__}){hint}'
    )


def _is_usable(value: Any) -> bool:
    """Whether a value, or a part of a list, is one that all can calculate with and show."""
    if isinstance(value, str):
        return _is_text(value)
    if type(value) is int:
        return abs(value) <= MAX_INTEGER
    return not isinstance(value, float) or math.isfinite(value)


# ==== config_node: The node that holds the options of a run.


class Config(CfgNode):
    """The root node: whichever way it is merged, keys and types are checked, BASE is followed."""

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        merge_file(self, Path(cfg_filename))

    def merge_from_list(self, cfg_list: list) -> None:
        merge_pairs(self, cfg_list, '--opts')

    def merge_from_other_cfg(self, cfg_other: dict) -> None:
        merge_mapping(self, cfg_other, 'the other config')


def encoder_node(config: CfgNode) -> CfgNode:
    """The options of the encoder that MODEL.TYPE names."""
    return config.MODEL[config.MODEL.TYPE.upper()]


def encoder_name(config: CfgNode) -> str:
    """MODEL.TYPE, or the name of timm's model."""
    return config.MODEL.TIMM.NAME if config.MODEL.TYPE == 'timm' else config.MODEL.TYPE


def mask_units(config: CfgNode) -> tuple[int, int]:
    """Masking units of an image, and how many of them every mask of pre-training hides."""
    data = config.DATA
    units = (data.IMG_SIZE // data.MASK_PATCH_SIZE) ** 2
    return units, num_hidden(units, data.MASK_RATIO, data.MASK_TYPE)


def num_hidden(units: int, mask_ratio: float, mask_type: str) -> int:
    """How many units each mask hides; a mask type with an attribute `ratio` has a fixed share."""
    draw = REGISTRIES.get('DATA.MASK_TYPE', {}).get(mask_type)
    return math.ceil(units * getattr(draw, 'ratio', mask_ratio))


# ==== config_data: Options of the images: what is read, what they go through, how they are augmented.

DATA = CN()
# Images per process and micro-batch.
DATA.BATCH_SIZE = 128
# Root folder: of the CSV files and images ('chexpert'), or of a tree of images ('folder').
DATA.DATA_PATH = ''
# [CheXpert] Folder on each node's own disk that a packed store is copied into first; '': none.
DATA.CACHE_DIR = ''
# What DATA_PATH holds: 'imagenet' (as 'folder'), [CheXpert] 'folder', 'chexpert', 'mimic-cxr'.
DATA.DATASET = 'imagenet'
# Side of the model's square input, in pixels.
DATA.IMG_SIZE = 224
# Resizing in fine-tuning: 'random', 'bilinear', 'bicubic', 'lanczos', 'hamming'.
DATA.INTERPOLATION = 'bicubic'
# Whether batches lie in page-locked memory, for faster copies to a GPU.
DATA.PIN_MEMORY = True
# Loader processes per training process; 0 loads in the process itself.
DATA.NUM_WORKERS = 8
# Side of a masking unit, in pixels: divides IMG_SIZE, is a multiple of the model's patch.
DATA.MASK_PATCH_SIZE = 32
# Share of the masking units that is hidden, in (0, 1).
DATA.MASK_RATIO = 0.6
# [CheXpert] Names of the label files inside DATA_PATH; the test file may be absent.
DATA.TRAIN_CSV = 'train.csv'
# [CheXpert] Validation labels.
DATA.VALID_CSV = 'valid.csv'
# [CheXpert] Test labels.
DATA.TEST_CSV = 'test.csv'
# [CheXpert] Suffix of the images on disk where it is not the CSV's, such as '.png'; '': the CSV's.
DATA.IMAGE_SUFFIX = ''
# [CheXpert] Views that are trained on: 'frontal', 'lateral', 'all'.
DATA.VIEWS = 'frontal'
# [CheXpert] What is learned: 'observations' (14), 'any_finding', 'effusion' (against No Finding).
DATA.TASK = 'observations'
# [CheXpert] What an uncertain mention (-1) becomes in training: a name of data.labels.POLICIES.
DATA.UNCERTAIN = 'ones'
# [CheXpert] Exceptions, label: policy, such as {'Edema': 'zeros'}; replaces what BASE gave.
DATA.UNCERTAIN_BY_LABEL = CN(new_allowed=True)
# [CheXpert] For 'self_train': predictions over the training images of a run with 'ignore'.
DATA.SELF_TRAIN_PREDICTIONS = ''
# [CheXpert] CSV of pseudo-labels of training patients outside the subset, trained on too; '': none.
DATA.PSEUDO_LABELS = ''
# [CheXpert] What a blank (no mention) counts as: 'negative', 'ignore'.
DATA.BLANK = 'negative'
# [CheXpert] Share of the training patients that is used, in (0, 1]; seeded, smaller inside larger.
DATA.TRAIN_FRACTION = 1.0
# [CheXpert] This many training images, of the first patients; 0: as TRAIN_FRACTION says.
DATA.TRAIN_IMAGES = 0
# [CheXpert] Order of fine-tuning's epochs: 'uniform', 'weighted' (by inverse label frequency).
DATA.SAMPLER = 'uniform'
# [CheXpert] What an image goes through first: 'none', 'equalize', 'clahe', 'denoise'.
DATA.PREPROCESS = 'none'
# [CheXpert] CSV in DATA_PATH with more columns of each patient, such as race; '': none.
DATA.DEMOGRAPHICS = ''
# [CheXpert] MIMIC-CXR: whose labels are read, 'chexpert', 'negbio'.
DATA.LABELLER = 'chexpert'
# [CheXpert] Share of the training patients held out in all stages, the same ones, in [0, 1).
DATA.HOLDOUT_FRACTION = 0.02
# [CheXpert] Mean per channel of pixels in [0, 1]; []: 0.503 for 1 channel, ImageNet's for 3.
DATA.MEAN = []
# [CheXpert] Standard deviation per channel of pixels in [0, 1]; []: 0.292, or ImageNet's for 3.
DATA.STD = []
# [CheXpert] Statistics that normalise an image: 'dataset' (MEAN, STD) or 'image' (its own).
DATA.NORMALIZE = 'dataset'
# [CheXpert] Which units are hidden together: 'random', 'square', 'block'.
DATA.MASK_TYPE = 'random'
# [CheXpert] Whether 'folder' may pre-train on a root with train.csv or valid.csv: on scored images.
DATA.ALLOW_ALL_IMAGES = False
# [CheXpert] Resizing in pre-training: 'bilinear', 'bicubic', 'lanczos', 'hamming'.
DATA.PRETRAIN_INTERPOLATION = 'bilinear'
# [CheXpert] What an image that cannot be used does in training: 'error' (stop), 'skip' (another).
DATA.BAD_IMAGE = 'error'
# [CheXpert] 'skip': so many different images may be bad; one more stops the run.
DATA.BAD_IMAGE_LIMIT = 100

AUG = CN()
# Brightness and contrast jitter, contrastive and (AUTO_AUGMENT 'none') fine-tuning; 0: off.
AUG.COLOR_JITTER = 0.4
# timm policy of ImageNet fine-tuning, such as SimMIM's here; CheXpert's labels: 'none'.
AUG.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'
# Fine-tuning: probability of random erasing.
AUG.REPROB = 0.25
# What an erased area is filled with: 'const', 'rand' (a value per area), 'pixel' (a value each).
AUG.REMODE = 'pixel'
# Erased areas per image, at least 1.
AUG.RECOUNT = 1
# Beta parameter of Mixup; CheXpert's labels: 0 (off).
AUG.MIXUP = 0.8
# Beta parameter of CutMix; CheXpert's labels: 0 (off).
AUG.CUTMIX = 1.0
# Range of CutMix's ratio [low, high] in place of CUTMIX; CheXpert's labels: None.
AUG.CUTMIX_MINMAX = None
# Probability that a batch is mixed.
AUG.MIXUP_PROB = 1.0
# Probability of CutMix where both are on.
AUG.MIXUP_SWITCH_PROB = 0.5
# What shares a mixing ratio: 'batch', 'pair', 'elem'.
AUG.MIXUP_MODE = 'batch'
# [CheXpert] Area of crops [low, high]; []: [0.67, 1], contrastive [0.3, 1], fine-tuning [0.08, 1].
AUG.CROP_AREA = []
# [CheXpert] Probability of a horizontal flip, all stages.
AUG.HFLIP = 0.5
# [CheXpert] Not SimMIM and MAE: greatest rotation, in degrees; 0: none.
AUG.ROTATION = 0.0
# [CheXpert] Not SimMIM and MAE: greatest shift, as a share of the side; 0: none.
AUG.TRANSLATE = 0.0
# [CheXpert] Not SimMIM and MAE: range of enlargement [low, high]; []: none.
AUG.SCALE = []
# [CheXpert] Not SimMIM and MAE: greatest shear, in degrees; 0: none.
AUG.SHEAR = 0.0
# [CheXpert] Not SimMIM and MAE: how far corners move, as a share of half the side; 0: none.
AUG.DISTORTION = 0.0

TEST = CN()
# Evaluation: enlarge by 256/224 and crop the centre; False: resize the whole image to the square.
TEST.CROP = True


# ==== config_model: Options of the models, of what they learn by, and of contrastive pre-training.

MODEL = CN()
# Encoder: 'swin' (reads MODEL.SWIN), 'vit' (MODEL.VIT), and (not in SimMIM) 'timm' (MODEL.TIMM).
MODEL.TYPE = 'swin'
# [CheXpert] How 'swin' and 'vit' are pre-trained: 'simmim', 'mae' (ViT, visible patches alone).
MODEL.PRETRAIN = 'simmim'
# Folder below OUTPUT, and the logger's name; selects nothing.
MODEL.NAME = 'swin_tiny_patch4_window7_224'
# Checkpoint to go on from, a path or an https address; '': the newest in the run's folder.
MODEL.RESUME = ''
# Outputs of the classifier; CheXpert's labels: 14.
MODEL.NUM_CLASSES = 1000
# Input channels of the encoder: 1 (grey) or 3 (grey X-rays are repeated).
MODEL.IN_CHANS = 3
# Dropout after embedding, attention and MLP, in [0, 1).
MODEL.DROP_RATE = 0.0
# Stochastic depth of the last block, growing from 0 at the first, in [0, 1).
MODEL.DROP_PATH_RATE = 0.1
# Label smoothing, in [0, 1); CheXpert's labels: 0.
MODEL.LABEL_SMOOTHING = 0.1
# [CheXpert] How attention is computed: 'auto', 'eager', 'sdpa'.
MODEL.ATTENTION = 'auto'

MODEL.SWIN = CN()
# Side of a token, in pixels.
MODEL.SWIN.PATCH_SIZE = 4
# Width of the first stage; each stage doubles it.
MODEL.SWIN.EMBED_DIM = 96
# Blocks per stage.
MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
# Attention heads per stage; each divides its stage's width.
MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
# Side of an attention window, in tokens; divides each stage's side that is larger.
MODEL.SWIN.WINDOW_SIZE = 7
# Width of the MLP over width of the block.
MODEL.SWIN.MLP_RATIO = 4.0
# Whether queries, keys and values have a bias.
MODEL.SWIN.QKV_BIAS = True
# Scale of the queries; None: 1 / sqrt(width of a head).
MODEL.SWIN.QK_SCALE = None
# Whether an absolute position embedding is added.
MODEL.SWIN.APE = False
# Whether a LayerNorm follows the patch embedding.
MODEL.SWIN.PATCH_NORM = True

MODEL.VIT = CN()
# Side of a token, in pixels.
MODEL.VIT.PATCH_SIZE = 16
# Width.
MODEL.VIT.EMBED_DIM = 768
# Blocks.
MODEL.VIT.DEPTH = 12
# Attention heads; they divide the width.
MODEL.VIT.NUM_HEADS = 12
# Width of the MLP over width of the block (SimMIM's 4, which fractions may replace).
MODEL.VIT.MLP_RATIO = 4.0
# Whether queries and values have a bias (keys never have).
MODEL.VIT.QKV_BIAS = True
# Start of the layer scales; None: no layer scales.
MODEL.VIT.INIT_VALUES = 0.1
# Whether an absolute position embedding is added.
MODEL.VIT.USE_APE = False
# Whether the classifier reads the mean of the patch tokens, not the class token.
MODEL.VIT.USE_MEAN_POOLING = False
# Whether each block has a relative position bias of its own.
MODEL.VIT.USE_RPB = False
# Whether all blocks share one relative position bias (with USE_RPB: added to it).
MODEL.VIT.USE_SHARED_RPB = True
# [CheXpert] Whether fixed sine-cosine positions are added (MAE's); USE_APE learns them.
MODEL.VIT.USE_SINCOS = False

MODEL.TIMM = CN()
# [CheXpert] A classifier of timm, such as 'resnet50', 'densenet121', 'vit_small_patch16_224'.
MODEL.TIMM.NAME = 'resnet50'

MODEL.SIMMIM = CN()
# [CheXpert] Head: 'linear', 'mlp', 'inverse_swin_nano', 'inverse_swin_t', 'inverse_swin_b'.
MODEL.SIMMIM.HEAD = 'linear'
# [CheXpert] Distance of reconstruction and image: 'l1', 'l2', 'smooth_l1'.
MODEL.SIMMIM.LOSS = 'l1'
# [CheXpert] Pixels that the loss counts: 'masked', 'all'.
MODEL.SIMMIM.LOSS_PIXELS = 'masked'
# [CheXpert] Side of what is predicted, in values, each an average of pixels; 0: DATA.IMG_SIZE.
MODEL.SIMMIM.TARGET_SIZE = 0
# [CheXpert] What is predicted: 'pixels', 'patch_normalised' (each masking unit standardised).
MODEL.SIMMIM.TARGET = 'pixels'

MODEL.MAE = CN()
# [CheXpert] Width of the decoder.
MODEL.MAE.DECODER_EMBED_DIM = 512
# [CheXpert] Blocks of the decoder.
MODEL.MAE.DECODER_DEPTH = 8
# [CheXpert] Attention heads of the decoder; they divide its width.
MODEL.MAE.DECODER_NUM_HEADS = 16
# [CheXpert] Whether each patch is predicted less its mean, over its standard deviation.
MODEL.MAE.NORM_PIX_LOSS = False

LOSS = CN()
# [CheXpert] Loss of the labels: 'bce', 'weighted_bce', 'focal', 'asymmetric' (models/losses.py).
LOSS.NAME = 'bce'
# [CheXpert] 'focal': exponent.
LOSS.GAMMA = 2.0
# [CheXpert] 'focal': weight of positives, 1 - ALPHA of negatives, in [0, 1]; None: both 1.
LOSS.ALPHA = None
# [CheXpert] 'asymmetric': exponent of positives.
LOSS.GAMMA_POS = 0.0
# [CheXpert] 'asymmetric': exponent of negatives.
LOSS.GAMMA_NEG = 4.0
# [CheXpert] 'asymmetric': negatives of probability below this count nothing, in [0, 1).
LOSS.CLIP = 0.05

CONTRASTIVE = CN()
# [CheXpert] Method of main_contrastive.py: 'moco', 'simclr', 'byol', 'swav'.
CONTRASTIVE.METHOD = 'moco'
# [CheXpert] Width of what is compared; None: 128, of 'byol' 256.
CONTRASTIVE.DIM = None
# [CheXpert] Divides cosines; None: 0.07 'moco', 0.1 'simclr' and 'swav'; 'byol' has none.
CONTRASTIVE.TEMPERATURE = None
# [CheXpert] 'moco', 'byol': share of itself that the slow encoder keeps; None: 0.999, 0.996.
CONTRASTIVE.MOMENTUM = None
# [CheXpert] 'moco': keys of earlier batches, a multiple of a batch on all processes.
CONTRASTIVE.QUEUE_SIZE = 4096
# [CheXpert] 'swav': prototypes; at most twice the images of a batch on all processes.
CONTRASTIVE.NUM_PROTOTYPES = 3000
# [CheXpert] 'swav': first optimizer steps in which the prototypes do not learn.
CONTRASTIVE.FREEZE_PROTOTYPES_STEPS = 0
# [CheXpert] 'swav': small crops of an image beside its two views (SwAV: 6); 0: none.
CONTRASTIVE.LOCAL_CROPS = 0
# [CheXpert] Area of a small crop [low, high].
CONTRASTIVE.LOCAL_CROP_AREA = [0.05, 0.14]
# [CheXpert] Side of a small crop, in pixels; 0: DATA.IMG_SIZE, all that Swin and ViT take.
CONTRASTIVE.LOCAL_SIZE = 0
# [CheXpert] Probability that a view is blurred.
CONTRASTIVE.BLUR = 0.5


# ==== config_training: Options of training, of evaluation, and of the report.

TRAIN = CN()
# Always 0: a resumed run begins where its checkpoint ended.
TRAIN.START_EPOCH = 0
# Epochs in all.
TRAIN.EPOCHS = 300
# Epochs of linear warm-up, inside EPOCHS.
TRAIN.WARMUP_EPOCHS = 20
# Weight decay; free of it: biases, norms, position tables and tokens as the model says.
TRAIN.WEIGHT_DECAY = 0.05
# Peak learning rate per 512 images of the global batch.
TRAIN.BASE_LR = 5e-4
# Rate at the start of the warm-up, per 512 images.
TRAIN.WARMUP_LR = 5e-7
# Rate at the end of 'cosine' and 'onecycle', per 512 images; other schedules ignore it.
TRAIN.MIN_LR = 5e-6
# Greatest 2-norm of the gradient; 0: not clipped.
TRAIN.CLIP_GRAD = 5.0
# Whether to go on from the newest checkpoint in the run's folder.
TRAIN.AUTO_RESUME = True
# Micro-batches per optimizer step; 0 and 1: no accumulation.
TRAIN.ACCUMULATION_STEPS = 0
# Whether blocks are computed again in the backward pass, to save memory.
TRAIN.USE_CHECKPOINT = False
# [CheXpert] What USE_CHECKPOINT keeps beside a block's input: 'nothing', 'products' (of linears).
TRAIN.CHECKPOINT_KEEPS = 'nothing'
# [CheXpert] Compiled steps: 'none', 'auto' (on a GPU, if the run is long enough), 'max' (always).
TRAIN.COMPILE = 'auto'
# [CheXpert] How processes exchange gradients: 'float32', 'bfloat16' (half the bytes, rounded).
TRAIN.GRADIENT_EXCHANGE = 'float32'
# Fine-tuning: rate of a layer over that of the next one, in (0, 1].
TRAIN.LAYER_DECAY = 1.0
# [CheXpert] Checkpoints inside an epoch, every this many optimizer steps; 0: none.
TRAIN.SAVE_EVERY_STEPS = 0
# [CheXpert] Checkpoints inside an epoch, every this many minutes; 0: none.
TRAIN.SAVE_EVERY_MINUTES = 0.0
# [CheXpert] What a loss or gradient that is not finite does: 'stop', 'skip' (that step).
TRAIN.ON_NAN = 'stop'
# [CheXpert] 'skip': so many steps of the run may be skipped; one more stops it.
TRAIN.NAN_LIMIT = 10
# [CheXpert] Whether only deterministic algorithms run: bit for bit the same on one machine, slower.
TRAIN.DETERMINISTIC = False
# [CheXpert] Minutes that a process waits for the others before it ends with an error.
TRAIN.RANK_TIMEOUT_MINUTES = 30.0

TRAIN.LR_SCHEDULER = CN()
# 'cosine', 'linear', 'step', 'multistep', and (not in SimMIM) 'onecycle'.
TRAIN.LR_SCHEDULER.NAME = 'cosine'
# 'step': epochs between two drops.
TRAIN.LR_SCHEDULER.DECAY_EPOCHS = 30
# 'step': factor of a drop.
TRAIN.LR_SCHEDULER.DECAY_RATE = 0.1
# 'multistep': factor of a drop.
TRAIN.LR_SCHEDULER.GAMMA = 0.1
# 'multistep': epochs of the drops, ascending, the first not before the warm-up's end.
TRAIN.LR_SCHEDULER.MULTISTEPS = []

TRAIN.OPTIMIZER = CN()
# 'adamw', 'sgd', in any case.
TRAIN.OPTIMIZER.NAME = 'adamw'
# AdamW: added to the denominator.
TRAIN.OPTIMIZER.EPS = 1e-8
# AdamW: decay of the first and second moments, each in [0, 1).
TRAIN.OPTIMIZER.BETAS = (0.9, 0.999)
# SGD: Nesterov momentum, in (0, 1).
TRAIN.OPTIMIZER.MOMENTUM = 0.9

FINETUNE = CN()
# [CheXpert] What is fitted: 'full', 'last_layer' (trained); 'linear_probe', 'knn' (on features).
FINETUNE.MODE = 'full'

EVAL = CN()
# [CheXpert] Views that are scored: 'frontal', 'lateral', 'all'; '': as DATA.VIEWS.
EVAL.VIEWS = ''
# [CheXpert] What a score counts: 'study' or 'image'.
EVAL.LEVEL = 'study'
# [CheXpert] A study's probability over its images: 'max', 'mean'.
EVAL.AGGREGATE = 'max'
# [CheXpert] Where the best checkpoint is chosen: 'holdout', 'valid' (the report warns of it).
EVAL.SELECT_ON = 'holdout'
# [CheXpert] By which mean AUROC: 'five' (tasks), 'all' (labels), 'auto' (five where defined).
EVAL.SELECT = 'auto'
# [CheXpert] Held-out images that pre-training scores after each epoch; 0: all.
EVAL.HOLDOUT_IMAGES = 256
# [CheXpert] Views of an image that are averaged: 'none', 'crops' (centre and four corners).
EVAL.TTA = 'none'
# [CheXpert] Whether each is averaged with its mirror image, too.
EVAL.TTA_FLIP = False
# [CheXpert] Checkpoints whose probabilities --eval averages, paths; []: one checkpoint.
EVAL.ENSEMBLE = []
# [CheXpert] Whether predictions over the training images are written, too.
EVAL.PREDICT_TRAIN = False
# [CheXpert] Rule of the thresholds, on held-out patients: 'youden', 'f1', 'sensitivity'.
EVAL.THRESHOLD = 'youden'
# [CheXpert] The sensitivity wanted by 'sensitivity'.
EVAL.SENSITIVITY = 0.9
# [CheXpert] Bootstrap resamples of the patients behind each interval; 0: no intervals.
EVAL.RESAMPLES = 1000
# [CheXpert] Further columns to score by, of the CSVs or of DATA.DEMOGRAPHICS, such as ['RACE'].
EVAL.GROUPS = []
# [CheXpert] Where age bands begin, in years.
EVAL.AGE_BANDS = [0, 40, 60, 80]

REPORT = CN()
# [CheXpert] Whether fine-tuning and --eval end with report.html and what belongs to it.
REPORT.WRITE = True
# [CheXpert] Saliency maps by label and kind (true or false, positive or negative); 0: none.
REPORT.MAPS = 2
# [CheXpert] How they are made: 'grad_cam', or (ViT, the same for all labels) 'rollout'.
REPORT.METHOD = 'grad_cam'
# [CheXpert] Whether reports name images by salted hashes; predictions_*.csv keep their paths.
REPORT.ANONYMISE = False


# ==== config_flags: The flags of the mains, and the options that they stand for.

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


# ==== config_checks: Which values an option takes and which options go together, checked before anything is built.

VIEWS = ('frontal', 'lateral', 'all')
PROBES = ('linear_probe', 'knn')  # fitted on frozen features, not trained
INTERPOLATIONS = ('bilinear', 'bicubic', 'lanczos', 'hamming')

CHOICES = {
    'DATA.SAMPLER': ('uniform', 'weighted'),
    'DATA.LABELLER': ('chexpert', 'negbio'),
    'DATA.INTERPOLATION': ('random', *INTERPOLATIONS),
    'DATA.PRETRAIN_INTERPOLATION': INTERPOLATIONS,
    'DATA.VIEWS': VIEWS,
    'DATA.BAD_IMAGE': ('error', 'skip'),
    'DATA.NORMALIZE': ('dataset', 'image'),
    'MODEL.ATTENTION': ('auto', 'eager', 'sdpa'),
    'MODEL.IN_CHANS': (1, 3),
    'MODEL.SIMMIM.LOSS_PIXELS': ('masked', 'all'),
    'TRAIN.LR_SCHEDULER.NAME': ('cosine', 'linear', 'step', 'multistep', 'onecycle'),
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
    'EVAL.THRESHOLD': ('youden', 'f1', 'sensitivity'),
    'EVAL.SELECT_ON': ('holdout', 'valid'),
    'EVAL.SELECT': ('auto', 'five', 'all'),
    'FINETUNE.MODE': ('full', 'last_layer', *PROBES),
    'REPORT.METHOD': ('grad_cam', 'rollout'),
    'AMP_OPT_LEVEL': ('O0', 'O1', 'O2'),
}
RANGES = {
    '[1, inf)': (
        'DATA.BATCH_SIZE DATA.MASK_PATCH_SIZE MODEL.SWIN.PATCH_SIZE '
        'MODEL.SWIN.EMBED_DIM MODEL.SWIN.WINDOW_SIZE MODEL.VIT.PATCH_SIZE MODEL.VIT.EMBED_DIM '
        'MODEL.VIT.DEPTH MODEL.VIT.NUM_HEADS TRAIN.EPOCHS TRAIN.LR_SCHEDULER.DECAY_EPOCHS '
        'AUG.RECOUNT SAVE_FREQ PRINT_FREQ MODEL.MAE.DECODER_EMBED_DIM MODEL.MAE.DECODER_DEPTH '
        'MODEL.MAE.DECODER_NUM_HEADS CONTRASTIVE.DIM CONTRASTIVE.QUEUE_SIZE '
        'CONTRASTIVE.NUM_PROTOTYPES'
    ),
    '[0, inf)': (
        'DATA.NUM_WORKERS DATA.TRAIN_IMAGES MODEL.NUM_CLASSES MODEL.VIT.INIT_VALUES '
        'TRAIN.WARMUP_EPOCHS TRAIN.WEIGHT_DECAY TRAIN.WARMUP_LR TRAIN.MIN_LR '
        'TRAIN.CLIP_GRAD TRAIN.ACCUMULATION_STEPS TRAIN.SAVE_EVERY_STEPS '
        'TRAIN.SAVE_EVERY_MINUTES TRAIN.NAN_LIMIT DATA.BAD_IMAGE_LIMIT SAVE_KEEP AUG.COLOR_JITTER '
        'AUG.MIXUP AUG.CUTMIX EVAL.HOLDOUT_IMAGES EVAL.RESAMPLES EVAL.AGE_BANDS LOSS.GAMMA '
        'LOSS.GAMMA_POS LOSS.GAMMA_NEG MODEL.SIMMIM.TARGET_SIZE REPORT.MAPS SEED '
        'CONTRASTIVE.FREEZE_PROTOTYPES_STEPS CONTRASTIVE.LOCAL_CROPS CONTRASTIVE.LOCAL_SIZE'
    ),
    '(0, inf)': (
        'MODEL.SWIN.MLP_RATIO MODEL.SWIN.QK_SCALE MODEL.VIT.MLP_RATIO TRAIN.BASE_LR '
        'TRAIN.RANK_TIMEOUT_MINUTES TRAIN.OPTIMIZER.EPS TRAIN.LR_SCHEDULER.DECAY_RATE '
        'TRAIN.LR_SCHEDULER.GAMMA AUG.SCALE CONTRASTIVE.TEMPERATURE'
    ),
    '(0, 1]': 'DATA.TRAIN_FRACTION TRAIN.LAYER_DECAY',
    '(0, 1)': 'DATA.MASK_RATIO TRAIN.OPTIMIZER.MOMENTUM EVAL.SENSITIVITY',
    '[0, 1)': (
        'DATA.HOLDOUT_FRACTION MODEL.DROP_RATE MODEL.DROP_PATH_RATE MODEL.LABEL_SMOOTHING '
        'TRAIN.OPTIMIZER.BETAS AUG.TRANSLATE LOSS.CLIP CONTRASTIVE.MOMENTUM'
    ),
    '[0, 1]': (
        'DATA.MEAN AUG.REPROB AUG.MIXUP_PROB AUG.MIXUP_SWITCH_PROB AUG.HFLIP AUG.CROP_AREA '
        'AUG.CUTMIX_MINMAX LOSS.ALPHA CONTRASTIVE.BLUR CONTRASTIVE.LOCAL_CROP_AREA'
    ),
    '[0, 0.66]': 'AUG.DISTORTION',
    '[0, 180]': 'AUG.ROTATION',
    '[1, 8192]': 'DATA.IMG_SIZE',
    '[0, 90)': 'AUG.SHEAR',
}
NAN_TARGETS = 'it mixes targets, and a label that is not known has none'
# What fine-tuning on CheXpert's labels needs: key -> (the one value that works, why).
CHEXPERT_LABELS = {
    'MODEL.LABEL_SMOOTHING': (0.0, 'it needs one class per image'),
    'AUG.AUTO_AUGMENT': ('none', 'the policies change colours of 3-channel photographs'),
    'AUG.MIXUP': (0.0, NAN_TARGETS),
    'AUG.CUTMIX': (0.0, NAN_TARGETS),
    'AUG.CUTMIX_MINMAX': (None, NAN_TARGETS),
}


class Registry(dict):
    """The parts of one kind by name; the names are the values that one option allows.

    The module that defines the parts fills the registry:

        MASKS = Registry('DATA.MASK_TYPE')

        @MASKS.register('random')
        def random_units(...): ...

    `check_config` and the options page read the allowed values from here, and tests are
    parametrized over it.

    Args:
        key: The option that selects a part, for example 'DATA.MASK_TYPE'.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        REGISTRIES[key] = self

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that adds a part under this name."""

        def add(part: Any) -> Any:
            assert name not in self, f'{self.key} {name!r} is registered twice'
            self[name] = part
            return part

        return add


REGISTRIES: dict[str, Registry] = {}  # by option key, filled when a module with parts is imported


CHECKS: list[Callable[[Any, str | None], None]] = []  # of other modules, filled by their import


def register_check(check: Callable[[Any, str | None], None]) -> Callable[[Any, str | None], None]:
    """Decorator: let `check_config` call this function with config and stage at its end."""
    CHECKS.append(check)
    return check


def allowed_values(key: str) -> tuple | None:
    """The values that an option allows: the names of its registry, or its entry in CHOICES."""
    return tuple(REGISTRIES[key]) if key in REGISTRIES else CHOICES.get(key)


def check_config(config: Any, stage: str | None = None) -> None:
    """Refuse what cannot work, naming key, value and what is allowed.

    Args:
        config: all options.
        stage: adds what only 'simmim', 'contrastive' or 'finetune' needs; only the first has masks.

    Raises:
        ValueError: at the first option that is out of range or does not go with the others.
    """
    for key in {**CHOICES, **REGISTRIES}:
        allowed = allowed_values(key)
        require(value_at(config, key) in allowed, config, key, f'one of {list(allowed)}')
    for interval, keys in RANGES.items():
        for key in keys.split():
            _check_range(config, key, interval)
    require(config.SEED < 2**63, config, 'SEED', 'at most 2**63 - 1')  # beyond, NumPy rounds keys
    modes = [k for k in ('EVAL_MODE', 'THROUGHPUT_MODE', 'CHECK_MODE') if config[k]]
    if len(modes) > 1:
        raise ValueError(f'only one of {modes} may be asked for')
    for key in ('MODEL.NAME', 'TAG'):
        path = PurePath(value_at(config, key))
        inside = not path.is_absolute() and '..' not in path.parts
        require(inside, config, key, 'the name of a folder inside OUTPUT')
    _check_statistics(config)
    _check_ordered_pair(config, 'AUG.CROP_AREA', [])
    _check_ordered_pair(config, 'AUG.CUTMIX_MINMAX', None)
    _check_ordered_pair(config, 'AUG.SCALE', [])
    _check_evaluation(config)
    _check_training(config)
    for key, parts in REGISTRIES.items():  # a part may have a function check(config, stage)
        if hasattr(parts[value_at(config, key)], 'check'):
            parts[value_at(config, key)].check(config, stage)
    if stage == 'finetune':
        _check_finetune(config)
    for check in CHECKS:
        check(config, stage)


def require(holds: bool, config: Any, key: str, allowed: str) -> None:
    """Raise a ValueError that names the key, its value and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f'{key} must be {allowed}, got {value_at(config, key)!r}')


def _check_range(config: Any, key: str, interval: str) -> None:
    """A number (each number of a list, None left out) must lie in '[low, high)' or the like."""
    value = value_at(config, key)
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    low, high = map(float, interval[1:-1].split(','))
    for number in values:
        inside = (
            type(number) in (int, float)
            and low <= number <= high
            and (number != low or interval[0] == '[')
            and (number != high or interval[-1] == ']')
        )
        each = 'numbers' if values is value else 'a number'
        require(inside, config, key, f'{each} in {interval}')


def _check_ordered_pair(config: Any, key: str, off: Any) -> None:
    pair = value_at(config, key)
    holds = pair == off or (len(pair) == 2 and 0 < pair[0] <= pair[1])
    require(holds, config, key, f'[low, high] with 0 < low <= high, or {off}')


def _check_statistics(config: Any) -> None:
    data = config.DATA
    channels = config.MODEL.IN_CHANS
    for key, other in (('MEAN', 'STD'), ('STD', 'MEAN')):
        holds = len(data[key]) == (channels if data[key] or data[other] else 0)
        allowed = f'as long as there are channels, {channels}, or empty together with DATA.{other}'
        require(holds, config, f'DATA.{key}', allowed)
    require(all(0 < std <= 1 for std in data.STD), config, 'DATA.STD', 'numbers in (0, 1]')
    holds = data.TRAIN_FRACTION == 1 or data.TRAIN_IMAGES == 0
    require(holds, config, 'DATA.TRAIN_IMAGES', '0 where DATA.TRAIN_FRACTION is below 1')
    holds = data.IMAGE_SUFFIX == '' or data.IMAGE_SUFFIX.startswith('.')
    require(holds, config, 'DATA.IMAGE_SUFFIX', "empty, or a suffix like '.png'")


def _check_evaluation(config: Any) -> None:
    bands = config.EVAL.AGE_BANDS
    holds = bool(bands) and bands == sorted(set(bands))
    require(holds, config, 'EVAL.AGE_BANDS', 'ascending ages such as [0, 40, 60, 80]')
    for key in ('ENSEMBLE', 'GROUPS'):
        holds = all(isinstance(name, str) and name for name in config.EVAL[key])
        require(holds, config, f'EVAL.{key}', 'a list of names')


def _check_training(config: Any) -> None:
    train, schedule = config.TRAIN, config.TRAIN.LR_SCHEDULER
    warmup = 'TRAIN.WARMUP_EPOCHS'
    require(
        train.OPTIMIZER.NAME.lower() in ('adamw', 'sgd'),
        config,
        'TRAIN.OPTIMIZER.NAME',
        "one of ['adamw', 'sgd']",
    )
    require(len(train.OPTIMIZER.BETAS) == 2, config, 'TRAIN.OPTIMIZER.BETAS', 'two numbers')
    epochs = f'TRAIN.EPOCHS, {train.EPOCHS}'
    require(train.WARMUP_EPOCHS <= train.EPOCHS, config, warmup, f'at most {epochs}')
    allowed = '0: a resumed run begins where its checkpoint ended'
    require(train.START_EPOCH == 0, config, 'TRAIN.START_EPOCH', allowed)
    if schedule.NAME != 'multistep':
        return
    steps = schedule.MULTISTEPS
    holds = bool(steps) and all(type(step) is int and step > 0 for step in steps)
    allowed = "ascending epochs like [700] where TRAIN.LR_SCHEDULER.NAME is 'multistep'"
    require(holds and steps == sorted(steps), config, 'TRAIN.LR_SCHEDULER.MULTISTEPS', allowed)
    allowed = f'at most the first of TRAIN.LR_SCHEDULER.MULTISTEPS, {steps[0]}'
    require(train.WARMUP_EPOCHS <= steps[0], config, warmup, allowed)


def _check_finetune(config: Any) -> None:
    for key, (works, why) in CHEXPERT_LABELS.items():
        allowed = f'{works!r} with CheXpert labels ({why})'
        require(value_at(config, key) == works, config, key, allowed)
    _check_probe(config)
    holds = config.DATA.HOLDOUT_FRACTION > 0 or config.EVAL.SELECT_ON != 'holdout'
    allowed = "above 0 where EVAL.SELECT_ON is 'holdout'"
    require(holds, config, 'DATA.HOLDOUT_FRACTION', allowed)
    encoder = REGISTRIES.get('MODEL.TYPE', {}).get(config.MODEL.TYPE)
    holds = config.REPORT.METHOD == 'grad_cam' or getattr(encoder, 'attends_globally', True)
    require(holds, config, 'REPORT.METHOD', "'grad_cam' for an encoder without global attention")


def _check_probe(config: Any) -> None:
    mode = config.FINETUNE.MODE
    if mode not in PROBES or config.EVAL_MODE:
        return
    allowed = f'above 0 where FINETUNE.MODE is {mode!r}'
    require(config.DATA.HOLDOUT_FRACTION > 0, config, 'DATA.HOLDOUT_FRACTION', allowed)
    allowed = 'empty with a probe: name the encoder with --pretrained'
    require(not config.MODEL.RESUME, config, 'MODEL.RESUME', allowed)


# ==== config_dump: The options of a run as text, how two such texts differ, and which options decide training.

# The options that leave it as it is what is trained: where things lie, how work is shared, what is
# saved and printed, and the sections of what is evaluated and reported.
FREE_OPTIONS = (
    'OUTPUT', 'MODEL.NAME', 'TAG', 'PRETRAINED', 'MODEL.RESUME', 'TRAIN.AUTO_RESUME',
    'TRAIN.START_EPOCH', 'DATA.DATA_PATH', 'DATA.CACHE_DIR', 'DATA.NUM_WORKERS', 'DATA.PIN_MEMORY',
    'DATA.SELF_TRAIN_PREDICTIONS', 'DATA.BATCH_SIZE', 'TRAIN.ACCUMULATION_STEPS', 'PRINT_FREQ',
    'SAVE_FREQ', 'SAVE_KEEP', 'TRAIN.SAVE_EVERY_STEPS', 'TRAIN.SAVE_EVERY_MINUTES',
    'TRAIN.RANK_TIMEOUT_MINUTES', 'EVAL_MODE', 'THROUGHPUT_MODE', 'CHECK_MODE',
)  # fmt: skip
REPORTED_SECTIONS = ('TEST', 'EVAL', 'REPORT')


def config_text(config: CfgNode) -> str:
    """The options as YAML that repeats the run as --cfg; BASE is empty, being merged already."""
    plain = config.clone()
    plain.defrost()
    plain.BASE = ['']
    return plain.dump(sort_keys=False)


def config_changes(before: str, after: str) -> list[str]:
    """The options that differ between two texts of config_text, a line each: 'KEY: old -> new'."""
    old, new = (dict(_flatten(load_options(text))) for text in (before, after))
    return [f'{key}: {old.get(key)} -> {new.get(key)}' for key in _differing(old, new)]


def training_changes(before: str, after: str, defaults: str) -> list[str]:
    """Those of config_changes that decide what is trained; what `before` lacks was the default."""
    old, new, usual = (dict(_flatten(load_options(text))) for text in (before, after, defaults))
    old |= {key: value for key, value in usual.items() if key not in old and value == new.get(key)}
    return [
        f'{key}: {old.get(key)} -> {new.get(key)}'
        for key in _differing(old, new)
        if key not in FREE_OPTIONS and key.partition('.')[0] not in REPORTED_SECTIONS
    ]


def has_more_epochs(before: str, after: str) -> bool:
    """Whether there is something left to train for a run that has all epochs of `before`."""
    old, new = (dict(_flatten(load_options(text))).get('TRAIN.EPOCHS') for text in (before, after))
    return isinstance(old, int) and new > old


def as_trained(before: str, after: str) -> str:
    """The options `before`, with those of `after` for what is evaluated and reported."""
    reported = {
        key: value for key, value in load_options(after).items() if key in REPORTED_SECTIONS
    }
    return yaml.safe_dump(load_options(before) | reported, sort_keys=False)


def _differing(old: dict, new: dict) -> list[str]:
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _flatten(node: dict, prefix: str = '') -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


# ==== config: The config that a run gets; defaults and meanings of the options that are the run's own.
#
# Those of its nodes are in config_data.py, config_model.py and config_training.py.

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
# Checkpoint whose weights the run starts from, a path or an https address; '': none.
_C.PRETRAINED = ''

# The classes that SimMIM's and MAE's own checkpoints hold besides tensors, for the safe loader.
CHECKPOINT_GLOBALS = [CfgNode, argparse.Namespace]


def add_options(section: str, options: dict[str, Any]) -> None:
    """Declare the options of a part in the part's own file, before a configuration is read.

    Args:
        section: Where they are, for example 'MODEL.CONVNEXT'.
        options: Name to default value.
    """
    parent, _, name = section.rpartition('.')
    value_at(_C, parent)[name] = CN(options)


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
            put(config, key, value, '--' + flag.replace('_', '-'))
    check_config(config, getattr(args, 'stage', None))
    config.freeze()
    return config
