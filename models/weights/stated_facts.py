"""Facts that change what a model computes, but neither the names nor the shapes of its weights.

With another number of attention heads, activation, epsilon, pooling or stride, the same weights fit
a model and give other features. The facts of foreign weights stand beside them, in `config.json` of
transformers or timm, or in the file itself, which may name its model of timm.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from config import Config
from models.classifier_heads import CLASSIFIER_HEADS
from models.weights.recognise import ARCHITECTURE, HEADS, TABLE, known_heads

Facts = dict[str, Any]

DECODER_HEADS, SCALE = 'attention heads of the decoder', 'scale of the attention logits'
ACTIVATION, EPSILON, POOLING = 'activation', 'epsilon of the norms', 'pooling'
ROTARY, BLOCKS, STRIDES = 'rotary positions', 'kind of the blocks', 'strides and padding'
# Options of transformers' ResNets that move a stride; those of timm have none of them.
MOVED_STRIDES = ('downsample_in_bottleneck', 'downsample_in_first_stage')
ACTIVATION_MODULES = ('torch.nn.modules.activation', 'timm.layers.activations')
NO_ACTIVATIONS = nn.Softmax | nn.MultiheadAttention  # in the same modules
# Names in transformers, without underscores, of activations that PyTorch and timm call otherwise.
TANH_GELUS = ('gelunew', 'gelufast', 'gelupytorchtanh', 'gelupythontanh', 'geluaccurate')
ACTIVATIONS = {'gelupython': 'gelu', 'swish': 'silu', **dict.fromkeys(TANH_GELUS, 'gelutanh')}
# The published ViTs of transformers state 1e-12 for weights that were trained with 1e-6.
LARGEST_EPSILON_CHANGE = 1e-6
NUM_SIMILAR = 6  # models of timm that are compared with another one
# Arguments of timm's models that the weights show, or that do not affect the features.
HARMLESS_ARGUMENTS = re.compile(
    r'img_size|patch_size|in_chans|num_classes|embed_dim|depths?|mlp_ratio|qkv_bias|window_size|'
    r'init_values|pos_embed|use_\w*pos\w*|class_token|no_embed_class|reg_tokens|fc_norm|'
    r'\w*drop\w*|weight_init|(dynamic|strict)_img_size'
)


def facts_of_model(model: nn.Module) -> Facts:
    """Return the facts of the encoder and of the decoder of a model."""
    encoder = getattr(model, 'encoder', model)
    modules = {n: m for n, m in encoder.named_modules() if n and n.split('.')[0] != 'head'}
    decoder = getattr(model, 'decoder', nn.Identity())
    epsilons = {getattr(module, 'eps', None) for module in modules.values()}
    blocks = {type(m).__name__ for name, m in modules.items() if re.fullmatch(r'blocks\.\d+', name)}
    pooling = getattr(encoder, 'global_pool', None)
    activations = set()
    for module in modules.values():
        is_activation = type(module).__module__.startswith(ACTIVATION_MODULES)
        if is_activation and not isinstance(module, NO_ACTIVATIONS):
            is_tanh = getattr(module, 'approximate', 'none') == 'tanh'
            activations.add('gelutanh' if is_tanh else _plain_name(type(module).__name__))
    return {
        HEADS: _numbers_of_heads(modules.values()),
        DECODER_HEADS: _numbers_of_heads(decoder.modules()),
        ACTIVATION: sorted(activations),
        EPSILON: sorted(eps for eps in epsilons if isinstance(eps, float)),
        POOLING: getattr(pooling, 'pool_type', pooling),
        ROTARY: getattr(encoder, 'rope', None) is not None,
        BLOCKS: sorted(blocks),
        STRIDES: [
            (type(m).__name__, m.kernel_size, m.stride, m.padding)
            for name, m in modules.items()
            if all(hasattr(m, key) for key in ('kernel_size', 'stride', 'padding'))
            and name != 'patch_embed.proj'
        ],
    }


def facts_of_options(options: Config) -> Facts:
    """Return the facts of the training of a checkpoint of this project."""
    model = options.MODEL
    if model.TYPE == 'timm':
        return _facts_of_timm(model.TIMM.NAME, {})
    section, facts = dict(model).get(model.TYPE.upper(), {}), {}
    if 'NUM_HEADS' in section:
        facts[HEADS] = _numbers('NUM_HEADS', section['NUM_HEADS'])
    if 'QK_SCALE' in section:
        facts[SCALE] = str(section['QK_SCALE'])  # 'None': from the width of a head
    if model.PRETRAIN == 'mae':
        facts[DECODER_HEADS] = [model.MAE.DECODER_NUM_HEADS]
    return facts


def facts_of_file(
    checkpoint: Mapping[str, Any], model_config: Mapping[str, Any], *, is_huggingface: bool
) -> Facts:
    """Return the facts that stand beside foreign weights or in their file; {} if there are none.

    Args:
        checkpoint: Contents of the file.
        model_config: Contents of `config.json` beside the file.
        is_huggingface: Whether the weights have the names of transformers.

    Raises:
        ValueError: If a fact has an impossible value.
    """
    name, arguments = model_config.get('architecture'), model_config.get('model_args')
    pooling = model_config.get('global_pool')
    if name is None:
        # The safe loader makes an empty dictionary with attributes of a Namespace (timm).
        args = checkpoint.get('args')
        options = args if isinstance(args, dict) and args else getattr(args, '__dict__', {})
        name = options.get('model') or options.get('arch') or checkpoint.get('arch')
        arguments, pooling = options.get('model_kwargs'), options.get('gp')
    if isinstance(name, str) and timm.is_model(name.split('.')[0]):
        facts = _facts_of_timm(name, arguments if isinstance(arguments, dict) else {})
        facts[POOLING] = pooling or facts.get(POOLING)
        if not model_config.get('num_classes', 1):
            facts.pop(POOLING)  # no classifier was trained on the pooled output
        return facts
    return _facts_of_transformers(model_config) if is_huggingface else {}


def compare_facts(
    stated: Facts, config: Config, model: nn.Module, loaded: Collection[str]
) -> list[str]:
    """Compare the facts of weights with those of the model that loads them.

    Args:
        stated: Facts of the weights.
        config: Run configuration.
        model: Model that loads them.
        loaded: Names of the entries that it loads.

    Returns:
        Remarks for the log: small differences, and what is assumed.

    Raises:
        ValueError: If the model would compute something else. The message names the options.
    """
    has_decoder = any(key.startswith('decoder.blocks.') for key in loaded)
    here = _facts_of_run(config, model)
    if not has_decoder:
        here.pop(DECODER_HEADS)
    # What is not known of the model, or not used, is not compared.
    here = {fact: value for fact, value in here.items() if value not in (None, [])}
    different = {fact for fact in stated.keys() & here.keys() if stated[fact] != here[fact]}
    if EPSILON in different:
        pairs = itertools.product(stated[EPSILON], here[EPSILON])
        if all(abs(a - b) <= LARGEST_EPSILON_CHANGE for a, b in pairs):
            different.remove(EPSILON)
    if different:
        raise ValueError(
            'the weights fit, but this model would compute something else with them: '
            + '; '.join(
                f'{fact} {_shown(stated[fact])} in their training, and {_shown(here[fact])} here '
                f'({_remedy(fact, stated[fact], config)})'
                for fact in sorted(different)
            )
        )
    remarks = []
    if EPSILON in stated and stated[EPSILON] != here.get(EPSILON, stated[EPSILON]):
        remarks.append(f'{EPSILON}: {_shown(stated[EPSILON])}, here {_shown(here[EPSILON])}')
    # A position table has a column for each head.
    if HEADS in here and HEADS not in stated and not any(key.endswith(TABLE) for key in loaded):
        width = getattr(getattr(model, 'encoder', model), 'embed_dim', 0)
        known = known_heads(width)
        remarks.append(
            f'{_shown(here[HEADS])} heads assumed, because the file does not state their number'
            + (f' (known models: {known})' if known else '')
        )
    if DECODER_HEADS in here and DECODER_HEADS not in stated:
        remarks.append(f'{_shown(here[DECODER_HEADS])} heads of the decoder assumed')
    return remarks


def twins(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return models of timm that have the weights of a model, but compute something else with them.

    For example, `efficientnet_lite0` and `tf_efficientnet_lite0` have other padding. Compared are
    the models of the same file of timm with the most similar names (NUM_SIMILAR), because building
    all of them takes minutes: twins with other names are not found, nor differences that
    `facts_of_model` does not see.

    Args:
        name: Model of timm.
        options: Arguments of timm.create_model.
    """
    file = timm.model_entrypoint(name).__module__
    others = [n for n in timm.list_models() if n != name]
    others = [n for n in others if timm.model_entrypoint(n).__module__ == file]
    similar = get_close_matches(name, others, n=NUM_SIMILAR, cutoff=0.7)
    similar += [n for n in (f'tf_{name}', name.removeprefix('tf_')) if n in others]
    shapes, facts = _shapes_and_facts(name, options)
    found = []
    for other in dict.fromkeys(similar):
        other_shapes, other_facts = _shapes_and_facts(other, options)
        if other_shapes == shapes and other_facts != facts:
            found.append(other)
    return found


