"""A .pt2 file: the program of torch.export, which runs without the model's code."""

import argparse
import importlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from config import Config, value_at
from data.labels import task_labels
from data.transforms import FILTERS, enlarged_side, statistics
from engine.files import in_one_line
from evaluation.inference import load_classifier
from models import build_model
from models.contrastive import METHODS
from models.convert import PREFIX, PROCESSOR, drop_buffers, is_contrastive, to_huggingface
from utils import load_model_state, read_checkpoint, trained_config

# ==== export: Trained weights for other programs: timm, transformers, ONNX, torch.export.


# ==== export.packages: Packages that only exports need.

REQUIREMENTS = 'requirements-export.txt'


def load_package(name: str, target: str) -> ModuleType:
    """Import a package of REQUIREMENTS.

    Raises:
        ValueError: if it is not installed, saying how it is.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'--to {target} needs the package {name}: pip install -r {REQUIREMENTS} ({error})'
        ) from error


# ==== export.naming: What other libraries call the entries of our state dicts: pure functions over them.
#
# Swin's patch merging puts the four neighbours in the same order in SimMIM and timm (top left, bottom
# left, top right, bottom right), and both count relative positions alike: only names differ, and
# where timm's merging begins the next stage. Transformers' names: models/convert_huggingface.py.

State = dict[str, Tensor]
Table = tuple[tuple[str, str], ...]  # (regular expression, what takes its place), all applied

TIMM_SWIN: Table = ((r'^head\.', 'head.fc.'),)
TIMM_VIT: Table = ((r'\.gamma_1$', '.ls1.gamma'), (r'\.gamma_2$', '.ls2.gamma'))


def learned_entries(state: State) -> State:
    """An encoder's entries without what is computed for a size, and without the mask token."""
    return {key: value for key, value in drop_buffers(state).items() if key != 'mask_token'}


def rename(state: State, table: Table) -> State:
    """Apply every row of a table to every key."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in table:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def swin_to_timm(state: State) -> State:
    """Swin's learned entries as timm's `SwinTransformer` has them."""
    moved = {
        re.sub(r'^layers\.(\d+)\.downsample', _next_stage, key): value
        for key, value in state.items()
    }
    return rename(moved, TIMM_SWIN)


def vit_to_timm_beit(state: State) -> State:
    """A ViT's learned entries as timm's `Beit` has them: the same names."""
    return with_pooled_norm(state)


def vit_to_timm_vit(state: State) -> State:
    """Those of a ViT without relative positions as timm's `VisionTransformer` has them."""
    joined = {}
    for key, value in with_pooled_norm(state).items():
        if key.endswith('.q_bias'):
            v_bias = state[key.replace('.q_bias', '.v_bias')]
            key = key.replace('.q_bias', '.qkv.bias')
            value = torch.cat([value, torch.zeros_like(v_bias), v_bias])  # keys have no bias
        if not key.endswith('.v_bias'):
            joined[key] = value
    return rename(joined, TIMM_VIT)


