"""Exports: timm, transformers, onnxruntime and torch.export compute the same outputs."""

import json
import logging
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny import MAE, SWIN, VIT
from transfers import load_run, outputs_of, randomise, write_run

from data.images.files import enlarged_side
from data.transforms import EvalTransform
from models import build_model
from models.weights import export as exports
from models.weights.export import FORMATS, example_images, export
from utils import load_pretrained

slow = pytest.mark.slow
SMALL = {'QUEUE_SIZE': 32, 'NUM_PROTOTYPES': 8}
RESNET = {'TYPE': 'timm', 'DROP_PATH_RATE': 0.0, 'IN_CHANS': 1, 'TIMM': {'NAME': 'test_resnet'}}
SUFFIXES = {name: kind.suffix for name, kind in FORMATS.items()}


def vit(channels=1, **options):
    return VIT | {'IN_CHANS': channels, 'VIT': VIT['VIT'] | options}


def swin(channels=1, **options):
    return SWIN | {'IN_CHANS': channels, 'SWIN': SWIN['SWIN'] | options}


POOLED = vit(USE_MEAN_POOLING=True)
FIXED = vit(USE_MEAN_POOLING=True, USE_SINCOS=True, USE_SHARED_RPB=False)
# stage, MODEL
CASES = {
    'swin': ('finetune', SWIN),
    'swin, pre-trained': ('simmim', SWIN),
    'vit, both tables, 3 channels': ('finetune', vit(3, USE_RPB=True, QKV_BIAS=False)),
    'vit, fixed positions, pooled': ('finetune', FIXED),
    'vit, contrastive, pooled': ('contrastive', POOLED),
    'vit, MAE': ('simmim', MAE),
    'resnet': ('finetune', RESNET),
    'resnet, contrastive, 3 channels': ('contrastive', RESNET | {'IN_CHANS': 3}),
}


def write(target, folder, stage, model=SWIN, **sections):
    """Load the checkpoint of a tiny run and export it; return source and path."""
    if stage == 'contrastive':
        sections['CONTRASTIVE'] = SMALL | sections.get('CONTRASTIVE', {})
    source = load_run(folder, stage, model, **sections)
    path = folder / 'out' / f'a{SUFFIXES[target]}'
    assert export(source, target, path, overwrite=False) < 1e-5
    return source, path


def assert_outputs(found, source, count=3):
    expected = outputs_of(source, count)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('stage, shape', [('finetune', (3, 14)), ('simmim', (3, 64, 16))])
def test_source_computes_what_the_run_s_model_computes(stage, shape, tmp_path):
    source = load_run(tmp_path, stage)
    model = build_model(source.config, is_pretrain=stage == 'simmim').eval()
    randomise(model)
    images = example_images(source, 3)
    with torch.no_grad():
        if stage == 'finetune':
            expected = model(images)
        else:
            grid = model.encoder(images, torch.zeros(3, 16, 16))  # [B, D, 8, 8]
            expected = grid.flatten(2).transpose(1, 2)
    found = outputs_of(source, 3)
    assert found.shape == shape
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize('stage, model', CASES.values(), ids=CASES)
def test_timm_and_transformers_compute_the_same(stage, model, tmp_path):
    statistics = {'MEAN': [0.4] * model['IN_CHANS'], 'STD': [0.2] * model['IN_CHANS']}
    source, folder = write('timm', tmp_path, stage, model, DATA=statistics)
    images = example_images(source, 3)
    theirs = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    compute = theirs.forward_features if source.gives == 'tokens' else theirs
    with torch.no_grad():
        assert_outputs(compute(images).numpy(), source)
    assert list(theirs.pretrained_cfg['mean']) == [0.4] * model['IN_CHANS']

    transformers = pytest.importorskip('transformers', reason='needs the extra dev')
    kind = 'AutoModelForImageClassification' if source.outputs else 'AutoModel'
    theirs, found = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    with torch.no_grad():
        outputs = theirs.eval()(pixel_values=images)
    names = {'logits': 'logits', 'tokens': 'last_hidden_state', 'features': 'pooler_output'}
    assert_outputs(outputs[names[source.gives]].numpy(), source)
    if source.outputs:
        assert list(theirs.config.id2label.values()) == list(source.outputs)