def _shapes_and_facts(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Facts]:
    """Return shapes and facts of a model of timm; {} and {} if it does not take the options."""
    try:
        with torch.device('meta'):
            model = timm.create_model(name, **options)
    except Exception:  # a model can fail in any way
        return {}, {}
    return {key: value.shape for key, value in model.state_dict().items()}, facts_of_model(model)


def _facts_of_run(config: Config, model: nn.Module) -> Facts:
    """Return the facts of the model of a run; None if a fact is not known or does not matter."""
    encoder, kind = getattr(model, 'encoder', model), config.MODEL.TYPE
    facts = facts_of_model(model) | dict.fromkeys(MOVED_STRIDES, False)
    if kind != 'timm':
        facts |= {k: v for k, v in facts_of_options(config).items() if k != DECODER_HEADS}
    if kind == 'vit':
        facts[POOLING] = 'avg' if config.MODEL.VIT.USE_MEAN_POOLING else 'token'
    # Masked pre-training and heads on tokens pool nothing.
    if getattr(encoder, 'is_masked', False) or CLASSIFIER_HEADS[config.MODEL.HEAD].takes_tokens:
        facts[POOLING] = None
    return facts


def _facts_of_timm(name: str, arguments: Mapping[str, Any]) -> Facts:
    """Return the facts of a model of timm.

    The model is built without the arguments, which may come from a foreign file: they could
    download something or fill the memory.

    Raises:
        ValueError: If an argument may change the features in a way that is not known here.
    """
    with torch.device('meta'):
        facts = facts_of_model(timm.create_model(name.split('.')[0], num_classes=0))
    facts.pop(DECODER_HEADS)
    facts[ARCHITECTURE] = name.split('.')[0]
    for key, value in arguments.items():
        if key == 'num_heads':
            facts[HEADS] = _numbers(key, value)
        elif key == 'act_layer':
            facts[ACTIVATION] = [_plain_name(value)]
        elif key == 'global_pool':
            facts[POOLING] = value
        elif not HARMLESS_ARGUMENTS.fullmatch(key):
            raise ValueError(
                f'the argument {key} of {name} may change the features, and is not supported: '
                f'{value!r:.100}'
            )
    return facts