def vit_to_huggingface(state: State) -> State:
    """A ViT's learned entries as transformers' `BeitModel` has them, but for its prefix.

    Its queries and values always have a bias: 0 where ours have none.
    """
    state = with_pooled_norm(state)
    for key in [key for key in state if key.endswith('.attn.qkv.weight')]:
        for name in ('q_bias', 'v_bias'):
            bias = key.replace('qkv.weight', name)
            state.setdefault(bias, torch.zeros(len(state[key]) // 3))
    return to_huggingface(state)


def with_prefix(state: State, prefix: str, *, but: Iterable[str] = ('classifier.',)) -> State:
    """Put a prefix before all keys but those that begin with one of `but`."""
    kept = tuple(but)
    return {key if key.startswith(kept) else prefix + key: value for key, value in state.items()}


def with_pooled_norm(state: State) -> State:
    """Add the norm after pooling to a ViT that has neither it nor the one before.

    A pre-trained encoder with MODEL.VIT.USE_MEAN_POOLING has none; elsewhere the pooled features,
    which it does not have, pass a norm that changes nothing but their mean and deviation.
    """
    if 'norm.weight' in state or 'fc_norm.weight' in state:
        return dict(state)
    width = state['cls_token'].shape[-1]
    return state | {'fc_norm.weight': torch.ones(width), 'fc_norm.bias': torch.zeros(width)}


def _next_stage(match: re.Match) -> str:
    return f'layers.{int(match[1]) + 1}.downsample'


# ==== export.source: What is exported: a checkpoint's model, and what another program has to know of it.

CLASSES = ('negative', 'positive', 'uncertain')  # of a label with three outputs, in order
LARGEST_DIFFERENCE = 1e-4  # between an export and the model that it is of
NAMED_ENCODERS = ('swin', 'vit')  # MODEL.TYPE: those with names in other libraries
PLAIN_SWIN = {'APE': False, 'PATCH_NORM': True, 'QK_SCALE': None}  # as other libraries have it
ANY_MODEL = '--to onnx and --to torch_export take any model'


class Tokens(nn.Module):
    """Images [B, C, S, S] to a pre-trained encoder's normalised tokens [B, L, D], none hidden."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder.encode(self.encoder.patch_embed(images))


class Source(NamedTuple):
    """A checkpoint's model, on the CPU, that scores."""

    config: Config
    encoder: nn.Module  # fine-tuned: with its head
    network: nn.Module  # images [B, C, S, S] to what it gives
    outputs: tuple[str, ...]  # [K], what each logit is of; pre-trained: none
    gives: str  # 'logits' [B, K]; masked pre-training: 'tokens' [B, L, D]; contrastive: 'features'


def load_source(path: str | Path, logger: logging.Logger) -> Source:
    """Read a checkpoint of main_simmim.py, main_contrastive.py or main_finetune.py.

    Raises:
        ValueError: if it cannot be read, has no options of a run, or is of another model.
    """
    config, state = trained_config(path), read_checkpoint(path)['model']
    if config is None:
        raise ValueError(
            f'{path} is no checkpoint of main_simmim.py, main_contrastive.py or main_finetune.py'
        )
    config.MODEL.ATTENTION = 'eager'  # plain operations, which every program has
    config.TRAIN.USE_CHECKPOINT = False
    outputs: tuple[str, ...] = ()
    if 'head.weight' in state:
        network = encoder = load_classifier(config, path, torch.device('cpu'), logger)
        outputs = output_names(task_labels(config.DATA.TASK), len(state['head.weight']))
        gives = 'logits'
    elif is_contrastive(state):
        network = encoder = build_model(config, is_pretrain=False, num_outputs=0)
        load_model_state(encoder, _encoder_alone(config, state), str(path), logger)
        gives = 'features'
    else:
        model = build_model(config, is_pretrain=True)
        load_model_state(model, state, str(path), logger)
        encoder, gives = model.encoder, 'tokens'
        network = Tokens(encoder)
    return Source(config, encoder, network.eval(), outputs, gives)


def _encoder_alone(config: Config, state: State) -> State:
    """The encoder's entries of a contrastive checkpoint, as the classifier's model has them."""
    prefix = '' if config.MODEL.TYPE == 'timm' else PREFIX  # a timm model has the prefix, too
    kept = {key: value for key, value in state.items() if key.startswith(PREFIX)}
    return {key.removeprefix(prefix): value for key, value in kept.items()}


def output_names(labels: tuple[str, ...], num_outputs: int) -> tuple[str, ...]:
    """The labels; with three outputs a label (policy 'multiclass') each with its three classes."""
    if num_outputs == len(labels):
        return labels
    return tuple(f'{label}: {name}' for label in labels for name in CLASSES)


def entries(source: Source, target: str) -> State:
    """The encoder's learned entries, and its head's.

    Raises:
        ValueError: if the target's library has no such encoder.
    """
    kind, options = source.config.MODEL.TYPE, source.config.MODEL.SWIN
    if kind not in NAMED_ENCODERS:
        raise ValueError(
            f'--to {target}: MODEL.TYPE must be one of {list(NAMED_ENCODERS)}, got {kind!r}; '
            f'{ANY_MODEL}'
        )
    for key, plain in PLAIN_SWIN.items() if kind == 'swin' else ():
        if options[key] != plain:
            raise ValueError(
                f'--to {target}: MODEL.SWIN.{key} must be {plain}, as in the Swin there, got '
                f'{options[key]}; {ANY_MODEL}'
            )
    state = learned_entries(source.encoder.state_dict())
    return {key: value.contiguous() for key, value in state.items()}


def facts(source: Source) -> dict[str, Any]:
    """What a program needs to prepare images and to read the outputs, as plain values."""
    config = source.config
    mean, std = statistics(config)
    return {
        'input_size': input_size(config),
        'grey_levels': [0, 1],  # of pixels before mean and std
        'mean': list(mean),
        'std': list(std),
        'normalize': config.DATA.NORMALIZE,
        'preprocess': config.DATA.PREPROCESS,
        'interpolation': interpolation(source),
        'centre_crop': config.TEST.CROP,
        'outputs': list(source.outputs) or source.gives,
        'run': config.TAG,
        'use': 'research, not for clinical use',
    }


def interpolation(source: Source) -> str:
    """Name of the filter that scored images are resized with, one of FILTERS, never 'random'."""
    data = source.config.DATA
    name = data.INTERPOLATION if source.outputs else data.PRETRAIN_INTERPOLATION
    return FILTERS[name][0].name.lower()


def input_size(config: Config) -> list[int]:
    """[C, S, S]."""
    return [config.MODEL.IN_CHANS, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE]


def example_images(source: Source, count: int) -> torch.Tensor:
    """Random images [count, C, S, S], the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *input_size(source.config), generator=generator)


@torch.no_grad()
def largest_difference(
    source: Source, exported: Callable[[torch.Tensor], torch.Tensor], target: str
) -> float:
    """Greatest difference between an export's outputs and the model's, over a few random images.

    Args:
        source: the model.
        exported: images [B, C, S, S] to outputs, for any B.
        target: its format, for messages.

    Raises:
        ValueError: if it is more than rounding, or not a number.
    """
    differences = []
    for count in (1, 3):
        images = example_images(source, count)
        expected = source.network(images)
        found = exported(images).reshape(expected.shape)
        differences.append((found - expected).abs().max())
    worst = torch.stack(differences).max().item()
    if not worst <= LARGEST_DIFFERENCE:
        raise ValueError(
            f'--to {target}: what was written gives other outputs than the checkpoint, by '
            f'{worst:.3g} (allowed: {LARGEST_DIFFERENCE:g}); nothing is kept'
        )
    return worst


# ==== export.files: Exports on disk: whole or not at all, and never in the place of something else.


def check_output(path: Path, *, overwrite: bool, own: Container[str] = ()) -> None:
    """Refuse an output that may not be written.

    Args:
        path: a file, or a folder if `own` names files.
        overwrite: whether an export that is there is replaced.
        own: names of the files that an export's folder may have; in no other folder is anything
            replaced.

    Raises:
        ValueError: naming the path, and what is in the way.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise ValueError(f'{path} is there already (--overwrite replaces it)')
    if path.is_dir() != bool(own):
        raise ValueError(f'{path}: --output must be a {"folder" if own else "file"}')
    others = [name for name in (sorted(os.listdir(path)) if own else []) if name not in own]
    if others:
        raise ValueError(
            f'{path}: --overwrite replaces an export alone, and the folder has {others[0]!r}, too'
        )


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside the path, which takes its place if no error comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}.tmp{path.suffix}')  # some writers ask for the suffix
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside the path, which takes its place if no error comes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f'.{path.name}.{kind}') for kind in ('tmp', 'old'))
    if old.exists() and not path.exists():
        old.rename(path)  # a process was killed between the two renames below
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _to_disk(file)
        if path.exists():
            path.rename(old)  # a folder with files is not replaced in one step
        try:
            temporary.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