@pytest.mark.parametrize('name', ['swin, pre-trained', 'vit, fixed positions, pooled', 'resnet'])
def test_an_exported_folder_gives_the_checkpoint_s_weights_back(name, tmp_path, log):
    stage, model = CASES[name]
    source, folder = write('timm', tmp_path, stage, model, DATA={'MEAN': [0.4], 'STD': [0.2]})
    config = source.config.clone()
    config.defrost()
    config.PRETRAINED = str(folder / 'model.safetensors')
    found = build_model(config, is_pretrain=stage == 'simmim')
    load_pretrained(config, found, logging.getLogger('pretrained'))
    found = found.encoder.state_dict() if stage == 'simmim' else found.state_dict()
    for key, value in source.encoder.state_dict().items():
        if key != 'mask_token' and not key.startswith('head.'):  # nothing says what labels mean
            assert torch.equal(found[key], value), key
    assert 'channels' not in log.text and 'normalis' not in log.text


@pytest.mark.parametrize(
    'crop, channels', [(False, 1), pytest.param(True, 1, marks=slow), (True, 3)]
)
def test_the_code_in_the_card_runs(crop, channels, tmp_path):
    source, folder = write('timm', tmp_path, 'finetune', swin(channels), TEST={'CROP': crop})
    _, outputs = odd_xray(tmp_path, source)
    code = (folder / 'README.md').read_text().split('```')[1]
    found = run_code(code, folder, tmp_path)['probabilities']
    torch.testing.assert_close(found, outputs.sigmoid(), rtol=0, atol=1e-4)


