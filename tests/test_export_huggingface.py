"""export/to_huggingface.py: what transformers loads without this project computes the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_export_source import load_run, outputs_of, swin, vit
from test_export_timm import CASES
from tiny import ROOT, SWIN, VIT

from data.images import full_size
from data.transforms import EvalTransform, enlarge
from models.export import (
    HuggingFaceOutputs,
    Source,
    example_images,
    processor_config,
    write_huggingface,
)

transformers = pytest.importorskip('transformers', reason='needs requirements-export.txt')
NAMES = [name for name in CASES if name != 'swin, window over a stage']


def export(folder: Path, stage: str = 'finetune', model: dict = SWIN, **sections: dict) -> tuple:
    source = load_run(folder, stage, model, **sections)
    assert write_huggingface(source, folder / 'hf', overwrite=False) < 1e-5
    return source, folder / 'hf'


@pytest.mark.parametrize('name', NAMES)
def test_transformers_own_model_computes_the_same(name, tmp_path) -> None:
    """Every entry of its model comes from the file, and every entry of the file goes there."""
    stage, model, _ = CASES[name]
    source, folder = export(tmp_path, stage, model)
    kind = 'AutoModelForImageClassification' if source.outputs else 'AutoModel'
    theirs, found = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    with torch.no_grad():
        outputs = theirs.eval()(pixel_values=example_images(source, 3))
    found = outputs.logits if source.outputs else outputs.last_hidden_state
    expected = outputs_of(source, 3)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['swin', 'vit, pre-trained'])
def test_a_process_without_this_project_computes_the_same(name, tmp_path) -> None:
    """The copied script sees neither this folder nor its environment variables."""
    source, folder = export(tmp_path, *CASES[name][:2])
    (tmp_path / 'away').mkdir()
    alone = tmp_path / 'away' / 'standalone.py'
    alone.write_bytes((ROOT / 'export' / 'standalone.py').read_bytes())
    np.save(tmp_path / 'images.npy', example_images(source, 3).numpy())
    words = [sys.executable, '-I', alone, folder, tmp_path / 'images.npy', tmp_path / 'out.npy']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / 'out.npy')
    np.testing.assert_allclose(found, outputs_of(source, 3), rtol=0, atol=1e-5)


def test_pooled_features_are_those_that_the_head_reads(tmp_path) -> None:
    for name, model in (('swin', SWIN), ('vit', vit(USE_MEAN_POOLING=True)), ('token', VIT)):
        source, folder = export(tmp_path / name, model=model)
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        images = example_images(source, 3)
        with torch.no_grad():
            expected = source.encoder.forward_features(images)
            found = theirs(pixel_values=images).pooler_output
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_config_names_the_labels(tmp_path) -> None:
    _, folder = export(tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.id2label[5] == 'Edema' and config.label2id['Edema'] == 5
    assert len(config.id2label) == 14
    assert config.problem_type == 'multi_label_classification'


def test_the_model_trains_on_as_a_classifier_of_several_labels(tmp_path) -> None:
    """Its loss is the binary cross-entropy of the logits, by the closed form."""
    source, folder = export(tmp_path)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    targets = (torch.arange(42).view(3, 14) % 3 == 0).float()
    with torch.no_grad():
        loss = theirs(pixel_values=example_images(source, 3), labels=targets).loss.item()
    logits = outputs_of(source, 3).astype(np.float64)
    closed = np.logaddexp(0, logits) - targets.numpy() * logits
    assert loss == pytest.approx(closed.mean(), rel=1e-5)


@pytest.mark.parametrize(
    'model, data, part',
    [
        (swin(WINDOW_SIZE=16), {}, 'MODEL.SWIN.WINDOW_SIZE must be at most 8'),
        (swin(APE=True), {}, 'MODEL.SWIN.APE must be False'),
        (SWIN, {'UNCERTAIN': 'multiclass'}, 'three outputs a label'),
    ],
)
def test_a_model_that_fits_no_class_is_refused(model, data, part, tmp_path) -> None:
    source = load_run(tmp_path, 'finetune', model, DATA=data)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=part):
        write_huggingface(source, tmp_path / 'hf', overwrite=False)
    assert sorted(tmp_path.iterdir()) == before


def test_entries_that_transformers_lacks_are_refused(tmp_path) -> None:
    _, folder = export(tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | {'depths': [2, 3]}))
    with pytest.raises(ValueError, match='does not fit: .*missing_keys.*blocks.2'):
        HuggingFaceOutputs(folder, 'logits')


def test_the_folder_is_replaced_as_a_whole(tmp_path) -> None:
    source, folder = export(tmp_path)
    with pytest.raises(ValueError, match='is there already'):
        write_huggingface(source, folder, overwrite=False)
    raw = load_run(tmp_path / 'raw', 'finetune', DATA={'NORMALIZE': 'image'})
    write_huggingface(raw, folder, overwrite=True)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['README.md', 'config.json', 'model.safetensors']
    card = (folder / 'README.md').read_text()
    assert 'There is no preprocessor_config.json' in card and "NORMALIZE 'image'" in card
    assert 'AutoImageProcessor.from_pretrained' not in card


def test_the_card_says_what_it_is_and_is_not(tmp_path) -> None:
    options = {'UNCERTAIN_BY_LABEL': {'Edema': 'zeros'}}
    _, folder = export(
        tmp_path, DATA=options, PRETRAINED='/home/someone/runs/ckpt_epoch_99.pth', SEED=3
    )
    card = (folder / 'README.md').read_text()
    _, header, text = card.split('---\n', 2)
    assert yaml.safe_load(header)['library_name'] == 'transformers'
    assert 'not for clinical use' in text and 'Pleural Effusion' in text
    assert "| DATA.UNCERTAIN_BY_LABEL | {'Edema': 'zeros'} |" in text
    assert '| PRETRAINED | ckpt_epoch_99.pth |' in text and 'someone' not in text
    assert '| SEED | 3 |' in text and 'the whole image resized to 32 x 32 (bicubic' in text


def test_the_code_in_the_card_runs(tmp_path) -> None:
    """From a file to the probabilities that scoring the file gives."""
    source, folder = export(tmp_path)
    image = picture(50, 61)
    image.save(tmp_path / 'xray.png')
    code = (folder / 'README.md').read_text().split('```')[1].removeprefix('python\n')
    names = {}
    code = code.replace("'FOLDER'", repr(str(folder)))
    exec(compile(code.replace('xray.png', str(tmp_path / 'xray.png')), 'card', 'exec'), names)
    with torch.no_grad():
        expected = source.network(EvalTransform(source.config)(image, None)[None]).sigmoid()
    torch.testing.assert_close(names['probabilities'].detach(), expected, rtol=0, atol=1e-5)


def picture(height: int, width: int) -> Image.Image:
    """Smooth random grey levels."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def processed(source: Source, folder: Path, image: Image.Image, **how: str) -> np.ndarray:
    """Grey levels [C, S, S] that the model would get from transformers."""
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor_config(source)))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **how)
    normalize = EvalTransform(source.config).normalize
    pixels = processor(image, return_tensors='pt').pixel_values[0].numpy()
    return pixels * normalize.scale[:, None, None] + normalize.offset[:, None, None]


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['bilinear', 'bicubic', 'lanczos'])
@pytest.mark.parametrize('height, width', [(320, 390), (50, 61)])
def test_the_processor_prepares_a_whole_image_as_evaluation(
    channels, name, height, width, tmp_path
) -> None:
    """With Pillow to rounding, with torchvision to two grey levels (Lanczos since 0.27)."""
    source = load_run(tmp_path, 'finetune', swin(IN_CHANS=channels), DATA={'INTERPOLATION': name})
    image = picture(height, width)
    expected = np.repeat(EvalTransform(source.config).pixels(image)[None], channels, axis=0)
    found = processed(source, tmp_path, image, backend='pil')
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    if name != 'lanczos':
        found = processed(source, tmp_path, image)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.001)