def _facts_of_transformers(values: Mapping[str, Any]) -> Facts:
    """Return the facts in a `config.json` of transformers."""
    for section in ('backbone_config', 'vision_config', 'encoder'):
        if isinstance(values.get(section), dict):
            values = values[section]
    facts = {}
    for fact, key in (
        (HEADS, 'num_heads'),
        (HEADS, 'num_attention_heads'),
        (DECODER_HEADS, 'decoder_num_attention_heads'),
        (EPSILON, 'layer_norm_eps'),
    ):
        if values.get(key) is not None:
            facts[fact] = _numbers(key, values[key])
    if values.get('use_swiglu_ffn'):  # DINOv2, whose `hidden_act` is then not used
        facts[ACTIVATION] = ['silu']
    elif 'hidden_act' in values:
        facts[ACTIVATION] = [_plain_name(values['hidden_act'])]
    is_masked = 'MaskedImageModeling' in str(values.get('architectures'))
    if 'use_mean_pooling' in values and not is_masked:
        facts[POOLING] = 'avg' if values['use_mean_pooling'] else 'token'
    if values.get('model_type') == 'resnet':
        facts |= {key: bool(values.get(key)) for key in MOVED_STRIDES}
        if values.get('layer_type') == 'basic':  # blocks without a bottleneck
            facts.pop('downsample_in_bottleneck')
    return facts


def _numbers_of_heads(modules: Iterable[nn.Module]) -> list[int]:
    """Return the different numbers of heads of the attention layers among modules."""
    numbers = {getattr(module, 'num_heads', None) for module in modules}
    return sorted(number for number in numbers if isinstance(number, int))


def _plain_name(activation: object) -> str:
    name = str(activation)[:50].lower().replace('_', '')
    return ACTIVATIONS.get(name, name)


def _numbers(key: str, value: object) -> list[float]:
    """Return the different numbers in a value of a foreign file, which is a number or a list."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(type(number) in (int, float) for number in values):
        raise ValueError(f'{key} must be a number or a list of numbers, got {value!r:.100}')
    return sorted({*values})


def _shown(value: object) -> str:
    values = value if isinstance(value, list) else [value]
    return f'{", ".join(map(str, values)):.200}'


def _remedy(fact: str, stated: Any, config: Config) -> str:
    """Return how a run gets a fact of the weights."""
    kind = config.MODEL.TYPE
    section = f'MODEL.{kind.upper()}'
    if fact == HEADS and 'NUM_HEADS' in dict(config.MODEL).get(kind.upper(), {}):
        return f'set {section}.NUM_HEADS' + (f' {stated[0]}' if len(stated) == 1 else '')
    if fact == SCALE and kind == 'swin':
        return f'set {section}.QK_SCALE {stated}'
    if fact == DECODER_HEADS:
        return f'set MODEL.MAE.DECODER_NUM_HEADS {_shown(stated)}'
    if fact == POOLING and kind == 'vit' and stated in ('avg', 'token'):
        return f'set {section}.USE_MEAN_POOLING {stated == "avg"}'
    if kind == 'timm':
        return 'choose a MODEL.TIMM.NAME that has it'
    return f'MODEL.TYPE {kind} has no option for it'