# ==== export.card: The model card of an export for transformers.

# Options that say how a model was trained, by stage.
SHARED = (
    'MODEL.NAME', 'TAG', 'DATA.DATASET', 'DATA.VIEWS', 'DATA.TRAIN_FRACTION', 'DATA.TRAIN_IMAGES',
    'TRAIN.EPOCHS', 'TRAIN.OPTIMIZER.NAME', 'TRAIN.BASE_LR', 'TRAIN.WEIGHT_DECAY', 'SEED',
)  # fmt: skip
MASKS = ('MODEL.PRETRAIN', 'DATA.MASK_TYPE', 'DATA.MASK_PATCH_SIZE', 'DATA.MASK_RATIO')
MASKED = {  # by MODEL.PRETRAIN: how it is called, and what it reads
    'simmim': ('SimMIM (hidden patches from visible ones)', (
        'MODEL.SIMMIM.HEAD', 'MODEL.SIMMIM.LOSS', 'MODEL.SIMMIM.LOSS_PIXELS',
        'MODEL.SIMMIM.TARGET', 'MODEL.SIMMIM.TARGET_SIZE',
    )),
    'mae': ('MAE (hidden patches from visible ones, squared error)', (
        'MODEL.MAE.DECODER_EMBED_DIM', 'MODEL.MAE.DECODER_DEPTH', 'MODEL.MAE.DECODER_NUM_HEADS',
        'MODEL.MAE.NORM_PIX_LOSS',
    )),
}  # fmt: skip
FINE_TUNING = (
    'DATA.TASK', 'DATA.UNCERTAIN', 'DATA.UNCERTAIN_BY_LABEL', 'DATA.BLANK', 'LOSS.NAME',
    'FINETUNE.MODE', 'TRAIN.LAYER_DECAY',
)  # fmt: skip

