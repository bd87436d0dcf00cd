"""Export trained weights for other programs: timm, transformers, ONNX and torch.export.

Each format is one function that writes to a path and returns a function from images to outputs.
`export` compares these outputs with the checkpoint's before it renames the temporary file.

Swin's patch merging and relative positions have the same order in SimMIM, timm and transformers.
Only the names differ, and in timm patch merging belongs to the next stage.
"""

import html
import importlib.util
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from config import Config, check_config, enlarged_side, pixel_statistics, scored_steps, value_at
from data.tasks import task_of
from models.build import build_saved_model
from models.contrastive import METHODS, build_contrastive
from models.convert import PREFIX, to_huggingface
from models.encoder import ENCODERS, Encoder
from models.simmim import PRETRAINING
from system.downloads import PROCESSOR
from utils import (
    drop_buffers,
    load_model_state,
    name_damaged,
    read_checkpoint,
    trained_config,
)

State = dict[str, Tensor]
Run = Callable[[Tensor], Tensor]  # images [B, C, S, S] to outputs

THREE_OUTPUTS = ('negative', 'positive', 'uncertain')  # order of the three outputs of a label
LARGEST_DIFFERENCE = 1e-4  # tolerance between the outputs of an export and of the checkpoint
PLAIN_SWIN = {'APE': False, 'PATCH_NORM': True, 'QK_SCALE': None}  # fixed in timm and transformers
ANY_MODEL = '--to onnx and --to torch_export support any model'
METADATA = 'simmim'  # key of the metadata in the header of a .safetensors or .onnx file
FACTS_FILE = 'simmim.json'  # name of the metadata file inside a .pt2 file
TIMM_CLASSES = {kind.__name__: kind for kind in (SwinTransformer, Beit, VisionTransformer)}
# Values of `TrainedModel.gives` and the names of these outputs in transformers.
HUGGINGFACE_OUTPUTS = {
    'logits': 'logits',
    'tokens': 'last_hidden_state',
    'features': 'pooler_output',
}
CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'
FOLDER_FILES = {CONFIG, WEIGHTS, CARD, PROCESSOR}
EXAMPLES = 2  # batch size for tracing; a program traced with one image would accept only one
MOST_IMAGES = 65535  # largest batch of a traced program; some versions of PyTorch require a limit
# Options in the model card, in addition to the options of the stage.
SHARED_OPTIONS = (
    'MODEL.NAME TAG DATA.SOURCES DATA.DATASET DATA.VIEWS DATA.FOLD DATA.TRAIN_FRACTION '
    'DATA.TRAIN_IMAGES TRAIN.EPOCHS TRAIN.OPTIMIZER.NAME TRAIN.BASE_LR TRAIN.WEIGHT_DECAY SEED'
).split()
# Options that do nothing with DATA.SOURCES, and options that are only in the card if they are set.
OF_ONE_DATA_SET = ('DATA.DATASET', 'DATA.TRAIN_FRACTION', 'DATA.TRAIN_IMAGES')
IF_SET = ('DATA.SOURCES', 'DATA.FOLD')
FINE_TUNING_OPTIONS = (
    'DATA.TASK DATA.LABELS DATA.UNCERTAIN DATA.UNCERTAIN_BY_LABEL DATA.BLANK LOSS.NAME '
    'FINETUNE.MODE TRAIN.LAYER_DECAY'
).split()


class TrainedModel(NamedTuple):
    """The model of a checkpoint, on the CPU.

    Attributes:
        config: Configuration of the run.
        encoder: Encoder, including the head after fine-tuning.
        network: Module that maps images [B, C, S, S] to outputs.
        outputs: Names of the K logits; empty after pre-training.
        gives: Kind of output: 'logits' [B, K] after fine-tuning, 'tokens' [B, L, D] after masked
            pre-training, or 'features' [B, F] after contrastive pre-training.
    """

    config: Config
    encoder: nn.Module
    network: nn.Module
    outputs: tuple[str, ...]
    gives: str


