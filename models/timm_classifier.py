"""Wrap any timm model as an encoder, for example for supervised baselines."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import nn

from config import refuse_unless
from models.classifier_heads import CLASSIFIER_HEADS, build_classifier_head
from models.encoder import ENCODERS, MAP_CELLS, Encoder
from system.files import in_one_line


class Layout(NamedTuple):
    """Properties of a timm model, found without allocating weights.

    Attributes:
        options: Arguments of timm.create_model that build the model without a classifier.
        width: Width of the pooled features.
        map_layer: Name of the module for saliency maps; '' if there is none.
        layer_ids: Layer of each parameter by timm's parameter groups, including the classifier;
            empty if timm defines no groups for this model.
        classifier: State-dict keys of the classifier that timm would add.
    """

    options: dict[str, Any]
    width: int
    map_layer: str
    layer_ids: dict[str, int]
    classifier: list[str]


@ENCODERS.register('timm')
class TimmClassifier(Encoder):
    """A timm model with random weights and a linear head on the pooled features.

    MODEL.DROP_RATE is passed to timm as drop_rate, which most models apply only before the head.
    With gradient checkpointing, batch norm layers run twice per batch, so their running statistics
    move as with momentum 0.19 instead of 0.1.
    """

    def __init__(
        self,
        name: str,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        use_checkpoint: bool = False,
        channels_last: bool = False,
        head: str = 'linear',
        head_options: Mapping[str, Any] | None = None,
        **rates: float,
    ) -> None:
        super().__init__()
        self.name, self.in_chans, self.channels_last = name, in_chans, channels_last
        self.layout = find_layout(name, img_size=img_size, in_chans=in_chans, **rates)
        self.num_features = self.layout.width
        self.encoder = timm.create_model(name, **self.layout.options)
        if use_checkpoint:
            try:
                self.encoder.set_grad_checkpointing(True)
            except (AssertionError, AttributeError):  # timm raises these if it is not supported
                raise ValueError(
                    f"TRAIN.USE_CHECKPOINT must be False for timm's {name}, got True"
                ) from None
        self.head = build_classifier_head(self.num_features, num_classes, head, head_options)
        if num_classes > 0:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    @classmethod
    def check(cls, config: Any, stage: str | None) -> None:
        """Check that the model exists and supports the options."""
        is_allowed = timm.is_model(config.MODEL.TIMM.NAME)
        refuse_unless(is_allowed, config, 'MODEL.TIMM.NAME', "a timm model such as 'resnet50'")
        with torch.device('meta'):
            model = cls(**cls.constructor_arguments(config), num_classes=1)
        layout = model.layout
        name, train = config.MODEL.TIMM.NAME, config.TRAIN
        why = f"for timm's {name}"
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        is_allowed = not config.MODEL.TIMM.CHANNELS_LAST or len(convolutions) > 1
        refuse_unless(
            is_allowed,
            config,
            'MODEL.TIMM.CHANNELS_LAST',
            f'False {why}, without convolutions after the patches',
        )
        is_allowed = not CLASSIFIER_HEADS[config.MODEL.HEAD].takes_tokens
        refuse_unless(is_allowed, config, 'MODEL.HEAD', f'a head on pooled features {why}')
        if stage == 'finetune':
            is_allowed = train.LAYER_DECAY == 1.0 or bool(layout.layer_ids)
            refuse_unless(
                is_allowed, config, 'TRAIN.LAYER_DECAY', f'1.0 {why}, whose layers are not grouped'
            )
            is_allowed = not config.REPORT.MAPS or bool(layout.map_layer) or not config.REPORT.WRITE
            refuse_unless(is_allowed, config, 'REPORT.MAPS', f'0 {why}, which has no feature map')

    @classmethod
    def takes_size(cls, config: Any, size: int) -> bool:
        arguments = cls.constructor_arguments(config)
        try:
            layout = find_layout(arguments['name'], img_size=size, in_chans=arguments['in_chans'])
        except ValueError:  # the image is too small for the model
            return False
        return 'img_size' not in layout.options or size == config.DATA.IMG_SIZE

    @property
    def backbone(self) -> nn.Module:
        return self.encoder

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        if self.channels_last and self.training:
            # Convolutions keep the order of their input, and the weights keep theirs. `contiguous`
            # would return images of one channel as they are.
            x = x.to(memory_format=torch.channels_last)
        return self.encoder(x)

    def get_num_layers(self) -> int:
        return max(self.layout.layer_ids.values(), default=1) - 1

    def get_layer_id(self, name: str) -> int:
        """Return the layer by timm's groups. Without groups, all parameters share one layer."""
        top = self.get_num_layers() + 1
        if not name.startswith('encoder.'):
            return top
        return self.layout.layer_ids.get(name.removeprefix('encoder.'), top)

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.encoder, 'no_weight_decay', set)()
        return {f'encoder.{name}' for name in names}

    def saliency_layer(self) -> nn.Module | None:
        name = self.layout.map_layer
        return self.encoder.get_submodule(name) if name else None