CARD = """---
library_name: transformers
pipeline_tag: {task}
tags: [chest-x-ray, research]
---

# {name}

**Research only, not for clinical use.** {about}

```python
from PIL import Image
from transformers import AutoImageProcessor, {model_class}

model = {model_class}.from_pretrained('FOLDER').eval()
{prepare}
{run}
```

## Outputs

{outputs}

## Training

The options of the run; nothing else is known of it here. Scores are in the run's own report.

| option | value |
| --- | --- |
{training}

## Images

{images}
"""
PREPARE = """processor = AutoImageProcessor.from_pretrained('FOLDER', backend='pil')
image = Image.open('xray.png').convert('L')
pixels = processor(image, return_tensors='pt').pixel_values"""
ENCODER = 'An encoder of chest X-rays, pre-trained by {method}; it has no classifier.'
PREPARE_BY_HAND = 'pixels = ...  # see Images, below'


def model_card(source: Source, *, has_processor: bool) -> str:
    """README.md of the folder.

    Args:
        source: the model.
        has_processor: whether there is a preprocessor_config.json.
    """
    config, labels = source.config, source.outputs
    task, model_class = 'image-feature-extraction', 'AutoModel'
    if labels:
        task, model_class = 'image-classification', 'AutoModelForImageClassification'
        about = 'A classifier of chest X-rays.'
        run = 'probabilities = model(pixels).logits.sigmoid()'
        outputs = 'Logits, of each label on its own (sigmoid): ' + ', '.join(labels) + '.'
        keys = FINE_TUNING
    elif source.gives == 'features':
        method = config.CONTRASTIVE.METHOD
        about = ENCODER.format(method=METHODS[method].title)
        run = 'features = model(pixels).pooler_output'
        outputs = 'Features, pooled: what the projector of pre-training read.'
        keys = [f'CONTRASTIVE.{name}' for name in METHODS[method].options()]
    else:
        method, options = MASKED[config.MODEL.PRETRAIN]
        about = ENCODER.format(method=method)
        run = 'tokens = model(pixels).last_hidden_state'
        outputs = 'Tokens, normalised. What is pooled of them was not trained.'
        keys = [*MASKS, *options]
    keys = [*SHARED, *keys, 'PRETRAINED']
    return CARD.format(
        task=task,
        name=config.MODEL.NAME,
        about=about,
        model_class=model_class,
        prepare=PREPARE if has_processor else PREPARE_BY_HAND,
        run=run,
        outputs=outputs,
        training='\n'.join(f'| {key} | {_shown(config, key)} |' for key in keys),
        images='\n'.join(f'- {line}' for line in image_notes(source, has_processor=has_processor)),
    )