class Tokens(nn.Module):
    """Compute the normalised tokens of unmasked images, [B, C, S, S] -> [B, L, D]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.encode(self.encoder.patch_embed(images))


class Format(NamedTuple):
    """An export format: function that writes it, file suffix ('' for a folder), and packages."""

    write: Callable[[TrainedModel, Path], Run]
    suffix: str
    packages: tuple[str, ...] = ()


def load_trained_model(path: str | Path, logger: logging.Logger) -> TrainedModel:
    """Load the model of a checkpoint from any training stage, or raise a ValueError."""
    state, outputs, gives = read_checkpoint(path)['model'], (), 'tokens'
    config = trained_config(path)
    if config is None:
        raise ValueError(
            f'{path} is not a checkpoint of main_simmim.py, main_contrastive.py or main_finetune.py'
        )
    with name_damaged(path):
        stage = _stage(config, state)
        check_config(config, stage)
    config.MODEL.ATTENTION = 'eager'  # every format supports the operations of eager attention
    config.TRAIN.USE_CHECKPOINT = False
    kind = {'is_pretrain': stage == 'simmim'}
    if stage == 'finetune':
        outputs, gives = task_of(config).labels, 'logits'
        kind['num_outputs'] = len(state['head.weight'])
        if kind['num_outputs'] != len(outputs):
            outputs = tuple(f'{label}: {name}' for label in outputs for name in THREE_OUTPUTS)
    elif stage == 'contrastive':
        has_prefix = ENCODERS[config.MODEL.TYPE].backbone is not Encoder.backbone  # timm models
        prefix = '' if has_prefix else PREFIX
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(PREFIX)}
        gives, kind['num_outputs'] = 'features', 0
    model = build_saved_model(config, state, path, **kind)
    load_model_state(model, state, str(path), logger)
    encoder = model.encoder if gives == 'tokens' else model
    network = Tokens(encoder) if gives == 'tokens' else model
    return TrainedModel(config, encoder, network.eval(), outputs, gives)


def _stage(config: Config, state: State) -> str:
    """Return the stage of the run that wrote the weights.

    Contrastive pre-training writes the modules of CONTRASTIVE.METHOD. Options do not tell it from
    masked pre-training, because every run has the options of both.
    """
    if 'head.weight' in state:
        return 'finetune'
    check_config(config)
    with torch.device('meta'):  # no memory is needed
        method = build_contrastive(config, total_steps=1)
    modules = {key.split('.')[0] for key in method.state_dict()}
    return 'contrastive' if modules == {key.split('.')[0] for key in state} else 'simmim'


def export(source: TrainedModel, target: str, path: Path, *, overwrite: bool) -> float:
    """Write an export in a format of FORMATS and return `largest_difference`.

    If anything fails, the output path does not change.

    Raises:
        ValueError: If the path exists, a package is missing, or the format does not support the
            model.
    """
    kind = FORMATS[target]
    if path.suffix != kind.suffix and kind.suffix:
        raise ValueError(f'--to {target}: --output must end in {kind.suffix}, got {path}')
    if path.exists() and not overwrite:
        raise ValueError(f'--output {path} already exists; use --overwrite to replace it')
    if path.is_dir() and (others := {file.name for file in path.iterdir()} - FOLDER_FILES):
        raise ValueError(f'--output {path} contains {min(others)}, which is not part of an export')
    for package in kind.packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f'--to {target} requires {package}: run pip install -r requirements-export.txt'
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        temporary = Path(folder) / path.name
        worst = largest_difference(source, kind.write(source, temporary), target)
        if path.is_dir():
            shutil.rmtree(path)  # a folder with files cannot be replaced in one step
        temporary.replace(path)
    return worst


@torch.no_grad()
def largest_difference(source: TrainedModel, run: Run, target: str) -> float:
    """Return the largest absolute difference between the outputs of an export and of the model.

    Raises:
        ValueError: If the difference is NaN or larger than LARGEST_DIFFERENCE.
    """
    differences = []
    for count in (1, 3):
        images = example_images(source, count)
        expected = source.network(images)
        differences.append((run(images).reshape(expected.shape) - expected).abs().max())
    worst = torch.stack(differences).max().item()
    if not worst <= LARGEST_DIFFERENCE:
        raise ValueError(
            f'--to {target}: the outputs of the export differ from the checkpoint by {worst:.3g} '
            f'(allowed: {LARGEST_DIFFERENCE:g}); nothing was written'
        )
    return worst


def facts(source: TrainedModel) -> dict[str, Any]:
    """Return the metadata that a program needs to prepare images and interpret the outputs."""
    config = source.config
    mean, std = pixel_statistics(config)
    return {
        'input_size': [config.MODEL.IN_CHANS, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE],
        'grey_levels': [0, 1],  # range of the pixels before mean and std are applied
        'mean': list(mean),
        'std': list(std),
        'normalize': config.DATA.NORMALIZE,
        'preprocess': scored_steps(config),
        'interpolation': interpolation(source).name.lower(),
        'centre_crop': config.TEST.CROP,
        'outputs': list(source.outputs) or source.gives,
        **({'activation': _activation(source)} if source.outputs else {}),
        'run': config.TAG,
        'use': 'research, not for clinical use',
    }


def _activation(source: TrainedModel) -> str:
    task = task_of(source.config)
    if len(source.outputs) > len(task.labels):  # THREE_OUTPUTS of each label
        return 'softmax over negative and positive'
    return task.activation


def interpolation(source: TrainedModel) -> Any:
    """Return the Pillow filter that resizes images in evaluation."""
    data = source.config.DATA
    name = data.INTERPOLATION if source.outputs else data.PRETRAIN_INTERPOLATION
    return Image.Resampling['BILINEAR' if name == 'random' else name.upper()]


def example_images(source: TrainedModel, count: int) -> Tensor:
    """Draw random images [count, C, S, S] with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    config = source.config
    shape = (count, config.MODEL.IN_CHANS, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE)
    return torch.randn(shape, generator=generator)


