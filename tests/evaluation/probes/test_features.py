"""scripts/features.py: the features of a probe, in the order of the images, whole or continued."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from packed_data import packed
from PIL import Image
from sklearn.decomposition import PCA
from tiny import MAE, ROOT, SWIN, VIT, arguments, run_main, run_script, tiny_config
from transfers import with_option, write_run

from config import put
from data.packing import Settings
from evaluation.probes import build as probes
from evaluation.probes.features import trained_views
from models.timm_classifier import TimmClassifier
from scripts.phantom import make_phantom
from utils import trained_config

NAMES = ('path', 'patient', 'study')
WHOLE = {'TEST': {'CROP': False}}  # the evaluation transform of the fine-tuning runs of tests
TIMM = {'TYPE': 'timm', 'IN_CHANS': 1, 'TIMM': {'NAME': 'test_resnet'}}
NATIVE = Settings(size=None, square=False)


def features(place: Path, checkpoint: Path, output: Path, *flags: object) -> int:
    words = ['--checkpoint', checkpoint, '--output', output, '--num-workers', 0]
    return run_script('features', place, *words, *flags)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp('swin'), 'simmim', **WHOLE)


def pooled(model: dict) -> dict:
    return model | {'VIT': model['VIT'] | {'USE_MEAN_POOLING': True}}


def read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def probe_features(checkpoint, data, folder, mode='linear_probe', **options):
    """Return what a probe of the checkpoint computes for its training images, and their paths."""
    kept, compute = [], probes.extract_features

    def keep(run, model, loader, **tokens):
        kept.append((compute(run, model, loader, **tokens), list(loader.dataset.records.path)))
        raise KeyboardInterrupt  # before the head is fitted

    cfg = tiny_config(folder / 'c.yaml', 'finetune', FINETUNE={'MODE': mode}, **options)
    words = arguments(cfg, data, folder, '--pretrained', str(checkpoint))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(probes, 'extract_features', keep)
        run_main('finetune', words)
    return kept[0]


def check_rows(file: Path, want: np.ndarray, paths: list[str]) -> None:
    """Check that a file has these features of these images, among others."""
    found = read(file)
    rows = pd.Index(found['path']).get_indexer(paths)
    assert 0 < len(paths) < len(found['path']) and (rows >= 0).all()
    np.testing.assert_allclose(found['features'][rows], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('stage', 'model', 'opts'),
    [
        ('simmim', VIT, []),
        ('simmim', VIT, ['MODEL.VIT.USE_MEAN_POOLING', False]),
        ('simmim', MAE, []),
        ('contrastive', SWIN, []),
        ('finetune', VIT, []),
    ],
    ids=['vit', 'vit, class token', 'mae', 'contrastive', 'fine-tuned'],
)
def test_the_features_are_those_of_a_linear_probe(stage, model, opts, phantom, tmp_path) -> None:
    """In several batches, of another size than the probe's."""
    checkpoint = write_run(tmp_path, stage, model, **({} if stage == 'simmim' else WHOLE))
    flags = ['--batch-size', 3, *['--opts'] * bool(opts), *opts]
    assert features(phantom / 'train.csv', checkpoint, tmp_path / 'f.npz', *flags) == 0
    model = pooled(model) if stage == 'simmim' and not opts else model
    want = probe_features(checkpoint, phantom, tmp_path / 'run', model=model)
    assert want[0].std(axis=0).min() > 1e-4
    check_rows(tmp_path / 'f.npz', *want)


def test_tokens_are_those_of_an_attentive_probe(phantom: Path, tmp_path: Path) -> None:
    """The head of the probe takes normalised tokens, although the classifier pools."""
    checkpoint, file = write_run(tmp_path, 'simmim', VIT), tmp_path / 't.npz'
    assert features(phantom / 'train.csv', checkpoint, file, '--tokens') == 0
    model = pooled(VIT) | {'HEAD': 'attention'}
    want = probe_features(checkpoint, phantom, tmp_path / 'run', 'attentive_probe', model=model)
    assert want[0].shape[1:] == (16, 16)
    check_rows(file, *want)


def test_a_folder_a_table_a_data_set_and_a_store_give_the_same(pretrained, tmp_path) -> None:
    phantom = tmp_path / 'CheXpert-phantom'
    make_phantom(phantom, num_train=6, num_valid=2, num_test=1, size=48, seed=0)
    store = packed(phantom, tmp_path / 'store', NATIVE)
    places = {'table': [phantom / 'train.csv'], 'stored': [store / 'train.csv']}
    places |= {'split': [phantom, '--dataset', 'chexpert', '--split', 'train']}
    places |= {'folder': [phantom], 'store': [store]}
    found = {}
    for name, (place, *flags) in places.items():
        file = tmp_path / f'{name}.npz'
        assert features(place, pretrained, file, '--batch-size', 1, *flags) == 0
        found[name] = read(file)
    for name, other in (('table', 'stored'), ('table', 'split'), ('folder', 'store')):
        for key, values in found[name].items():
            np.testing.assert_array_equal(found[other][key], values)
    files = [path.partition('/')[2] for path in found['table']['path']]
    rows = pd.Index(found['folder']['path']).get_indexer(files)
    assert (rows >= 0).all() and len(rows) < len(found['folder']['path'])
    np.testing.assert_array_equal(found['folder']['features'][rows], found['table']['features'])
    np.testing.assert_array_equal(found['folder']['patient'][rows], found['table']['patient'])