def image_notes(source: Source, *, has_processor: bool) -> Sequence[str]:
    """How images are prepared, and where transformers does it otherwise than training did."""
    config = source.config
    mean, std = statistics(config)
    channels, size, _ = input_size(config)
    shape = f'the whole image resized to {size} x {size}'
    if config.TEST.CROP:
        short = enlarged_short_side(size)
        shape = f'the short side resized to {short}, the centre {size} x {size} cut out'
    lines = [
        f'In evaluation: grey, {shape} ({interpolation(source)}, antialiased), divided by 255, '
        f'less mean {list(mean)}, divided by deviation {list(std)}; {channels} channel(s).',
        '16-bit pictures must be brought to 0...255 first, transparent ones put on black.',
    ]
    if not has_processor:
        return [
            *lines,
            'There is no preprocessor_config.json: no processor of transformers does '
            f'DATA.PREPROCESS {config.DATA.PREPROCESS!r} with DATA.NORMALIZE '
            f"{config.DATA.NORMALIZE!r} ('image': by the image's own mean and deviation). "
            'Prepare images so yourself.',
        ]
    lines.append(
        "Without `backend='pil'` torchvision resizes; bilinear, bicubic differ by at most 2 levels."
    )
    if config.TEST.CROP:
        lines.append("The processor's crop can lie one pixel farther up or to the left.")
    return lines


def enlarged_short_side(size: int) -> int:
    """Pixels of an image's short side from which TEST.CROP cuts a square of this size."""
    return enlarged_side(size)


def _shown(config: Config, key: str) -> object:
    """The value as the card has it: of a path the name alone, which tells of no machine."""
    value = value_at(config, key)
    if key == 'PRETRAINED':
        return PurePath(value).name or 'nothing'
    if value is None and key.startswith('CONTRASTIVE.'):
        return "the method's own"
    return dict(value) if isinstance(value, dict) else value


# ==== export.standalone: Outputs of an export without this project: only NumPy, and onnxruntime or transformers.
#
# python -I export/standalone.py EXPORT IMAGES.npy OUTPUTS.npy
#
# EXPORT is an .onnx file or a folder for transformers, IMAGES.npy [B, C, S, S] in float32, prepared
# as the model wants them. The file may be copied anywhere: it imports nothing of the project.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ('export', 'images', 'outputs'):
        parser.add_argument(name, type=Path)
    return parser.parse_args()


def onnx_outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """What onnxruntime gives."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def huggingface_outputs(folder: Path, images: np.ndarray) -> np.ndarray:
    """What transformers gives: logits, or an encoder's tokens."""
    import torch
    import transformers

    name = json.loads((folder / 'config.json').read_text('utf-8'))['architectures'][0]
    is_classifier = name.endswith('ForImageClassification')
    kind = transformers.AutoModelForImageClassification if is_classifier else transformers.AutoModel
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(pixel_values=torch.from_numpy(images))
    return (outputs.logits if is_classifier else outputs.last_hidden_state).numpy()


def main(args: argparse.Namespace) -> int:
    run = huggingface_outputs if args.export.is_dir() else onnx_outputs
    np.save(args.outputs, run(args.export, np.load(args.images, allow_pickle=False)))
    return 0


if __name__ == '__main__':
    raise SystemExit(main(parse_args()))


# ==== export.to_timm: A .safetensors file under timm's names; its header says how timm builds the model.

TARGET = 'timm'
HEADER = 'simmim'  # key of the facts in the file's metadata
CLASSES_to_timm = {kind.__name__: kind for kind in (SwinTransformer, Beit, VisionTransformer)}