def model_card(source: TrainedModel, *, has_processor: bool) -> str:
    """Render the model card; `has_processor` states whether the export has an image processor."""
    config, method = source.config, ''
    if source.outputs:
        keys = FINE_TUNING_OPTIONS
    elif source.gives == 'features':
        part = METHODS[config.CONTRASTIVE.METHOD]
        method, keys = part.title, [f'CONTRASTIVE.{name}' for name in part.options()]
    else:
        part = PRETRAINING[config.MODEL.PRETRAIN]
        method, keys = part.title, ['MODEL.PRETRAIN', *part.options()]
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, finalize=_literal
    )
    return environment.get_template('model_card.md.j2').render(
        config=config,
        facts=facts(source),
        labels=source.outputs,
        gives=source.gives,
        activation=_activation(source),
        method=method,
        options=[(key, _option(config, key)) for key in _shown_options(config, keys)],
        has_processor=has_processor,
        short_side=enlarged_side(config.DATA.IMG_SIZE),
    )


def write_timm(source: TrainedModel, path: Path) -> Run:
    """Write a .safetensors file with timm's names, and the arguments for timm in the header."""
    name, arguments, state = _by_encoder(source, 'timm', {'swin': _timm_swin, 'vit': _timm_vit})
    options = source.config.MODEL[source.config.MODEL.TYPE.upper()]
    arguments |= {
        'img_size': source.config.DATA.IMG_SIZE,
        'patch_size': options.PATCH_SIZE,
        'in_chans': source.config.MODEL.IN_CHANS,
        'num_classes': len(source.outputs),
        'embed_dim': options.EMBED_DIM,
        'mlp_ratio': options.MLP_RATIO,
        'qkv_bias': options.QKV_BIAS,
    }
    about = facts(source) | {'class': name, 'arguments': arguments}
    save_file(state, path, {'format': 'pt', METADATA: json.dumps(about)})
    model = TIMM_CLASSES[name](**arguments).eval()
    model.load_state_dict(load_file(path))
    return model.forward_features if source.gives == 'tokens' else model