def test_a_store_and_a_folder_name_the_patients_of_their_tables(
    pretrained, tmp_path, capsys, caplog
) -> None:
    phantom = tmp_path / 'CheXpert-phantom'
    make_phantom(phantom, num_train=3, num_valid=1, num_test=1, size=48, seed=0)
    films = sorted((phantom / 'train').rglob('*.jpg'))[:5]
    (tmp_path / 'own' / 'films').mkdir(parents=True)
    for number, film in enumerate(films):
        film.rename(tmp_path / 'own' / 'films' / f'{number}.jpg')
    rows = [
        'Path,Patient,Split,Frontal/Lateral',
        'films/0.jpg,A,train,Frontal',
        'films/1.jpg,A,train,Lateral',
    ]
    rows += ['films/2.jpg,B,train,Frontal', 'films/3.jpg,B,test,Frontal']  # and 4.jpg in no row
    (tmp_path / 'own' / 'train.csv').write_text('\n'.join(rows) + '\n')
    boxes = 'Path,x,y\nfilms/0.jpg,1,2\nfilms/0.jpg,3,4\n'
    (tmp_path / 'own' / 'boxes.csv').write_text(boxes)
    store = packed(tmp_path / 'own', tmp_path / 'store', NATIVE)
    named = ['A', 'A', 'B', 'B']
    for place, others in ((tmp_path / 'own', ['films/4.jpg']), (store, [])):
        assert features(place, pretrained, tmp_path / 'f.npz') == 0
        told = capsys.readouterr().err
        assert [*read(tmp_path / 'f.npz')['patient']] == [*named, *others]
        assert ('1 of 5 images name no patient' in told) == bool(others)
        assert '1 lateral image(s)' in told
    (tmp_path / 'own' / 'train.csv').write_text(
        '\n'.join(rows[:2]) + '\nfilms/1.jpg,A,train,Above\n'
    )
    assert features(tmp_path / 'own', pretrained, tmp_path / 'f.npz') == 0
    assert 'train.csv is not read for patients and views: ' in caplog.text
    assert [*read(tmp_path / 'f.npz')['patient']] == [f'films/{number}.jpg' for number in range(5)]


def test_an_encoder_of_frontal_images_names_laterals(pretrained, phantom, tmp_path, capsys) -> None:
    """In a table and a folder. A pre-training on a folder does not state the views."""
    count = (pd.read_csv(phantom / 'train.csv')['Frontal/Lateral'] == 'Lateral').sum()
    for place in (phantom / 'train.csv', phantom / 'train'):
        assert features(place, pretrained, tmp_path / 'f.npz') == 0
        (warning,) = [line for line in capsys.readouterr().err.splitlines() if 'warning' in line]
        assert f': {count} lateral image(s), but the model was trained on frontal' in warning
    assert trained_views(trained_config(pretrained)) == 'frontal'
    for dataset in ('folder', 'imagenet'):
        config = trained_config(pretrained)
        put(config, 'DATA.DATASET', dataset, '--dataset')
        assert trained_views(config) == 'all'