def write_timm(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the file and check what timm makes of it; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, or timm has no model that computes the same.
    """
    if path.suffix != '.safetensors':
        raise ValueError(f'--to timm: --output must end in .safetensors, got {path}')
    check_output(path, overwrite=overwrite)
    state = entries(source, TARGET)
    build = swin_arguments if source.config.MODEL.TYPE == 'swin' else vit_arguments
    name, arguments, state = build(source, state)
    about = facts(source) | {'class': name, 'arguments': arguments}
    with new_file(path) as file:
        file.write_bytes(save(state, {'format': 'pt', HEADER: json.dumps(about)}))
        model, _ = load_timm(file)
        return largest_difference(source, timm_outputs(model, source.gives), TARGET)


def load_timm(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in such a file, and the facts in its header."""
    with safe_open(path, 'pt') as file:
        about = json.loads(file.metadata()[HEADER])
    model = CLASSES_to_timm[about['class']](**about['arguments'])
    model.load_state_dict(load_file(path))
    return model.eval(), about


def timm_outputs(model: nn.Module, gives: str) -> Callable[[Tensor], Tensor]:
    """Images to what `Source.gives` says; without a head timm's call gives pooled features."""
    return model.forward_features if gives == 'tokens' else model


def swin_arguments(source: Source, state: State) -> tuple[str, dict[str, Any], State]:
    """Class, arguments and entries of a Swin in timm."""
    options = source.config.MODEL.SWIN
    arguments = _common(source, options) | {
        'depths': list(options.DEPTHS),
        'num_heads': list(options.NUM_HEADS),
        'window_size': options.WINDOW_SIZE,
    }
    return 'SwinTransformer', arguments, swin_to_timm(state)


def vit_arguments(source: Source, state: State) -> tuple[str, dict[str, Any], State]:
    """Class, arguments and entries of a ViT in timm: Beit where it has relative positions."""
    options = source.config.MODEL.VIT
    arguments = _common(source, options) | {
        'depth': options.DEPTH,
        'num_heads': options.NUM_HEADS,
        'init_values': 1.0 if 'blocks.0.gamma_1' in state else 0.0,  # 0: none
        'global_pool': 'token' if 'norm.weight' in state else 'avg',
    }
    has_positions = 'pos_embed' in state
    if options.USE_RPB or options.USE_SHARED_RPB:
        arguments |= {
            'use_abs_pos_emb': has_positions,
            'use_rel_pos_bias': options.USE_RPB,
            'use_shared_rel_pos_bias': options.USE_SHARED_RPB,
        }
        return 'Beit', arguments, vit_to_timm_beit(state)
    arguments |= {'pos_embed': 'learn' if has_positions else 'none'}
    return 'VisionTransformer', arguments, vit_to_timm_vit(state)


def _common(source: Source, options: Any) -> dict[str, Any]:
    return {
        'img_size': source.config.DATA.IMG_SIZE,
        'patch_size': options.PATCH_SIZE,
        'in_chans': source.config.MODEL.IN_CHANS,
        'num_classes': len(source.outputs),
        'embed_dim': options.EMBED_DIM,
        'mlp_ratio': options.MLP_RATIO,
        'qkv_bias': options.QKV_BIAS,
    }


# ==== export.to_huggingface: A folder that transformers loads without this project: weights, config, processor, card.

TARGET_to_huggingface = 'huggingface'
INDEX = '.relative_position_index'
CONFIG, WEIGHTS, CARD_to_huggingface = 'config.json', 'model.safetensors', 'README.md'
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD_to_huggingface)
# What `Source.gives` is called there.
OUTPUTS = {'logits': 'logits', 'tokens': 'last_hidden_state', 'features': 'pooler_output'}