def write_huggingface(source: TrainedModel, path: Path) -> Run:
    """Write a folder for transformers with weights, config, image processor and model card."""
    builders = {'swin': _huggingface_swin, 'vit': _huggingface_beit}
    config, state = _by_encoder(source, 'huggingface', builders)
    config |= {
        'image_size': source.config.DATA.IMG_SIZE,
        'num_channels': source.config.MODEL.IN_CHANS,
        'hidden_act': 'gelu',
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'drop_path_rate': source.config.MODEL.DROP_PATH_RATE,
        **_label_config(source),
    }
    processor = _processor_config(source)
    path.mkdir()
    save_file(state, path / WEIGHTS, {'format': 'pt'})
    for name, values in ((CONFIG, config), (PROCESSOR, processor)):
        if values:
            (path / name).write_text(json.dumps(values, indent=2) + '\n', 'utf-8')
    (path / CARD).write_text(model_card(source, has_processor=bool(processor)), 'utf-8')

    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = getattr(transformers, config['architectures'][0])
    model = kind.from_pretrained(path).eval()
    return lambda images: model(pixel_values=images)[HUGGINGFACE_OUTPUTS[source.gives]]


def write_torch_export(source: TrainedModel, path: Path) -> Run:
    """Write a .pt2 file with a program of torch.export, which needs no model code."""
    program = _trace(source)
    torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(facts(source))})
    return torch.export.load(path).module()


def write_onnx(source: TrainedModel, path: Path) -> Run:
    """Write an .onnx file that accepts any batch size."""
    import onnxruntime

    graph = torch.onnx.export(
        _trace(source),
        dynamo=True,
        input_names=['images'],
        output_names=[source.gives],
        dynamic_shapes=({0: 'batch'},),
        verbose=False,
    )
    graph.model.metadata_props[METADATA] = json.dumps(facts(source))
    graph.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


FORMATS = {
    'timm': Format(write_timm, '.safetensors'),
    'huggingface': Format(write_huggingface, '', ('transformers',)),
    'onnx': Format(write_onnx, '.onnx', ('onnx', 'onnxscript', 'onnxruntime')),
    'torch_export': Format(write_torch_export, '.pt2'),
}


def _by_encoder(source: TrainedModel, target: str, builders: dict[str, Callable]) -> Any:
    """Check the encoder, and call its builder with the source and the learned weights."""
    kind, options = source.config.MODEL.TYPE, source.config.MODEL.SWIN
    if kind not in builders:
        raise ValueError(
            f'--to {target}: MODEL.TYPE must be one of {list(builders)}, got {kind!r}; {ANY_MODEL}'
        )
    head = source.config.MODEL.HEAD
    if source.outputs and head != 'linear':
        raise ValueError(f"--to {target}: MODEL.HEAD must be 'linear', got {head!r}; {ANY_MODEL}")
    for key, plain in PLAIN_SWIN.items() if kind == 'swin' else ():
        if options[key] != plain:
            raise ValueError(
                f'--to {target}: MODEL.SWIN.{key} must be {plain}, got {options[key]}; {ANY_MODEL}'
            )
    state = drop_buffers(source.encoder.state_dict())
    learned = {key: value.contiguous() for key, value in state.items() if key != 'mask_token'}
    return builders[kind](source, learned)


def _timm_swin(source: TrainedModel, state: State) -> tuple[str, dict[str, Any], State]:
    """Return the class name, constructor arguments and state dict for timm's SwinTransformer."""
    options = source.config.MODEL.SWIN
    arguments = {
        'depths': list(options.DEPTHS),
        'num_heads': list(options.NUM_HEADS),
        'window_size': options.WINDOW_SIZE,
    }
    renamed = {}
    for key, value in state.items():
        if match := re.match(r'layers\.(\d+)\.downsample', key):  # part of the next stage in timm
            key = f'layers.{int(match[1]) + 1}.downsample{key[match.end() :]}'
        renamed[re.sub(r'^head\.', 'head.fc.', key)] = value
    return 'SwinTransformer', arguments, renamed


