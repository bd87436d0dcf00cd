"""Export trained weights: for this project, timm, transformers, ONNX and torch.export.

Each format is one function that writes to a path and returns a function from images to outputs.
`export` compares these outputs with the checkpoint's before it renames the temporary file.

transformers reads the folder for timm. Swin's patch merging and relative positions have the same
order in SimMIM and timm. Only the names differ, and in timm patch merging belongs to the next
stage.
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

import timm
import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from config import (
    PRETRAIN_FILTER,
    TRAINED,
    Config,
    check_config,
    config_text,
    default_config,
    flat_options,
    options_that_affect,
    pixel_statistics,
    put,
    scored_steps,
    selected_part,
    value_at,
)
from models.build import build_saved_model
from models.contrastive import build_contrastive
from models.encoder import ENCODERS, Encoder
from models.weights.convert import PREFIX
from system.downloads import FACTS, LINEAGE, MODEL_CONFIG
from system.files import BEST_CHECKPOINT, checkpoint_name, in_one_line
from utils import (
    OPTIONS_OF_WEIGHTS,
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
PLAIN_SWIN = {'APE': False, 'PATCH_NORM': True, 'QK_SCALE': None}  # fixed in timm
ANY_MODEL = '--to onnx and --to torch_export support any model'
FACTS_FILE = 'simmim.json'  # name of the metadata file inside a .pt2 file
WEIGHTS, CARD = 'model.safetensors', 'README.md'
FOLDER_FILES = {MODEL_CONFIG, WEIGHTS, CARD}
# What transformers' pipeline does with the outputs; for 'regression' it leaves them as they are.
PROBLEM_TYPES = {'sigmoid': 'multi_label_classification', 'softmax': 'single_label_classification'}
OUTPUTS_AS_THEY_ARE = 'regression'
MEANS = {'mean_of_five': 'mean of five labels', 'mean_of_defined': 'mean of all labels'}
EXAMPLES = 2  # batch size for tracing; a program traced with one image would accept only one
MOST_IMAGES = 65535  # largest batch of a traced program; some versions of PyTorch require a limit
CROPPED_SHARE = 224 / 256  # of the enlarged image with TEST.CROP
# Entries about timm's published weights, which say nothing about these.
OF_PUBLISHED_WEIGHTS = ('tag', 'test_input_size', 'test_crop_pct', 'origin_url', 'paper_ids')


class TrainedModel(NamedTuple):
    """The model of a checkpoint, on the CPU.

    Attributes:
        config: Configuration of the run.
        state: Entries of the checkpoint.
        encoder: Encoder, including the head after fine-tuning.
        network: Module that maps images [B, C, S, S] to outputs.
        outputs: Names of the K logits; empty after pre-training.
        scores: Scores of the checkpoint by split, from its run folder; {} if there are none.
        trainings: Run and data of the trainings behind the weights, without patients.
        gives: Kind of output: 'logits' [B, K] after fine-tuning, 'tokens' [B, L, D] after masked
            pre-training, or 'features' [B, F] after contrastive pre-training.
    """

    config: Config
    state: State
    encoder: nn.Module
    network: nn.Module
    outputs: tuple[str, ...]
    gives: str
    scores: dict[str, dict[str, Any]] = {}
    trainings: Sequence[dict[str, Any]] = ()


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
    checkpoint, outputs, gives = read_checkpoint(path), (), 'tokens'
    state = saved = checkpoint['model']
    config = trained_config(path)
    if config is None:
        raise ValueError(
            f'{path} is not a checkpoint of main_simmim.py, main_contrastive.py or main_finetune.py'
        )
    with name_damaged(path):
        stage = _stage(config, state)
        check_config(config, stage)
    config.TRAIN.USE_CHECKPOINT = False
    kind = {'is_pretrain': stage == 'simmim'}
    if stage == 'finetune':
        outputs, gives = selected_part(config, 'DATA.TASK')(config).labels, 'logits'
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
    scores = _saved_scores(Path(path), config)
    # Whoever gets an export learns what it was trained on, but not whom: hashes can be guessed.
    trainings = [
        {'run': entry['run'], 'data': _without_folders(entry['data'])}
        for entry in checkpoint.get(LINEAGE, ())
    ]
    return TrainedModel(
        config, saved, encoder, network.eval(), outputs, gives, scores, tuple(trainings)
    )


def _saved_scores(path: Path, config: Config) -> dict[str, dict[str, Any]]:
    """Return the scores of a checkpoint of fine-tuning by split."""
    file = path.with_name('scores.json')
    kinds = {BEST_CHECKPOINT: 'selected', checkpoint_name(config.TRAIN.EPOCHS - 1): 'last'}
    if path.name not in kinds or not file.is_file():
        return {}
    found = json.loads(file.read_text('utf-8'))
    kind = kinds[path.name]
    return {split: scores[kind] for split, scores in found.items() if kind in scores}


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
    if getattr(source.encoder.head, 'takes_patient', False):
        raise ValueError(
            "MODEL.HEAD 'patient' cannot be exported, because an export reads images alone: export "
            "the checkpoint of the pre-training, or a model with MODEL.HEAD 'linear'"
        )
    if path.suffix != kind.suffix and kind.suffix:
        raise ValueError(f'--to {target}: --output must end in {kind.suffix}, got {path}')
    if path.exists() and not overwrite:
        raise ValueError(f'--output {path} already exists; use --overwrite to replace it')
    if path.is_dir() and (others := {file.name for file in path.iterdir()} - FOLDER_FILES):
        raise ValueError(f'--output {path} contains {min(others)}, which is not part of an export')
    for package in kind.packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"--to {target} requires {package}: run pip install '.[export]' in the clone"
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
        LINEAGE: list(source.trainings),
        'use': 'research, not for clinical use',
    }


def _activation(source: TrainedModel) -> str:
    task = selected_part(source.config, 'DATA.TASK')(source.config)
    if len(source.outputs) > len(task.labels):  # THREE_OUTPUTS of each label
        return 'softmax over negative and positive'
    return task.activation


def interpolation(source: TrainedModel) -> Any:
    """Return the Pillow filter that resizes images in evaluation."""
    name = source.config.DATA.INTERPOLATION if source.outputs else PRETRAIN_FILTER
    return Image.Resampling['BILINEAR' if name == 'random' else name.upper()]


def example_images(source: TrainedModel, count: int) -> Tensor:
    """Draw random images [count, C, S, S] with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    config = source.config
    shape = (count, config.MODEL.IN_CHANS, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE)
    return torch.randn(shape, generator=generator)


