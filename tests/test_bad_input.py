"""A user's mistake ends in exit code 2 and one clear line, and leaves nothing half-written."""

import csv
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import SWIN, VIT, arguments, run_folder, run_main, tiny_config

from logger import read_metrics
from utils import read_checkpoint

STAGES = ('simmim', 'finetune')
ERROR = re.compile(r'(?:ERROR|(?:\A|: )error:) ')
RESULTS = re.compile(r'\.pth|\.tmp|predictions_|scores\.json|\.png')


class Payload:
    """Pickled, it asks the reader to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def exit_code(stage: str, argv: list[str]) -> int:
    try:
        return run_main(stage, argv)
    except SystemExit as error:  # the parser's own
        return error.code


@pytest.fixture
def refused(capfd: pytest.CaptureFixture) -> Callable[..., None]:
    """Runs a main and checks that it ends in one error line that has all these parts."""

    def check(stage: str, argv: list[str], *parts: object) -> None:
        capfd.readouterr()
        code = exit_code(stage, argv)
        captured = capfd.readouterr()
        lines = (captured.out + captured.err).splitlines()
        assert code == 2, lines
        errors = [line for line in lines if ERROR.search(line)]
        assert len(errors) == 1, lines
        assert 'Traceback' not in captured.out + captured.err, lines
        for part in map(str, parts):
            assert part in errors[0], f'{part!r} is not in {errors[0]!r}'

    return check


def results_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob('*') if RESULTS.search(path.name)]


def linked(source: Path, target: Path) -> Path:
    """The data once more, images as hard links: replace files, never write into them."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def replace(path: Path, contents: bytes) -> None:
    path.unlink()
    path.write_bytes(contents)


def edit(path: Path, change: Callable[[list[list[str]]], object]) -> None:
    """Change the rows of a CSV; rows[0] is the header, rows[n] is row n + 1 of the file."""
    with path.open(newline='') as file:
        rows = list(csv.reader(file))
    change(rows)
    path.unlink()
    with path.open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