def _timm_vit(source: TrainedModel, state: State) -> tuple[str, dict[str, Any], State]:
    """Return class name, arguments and state dict for timm's VisionTransformer or Beit."""
    options = source.config.MODEL.VIT
    arguments = {
        'depth': options.DEPTH,
        'num_heads': options.NUM_HEADS,
        'init_values': 1.0 if 'blocks.0.gamma_1' in state else 0.0,  # 0 disables layer scale
        'global_pool': 'token' if 'norm.weight' in state else 'avg',
    }
    has_positions = 'pos_embed' in state
    if options.USE_RPB or options.USE_SHARED_RPB:
        arguments |= {
            'use_abs_pos_emb': has_positions,
            'use_rel_pos_bias': options.USE_RPB,
            'use_shared_rel_pos_bias': options.USE_SHARED_RPB,
        }
        return 'Beit', arguments, with_pooled_norm(state)
    arguments |= {'pos_embed': 'learn' if has_positions else 'none'}
    joined = {}
    for key, value in with_pooled_norm(state).items():
        if key.endswith('.q_bias'):
            v_bias = state[key.replace('.q_bias', '.v_bias')]
            key = key.replace('.q_bias', '.qkv.bias')
            value = torch.cat([value, torch.zeros_like(v_bias), v_bias])
        if not key.endswith('.v_bias'):
            joined[re.sub(r'\.gamma_([12])$', r'.ls\1.gamma', key)] = value
    return 'VisionTransformer', arguments, joined


def with_pooled_norm(state: State) -> State:
    """Add an identity norm after pooling to a ViT that has no norm.

    An encoder that was pre-trained with MODEL.VIT.USE_MEAN_POOLING has no norm.
    """
    if 'norm.weight' in state or 'fc_norm.weight' in state:
        return dict(state)
    width = state['cls_token'].shape[-1]
    return state | {'fc_norm.weight': torch.ones(width), 'fc_norm.bias': torch.zeros(width)}


