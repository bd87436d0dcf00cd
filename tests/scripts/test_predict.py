"""scripts/predict.py: a checkpoint and images give the predictions of the run itself."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dicom_files import write as write_dicom
from PIL import Image
from tiny import SWIN, VIT, finished_run, load_script, run_script
from transfers import with_option, write_run

from data.images.files import load_image
from data.tables.labels import LABELS, positive_logits
from data.transforms import EvalTransform
from evaluation.inference import load_classifier
from evaluation.saliency import enlarge, grad_cam
from utils import trained_config


@pytest.fixture(scope='module')
def run(phantom, tmp_path_factory) -> Path:
    """The folder of a tiny run with the policy 'multiclass': three outputs per label."""
    output = tmp_path_factory.mktemp('run')
    data = {'UNCERTAIN': 'multiclass', 'PREPROCESS': 'equalize'}
    return finished_run('finetune', phantom, output, DATA=data)


@pytest.fixture(scope='module')
def predict():
    script = load_script('predict')

    def run(*words: object) -> int:
        return script.main(script.parse_args([*map(str, words)]))

    run.script = script
    return run


def checkpoint_of(folder: Path) -> str:
    return json.loads((folder / 'predictions_valid.json').read_text())['checkpoint']


def values_of(file: Path) -> np.ndarray:
    return pd.read_csv(file)[list(LABELS)].to_numpy()


def test_predicts_what_the_run_predicted(run, phantom, predict, tmp_path, capsys):
    """In another order and other batches; views and preprocessing are those of the run."""
    expected = pd.read_csv(run / 'predictions_valid.csv')
    assert values_of(run / 'predictions_valid.csv').std(axis=0).min() > 1e-5
    images = [str(phantom.parent / path) for path in reversed(expected.Path)]
    output = tmp_path / 'new' / 'p.csv'
    words = ['--checkpoint', checkpoint_of(run), '--output', output, '--batch-size', 3]
    assert predict(*words, *images) == 0
    table = pd.read_csv(output)
    assert table.columns.tolist() == ['Path', *LABELS]
    assert table.Path.tolist() == images
    found = values_of(output)[::-1]
    np.testing.assert_allclose(found, expected[list(LABELS)], rtol=0, atol=1e-6)
    source = json.loads(output.with_suffix('.json').read_text())
    known = json.loads((run / 'predictions_valid.json').read_text())['known']
    assert source.pop('known') == known, 'the paths name the patients'
    assert source == {
        'checkpoint': checkpoint_of(run), 'run': 'default', 'task': 'observations',
        'trained_views': 'frontal', 'labels': list(LABELS), 'rows': len(images),
    }  # fmt: skip
    assert 'Not for clinical use.' in capsys.readouterr().out


@pytest.mark.parametrize('given', ['train.csv', 'train', 'files', 'dataset', 'renamed', 'nih'])
def test_patients_of_the_training_are_told_as_a_run_tells_them(
    given, run, phantom, predict, tmp_path, capsys
):
    """By a table, a folder, names of files and a data set; other names tell nothing."""
    checkpoint, images = checkpoint_of(run), [phantom / given]
    paths = sorted((phantom / 'train').rglob('view1_frontal.jpg'))
    if given == 'files':
        images = paths
    elif given == 'dataset':
        images = [phantom, '--dataset', 'chexpert', '--split', 'train']
    elif given == 'renamed':
        images = [shutil.copy(path, tmp_path / f'{n}.jpg') for n, path in enumerate(paths[:9])]
    elif given == 'nih':  # whose patients have numbers, too
        images = paths
        checkpoint = with_option(checkpoint, tmp_path / 'nih.pth', 'DATA.DATASET', 'nih')
    output = tmp_path / 'p.csv'
    assert predict('--checkpoint', checkpoint, '--output', output, '--num-workers', 0, *images) == 0
    doubts = json.loads((tmp_path / 'p.json').read_text())['known']['doubts']
    if given in ('renamed', 'nih'):
        assert {*doubts} == {'checkpoint selected on valid', 'checkpoint given by hand'}
        return
    assert len(doubts) == 4
    learned = re.search(r'train: \d+ images of (\d+)', (run / 'log_rank0.txt').read_text())[1]
    total = len({path.parts[-3] for path in paths})
    line = (
        f'{checkpoint} was trained with {learned} of the {total} patients of the predicted images, '
        'so their scores are too high'
    )
    assert doubts['weights that may have seen scored patients'] == [line]
    labels = pd.read_csv(phantom / 'train.csv', dtype=str)
    predicted = (f'{phantom.parent}/' + labels['Path']).isin(pd.read_csv(output).Path)
    labels[predicted].to_csv(tmp_path / 'labels.csv', index=False)
    words = ['--predictions', output, '--labels', tmp_path / 'labels.csv', '--resamples', 0]
    assert run_script('evaluate', *words, '--output', tmp_path / 'report') == 0
    assert f'weights that may have seen scored patients (p): {line}.' in capsys.readouterr().out


def test_the_command_in_the_log_predicts_a_csv_file(run, phantom, predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (words,) = re.findall(r'scripts/predict.py (.*)', (run / 'log_rank0.txt').read_text())
    assert predict(*words.replace('IMAGE_OR_FOLDER', str(phantom / 'valid.csv')).split()) == 0
    named = pd.read_csv(phantom / 'valid.csv').Path
    found = pd.read_csv('predictions.csv').Path.tolist()
    assert found == [str(phantom.parent / path) for path in named]


@pytest.fixture
def figures(predict, monkeypatch) -> dict[Path, tuple]:
    """What would be drawn, by the file without its suffix: parts, image, title, labels."""
    drawn = {}

    def plot(path: Path, *parts: Any, title: str, truth: dict | None, file: str) -> None:
        drawn[path] = (*parts, file, title, truth)

    monkeypatch.setattr(predict.script, 'plot_prediction', plot)
    return drawn


def test_maps_are_grad_cam_of_the_chosen_labels(run, phantom, predict, figures, tmp_path) -> None:
    images = sorted((phantom / 'valid').rglob('view1_frontal.jpg'))[:2]
    words = ['--checkpoint', checkpoint_of(run), '--output', tmp_path / 'p.csv', '--num-workers', 0]
    assert predict(*images, *words, '--maps', 'Pleural Effusion', 'Edema') == 0
    names = ['_'.join(image.with_suffix('').parts[-3:]) for image in images]
    assert [*figures] == [tmp_path / f'p_maps/000{n}_{name}' for n, name in enumerate(names, 1)]
    config = trained_config(checkpoint_of(run))
    model = load_classifier(config, checkpoint_of(run), torch.device('cpu'), logging.getLogger())
    view = EvalTransform(config, is_scored=False)
    for image, predicted, drawn in zip(
        images, values_of(tmp_path / 'p.csv'), figures.values(), strict=True
    ):
        pictures, maps, probabilities, file, title, truth = drawn
        assert file == str(image)  # which tells whether it is synthetic
        assert title == 'Grad-CAM, 8 x 8 cells'  # the last stage of the Swin at 32 px
        assert truth is None
        original, grey = pictures.values()
        assert original == load_image(image) and original.size != grey.shape
        assert list(maps) == ['Pleural Effusion', 'Edema'] and grey.shape == (32, 32)
        assert list(probabilities) == list(LABELS)
        np.testing.assert_allclose(list(probabilities.values()), predicted)
        batch = view(load_image(image), None)[None]
        for label, found in maps.items():
            k = LABELS.index(label)
            expected = grad_cam(model, batch, lambda out, k=k: positive_logits(out, 14)[:, k])
            np.testing.assert_allclose(found, enlarge(expected, batch)[0], atol=1e-6)
        assert np.abs(maps['Edema'] - maps['Pleural Effusion']).max() > 1e-3


def test_maps_are_of_the_chosen_method(run, phantom, predict, figures, tmp_path, capsys) -> None:
    image = min((phantom / 'valid').rglob('view1_frontal.jpg'))
    words = [image, '--checkpoint', checkpoint_of(run), '--num-workers', 0, '--maps', 'Edema']
    assert predict(*words, '--output', tmp_path / 'p.csv', '--method', 'occlusion') == 0
    ((_, _, _, _, title, _),) = figures.values()
    assert title == 'occlusion, 14 x 14 cells'
    assert predict(*words, '--output', tmp_path / 'q.csv', '--method', 'rollout') == 2
    assert 'patches attend' in capsys.readouterr().err, 'a Swin attends in windows'


@pytest.mark.parametrize(
    'path, name',
    [
        ('a/b/1.2.840.10008.12.png', 'a_b_1.2.840.10008.12'),
        ('data/a/b/1.2.840.10008.12', 'a_b_1.2.840.10008.12'),
        ('a/1.2.840/12', 'a_1.2.840_12'),
        ('v1.0/x.y/view1_frontal.jpg', 'v1.0_x.y_view1_frontal'),
    ],
)
def test_figures_have_the_whole_name_of_an_image(path: str, name: str, predict) -> None:
    assert predict.script.figure_name(7, path) == f'0007_{name}'


def test_maps_of_unknown_labels_or_over_others_are_refused(run, phantom, predict, tmp_path, capsys):
    output = tmp_path / 'p.csv'
    words = [phantom / 'valid', '--checkpoint', checkpoint_of(run), '--output', output, '--maps']
    assert predict(*words, 'Oedema') == 2
    assert '--maps' in (error := capsys.readouterr().err) and 'Oedema' in error
    (tmp_path / 'p_maps').mkdir()
    (tmp_path / 'p_maps' / '0001.png').touch()
    assert predict(*words, 'Edema') == 2
    assert str(tmp_path / 'p_maps') in capsys.readouterr().err
    assert not output.exists()


def test_figures_of_a_data_set_have_true_labels(run, phantom, predict, figures, tmp_path, capsys):
    words = ['--dataset', 'chexpert', '--split', 'valid', '--checkpoint', checkpoint_of(run)]
    words += ['--num-workers', 0, '--maps', 'Edema', '--output']
    assert predict(phantom, *words, tmp_path / 'p.csv') == 0
    truth = {path.name[5:]: drawn[-1] for path, drawn in figures.items()}
    table = pd.read_csv(phantom / 'valid.csv').set_index('Path')
    assert len(truth) == len(table) and table['Edema'].nunique() == 2
    for path, row in table.iterrows():
        shown = truth['_'.join(Path(path).with_suffix('').parts[-3:])]
        assert shown == {label: row[label] == 1 for label in LABELS}
    figures.clear()
    csv = ['--checkpoint', checkpoint_of(run), '--num-workers', 0, '--maps', 'Edema', '--output']
    assert predict(phantom / 'valid.csv', *csv, tmp_path / 'r.csv') == 0  # its own labels
    assert {path.name[5:]: drawn[-1] for path, drawn in figures.items()} == truth
    figures.clear()
    folder = tmp_path / phantom.name
    shutil.copytree(phantom / 'valid', folder / 'valid')
    table.drop(columns='Edema').to_csv(folder / 'valid.csv')
    assert predict(folder, *words, tmp_path / 'q.csv') == 0
    assert {drawn[-1] for drawn in figures.values()} == {None}
    assert 'Edema' in capsys.readouterr().err
    figures.clear()
    table[[*LABELS]] = ''  # of new images, whose empty labels are not negative
    table.to_csv(folder / 'valid.csv')
    assert predict(folder / 'valid.csv', *csv, tmp_path / 's.csv') == 0
    assert {drawn[-1] for drawn in figures.values()} == {None}
    assert 'valid.csv has no label' in capsys.readouterr().err


def test_folders_are_searched_and_names_stay_as_given(run, phantom, predict, tmp_path, monkeypatch):
    images = sorted((phantom / 'valid').rglob('view1_frontal.jpg'))[:3]
    monkeypatch.chdir(tmp_path)
    for name, source in zip(('b/z.jpg', 'b/a/Y.JPG', 'c.jpg'), images, strict=True):
        target = tmp_path / 'images' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    (tmp_path / 'images/b/notes.txt').write_text('no image')
    (tmp_path / 'images/.hidden.jpg').write_text('no image')
    words = ['--checkpoint', checkpoint_of(run), '--output', 'p.csv', '--num-workers', 1]
    assert predict(*words, 'images/c.jpg', './images', 'images/c.jpg') == 0
    assert pd.read_csv('p.csv').Path.tolist() == [
        'images/c.jpg', './images/b/a/Y.JPG', './images/b/z.jpg', './images/c.jpg',
    ]  # fmt: skip
    values = values_of(tmp_path / 'p.csv')
    np.testing.assert_array_equal(values[0], values[3])
    assert np.abs(values[1] - values[2]).max() > 1e-6


def test_a_frontal_model_names_laterals_that_it_predicts(run, phantom, predict, tmp_path, capsys):
    """The view is in a name, in the header of a DICOM file, or in a table, which comes first."""
    image = load_image(next((phantom / 'valid').rglob('view1_frontal.jpg')))
    folder, names = tmp_path / 'images', [f'p{n}/view1_frontal.png' for n in range(20)]
    names += [f'p{n}/view2_lateral.png' for n in range(2)] + ['p2/LAT-7.png', 'p3/lateral/7.png']
    rows = [f'patient1/study{n}/view1_frontal.png' for n in range(3)]
    for file in [folder / name for name in names] + [tmp_path / 'table' / name for name in rows]:
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    for number, position in enumerate(('LL', 'PA')):
        write_dicom(folder / f'{number}.dcm', np.array(image), ViewPosition=position)
    output = tmp_path / 'p.csv'
    words = ['--checkpoint', checkpoint_of(run), '--output', output, '--num-workers', 0]
    assert predict(*words, folder) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
    assert warning.startswith(
        f'warning: 5 lateral image(s), but the model was trained on frontal images only: {folder}/'
    )
    views = {'Path': rows, 'Frontal/Lateral': ['Frontal', 'Lateral', 'Frontal']}
    pd.DataFrame(views).to_csv(tmp_path / 'table' / 'images.csv', index=False)
    assert predict(*words, tmp_path / 'table' / 'images.csv') == 0
    assert 'warning: 1 lateral image(s)' in capsys.readouterr().err


def test_a_bad_image_is_named_and_nothing_is_written(run, phantom, predict, tmp_path, capsys):
    bad, output = tmp_path / 'bad.jpg', tmp_path / 'out' / 'p.csv'
    bad.write_bytes(b'no image')
    output.parent.mkdir()
    output.write_text('before')
    words = ['--checkpoint', checkpoint_of(run), '--output', output, '--num-workers', 1]
    assert predict(*words, phantom / 'valid', bad) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ') and str(bad) in error and 'Traceback' not in error
    assert os.listdir(output.parent) == ['p.csv'] and output.read_text() == 'before'


@pytest.mark.slow
def test_bad_images_are_skipped_and_colour_is_warned_of(run, phantom, predict, tmp_path, capsys):
    """The probabilities of the others stay the same; without any other nothing is written."""
    bad, empty, colour = tmp_path / 'bad.jpg', tmp_path / 'empty.jpg', tmp_path / 'colour.png'
    bad.write_bytes(b'no image')
    empty.touch()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(colour)
    good = sorted((phantom / 'valid').rglob('view1_frontal.jpg'))[:3]
    words = ['--checkpoint', checkpoint_of(run), '--num-workers', 0, '--batch-size', 2]
    more = [shutil.copy(colour, tmp_path / f'colour{i}.png') for i in range(3)]
    assert predict(*words, '--output', tmp_path / 'more.csv', *good, *more, colour) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
    assert ': 4 ' in warning and all(map(warning.count, map(str, more)))
    assert predict(*words, '--output', tmp_path / 'good.csv', *good, colour) == 0
    assert str(colour) in capsys.readouterr().err
    words += ['--skip-bad', '--output', tmp_path / 'p.csv']
    assert predict(*words, empty, bad, tmp_path / 'none.jpg') == 2
    assert not (tmp_path / 'p.csv').exists()
    assert str(empty) in capsys.readouterr().err
    assert predict(*words, bad, empty, good[0], tmp_path / 'none.jpg', *good[1:], colour) == 1
    captured = capsys.readouterr()
    skipped = [line for line in captured.err.splitlines() if line.startswith('skipped: ')]
    assert len(skipped) == 3
    for line, path in zip(skipped, (bad, empty, tmp_path / 'none.jpg'), strict=True):
        assert str(path) in line
    table = pd.read_csv(tmp_path / 'p.csv')
    assert table.Path.tolist() == [str(path) for path in (*good, colour)]
    np.testing.assert_allclose(
        values_of(tmp_path / 'p.csv'), values_of(tmp_path / 'good.csv'), atol=1e-6
    )
    assert json.loads((tmp_path / 'p.json').read_text())['rows'] == 4


@pytest.mark.parametrize(
    'words', [['--batch-size', '0'], ['--device', 'cuda:2'], ['--device', 'cuda']]
)
def test_flags_that_cannot_work_are_refused(words, predict, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    with pytest.raises(SystemExit) as stop:
        predict('--checkpoint', 'c.pth', '--output', 'p.csv', *words, 'images')
    assert stop.value.code == 2 and words[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    'model, key, value',
    [
        (VIT, 'MODEL.VIT.DEPTH', 200_000),
        (VIT, 'DATA.IMG_SIZE', 8192),
        (VIT, 'MODEL.VIT.MLP_RATIO', 1e300),
        (SWIN, 'MODEL.SWIN.EMBED_DIM', 2**40),
        (SWIN, 'MODEL.SWIN.EMBED_DIM', 'wide'),
        (SWIN, 'MODEL.TYPE', 'other'),
        (SWIN, 'MODEL.NUM_CLASSES', 10**10),
    ],
)
def test_impossible_options_are_named(model, key, value, predict, phantom, tmp_path, capsys):
    """Such a file comes from elsewhere; nothing of the size that it asks for is built."""
    checkpoint = write_run(tmp_path, 'finetune', model)
    bad = with_option(checkpoint, tmp_path / 'bad.pth', key, value)
    words = [bad, '--to', 'timm', '--output', tmp_path / 'a.safetensors']
    assert run_script('export', *words) == 2
    words = ['--checkpoint', bad, '--output', tmp_path / 'p.csv']
    assert predict(*words, phantom / 'valid') == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith('error: ') and 'bad.pth' in line
        is_size = value in (8192, 1e300, 2**40)  # the message names the entries
        assert is_size or key.rpartition('.')[2] in line


def test_a_checkpoint_does_not_decide_the_processes(run, phantom, predict, tmp_path, monkeypatch):
    checkpoint = with_option(checkpoint_of(run), tmp_path / 'c.pth', 'DATA.NUM_WORKERS', 10**6)
    with_option(checkpoint, checkpoint, 'DATA.BATCH_SIZE', 10**9)
    monkeypatch.setattr(os, 'cpu_count', lambda: 0)
    words = ['--checkpoint', checkpoint, '--output', tmp_path / 'p.csv']
    assert predict(*words, phantom / 'valid') == 0


def test_a_pretraining_checkpoint_is_rejected(phantom, predict, tmp_path, capsys):
    torch.save({'model': {'mask_token': torch.zeros(1)}}, tmp_path / 'simmim.pth')
    words = ['--checkpoint', tmp_path / 'simmim.pth', '--output', tmp_path / 'p.csv']
    assert predict(*words, phantom / 'valid') == 2
    assert 'simmim.pth' in capsys.readouterr().err
    assert not (tmp_path / 'p.csv').exists()
