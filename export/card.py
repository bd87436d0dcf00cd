"""The model card of an export for transformers."""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from config import Config
from config_checks_contrastive import READS
from config_merge import value_at
from data.transforms import enlarged_sides, statistics
from export.source import Source, input_size, interpolation
from models.contrastive.methods import METHODS

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
        keys = [f'CONTRASTIVE.{name}' for name in ('METHOD', 'DIM', *READS[method], 'BLUR')]
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
    return int(enlarged_sides(np.ones(2, np.int64), size)[0])


def _shown(config: Config, key: str) -> object:
    """The value as the card has it: of a path the name alone, which tells of no machine."""
    value = value_at(config, key)
    if key == 'PRETRAINED':
        return PurePath(value).name or 'nothing'
    if value is None and key.startswith('CONTRASTIVE.'):
        return "the method's own"
    return dict(value) if isinstance(value, dict) else value