def _huggingface_swin(source: TrainedModel, state: State) -> tuple[dict[str, Any], State]:
    """Return config and state dict for Swin in transformers, or raise if a stage is too small."""
    options = source.config.MODEL.SWIN
    smallest = source.encoder.grid_size // 2 ** (len(options.DEPTHS) - 1)
    if smallest < options.WINDOW_SIZE:
        raise ValueError(
            f'--to huggingface: MODEL.SWIN.WINDOW_SIZE must be at most {smallest}, the side of the '
            f'last stage in tokens, got {options.WINDOW_SIZE}; {ANY_MODEL}'
        )

    indices = {
        key: value
        for key, value in source.encoder.state_dict().items()
        if key.endswith('.relative_position_index')  # transformers before 5 loads these buffers
    }
    config = {
        'model_type': 'swin',
        'architectures': ['SwinForImageClassification' if source.outputs else 'SwinModel'],
        'patch_size': options.PATCH_SIZE,
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
    return config, _with_prefix(source, 'swin.', to_huggingface(state | indices))


def _huggingface_beit(source: TrainedModel, state: State) -> tuple[dict[str, Any], State]:
    """Return config and state dict for BEiT in transformers, which supports all ViT options."""
    options = source.config.MODEL.VIT
    config = {
        'model_type': 'beit',
        'architectures': ['BeitForImageClassification' if source.outputs else 'BeitModel'],
        'patch_size': options.PATCH_SIZE,
        'hidden_size': options.EMBED_DIM,
        'num_hidden_layers': options.DEPTH,
        'num_attention_heads': options.NUM_HEADS,
        'intermediate_size': len(state['blocks.0.mlp.fc1.weight']),
        'layer_norm_eps': source.encoder.blocks[0].norm1.eps,
        'layer_scale_init_value': 1.0 if 'blocks.0.gamma_1' in state else 0.0,  # 0 disables it
        'use_absolute_position_embeddings': 'pos_embed' in state,
        'use_relative_position_bias': options.USE_RPB,
        'use_shared_relative_position_bias': options.USE_SHARED_RPB,
        'use_mean_pooling': 'norm.weight' not in state,
        'use_mask_token': False,
    }
    state = with_pooled_norm(state)
    zeros = torch.zeros(options.EMBED_DIM)
    for block in range(options.DEPTH):  # BEiT always has biases of queries and values
        for name in ('q_bias', 'v_bias'):
            state.setdefault(f'blocks.{block}.attn.{name}', zeros.clone())
    return config, _with_prefix(source, 'beit.', to_huggingface(state))


def _with_prefix(source: TrainedModel, prefix: str, state: State) -> State:
    """Add the prefix that classifiers of transformers use for the encoder."""
    if not source.outputs:
        return state
    return {k if k.startswith('classifier.') else prefix + k: v for k, v in state.items()}


def _label_config(source: TrainedModel) -> dict[str, Any]:
    """Return the config entries of transformers about labels; {} after pre-training."""
    if not source.outputs:
        return {}
    if len(source.outputs) != source.config.MODEL.NUM_CLASSES:
        raise ValueError(
            "--to huggingface does not support DATA.UNCERTAIN 'multiclass', which gives three "
            'outputs per label; use another format'
        )
    kind = 'single' if task_of(source.config).exclusive else 'multi'
    return {
        'problem_type': f'{kind}_label_classification',
        'id2label': {str(k): label for k, label in enumerate(source.outputs)},
        'label2id': {label: k for k, label in enumerate(source.outputs)},
    }


def _processor_config(source: TrainedModel) -> dict[str, Any]:
    """Return a config of CLIP's processor for images as in evaluation; {} if not supported."""
    config = source.config
    if scored_steps(config) or config.DATA.NORMALIZE != 'dataset':
        return {}
    size = config.DATA.IMG_SIZE
    square = {'height': size, 'width': size}
    mean, std = pixel_statistics(config)
    return {
        'image_processor_type': 'CLIPImageProcessor',
        'do_resize': True,
        'size': {'shortest_edge': enlarged_side(size)} if config.TEST.CROP else square,
        'resample': int(interpolation(source)),
        'do_center_crop': config.TEST.CROP,
        'crop_size': square,
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': list(mean),
        'image_std': list(std),
        'do_convert_rgb': config.MODEL.IN_CHANS == 3,
    }


@torch.no_grad()
def _trace(source: TrainedModel) -> ExportedProgram:
    """Trace the network as a program for batches of up to MOST_IMAGES images."""
    shapes = ({0: Dim('batch', max=MOST_IMAGES)},)
    images = example_images(source, EXAMPLES)
    # With strict=False, a length such as len(tokens) would become a constant.
    program = torch.export.export(source.network, (images,), dynamic_shapes=shapes, strict=True)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop('stack_trace', None)  # the paths of the source code on this machine
    return program


def _shown_options(config: Config, keys: Sequence[str]) -> list[str]:
    """Return the keys of the options in the model card; `keys` are those of the stage."""
    hidden = [key for key in IF_SET if not value_at(config, key)]
    hidden += OF_ONE_DATA_SET if config.DATA.SOURCES else ()
    return [key for key in (*SHARED_OPTIONS, *keys, 'PRETRAINED') if key not in hidden]


def _literal(value: object) -> str:
    """Return a value, which may come from a foreign file, as one line without markup."""
    text = html.escape(' '.join(str(value).split()), quote=False)
    return text.replace('|', '&#124;').replace('`', '&#96;')


def _option(config: Config, key: str) -> object:
    """Return the value of an option for the model card, with only the name of a path or none."""
    value = value_at(config, key)
    if key in ('PRETRAINED', 'DATA.DATASET'):  # a data set may be the path of its layout
        return PurePath(value).name or 'nothing'
    if key == 'DATA.SOURCES':
        names = [PurePath(entry['dataset']).name for entry in value]
        return [
            {
                name: data_set if name == 'dataset' else entry[name]
                for name in entry
                if name != 'path'
            }
            for entry, data_set in zip(value, names, strict=True)
        ]
    return dict(value) if isinstance(value, dict) else value