def model_card(source: TrainedModel) -> ModelCard:
    """Return the model card with its metadata for Hugging Face."""
    config = source.config
    method = 'CONTRASTIVE.METHOD' if source.gives == 'features' else 'MODEL.PRETRAIN'
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, finalize=_literal
    )
    default = default_config()
    changed = [
        key
        for key in options_that_affect(*TRAINED)
        if value_at(config, key) != value_at(default, key)
    ]
    options = {'MODEL.NAME': config.MODEL.NAME, 'TAG': config.TAG}
    values = {key: _without_folders(value_at(config, key)) for key in (*changed, 'PRETRAINED')}
    options |= {key: 'nothing' if value == '' else value for key, value in values.items()}
    text = environment.get_template('model_card.md.j2').render(
        config=config,
        facts=facts(source),
        labels=source.outputs,
        gives=source.gives,
        activation=_activation(source) if source.outputs else '',
        method=selected_part(config, method).title,
        options=options,
        scores=_card_scores(source),
        is_prepared=_is_prepared_by_timm(config),
        has_pipeline=_has_pipeline(source),
        short_side=int(config.DATA.IMG_SIZE / CROPPED_SHARE),
    )
    return ModelCard(f'---\n{_card_data(source).to_yaml()}\n---\n{text}')


def _is_prepared_by_timm(config: Config) -> bool:
    """Return whether timm's transform prepares images as in evaluation."""
    return not scored_steps(config) and config.DATA.NORMALIZE == 'dataset'


def _has_pipeline(source: TrainedModel) -> bool:
    """Return whether a pipeline of transformers computes the outputs from image files.

    It opens every file as RGB, and no image processor of transformers makes one channel of it.
    """
    is_known = not source.outputs or _activation(source) in PROBLEM_TYPES
    has_colours = source.config.MODEL.IN_CHANS == 3
    return is_known and has_colours and _is_prepared_by_timm(source.config)


def _card_data(source: TrainedModel) -> ModelCardData:
    """Return the metadata of a model card. What the data allow decides about the licence."""
    config = source.config
    kind = 'image-classification' if source.outputs else 'image-feature-extraction'
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=_data_sets(config)[0],
            dataset_name=_data_sets(config)[0],
            dataset_split=split,
            metric_type='roc_auc',
            metric_name=f'AUROC, {mean}',
            metric_value=round(value, 4),
        )
        for split, mean, value in _card_scores(source)
    ]
    return ModelCardData(
        model_name=_literal(config.MODEL.NAME),
        library_name='timm',
        pipeline_tag=kind if _has_pipeline(source) else None,
        tags=['chest-x-ray', 'research', 'timm', 'transformers'],
        license='other',
        license_name='research-only',
        datasets=_data_sets(config),
        eval_results=results or None,
    )


