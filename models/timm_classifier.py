"""Any model of timm as a classifier: the supervised baselines, with a linear head of ours."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import nn

from engine.files import in_one_line
from models.relative_position import ClassifierHead

EXAMPLES = ('resnet50', 'densenet121')
OPTIONAL = {  # arguments that not every model of timm takes -> the option and what is lacking
    'img_size': ('DATA.IMG_SIZE', ''),
    'drop_rate': ('MODEL.DROP_RATE', 'dropout'),
    'drop_path_rate': ('MODEL.DROP_PATH_RATE', 'stochastic depth'),
}


class Layout(NamedTuple):
    """What a model of timm is like, found without weights.

    Attributes:
        options: arguments that make it, as an encoder without classifier.
        width: of its pooled features.
        map_layer: module whose places a saliency map weights; '' where there is none.
        layer_ids: layer of each parameter by timm's own groups, the classifier's included; empty
            where timm has none.
        classifier: state-dict keys of timm's own classifier.
    """

    options: dict[str, Any]
    width: int
    map_layer: str
    layer_ids: dict[str, int]
    classifier: list[str]


class TimmClassifier(nn.Module):
    """A model of timm, random weights, with a linear head on its pooled features.

    MODEL.DROP_RATE is timm's drop_rate: in most of its models, dropout before the head alone.
    Gradient checkpointing runs a batch norm twice a micro-batch, so that its running statistics
    move as with momentum 0.19 in place of 0.1.

    Attributes:
        num_features: width of the output.
        layout: see `Layout`.
    """

    def __init__(
        self,
        name: str,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        use_checkpoint: bool = False,
        **rates: float,
    ) -> None:
        super().__init__()
        self.name, self.img_size, self.in_chans = name, img_size, in_chans
        self.layout = find_layout(name, img_size=img_size, in_chans=in_chans, **rates)
        self.num_features = self.layout.width
        self.encoder = timm.create_model(name, **self.layout.options)
        if use_checkpoint:
            self._use_checkpoint()
        has_head = num_classes > 0
        self.head = ClassifierHead(self.num_features, num_classes) if has_head else nn.Identity()
        if has_head:
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def _use_checkpoint(self) -> None:
        try:
            self.encoder.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):  # timm's ways to say that there is none
            raise ValueError(
                f'TRAIN.USE_CHECKPOINT must be False for {self.name}, which timm cannot compute '
                'again in the backward pass, got True'
            ) from None

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, C, S, S] to what the head sees, [B, F].

        Raises:
            ValueError: if they are of another size than the model was made for.
        """
        expected = (self.in_chans, self.img_size, self.img_size)
        if x.shape[1:] != expected:
            raise ValueError(
                f'image size: got {list(x.shape[1:])}, {self.name} was built for {list(expected)} '
                '(MODEL.IN_CHANS, DATA.IMG_SIZE)'
            )
        return self.encoder(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x))

    def get_num_layers(self) -> int:
        return max(self.layout.layer_ids.values(), default=1) - 1

    def get_layer_id(self, name: str) -> int:
        """Layer of a parameter, for layer decay: 0 the input, the head the last, by timm's groups.

        All are of one layer where timm has no groups (`check_timm` refuses layer decay there).
        """
        top = self.get_num_layers() + 1
        if not name.startswith('encoder.'):
            return top
        return self.layout.layer_ids.get(name.removeprefix('encoder.'), top)

    def no_weight_decay(self) -> set[str]:
        names = getattr(self.encoder, 'no_weight_decay', set)()
        return {f'encoder.{name}' for name in names}

    def no_weight_decay_keywords(self) -> set[str]:
        return set()


def timm_kwargs(config: Any) -> dict[str, Any]:
    """Keyword arguments of `TimmClassifier`, less the number of classes."""
    return {
        'name': config.MODEL.TIMM.NAME,
        'img_size': config.DATA.IMG_SIZE,
        'in_chans': config.MODEL.IN_CHANS,
        'use_checkpoint': config.TRAIN.USE_CHECKPOINT,
        'drop_rate': config.MODEL.DROP_RATE,
        'drop_path_rate': config.MODEL.DROP_PATH_RATE,
    }