@cache
def find_layout(name: str, *, img_size: int, in_chans: int, **rates: float) -> Layout:
    """Find the layout of a timm model on the meta device, without memory and random numbers.

    Raises:
        ValueError: If timm has no such model, or if it does not support the image size or rates.
    """
    options = {'num_classes': 0, 'in_chans': in_chans, 'img_size': img_size}
    options |= {key: rate for key, rate in rates.items() if rate}
    try:
        with torch.device('meta'), torch.no_grad():
            encoder, options = _build(name, options)
            full, _ = _build(name, options | {'num_classes': 1})
            width, map_layer = _look_inside(encoder.eval(), (1, in_chans, img_size, img_size))
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"DATA.IMG_SIZE must be a size that timm's {name} accepts, got {img_size} "
            f'({in_one_line(error)})'
        ) from error
    layer_ids = {}
    if hasattr(full, 'group_matcher'):
        layer_ids = group_parameters(full, full.group_matcher(coarse=False), reverse=True)
    own = encoder.state_dict()
    return Layout(
        options, width, map_layer, layer_ids, [k for k in full.state_dict() if k not in own]
    )


def _build(name: str, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model; also return the options, without 'img_size' if the model takes any size."""
    any_size = {key: value for key, value in options.items() if key != 'img_size'}
    for accepted in (options, any_size):
        try:
            return timm.create_model(name, **accepted), accepted
        except TypeError as error:
            problem = error
    raise ValueError(
        f"MODEL.DROP_RATE and MODEL.DROP_PATH_RATE must be 0 for timm's {name} ({problem})"
    )


def _look_inside(encoder: nn.Module, shape: tuple[int, ...]) -> tuple[int, str]:
    """Return the width of the pooled features and the name of the layer for saliency maps.

    The layer is the last module that returns a square map [B, F, h, w]. If the map has fewer than
    MAP_CELLS x MAP_CELLS cells, it is the last stage in timm's `feature_info` with enough of them.
    If tokens follow (ViT), it is the last block but one, as in `VisionTransformer.saliency_layer`.
    Models that return maps [B, h, w, F] have no such layer.
    """
    last, sides, tokens = '', {}, 0

    def watch(name: str) -> Callable:
        def look(_module: nn.Module, _inputs: tuple, result: object) -> None:
            nonlocal last, tokens
            dims = result.shape if isinstance(result, torch.Tensor) else ()
            if len(dims) == 4 and dims[2] == dims[3] > 1:
                last, sides[name], tokens = name, dims[2], 0
            tokens = dims[1] if len(dims) == 3 else tokens

        return look

    handles = [m.register_forward_hook(watch(n)) for n, m in encoder.named_modules() if n]
    pooled = encoder(torch.empty(shape))
    for handle in handles:
        handle.remove()
    if pooled.ndim != 2:
        raise RuntimeError(f'the output is {list(pooled.shape)}, not one vector per image')
    if tokens:
        blocks = getattr(encoder, 'blocks', ())
        has_cells = tokens >= MAP_CELLS**2 and len(blocks) > 1
        last = f'blocks.{len(blocks) - 2}' if has_cells else ''
    elif getattr(encoder, 'output_fmt', 'NCHW') != 'NCHW':
        last = ''
    elif sides.get(last, 0) < MAP_CELLS:
        stages = [stage['module'] for stage in getattr(encoder, 'feature_info', ())]
        fine = [name for name in stages if sides.get(name, 0) >= MAP_CELLS]
        last = fine[-1] if fine else ''
    return pooled.shape[1], last