def _card_scores(source: TrainedModel) -> list[tuple[str, str, float]]:
    """Return (split, name of the mean AUROC, value) of the scores of the run."""
    return [
        (split, name, scores[key])
        for split, scores in source.scores.items()
        for key, name in MEANS.items()
        if scores.get(key) is not None
    ]


def _data_sets(config: Config) -> list[str]:
    """Return the names of the data sets of a run, without folders."""
    sources = [entry['dataset'] for entry in config.DATA.SOURCES] or [config.DATA.DATASET]
    return sorted({_literal(PurePath(name).stem) for name in sources})


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to Hugging Face and return its address.

    A new repository is private.

    Raises:
        ValueError: If it cannot be uploaded, for example without a login (`hf auth login`).
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # huggingface_hub has no common class of errors
        raise ValueError(f'--push {repository}: {in_one_line(error)}') from error
    return str(address)


def write_timm(source: TrainedModel, path: Path) -> Run:
    """Write a folder that timm and transformers load, with the model card."""
    builders = {'swin': _timm_swin, 'vit': _timm_vit, 'timm': _timm_timm}
    kind, head = source.config.MODEL.TYPE, source.config.MODEL.HEAD
    if kind not in builders:
        raise ValueError(
            f'--to timm: MODEL.TYPE must be one of {list(builders)}, got {kind!r}; {ANY_MODEL}'
        )
    if source.outputs and head != 'linear':
        raise ValueError(f"--to timm: MODEL.HEAD must be 'linear', got {head!r}; {ANY_MODEL}")
    config, crops = source.config, source.config.TEST.CROP
    mean, std = pixel_statistics(config)
    inputs = {  # in place of the published model's
        'num_classes': len(source.outputs),
        'input_size': (config.MODEL.IN_CHANS, config.DATA.IMG_SIZE, config.DATA.IMG_SIZE),
        'mean': mean,
        'std': std,
        'interpolation': interpolation(source).name.lower(),
        'crop_pct': CROPPED_SHARE if crops else 1.0,
        'crop_mode': 'center' if crops else 'squash',
        'license': 'other',
        **dict.fromkeys(OF_PUBLISHED_WEIGHTS),
    }
    state = drop_buffers(source.encoder.state_dict())
    learned = {key: value.contiguous() for key, value in state.items() if key != 'mask_token'}
    architecture, arguments, learned = builders[kind](source, learned)
    model = timm.create_model(
        architecture,
        in_chans=config.MODEL.IN_CHANS,
        pretrained_cfg_overlay=inputs,
        **arguments,
    )
    model.load_state_dict(learned)
    outputs = {'label_names': list(source.outputs), FACTS: facts(source)}
    save_for_hf(model, path, model_config=outputs, safe_serialization=True)
    # transformers gives the number of outputs itself; timm also finds it in `pretrained_cfg`.
    written = json.loads((path / MODEL_CONFIG).read_text('utf-8'))
    written['model_args'].pop('num_classes', None)
    if source.outputs:  # otherwise the pipeline applies a softmax
        written['problem_type'] = PROBLEM_TYPES.get(_activation(source), OUTPUTS_AS_THEY_ARE)
    (path / MODEL_CONFIG).write_text(json.dumps(written, indent=2) + '\n', 'utf-8')
    model_card(source).save(path / CARD)
    model = timm.create_model(f'local-dir:{path}', pretrained=True).eval()
    return model.forward_features if source.gives == 'tokens' else model


def write_safetensors(source: TrainedModel, path: Path) -> Run:
    """Write a file that this project reads like the checkpoint, with the options of the run.

    Of folders and files in the options only the names remain.
    """
    options = source.config.clone()
    options.defrost()
    for key, value in flat_options(config_text(options)).items():
        put(options, key, _without_folders(value), 'export')
    state = {key: value.contiguous() for key, value in drop_buffers(source.state).items()}
    metadata = {OPTIONS_OF_WEIGHTS: config_text(options), 'format': 'pt'}
    metadata |= {FACTS: json.dumps({LINEAGE: source.trainings})} if source.trainings else {}
    save_file(state, path, metadata=metadata)
    return load_trained_model(path, logging.getLogger(__name__)).network


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
    graph.model.metadata_props[FACTS] = json.dumps(facts(source))
    graph.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


FORMATS = {
    'safetensors': Format(write_safetensors, '.safetensors'),
    'timm': Format(write_timm, ''),
    'onnx': Format(write_onnx, '.onnx', ('onnx', 'onnxscript', 'onnxruntime')),
    'torch_export': Format(write_torch_export, '.pt2'),
}