def check_timm(config: Any, *, finetunes: bool) -> None:
    """Refuse what the model of MODEL.TIMM.NAME cannot do, before it is built with weights.

    Args:
        config: all options.
        finetunes: whether layer decay and the report's maps are read: pre-training has neither.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    with torch.device('meta'):
        layout = TimmClassifier(**timm_kwargs(config), num_classes=1).layout
    name, train, maps = config.MODEL.TIMM.NAME, config.TRAIN, config.REPORT.MAPS
    own = {
        'MODEL.ATTENTION': (config.MODEL.ATTENTION, 'auto', 'attention is its own'),
        'TRAIN.CHECKPOINT_KEEPS': (train.CHECKPOINT_KEEPS, 'nothing', 'checkpointing is its own'),
    }
    if finetunes and not layout.layer_ids:
        own['TRAIN.LAYER_DECAY'] = (train.LAYER_DECAY, 1.0, 'timm says nothing of its layers')
    if finetunes and not layout.map_layer and config.REPORT.WRITE:
        own['REPORT.MAPS'] = (maps, 0, 'it has no map of features before its pooling')
    for key, (value, works, why) in own.items():
        if value != works:
            raise ValueError(f'{key} must be {works!r} for {name} of timm: {why}, got {value!r}')


@cache
def find_layout(name: str, *, img_size: int, in_chans: int, **rates: float) -> Layout:
    """Build a model without memory and let it compute shapes; no random number is drawn.

    Raises:
        ValueError: if timm has no such model, or it takes no such images or rates.
    """
    if name not in timm.list_models():
        close = get_close_matches(name.split('.')[0], timm.list_models()) or EXAMPLES
        raise ValueError(
            f'MODEL.TIMM.NAME must be a model of timm, such as {", ".join(map(repr, close))}, '
            f'got {name!r}'
        )
    options = {'num_classes': 0, 'in_chans': in_chans, 'img_size': img_size}
    options |= {key: rate for key, rate in rates.items() if rate}
    try:
        with torch.device('meta'), torch.no_grad():
            encoder, options = _build(name, options)
            full, _ = _build(name, options | {'num_classes': 1})
            width, map_layer = _look_inside(encoder.eval(), (1, in_chans, img_size, img_size))
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(
            f'DATA.IMG_SIZE must be a size of images that {name} of timm can take, got {img_size} '
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
    """The model, and the options without a size of images where it takes any size."""
    options = dict(options)
    while True:
        try:
            return timm.create_model(name, **options), options
        except TypeError as error:
            unknown = [key for key in OPTIONAL if key in options and f"'{key}'" in str(error)]
            if not unknown:
                raise
            option, lacking = OPTIONAL[unknown[0]]
            rate = options.pop(unknown[0])
            if lacking:
                raise ValueError(
                    f'{option} must be 0 for {name} of timm, which has no {lacking}, got {rate}'
                ) from None


def _look_inside(encoder: nn.Module, shape: tuple[int, ...]) -> tuple[int, str]:
    """Width of what an encoder gives for images of this shape, and its layer for saliency maps.

    That is the last module with a square map [B, F, h, w] of more than one place, or where tokens
    follow that (ViT), the block before the last, as for our own ViT. Maps [B, h, w, F] are none.
    """
    last, has_tokens = '', False

    def watch(name: str) -> Callable:
        def look(_module: nn.Module, _inputs: tuple, result: object) -> None:
            nonlocal last, has_tokens
            dims = result.shape if isinstance(result, torch.Tensor) else ()
            if len(dims) == 4 and dims[2] == dims[3] > 1:
                last, has_tokens = name, False
            has_tokens = has_tokens or len(dims) == 3

        return look

    handles = [m.register_forward_hook(watch(n)) for n, m in encoder.named_modules() if n]
    pooled = encoder(torch.empty(shape))
    for handle in handles:
        handle.remove()
    if pooled.ndim != 2:
        raise RuntimeError(f'it gives {list(pooled.shape)} and no one vector an image')
    if has_tokens:
        blocks = getattr(encoder, 'blocks', ())
        last = f'blocks.{len(blocks) - 2}' if len(blocks) > 1 else ''
    elif getattr(encoder, 'output_fmt', 'NCHW') != 'NCHW':
        last = ''
    return pooled.shape[1], last