def odd_xray(folder, source):
    """Write a smooth image of another size; return it and the network's outputs for it."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8), np.uint8)
    image = Image.fromarray(pixels).resize((61, 50), Image.Resampling.BICUBIC)
    image.save(folder / 'xray.png')
    with torch.no_grad():
        return image, source.network(EvalTransform(source.config)(image, None)[None])


def run_code(code, folder, tmp_path, **names):
    """Run code of a card with these names; return what it has set."""
    code = code.removeprefix('python\n').replace('FOLDER', str(folder))
    exec(code.replace('xray.png', str(tmp_path / 'xray.png')), names)
    return names


def pipeline_scores(pipeline, inputs, source):
    """Return the scores of one image in the order of the outputs."""
    found = pipeline(inputs, top_k=len(source.outputs))
    found = found if isinstance(found[0], dict) else found[0]
    return torch.tensor(
        [{each['label']: each['score'] for each in found}[name] for name in source.outputs]
    )


CLASSES = ['Edema', 'Fracture', 'Pneumonia']
TASKS = {
    'findings': ({}, 'multi_label_classification', torch.sigmoid),
    'one finding': ({'TASK': 'effusion'}, 'multi_label_classification', torch.sigmoid),
    'classes': (
        {'TASK': 'single_label', 'LABELS': CLASSES},
        'single_label_classification',
        lambda logits: logits.softmax(0),
    ),
    'three outputs a label': ({'UNCERTAIN': 'multiclass'}, 'regression', lambda logits: logits),
}


@pytest.mark.parametrize(
    ('channels', 'data', 'problem', 'activation'),
    [(3, *task) for task in TASKS.values()] + [(1, *TASKS['findings'])],
    ids=[*TASKS, 'one channel'],
)
def test_the_pipeline_of_transformers_gives_the_probabilities(  # noqa: PLR0913
    channels, data, problem, activation, transformers, tmp_path
):
    sections = {'DATA': data, 'TEST': {'CROP': False}}
    if 'TASK' in data:
        loss = 'cross_entropy' if 'LABELS' in data else 'bce'
        number = len(data.get('LABELS', ['Pleural Effusion']))
        sections |= {'MODEL': {'NUM_CLASSES': number}, 'LOSS': {'NAME': loss}}
    source, folder = write('timm', tmp_path, 'finetune', swin(channels), **sections)
    assert json.loads((folder / 'config.json').read_text())['problem_type'] == problem
    image, outputs = odd_xray(tmp_path, source)
    wanted = activation(outputs[0])
    pipeline = transformers.pipeline('image-classification', str(folder))
    card = exports.model_card(source)
    has_tag = channels == 3 and problem != 'regression'
    assert (card.data.pipeline_tag == 'image-classification') == has_tag
    if channels == 3:
        found = pipeline_scores(pipeline, str(tmp_path / 'xray.png'), source)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    else:
        with pytest.raises(RuntimeError, match='to have 1 channels'):  # why there is no tag
            pipeline(str(tmp_path / 'xray.png'))
        found = pipeline_scores(pipeline, torch.tensor(np.array(image))[None] / 255, source)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)
    assert ('Do not use them' in card.text) == (problem == 'regression')
    if problem != 'regression':
        found = run_code(card.text.split('```')[3], folder, tmp_path, Image=Image)
        assert len(found['scores']) == len(source.outputs)


def test_the_pipeline_of_transformers_gives_the_features(transformers, tmp_path):
    source, folder = write('timm', tmp_path, 'simmim', swin(3), TEST={'CROP': False})
    assert exports.model_card(source).data.pipeline_tag == 'image-feature-extraction'
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
    with torch.no_grad():
        wanted = source.network(EvalTransform(source.config)(image, None)[None])
    pipeline = transformers.pipeline('image-feature-extraction', str(folder))
    found = torch.tensor(pipeline(image)).reshape(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_an_encoder_of_one_channel_has_no_pipeline(tmp_path):
    source = load_run(tmp_path, 'simmim', swin(1), TEST={'CROP': False})
    assert exports.model_card(source).data.pipeline_tag is None


def test_a_pipeline_that_would_prepare_images_otherwise_is_named_on_the_card(tmp_path):
    source = load_run(tmp_path, 'finetune', swin(3), DATA={'NORMALIZE': 'image'})
    card = exports.model_card(source)
    assert card.data.pipeline_tag is None and 'Do not use them' in card.text


def card_rows(source):
    """Return the options in the table of the card, and the text of the card."""
    card = exports.model_card(source)
    assert card.data.library_name == 'timm' and 'not for clinical use' in card.text
    rows = [line[2:-2].split(' | ', 1) for line in card.text.splitlines() if line.startswith('| ')]
    return {row[0]: row[-1] for row in rows}, card.content


def test_the_card_has_the_short_side_of_scored_images():
    sides = range(1, 8193)
    assert [int(s / exports.CROPPED_SHARE) for s in sides] == [*map(enlarged_side, sides)]


def test_the_card_has_the_scores_of_the_run(tmp_path):
    path = write_run(tmp_path, 'finetune')
    scores = {'last': {'mean_of_five': 0.71234, 'mean_of_defined': None}}
    (tmp_path / 'scores.json').write_text(json.dumps({'test': scores}))
    source = exports.load_trained_model(path, logging.getLogger('export'))
    (result,) = exports.model_card(source).data.eval_results
    assert (result.dataset_type, result.dataset_split) == ('chexpert', 'test')
    assert (result.metric_type, result.metric_value) == ('roc_auc', 0.7123)
    rows, text = card_rows(source)
    assert rows['test'] == 'mean of five labels | 0.7123' and 'license: other' in text


def test_the_card_shows_the_text_of_a_foreign_checkpoint_literally_and_no_paths(tmp_path):
    layout = '/home/someone/clinic.py'
    sources = [{'dataset': layout, 'name': 'a', 'path': 'hospital'}]
    tag = 'a\n# Approved\n<img src=x> | `b`'
    source = load_run(tmp_path, 'simmim', DATA={'DATASET': layout})
    source.config.defrost()
    source.config.TAG = tag
    rows, text = card_rows(source)
    assert rows['TAG'] == 'a # Approved &lt;img src=x&gt; &#124; &#96;b&#96;'
    source.config.DATA.SOURCES = sources
    rows, more = card_rows(source)
    assert "'dataset': 'clinic.py'" in rows['DATA.SOURCES']
    assert 'someone' not in text + more and 'clinic.py' in text
    assert 'hospital' not in more


@slow
def test_onnxruntime_computes_the_same_for_any_number_of_images(tmp_path):
    pytest.importorskip('onnxscript')
    model = swin(APE=True, PATCH_NORM=False, QK_SCALE=0.5)
    source, path = write('onnx', tmp_path, 'finetune', model, DATA={'UNCERTAIN': 'multiclass'})
    assert source.outputs[15:18] == ('Edema: negative', 'Edema: positive', 'Edema: uncertain')
    pytest.importorskip('onnx').checker.check_model(str(path), full_check=True)
    runtime = pytest.importorskip('onnxruntime')
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for count in (1, 5):
        (outputs,) = session.run(None, {'images': example_images(source, count).numpy()})
        assert_outputs(outputs, source, count)
    assert list(path.parent.iterdir()) == [path]  # the file contains the weights
    assert b'swin_transformer.py' not in path.read_bytes()  # no paths of source code
    about = json.loads(session.get_modelmeta().custom_metadata_map['simmim'])
    assert about['outputs'] == list(source.outputs) and about['input_size'] == [1, 32, 32]
    assert about['activation'] == 'softmax over negative and positive'


@slow
def test_a_program_of_torch_export_computes_the_same_for_any_number_of_images(tmp_path):
    source, path = write('torch_export', tmp_path, 'finetune', VIT)
    extra = {'simmim.json': ''}
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 5):
        with torch.no_grad():
            assert_outputs(program(example_images(source, count)).numpy(), source, count)
    assert json.loads(extra['simmim.json'])['std'] == [0.292]
    with zipfile.ZipFile(path) as archive:  # no paths of source code
        assert not any(
            b'vision_transformer.py' in archive.read(name) for name in archive.namelist()
        )


def test_only_an_export_is_replaced_and_only_if_asked(tmp_path):
    source = load_run(tmp_path, 'finetune')
    folder = tmp_path / 'folder'
    folder.mkdir()
    (folder / 'README.md').write_text('old')
    with pytest.raises(ValueError, match='--overwrite'):
        export(source, 'timm', folder, overwrite=False)
    assert (folder / 'README.md').read_text() == 'old'
    export(source, 'timm', folder, overwrite=True)
    assert (folder / 'config.json').is_file()
    (folder / 'thesis.docx').write_text('')
    with pytest.raises(ValueError, match=r'thesis\.docx'):
        export(source, 'timm', folder, overwrite=True)


def test_a_failed_export_leaves_the_old_one(tmp_path, monkeypatch):
    source, path = write('timm', tmp_path, 'finetune')
    before = {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()}
    monkeypatch.setattr(exports, 'LARGEST_DIFFERENCE', -1)
    with pytest.raises(ValueError, match='--to timm'):
        export(source, 'timm', path, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.rglob('*') if file.is_file()} == before


@pytest.mark.parametrize(
    'model, part', [(swin(APE=True), 'MODEL.SWIN.APE'), (VIT | {'HEAD': 'attention'}, 'MODEL.HEAD')]
)
def test_an_unsupported_model_raises_an_error(model, part, tmp_path):
    source = load_run(tmp_path, 'finetune', model)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=part):
        export(source, 'timm', tmp_path / 'a', overwrite=False)
    assert sorted(tmp_path.iterdir()) == before