@pytest.fixture(scope='session')
def eight(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frontal training images, a row each."""
    folder = linked(phantom, tmp_path_factory.mktemp('eight') / 'CheXpert-phantom')
    edit(folder / 'train.csv', lambda rows: rows.__setitem__(slice(1, None), frontal(rows)[:8]))
    return folder


def frontal(rows: list[list[str]]) -> list[list[str]]:
    return [row for row in rows if row[3] == 'Frontal']


@pytest.fixture
def data(eight: Path, tmp_path: Path) -> Path:
    """A copy of the eight images' folder that a test may spoil."""
    return linked(eight, tmp_path / 'data')


def image_of(data: Path, row: int, name: str = 'train.csv') -> Path:
    """The image that this row of the file names."""
    with (data / name).open(newline='') as file:
        return data / list(csv.reader(file))[row - 1][0].partition('/')[2]


def config_of(folder: Path, stage: str, model: dict = SWIN, **data: object) -> Path:
    """All of the data, one epoch."""
    data = {'TRAIN_IMAGES': 0} | ({'HOLDOUT_FRACTION': 0.0} if stage == 'simmim' else {}) | data
    train = {'EPOCHS': 1, 'WARMUP_EPOCHS': 0}
    return tiny_config(folder / 'run.yaml', stage, model, DATA=data, TRAIN=train)


@pytest.fixture(scope='session')
def trained(eight: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training checkpoint, which a resumed run accepts."""
    folder = tmp_path_factory.mktemp('trained')
    argv = arguments(config_of(folder, 'simmim'), eight, folder)
    assert run_main('simmim', [*argv, '--opts', 'SAVE_FREQ', '1']) == 0
    return run_folder(folder, 'simmim') / 'ckpt_epoch_0.pth'


# Images


SPOILED = {
    'cut to a half': (lambda image: image[: len(image) // 2], 'truncated'),
    'its header only': (lambda image: image[:300], ''),
    'text': (lambda image: b'not an image\n', 'cannot identify'),
    'nothing': (lambda image: b'', 'cannot identify'),
}


@pytest.mark.parametrize('kind', SPOILED)
def test_an_unreadable_training_image(kind, data, tmp_path, refused):
    spoil, reason = SPOILED[kind]
    image = image_of(data, row=6)
    replace(image, spoil(image.read_bytes()))
    place = f'{data / "train.csv"}, row 6 (the header is row 1): image {image} cannot be read: '
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, place, reason)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('workers', [0, 1])
def test_a_missing_training_image(workers, data, tmp_path, refused):
    image = image_of(data, row=4)
    image.unlink()
    message = f'{data / "train.csv"}, row 4 (the header is row 1): there is no image {image}'
    cfg = config_of(tmp_path, 'simmim', NUM_WORKERS=workers)
    refused('simmim', arguments(cfg, data, tmp_path / 'out'), message)
    assert not results_in(tmp_path / 'out')


def test_a_root_without_its_first_image(data, tmp_path, refused):
    image = image_of(data, row=2)
    image.unlink()
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    parts = (data / 'train.csv', f'images not found; tried {image}')
    refused('simmim', argv, *parts, 'DATA.DATA_PATH', 'DATA.IMAGE_SUFFIX')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_of_a_split_that_is_scored(workers, phantom, tmp_path, refused):
    """With --eval nothing is scored in part."""
    data, output = linked(phantom, tmp_path / 'data'), tmp_path / 'out'
    cfg = config_of(tmp_path, 'finetune', NUM_WORKERS=workers)
    checkpoint = save_untrained(cfg, tmp_path / 'weights.pth')
    image = image_of(data, row=4, name='valid.csv')
    replace(image, image.read_bytes()[:400])
    message = f'{data / "valid.csv"}, row 4 (the header is row 1): image {image} cannot be read'
    argv = arguments(cfg, data, output, '--eval', '--pretrained', str(checkpoint))
    refused('finetune', argv, message)
    assert not results_in(output)


def save_untrained(cfg: Path, path: Path) -> Path:
    from config import default_config
    from models import build_model

    config = default_config()
    config.merge_from_file(cfg)
    torch.save({'model': build_model(config, is_pretrain=False).state_dict()}, path)
    return path


# CSV files


def set_cell(row: int, column: str, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[row - 1][rows[0].index(column)] = value

    return change


def drop_column(name: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        position = rows[0].index(name)
        for row in rows:
            del row[position]

    return change


LABEL_CELLS = 'is not allowed (allowed: 1.0, 1, 0.0, 0, -1.0, -1, empty)'
OUTSIDE = 'leaves the data root: only relative paths without .. are allowed'
BAD_PATHS = {
    'above': 'CheXpert-phantom/train/../../patient00001/study1/view1_frontal.jpg',
    'first part above': '../train/patient00001/study1/view1_frontal.jpg',
    'absolute': '/train/patient00001/study1/view1_frontal.jpg',
    'doubled slash': 'x//etc/patient00001/study1/view1_frontal.jpg',
}
BAD_ROWS = {
    'label': (set_cell(5, 'Edema', '2.0'), "row 5 ", "column 'Edema': '2.0'", LABEL_CELLS),
    'label word': (set_cell(3, 'Fracture', 'yes'), 'row 3 ', "'Fracture': 'yes'", LABEL_CELLS),
    'label NaN': (set_cell(3, 'Fracture', 'nan'), 'row 3 ', "'Fracture': 'nan'", LABEL_CELLS),
    'view': (
        set_cell(4, 'Frontal/Lateral', 'Oblique'),
        "row 4 (the header is row 1), column 'Frontal/Lateral': 'Oblique' is not allowed "
        '(allowed: Frontal, Lateral)',
    ),
    'sex': (set_cell(2, 'Sex', 'Q'), "column 'Sex': 'Q'", 'Male, Female, Unknown'),
    'age': (set_cell(2, 'Age', '-4'), "column 'Age': '-4'", 'numbers from 0'),
    'projection': (set_cell(2, 'AP/PA', 'XX'), "column 'AP/PA': 'XX'", 'AP, PA, LL, RL, empty'),
    'no label column': (drop_column('Edema'), 'missing column: Edema;', 'found: Path, Sex'),
    'no path column': (drop_column('Path'), 'missing column: Path (or Study);'),
    'no sex column': (drop_column('Sex'), 'missing column: Sex;'),
    'short row': (lambda rows: rows[6].pop(), 'row 7 ', '18 fields, the header has 19'),
    'long row': (lambda rows: rows[6].append('1'), 'not a readable CSV file', 'line 7', '20'),
    'duplicate': (
        lambda rows: rows.append(rows[3][:]),
        'row 10 ',
        "column 'Path': 'CheXpert-phantom/train/",
        'is given in row 4 already',
    ),
    'other form': (
        set_cell(5, 'Path', 'CheXpert-phantom/x.jpg'),
        "row 5 (the header is row 1), column 'Path': 'CheXpert-phantom/x.jpg'",
        'is not of the form FOLDER/.../patient00001/study1/view1_frontal.jpg',
    ),
    'header alone': (lambda rows: rows.__setitem__(slice(1, None), []), 'has no rows'),
} | {
    name: (set_cell(6, 'Path', path), f"row 6 (the header is row 1), column 'Path': {path!r}",
           OUTSIDE)
    for name, path in BAD_PATHS.items()
}  # fmt: skip


@pytest.mark.parametrize('kind', BAD_ROWS)
def test_a_bad_training_csv(kind, data, tmp_path, refused):
    change, *parts = BAD_ROWS[kind]
    edit(data / 'train.csv', change)
    for stage in STAGES:
        output = tmp_path / f'out_{stage}'
        argv = arguments(config_of(tmp_path, stage), data, output)
        refused(stage, argv, data / 'train.csv', *parts)
        assert not results_in(output)


@pytest.mark.parametrize('kind', ['label', 'no label column', 'duplicate', 'above', 'header alone'])
def test_a_bad_validation_csv_is_found_before_training(kind, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    change, *parts = BAD_ROWS[kind]
    edit(data / 'valid.csv', lambda rows: rows.__setitem__(slice(9, None), []))
    edit(data / 'valid.csv', change)
    parts = [part.replace('/train/', '/valid/') if kind == 'duplicate' else part for part in parts]
    argv = arguments(config_of(tmp_path, 'finetune'), data, tmp_path / 'out')
    refused('finetune', argv, data / 'valid.csv', *parts)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('contents', [b'', b'\n\n', b'\xff\xfe\x00binary'])
def test_a_csv_that_is_none(contents, data, tmp_path, refused):
    replace(data / 'train.csv', contents)
    argv = arguments(config_of(tmp_path, 'simmim'), data, tmp_path / 'out')
    refused('simmim', argv, data / 'train.csv', 'not a readable CSV file')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('name', ['train.csv', 'valid.csv'])
def test_no_csv(name, phantom, tmp_path, refused):
    data = linked(phantom, tmp_path / 'data')
    (data / name).unlink()
    for stage in STAGES if name == 'train.csv' else ('finetune',):
        argv = arguments(config_of(tmp_path, stage), data, tmp_path / 'out')
        refused(stage, argv, f'no such CSV file: {data / name}', 'DATA.DATA_PATH', 'DATA.*_CSV')
    assert not results_in(tmp_path / 'out')


# Splits and folders


EMPTY = {
    'views': (('DATA.VIEWS', 'lateral'), 'none of the 8 images is lateral', 'DATA.VIEWS'),
    'hold-out': (('DATA.HOLDOUT_FRACTION', '0.99'), 'DATA.HOLDOUT_FRACTION 0.99 leaves none of'),
    'images': (('DATA.TRAIN_IMAGES', '9'), 'there are 8 images', 'DATA.TRAIN_IMAGES 9'),
    'batch': (
        ('DATA.BATCH_SIZE', '9'),
        '8 training images do not fill one batch of DATA.BATCH_SIZE 9 x 1 processes',
    ),
    'fraction': (('DATA.TRAIN_FRACTION', '0.01'), 'training images do not fill one batch'),
}


@pytest.mark.parametrize('kind', EMPTY)
def test_a_training_split_that_is_empty_or_too_small(kind, eight, tmp_path, refused):
    opts, *parts = EMPTY[kind]
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out', '--opts', *opts)
    refused('simmim', argv, *parts)
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('stage', STAGES)
def test_a_batch_larger_than_the_data_set(stage, phantom, tmp_path, refused):
    argv = arguments(config_of(tmp_path, stage), phantom, tmp_path / 'out', '--batch-size', '999')
    refused(stage, argv, 'training images do not fill one batch of DATA.BATCH_SIZE 999')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('dataset', ['chexpert', 'folder'])
def test_a_data_path_that_does_not_exist(dataset, tmp_path, refused):
    cfg = config_of(tmp_path, 'simmim', DATASET=dataset)
    for stage in STAGES if dataset == 'chexpert' else ('simmim',):
        cfg = config_of(tmp_path, stage, DATASET=dataset)
        argv = arguments(cfg, tmp_path / 'nowhere', tmp_path / 'out')
        refused(stage, argv, tmp_path / 'nowhere', 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('dataset', ['chexpert', 'folder'])
def test_no_data_path(dataset, eight, tmp_path, refused, monkeypatch):
    """The current folder is not meant: with a folder data set, any picture in it would count."""
    monkeypatch.chdir(eight / 'train')
    argv = ['--cfg', str(config_of(tmp_path, 'simmim', DATASET=dataset))]
    refused('simmim', [*argv, '--output', str(tmp_path / 'out')], 'DATA.DATA_PATH')
    assert not results_in(tmp_path / 'out')


def test_a_folder_data_set_that_holds_scored_images(eight, tmp_path, refused):
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    parts = ('scored later', 'DATA.DATASET chexpert', 'DATA.ALLOW_ALL_IMAGES')
    refused('simmim', arguments(cfg, eight, tmp_path / 'out'), eight, '.csv is there', *parts)
    assert not results_in(tmp_path / 'out')


def test_a_folder_data_set_without_images(tmp_path, refused):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'notes.txt').write_text('none here')
    cfg = config_of(tmp_path, 'simmim', DATASET='folder')
    argv = arguments(cfg, tmp_path / 'data', tmp_path / 'out')
    refused('simmim', argv, f'no image below {tmp_path / "data"}', '.png, .jpg')


# Options


OPTIONS = {
    'unknown': ('DATA.BATCHSIZE 4', 'unknown key DATA.BATCHSIZE in ', 'mean DATA.BATCH_SIZE'),
    'unknown section': ('DATTA.IMG_SIZE 4', 'unknown key DATTA'),
    'text for integer': (
        'DATA.BATCH_SIZE four', 'DATA.BATCH_SIZE in ', "must be an integer, got 'four' (str)"),
    'fraction for integer': ('TRAIN.EPOCHS 1.5', 'TRAIN.EPOCHS in ', 'an integer, got 1.5'),
    'text for number': ('TRAIN.BASE_LR fast', 'TRAIN.BASE_LR in ', "a finite number, got 'fast'"),
    'infinite': ('TRAIN.BASE_LR 1e999', 'TRAIN.BASE_LR in ', 'a finite number, got inf'),
    'number for switch': ('TRAIN.AUTO_RESUME 1', 'TRAIN.AUTO_RESUME in ', 'True or False, got 1'),
    'number for list': ('MODEL.SWIN.DEPTHS 2', 'MODEL.SWIN.DEPTHS in ', 'a list, got 2'),
    'number for text': ('TAG 3', 'TAG in ', 'must be text, got 3 (int)'),
    'value for section': ('DATA 3', 'DATA in ', 'is a section of keys, got 3'),
    'choice': ('DATA.UNCERTAIN maybe', 'DATA.UNCERTAIN', "'zeros', 'ones', 'ignore'", "'maybe'"),
    'negative': ('DATA.BATCH_SIZE -1', 'DATA.BATCH_SIZE', '[1, inf)', 'got -1'),
    'window': (
        'MODEL.SWIN.WINDOW_SIZE 5', 'MODEL.SWIN.WINDOW_SIZE must be one of [1, 2, 4, 8]', 'got 5'),
    'odd stage': ('DATA.IMG_SIZE 30', 'DATA.IMG_SIZE must be a multiple of 4', 'got 30'),
    'heads': ('MODEL.SWIN.NUM_HEADS [3,2]', 'MODEL.SWIN.NUM_HEADS', 'divisors', 'got [3, 2]'),
    'stages': ('MODEL.SWIN.NUM_HEADS [1]', 'MODEL.SWIN.NUM_HEADS', 'DEPTHS, 2, got [1]'),
}  # fmt: skip
MASKS = {
    'mask and image': (
        'DATA.MASK_PATCH_SIZE 12', 'DATA.MASK_PATCH_SIZE', 'divisor of DATA.IMG_SIZE, 32', '12'),
    'mask and patch': ('DATA.MASK_PATCH_SIZE 1', 'multiple of MODEL.SWIN.PATCH_SIZE, 2', 'got 1'),
    'mask above image': ('DATA.MASK_PATCH_SIZE 64', 'DATA.MASK_PATCH_SIZE', 'got 64'),
    'nothing hidden': ('DATA.MASK_RATIO 0.0', 'DATA.MASK_RATIO', '(0, 1)', 'got 0.0'),
    'all hidden': ('DATA.MASK_RATIO 0.99', 'DATA.MASK_RATIO', '1 to 15 of the 16 units', '0.99'),
}  # fmt: skip
VALUES = [(stage, kind) for stage in STAGES for kind in OPTIONS] + [('simmim', m) for m in MASKS]


@pytest.mark.parametrize(('stage', 'kind'), VALUES)
def test_an_option_that_cannot_be(stage, kind, eight, tmp_path, refused):
    pair, *parts = (OPTIONS | MASKS)[kind]
    argv = arguments(config_of(tmp_path, stage), eight, tmp_path / 'out')
    refused(stage, [*argv, '--opts', *pair.split()], *parts)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', OPTIONS)
def test_an_option_in_a_yaml_file_that_cannot_be(kind, eight, tmp_path, refused):
    pair, *parts = OPTIONS[kind]
    key, value = pair.split()
    cfg, text = tmp_path / 'own.yaml', value
    for name in reversed(key.split('.')):
        text = f'{{{name}: {text}}}'
    base = config_of(tmp_path, 'simmim').name
    cfg.write_text(f'{{BASE: [{base}], {text[1:]}\n')
    source = [cfg] if parts[0].endswith(' in ') else []
    refused('simmim', arguments(cfg, eight, tmp_path / 'out'), *parts, *source)
    assert not (tmp_path / 'out').exists()


FLAGS = {
    'text': (['--batch-size', 'four'], '--batch-size', "'four'"),
    'choice': (['--amp-opt-level', 'O9'], '--amp-opt-level', 'O9', 'O0', 'O2'),
    'unknown': (['--batchsize', '4'], '--batchsize'),
    'half a pair': (['--opts', 'TAG'], 'pairs of KEY VALUE', 'TAG'),
}


@pytest.mark.parametrize('kind', FLAGS)
def test_a_flag_that_cannot_be(kind, eight, tmp_path, refused):
    more, *parts = FLAGS[kind]
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', argv + more, *parts)
    assert not (tmp_path / 'out').exists()


def test_vit_sizes(eight, tmp_path, refused):
    argv = arguments(config_of(tmp_path, 'simmim', VIT), eight, tmp_path / 'out', '--opts')
    size = 'DATA.IMG_SIZE must be a multiple of MODEL.VIT.PATCH_SIZE, 8, got 36'
    refused('simmim', [*argv, 'DATA.IMG_SIZE', '36'], size)
    heads = 'MODEL.VIT.NUM_HEADS must be a divisor of MODEL.VIT.EMBED_DIM, 16, got 3'
    refused('simmim', [*argv, 'MODEL.VIT.NUM_HEADS', '3'], heads)
    assert not (tmp_path / 'out').exists()


def test_no_config_file(eight, tmp_path, refused):
    argv = arguments(tmp_path / 'none.yaml', eight, tmp_path / 'out')
    refused('simmim', argv, f'no config file {tmp_path / "none.yaml"}')


def test_fine_tuning_on_a_folder_without_labels(eight, tmp_path, refused):
    cfg = config_of(tmp_path, 'finetune', DATASET='folder')
    parts = ("DATA.DATASET must be 'chexpert'", "got 'folder'")
    refused('finetune', arguments(cfg, eight, tmp_path / 'out'), *parts)
    assert not (tmp_path / 'out').exists()


# Checkpoints


def other_entries(trained: Path, path: Path) -> Path:
    saved = read_checkpoint(trained)
    saved['model']['encoder.surprise'] = torch.zeros(2)
    torch.save(saved, path)
    return path


def unsafe(trained: Path, path: Path) -> Path:
    torch.save(read_checkpoint(trained) | {'extra': Payload(path.parent / 'it_ran')}, path)
    return path


def plain_pickle(protocol: int) -> Callable[[Path, Path], Path]:
    def write(trained: Path, path: Path) -> Path:
        contents = {'model': {}, 'extra': Payload(path.parent / 'it_ran')}
        path.write_bytes(pickle.dumps(contents, protocol))
        return path

    return write


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def write(trained: Path, path: Path) -> Path:
        path.write_bytes(change(trained.read_bytes()))
        return path

    return write


def weightless(trained: Path, path: Path) -> Path:
    torch.save({'state_dict': read_checkpoint(trained)['model']}, path)
    return path


CHECKPOINTS = {
    'unexpected': (other_entries, 'checkpoint of another model: 1 unexpected (', 'surprise)'),
    'unsafe': (unsafe, 'refused, it holds a pickled object of', 'mkdir'),
    'unsafe pickle': (plain_pickle(2), 'refused, it holds a pickled object of', 'mkdir'),
    'newer pickle': (plain_pickle(4), 'not a checkpoint'),
    'cut short': (changed(lambda file: file[: len(file) // 2]), 'cut short or damaged'),
    'empty': (changed(lambda file: b''), 'not a checkpoint'),
    'text': (changed(lambda file: b'hello\n'), 'not a checkpoint'),
    'no weights': (weightless, "no weights under the key 'model'"),
    'absent': (lambda trained, path: path, 'there is no such checkpoint file'),
}
USES = {
    'resume': ('simmim', '--resume'),
    'pretrained': ('simmim', '--pretrained'),
    'pretrained encoder': ('finetune', '--pretrained'),
}


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize('kind', CHECKPOINTS)
def test_a_bad_checkpoint(kind, use, trained, eight, phantom, tmp_path, refused):
    (make, *parts), (stage, flag) = CHECKPOINTS[kind], USES[use]
    path = make(trained, tmp_path / 'bad.pth')
    source = eight if stage == 'simmim' else phantom
    argv = arguments(config_of(tmp_path, stage), source, tmp_path / 'out', flag, str(path))
    refused(stage, argv, path, *parts)
    assert not (tmp_path / 'it_ran').exists(), 'the payload ran'
    assert not results_in(tmp_path / 'out')


def test_the_payload_would_run(trained, tmp_path):
    """Else the tests above would show nothing."""
    torch.load(unsafe(trained, tmp_path / 'bad.pth'), weights_only=False)
    assert (tmp_path / 'it_ran').exists()


OTHER_MODELS = {
    'type': ('simmim', VIT, []),
    'width': ('simmim', SWIN, ['MODEL.SWIN.EMBED_DIM', '16']),
    'depth': ('simmim', SWIN, ['MODEL.SWIN.DEPTHS', '[2,4]']),
    'fine-tuned type': ('finetune', VIT, []),
    'fine-tuned depth': ('finetune', SWIN, ['MODEL.SWIN.DEPTHS', '[2,4]']),
}


@pytest.mark.parametrize('flag', ['--resume', '--pretrained'])
@pytest.mark.parametrize('kind', OTHER_MODELS)
def test_a_checkpoint_of_another_model(kind, flag, trained, eight, phantom, tmp_path, refused):
    stage, model, opts = OTHER_MODELS[kind]
    source = eight if stage == 'simmim' else phantom
    argv = arguments(config_of(tmp_path, stage, model), source, tmp_path / 'out')
    argv += [flag, str(trained), *(['--opts', *opts] if opts else [])]
    refused(stage, argv, trained, 'checkpoint of another model')
    assert not results_in(tmp_path / 'out')


@pytest.mark.parametrize('flag', ['--resume', '--pretrained'])
def test_evaluating_a_checkpoint_of_the_other_stage(flag, trained, phantom, tmp_path, refused):
    more = ('--eval', flag, str(trained))
    argv = arguments(config_of(tmp_path, 'finetune'), phantom, tmp_path / 'out', *more)
    refused('finetune', argv, trained, 'checkpoint of another model', 'missing (')
    assert not results_in(tmp_path / 'out')


def test_an_unsafe_checkpoint_that_is_found_in_the_run_folder(trained, eight, tmp_path, refused):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    path = unsafe(trained, folder / 'ckpt_epoch_7.pth')
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', argv, path, 'refused, it holds a pickled object')
    assert results_in(folder) == [path]
    assert not (folder / 'it_ran').exists()


def test_a_checkpoint_of_another_optimizer(trained, eight, tmp_path, refused):
    """AdamW's moments are not SGD's, nor the other way round."""
    cfg, output = config_of(tmp_path, 'simmim'), tmp_path / 'out'
    sgd = ['--opts', 'TRAIN.OPTIMIZER.NAME', 'sgd']
    assert run_main('simmim', arguments(cfg, eight, output, *sgd)) == 0
    checkpoint = run_folder(output, 'simmim') / 'ckpt_epoch_0.pth'
    argv = arguments(cfg, eight, tmp_path / 'on', '--resume', str(checkpoint))
    argv += ['--opts', 'TRAIN.EPOCHS', '2']
    refused('simmim', argv, checkpoint, 'TRAIN.OPTIMIZER.NAME')


# Evaluation


@pytest.mark.parametrize('stage', STAGES)
def test_nothing_to_evaluate(stage, phantom, tmp_path, refused):
    cfg = config_of(tmp_path, stage, HOLDOUT_FRACTION=0.2)
    argv = arguments(cfg, phantom, tmp_path / 'out', '--eval')
    parts = ('--eval: nothing to evaluate', '--resume', '--pretrained', tmp_path / 'out')
    refused(stage, argv, *parts)
    assert not results_in(tmp_path / 'out')


def test_evaluating_pre_training_on_no_held_out_patient(trained, eight, tmp_path, refused):
    """To end without a word and without a figure would look like success."""
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--eval', '--resume', str(trained)]
    refused('simmim', argv, '--eval', 'DATA.HOLDOUT_FRACTION', '0.0')


# Output


@pytest.mark.parametrize('stage', STAGES)
@pytest.mark.parametrize('below', ['', 'runs/here'])
def test_an_output_that_is_a_file_or_below_one(below, stage, eight, tmp_path, refused):
    (tmp_path / 'file').write_text('mine')
    output = tmp_path / 'file' / below
    refused(stage, arguments(config_of(tmp_path, stage), eight, output), 'OUTPUT', output,
            'cannot write to the folder', '--output')  # fmt: skip
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('name', ['config.yaml', 'log_rank0.txt', 'tensorboard'])
def test_a_run_folder_that_cannot_be_written(name, eight, tmp_path, refused):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    (folder / name).write_text('') if name == 'tensorboard' else (folder / name).mkdir()
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    refused('simmim', argv, 'OUTPUT', folder, '--output')
    assert not results_in(folder)


def test_a_checkpoint_that_cannot_be_written(eight, tmp_path, refused):
    path = run_folder(tmp_path / 'out', 'simmim') / 'ckpt_epoch_0.pth'
    path.mkdir(parents=True)
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--opts', 'TRAIN.AUTO_RESUME', 'False']
    refused('simmim', argv, path, 'the checkpoint cannot be written')
    assert results_in(tmp_path / 'out') == [path], 'no temporary file is left'


@pytest.mark.parametrize('name', ['metrics.jsonl', 'reconstructions'])
def test_a_record_that_cannot_be_written_while_training(name, phantom, tmp_path, refused):
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    (folder / name).mkdir() if name == 'metrics.jsonl' else (folder / name).write_text('')
    argv = arguments(tiny_config(tmp_path / 'run.yaml', 'simmim'), phantom, tmp_path / 'out')
    refused('simmim', argv, folder / name)


def test_metrics_whose_last_line_was_cut_off(trained, eight, tmp_path):
    """As after a full disk or a lost machine; a run that goes on writes that epoch again."""
    folder = run_folder(tmp_path / 'out', 'simmim')
    folder.mkdir(parents=True)
    (folder / 'metrics.jsonl').write_text('{"epoch": -1}\n{"epoch": 0, "lo')
    argv = arguments(config_of(tmp_path, 'simmim'), eight, tmp_path / 'out')
    argv += ['--resume', str(trained), '--opts', 'TRAIN.EPOCHS', '2']
    assert run_main('simmim', argv) == 0
    assert [r['epoch'] for r in read_metrics(folder / 'metrics.jsonl')] == [-1, 1]