@pytest.mark.parametrize('height, width', [(320, 390), (390, 320), (64, 64), (61, 50)])
def test_the_processor_crops_at_most_a_pixel_farther_up_or_left(height, width, tmp_path) -> None:
    """Scoring rounds half a pixel to the even number, transformers down."""
    source = load_run(tmp_path, 'finetune', TEST={'CROP': True})
    image = picture(height, width)
    assert full_size(image) == (height, width)
    large = enlarge(image, 32, Image.Resampling.BICUBIC, keep_aspect=True)
    ours = EvalTransform(source.config).pixels(image)
    far = np.array(large.shape) - 32
    top, left = far // 2
    found = processed(source, tmp_path, image, backend='pil')[0]
    np.testing.assert_allclose(found, large[top:, left:][:32, :32], rtol=0, atol=1e-3)
    top, left = np.rint(far / 2).astype(int)
    np.testing.assert_array_equal(ours, large[top:, left:][:32, :32])
    assert (np.rint(far / 2) - far // 2).max() <= 1


def test_an_encoder_s_images_are_resized_as_in_pre_training(tmp_path) -> None:
    source = load_run(tmp_path, 'simmim', DATA={'PRETRAIN_INTERPOLATION': 'lanczos'})
    assert processor_config(source)['resample'] == int(Image.Resampling.LANCZOS)