def test_rows_have_the_order_and_names_of_the_table(pretrained, phantom, tmp_path, capsys) -> None:
    """In NPZ and CSV files, whose features have the same bits."""
    assert features(phantom / 'valid.csv', pretrained, tmp_path / 'new' / 'f.npz') == 0
    assert 'Not for clinical use' in capsys.readouterr().out
    assert features(phantom / 'valid.csv', pretrained, tmp_path / 'f.csv') == 0
    found, table = read(tmp_path / 'new' / 'f.npz'), pd.read_csv(tmp_path / 'f.csv', dtype=str)
    paths = pd.read_csv(phantom / 'valid.csv').Path
    parts = paths.str.split('/', expand=True)
    assert list(table.columns) == [*NAMES, *(f'f{k}' for k in range(16))]
    for names in (found, table):
        assert list(names['path']) == list(paths)
        assert list(names['patient']) == list(parts[2])
        assert list(names['study']) == list(paths.str.rpartition('/')[0])
    columns = table.drop(columns=[*NAMES]).to_numpy(np.float32)
    np.testing.assert_array_equal(columns, found['features'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['f.csv', 'new']
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['f.npz']


def test_a_skipped_image_has_no_row(pretrained: Path, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'images'
    folder.mkdir()
    for number, file in enumerate(sorted(phantom.rglob('view1_frontal.jpg'))[:4]):
        shutil.copy(file, folder / f'{number}.jpg')
    assert features(folder, pretrained, tmp_path / 'all.npz', '--batch-size', 1) == 0
    (folder / '1.jpg').write_bytes(b'no image')
    words = [folder, pretrained, tmp_path / 'f.npz', '--batch-size', 1]
    assert features(*words) == 2
    assert features(*words, '--skip-bad') == 1
    found, every = read(tmp_path / 'f.npz'), read(tmp_path / 'all.npz')
    assert found['path'].tolist() == ['0.jpg', '2.jpg', '3.jpg']
    np.testing.assert_array_equal(found['features'], every['features'][[0, 2, 3]])


def test_a_file_without_options_needs_a_config_of_its_encoder(phantom, tmp_path, capsys) -> None:
    """The weights of timm, and then exactly as --pretrained loads them."""
    cfg = tiny_config(tmp_path / 'c.yaml', 'finetune', TIMM)
    theirs = TimmClassifier('test_resnet', img_size=32, in_chans=3, num_classes=0).encoder
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    words = [phantom / 'train.csv', tmp_path / 'timm.pth', tmp_path / 'f.npz']
    assert features(*words) == 2
    assert '--cfg' in (error := capsys.readouterr().err) and 'timm.pth' in error
    assert features(*words, '--cfg', cfg) == 0
    assert 'from 3 to 1 channels' in capsys.readouterr().out
    want = probe_features(tmp_path / 'timm.pth', phantom, tmp_path / 'run', model=TIMM)
    check_rows(tmp_path / 'f.npz', *want)
    assert features(*words, '--cfg', cfg, '--tokens') == 2
    assert '--tokens' in (error := capsys.readouterr().err) and 'timm' in error


@pytest.mark.parametrize(
    ('model', 'key', 'value'),
    [
        (VIT, 'MODEL.VIT.DEPTH', 200_000),
        (SWIN, 'MODEL.SWIN.EMBED_DIM', 2**40),
        (SWIN, 'MODEL.TYPE', 'other'),
    ],
)
def test_options_of_a_checkpoint_that_do_not_fit_its_weights_are_refused(  # noqa: PLR0913
    model, key, value, phantom: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Such a file comes from elsewhere; nothing of the size that it asks for is built."""
    checkpoint = write_run(tmp_path, 'simmim', model)
    bad = with_option(checkpoint, tmp_path / 'bad.pth', key, value)
    monkeypatch.setattr('models.weights.convert.resize_position_embedding', None)
    monkeypatch.setattr('models.weights.convert.resize_table', None)
    assert features(phantom / 'valid.csv', bad, tmp_path / 'f.npz') == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and 'bad.pth' in line


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys) -> None:
    """The command, the classifier and the plot, on the X-rays and weights of the project."""
    page = (ROOT / 'docs' / 'howto' / 'export.md').read_text(encoding='utf-8')
    classify, plane, by_umap = re.findall(r'^```python\n(.*?)^```', page, re.M | re.S)
    (command,) = re.findall(r'features\.py (examples/\S+ .*mae-vit.*)', page)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'examples').symlink_to(ROOT / 'examples')
    assert run_script('features', *command.split()) == 0
    names: dict[str, object] = {}
    exec(classify, names)
    stated = float(re.search(r'an AUROC of about (\.\d+)', page)[1])
    assert abs(float(capsys.readouterr().out.split('AUROC')[1]) - stated) < 0.01
    patient, folds = names['patient'], names['folds']
    for learn, score in folds.split(names['x'], groups=patient):
        assert not {*patient[learn]} & {*patient[score]}
    # umap-learn is not among the requirements; PCA stands for it.
    stand_in = SimpleNamespace(UMAP=lambda random_state: PCA(2, random_state=random_state))
    monkeypatch.setitem(sys.modules, 'umap', stand_in)
    import_line, umap_line = by_umap.strip().split('\n\n')
    (pca_line,) = [line for line in plane.splitlines() if line.startswith('points, ')]
    other = f'{import_line}\n{plane.replace(pca_line, umap_line)}'
    for code, method in ((plane, 'PCA'), (other, 'UMAP')):
        exec(code, names)
        assert Image.open('output/plane.png').width > 100
        axis = names['plt'].gca()
        assert (axis.get_xlabel(), axis.get_ylabel()) == (f'{method} 1', f'{method} 2')
        assert not len(axis.get_xticks()) and not len(axis.get_yticks())
        names['plt'].close()