def write_huggingface(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the folder and check what transformers makes of it; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, transformers is not installed, or none of its models
            computes the same.
    """
    check_output(path, overwrite=overwrite, own=FILES)
    load_package('transformers', TARGET_to_huggingface)
    config, state = (swin if source.config.MODEL.TYPE == 'swin' else beit)(source)
    config |= label_config(source)
    processor = processor_config(source)
    with new_folder(path) as folder:
        (folder / WEIGHTS).write_bytes(save(state, {'format': 'pt'}))
        _write_json(folder / CONFIG, config)
        if processor:
            _write_json(folder / PROCESSOR, processor)
        (folder / CARD_to_huggingface).write_text(
            model_card(source, has_processor=bool(processor)), 'utf-8'
        )
        return largest_difference(
            source, HuggingFaceOutputs(folder, source.gives), TARGET_to_huggingface
        )


class HuggingFaceOutputs:
    """Images [B, C, S, S] to what `Source.gives` says, by the model in a folder.

    Raises:
        ValueError: if transformers finds entries that it lacks or does not know.
    """

    def __init__(self, folder: Path, gives: str) -> None:
        self.output = OUTPUTS[gives]
        transformers = load_package('transformers', TARGET_to_huggingface)
        transformers.utils.logging.disable_progress_bar()
        names = json.loads((folder / CONFIG).read_text('utf-8'))['architectures']
        self.model, found = getattr(transformers, names[0]).from_pretrained(
            folder, output_loading_info=True
        )
        wrong = {name: sorted(keys) for name, keys in found.items() if keys}
        if wrong:
            raise ValueError(f'--to {TARGET}: {names[0]} of transformers does not fit: {wrong}')
        self.model.eval()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=images)[self.output]


def swin(source: Source) -> tuple[dict[str, Any], State]:
    """Config and entries of a Swin.

    Raises:
        ValueError: if a stage is smaller than the window, which transformers' tables do not allow.
    """
    options, state = source.config.MODEL.SWIN, entries(source, TARGET_to_huggingface)
    indices = {k: v for k, v in source.encoder.state_dict().items() if k.endswith(INDEX)}
    state = to_huggingface(state | indices)  # transformers before 5 reads them
    smallest = source.encoder.grid_size // 2 ** (len(options.DEPTHS) - 1)
    if smallest < options.WINDOW_SIZE:
        raise ValueError(
            f'--to {TARGET}: MODEL.SWIN.WINDOW_SIZE must be at most {smallest}, the side of the '
            f'last stage in tokens, got {options.WINDOW_SIZE}: the Swin there has tables of whole '
            'windows in every stage'
        )
    config = _common_to_huggingface(source, options) | {
        'model_type': 'swin',
        'architectures': ['SwinForImageClassification' if source.outputs else 'SwinModel'],
        'embed_dim': options.EMBED_DIM,
        'depths': list(options.DEPTHS),
        'num_heads': list(options.NUM_HEADS),
        'window_size': options.WINDOW_SIZE,
        'mlp_ratio': options.MLP_RATIO,
        'qkv_bias': options.QKV_BIAS,
        'use_absolute_embeddings': False,
        'layer_norm_eps': source.encoder.norm.eps,
        'encoder_stride': source.encoder.stride,
    }
    return config, with_prefix(state, 'swin.') if source.outputs else state


def beit(source: Source) -> tuple[dict[str, Any], State]:
    """Config and entries of a ViT: BEiT's, which has all of its parts and takes all of its ways."""
    options, state = source.config.MODEL.VIT, entries(source, TARGET_to_huggingface)
    config = _common_to_huggingface(source, options) | {
        'model_type': 'beit',
        'architectures': ['BeitForImageClassification' if source.outputs else 'BeitModel'],
        'hidden_size': options.EMBED_DIM,
        'num_hidden_layers': options.DEPTH,
        'num_attention_heads': options.NUM_HEADS,
        'intermediate_size': len(state['blocks.0.mlp.fc1.weight']),
        'layer_norm_eps': source.encoder.blocks[0].norm1.eps,
        'layer_scale_init_value': 1.0 if 'blocks.0.gamma_1' in state else 0.0,  # 0: none
        'use_absolute_position_embeddings': 'pos_embed' in state,
        'use_relative_position_bias': options.USE_RPB,
        'use_shared_relative_position_bias': options.USE_SHARED_RPB,
        'use_mean_pooling': 'norm.weight' not in state,
        'use_mask_token': False,
    }
    renamed = vit_to_huggingface(state)
    return config, with_prefix(renamed, 'beit.') if source.outputs else renamed


def label_config(source: Source) -> dict[str, Any]:
    """Labels of a classifier, each on its own.

    Raises:
        ValueError: if labels have three outputs, of which transformers has no loss or pipeline.
    """
    if not source.outputs:
        return {}
    if len(source.outputs) != source.config.MODEL.NUM_CLASSES:
        raise ValueError(
            f"--to {TARGET}: the policy 'multiclass' gives three outputs a label, and a classifier "
            'there has one; --to onnx, --to timm and --to torch_export give the three'
        )
    return {
        'problem_type': 'multi_label_classification',
        'id2label': {str(k): label for k, label in enumerate(source.outputs)},
        'label2id': {label: k for k, label in enumerate(source.outputs)},
    }


def processor_config(source: Source) -> dict[str, Any]:
    """What makes transformers prepare an image as evaluation does; empty where it cannot.

    CLIP's is the processor that resizes the short side or both, crops, and takes grey images.
    """
    config = source.config
    if config.DATA.PREPROCESS != 'none' or config.DATA.NORMALIZE != 'dataset':
        return {}
    channels, size, _ = input_size(config)
    square = {'height': size, 'width': size}
    mean, std = statistics(config)
    return {
        'image_processor_type': 'CLIPImageProcessor',
        'do_resize': True,
        'size': {'shortest_edge': enlarged_short_side(size)} if config.TEST.CROP else square,
        'resample': int(FILTERS[interpolation(source)][0]),
        'do_center_crop': config.TEST.CROP,
        'crop_size': square,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': list(mean),
        'image_std': list(std),
        'do_convert_rgb': channels == 3,
    }


def _common_to_huggingface(source: Source, options: Any) -> dict[str, Any]:
    return {
        'image_size': source.config.DATA.IMG_SIZE,
        'patch_size': options.PATCH_SIZE,
        'num_channels': source.config.MODEL.IN_CHANS,
        'hidden_act': 'gelu',
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'drop_path_rate': source.config.MODEL.DROP_PATH_RATE,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')


# ==== export.to_torch_export: A .pt2 file: the program of torch.export, which runs without the model's code.

TARGET_to_torch_export = 'torch_export'
FACTS_FILE = 'simmim.json'  # inside the file
EXAMPLES = 2  # images: of one the program would be for batches of one
MOST_IMAGES = 65535  # in a batch; PyTorch 2.6 needs a bound to be sure of its slices


def write_torch_export(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the program and check what it gives; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, or this PyTorch cannot export the model.
    """
    if path.suffix != '.pt2':
        raise ValueError(f'--to torch_export: --output must end in .pt2, got {path}')
    check_output(path, overwrite=overwrite)
    program = program_of(source, TARGET_to_torch_export)
    with new_file(path) as file:
        torch.export.save(program, file, extra_files={FACTS_FILE: json.dumps(facts(source))})
        return largest_difference(source, torch.export.load(file).module(), TARGET_to_torch_export)


@torch.no_grad()
def program_of(source: Source, target: str) -> ExportedProgram:
    """The network as a program for batches of up to MOST_IMAGES.

    Raises:
        ValueError: naming the target, if this PyTorch cannot trace it.
    """
    shapes = ({0: Dim('batch', max=MOST_IMAGES)},)
    images = example_images(source, EXAMPLES)
    with refuse_untraceable(target):
        # Strict: else the length of a tensor, such as len(tokens), is taken for a constant.
        return torch.export.export(source.network, (images,), dynamic_shapes=shapes, strict=True)


@contextmanager
def refuse_untraceable(target: str) -> Iterator[None]:
    """Make a ValueError of what PyTorch raises for a model that it cannot export."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f'--to {target}: PyTorch {torch.__version__} cannot export this model; another version '
            f'may ({in_one_line(error):.300})'
        ) from error


# ==== export.to_onnx: An .onnx file: images of any number to logits, or to an encoder's tokens or features.

TARGET_to_onnx = 'onnx'
INPUT = 'images'
FACTS = 'simmim'  # key of the facts in the file's metadata


def write_onnx(source: Source, path: Path, *, overwrite: bool) -> float:
    """Write the graph and check what onnxruntime makes of it; returns the greatest difference.

    Raises:
        ValueError: if the path is taken, a package is not installed, or this PyTorch cannot export
            the model.
    """
    if path.suffix != '.onnx':
        raise ValueError(f'--to onnx: --output must end in .onnx, got {path}')
    check_output(path, overwrite=overwrite)
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        load_package(package, TARGET_to_onnx)
    program = program_of(source, TARGET_to_onnx)
    with refuse_untraceable(TARGET_to_onnx):
        graph = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[source.gives],
            dynamic_shapes=({0: 'batch'},),  # the axis is so named
            verbose=False,
        )
    graph.model.metadata_props[FACTS] = json.dumps(facts(source))
    with new_file(path) as file:
        graph.save(file)
        return largest_difference(source, onnx_outputs_to_onnx(file), TARGET_to_onnx)


def onnx_outputs_to_onnx(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """What onnxruntime gives for images [B, C, S, S]."""
    onnxruntime = load_package('onnxruntime', TARGET_to_onnx)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])