def _timm_swin(source: TrainedModel, state: State) -> tuple[str, dict[str, Any], State]:
    """Return name, arguments and state dict of a Swin in timm."""
    options = source.config.MODEL.SWIN
    for key, plain in PLAIN_SWIN.items():
        if options[key] != plain:
            raise ValueError(
                f'--to timm: MODEL.SWIN.{key} must be {plain}, got {options[key]}; {ANY_MODEL}'
            )
    arguments = _sizes(source, options) | {
        'depths': list(options.DEPTHS),
        'num_heads': list(options.NUM_HEADS),
        'window_size': options.WINDOW_SIZE,
    }
    renamed = {}
    for key, value in state.items():
        if match := re.match(r'layers\.(\d+)\.downsample', key):  # part of the next stage in timm
            key = f'layers.{int(match[1]) + 1}.downsample{key[match.end() :]}'
        renamed[re.sub(r'^head\.', 'head.fc.', key)] = value
    return 'swin_base_patch4_window7_224', arguments, renamed


def _timm_vit(source: TrainedModel, state: State) -> tuple[str, dict[str, Any], State]:
    """Return name, arguments and state dict of a ViT in timm, a BEiT if it has position tables."""
    options = source.config.MODEL.VIT
    arguments = _sizes(source, options) | {
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
        return 'beit_base_patch16_224', arguments, with_pooled_norm(state)
    arguments |= {'pos_embed': 'learn' if has_positions else 'none'}
    joined = {}
    for key, value in with_pooled_norm(state).items():
        if key.endswith('.q_bias'):
            v_bias = state[key.replace('.q_bias', '.v_bias')]
            key = key.replace('.q_bias', '.qkv.bias')
            value = torch.cat([value, torch.zeros_like(v_bias), v_bias])
        if not key.endswith('.v_bias'):
            joined[re.sub(r'\.gamma_([12])$', r'.ls\1.gamma', key)] = value
    return 'vit_base_patch16_224', arguments, joined


def _timm_timm(source: TrainedModel, state: State) -> tuple[str, dict[str, Any], State]:
    """Return name, arguments and state dict of a model of timm, whose classifier has its name."""
    layout, name = source.encoder.layout, source.config.MODEL.TIMM.NAME
    if source.outputs and len(layout.classifier) != 2:
        raise ValueError(f'--to timm: {name} has no classifier of one layer; {ANY_MODEL}')
    arguments = {key: layout.options[key] for key in layout.options.keys() & {'img_size'}}
    own = {f'head.{key.rpartition(".")[2]}': key for key in layout.classifier}
    renamed = {own.get(key, key.removeprefix(PREFIX)): value for key, value in state.items()}
    return name, arguments, renamed


def _sizes(source: TrainedModel, options: Config) -> dict[str, Any]:
    """Return the arguments of Swin and ViT in timm that have the same names here."""
    return {
        'img_size': source.config.DATA.IMG_SIZE,
        'patch_size': options.PATCH_SIZE,
        'embed_dim': options.EMBED_DIM,
        'mlp_ratio': options.MLP_RATIO,
        'qkv_bias': options.QKV_BIAS,
    }


def with_pooled_norm(state: State) -> State:
    """Add an identity norm after pooling to a ViT that has no norm.

    An encoder that was pre-trained with MODEL.VIT.USE_MEAN_POOLING has no norm.
    """
    if 'norm.weight' in state or 'fc_norm.weight' in state:
        return dict(state)
    width = state['cls_token'].shape[-1]
    return state | {'fc_norm.weight': torch.ones(width), 'fc_norm.bias': torch.zeros(width)}


@torch.no_grad()
def _trace(source: TrainedModel) -> ExportedProgram:
    """Trace the network as a program for batches of up to MOST_IMAGES images."""
    shapes = ({0: Dim('batch', max=MOST_IMAGES)},)
    images = example_images(source, EXAMPLES)
    # With strict=False, a length such as len(tokens) would become a constant.
    program = torch.export.export(source.network, (images,), dynamic_shapes=shapes, strict=True)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop('stack_trace', None)  # the paths of the source code on this machine
    return program


def _literal(value: object) -> str:
    """Return a value, which may come from a foreign file, as one line without markup."""
    text = html.escape(' '.join(str(value).split()), quote=False)
    return text.replace('|', '&#124;').replace('`', '&#96;')


def _without_folders(value: Any) -> object:
    """Return the value of an option with only the name of each path."""
    if isinstance(value, str):  # a data set may be the path of a function
        return PurePath(value).name
    if isinstance(value, dict):
        return {
            key: key if key == 'path' else _without_folders(each) for key, each in value.items()
        }
    return [*map(_without_folders, value)] if isinstance(value, list) else value
