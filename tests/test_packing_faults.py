"""Packing when something is wrong: other pictures, damaged copies, full disks, names in the way."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from csv_files import image_path, row, write
from packed_data import (
    NATIVE,
    SMALL,
    contents,
    file_of,
    killed_after,
    make_data,
    packed,
    picture,
)
from PIL import Image

import data.images
from data.packing import DamagedPicture, Settings, append, encode, pack
from data.records import read_csv, read_folder
from data.store import open_store, verify

PACK = [sys.executable, str(Path(__file__).resolve().parents[1] / 'scripts' / 'pack.py')]


def path_of(number: int) -> str:
    return image_path(number).replace('.jpg', '.png')


def save(root: Path, number: int, pixels: np.ndarray) -> None:
    (root / file_of(number)).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / file_of(number))


@pytest.mark.parametrize('settings', [SMALL, NATIVE])
@pytest.mark.parametrize('workers', [1, 2])
def test_append_refuses_other_pictures_of_the_same_names(
    tmp_path: Path, settings: Settings, workers: int
) -> None:
    store = packed(make_data(tmp_path / 'a'), tmp_path / 'store', settings)
    for number in range(1, 13):
        save(tmp_path / 'b', number, picture(number))
    rows = [row(path_of(number)) for number in range(1, 13)]
    external = write(tmp_path / 'b' / 'external.csv', rows)
    other = picture(8)
    other[5, 5] ^= 255  # one pixel of one picture
    save(tmp_path / 'b', 8, other)
    before = contents(store)
    with pytest.raises(ValueError, match=f'{file_of(8)} is not the picture that .*store has'):
        append(tmp_path / 'b', store, external, workers=workers)
    assert contents(store) == before
    save(tmp_path / 'b', 8, picture(8))
    append(tmp_path / 'b', store, external, workers=workers)
    assert len(open_store(store)) == 12 and not verify(store)


def test_append_refuses_a_damaged_picture_of_a_name_in_the_store(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data')
    store = packed(root, tmp_path / 'store')
    (root / file_of(2)).write_bytes(b'no picture')
    more = write(tmp_path / 'more.csv', [row(path_of(2))])
    with pytest.raises(ValueError, match=f'{file_of(2)} cannot be read'):
        append(root, store, more, skip_bad=True)


def test_append_to_a_store_of_itself_needs_no_pictures(tmp_path: Path) -> None:
    store = packed(make_data(tmp_path / 'data'), tmp_path / 'store')
    append(store, store, write(tmp_path / 'more.csv', [row(path_of(2), Edema='-1')]))
    assert read_csv(store, 'more.csv').labels[0, 5] == -1 and not verify(store)


@pytest.mark.parametrize('label, refused', [('1', True), ('0', True), ('-1', True), ('', False)])
def test_appended_labels_keep_pictures_out_of_pre_training(
    tmp_path: Path, label: str, refused: bool
) -> None:
    tree = tmp_path / 'tree'
    for number in (1, 2):
        save(tree, number, picture(number))
    store = packed(tree, tmp_path / 'store')
    assert len(read_folder(store, allow_all_images=False)) == 2
    save(tree, 3, picture(3))
    external = write(tmp_path / 'external.csv', [row(path_of(3), Edema=label)])
    append(tree, store, external)
    if refused:
        with pytest.raises(ValueError, match='ALLOW_ALL_IMAGES'):
            read_folder(store, allow_all_images=False)
    assert len(read_folder(store, allow_all_images=refused)) == 3


@pytest.mark.parametrize('workers', [1, 2])
def test_missing_pictures_stop_the_run_though_bad_ones_are_left_out(
    tmp_path: Path, workers: int
) -> None:
    root, store = make_data(tmp_path / 'data'), tmp_path / 'store'
    (root / file_of(3)).write_bytes(b'no picture')
    (root / file_of(6)).rename(tmp_path / 'away.png')
    with pytest.raises(ValueError, match=f'there is no image .*{file_of(6)} .*only damaged'):
        pack(root, store, SMALL, skip_bad=True, workers=workers)
    (tmp_path / 'away.png').rename(root / file_of(6))
    pack(root, store, SMALL, skip_bad=True)
    assert list(open_store(store).left_out) == [file_of(3)]


@pytest.mark.parametrize(
    'error',
    [OSError(errno.EIO, 'Input/output error'), PermissionError(13, 'denied'), MemoryError()],
)
def test_failures_of_the_machine_are_no_damaged_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    root = make_data(tmp_path / 'data')

    def fail(data_or_path: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(data.images, 'decode' if isinstance(error, MemoryError) else '_read', fail)
        with pytest.raises(ValueError, match=f'{file_of(1)} cannot be read.*only damaged'):
            pack(root, tmp_path / 'store', SMALL, skip_bad=True)
    pack(root, tmp_path / 'store', SMALL, skip_bad=True)
    assert not open_store(tmp_path / 'store').left_out


@pytest.mark.parametrize('fault', ['drive', 'decoder'])
def test_what_no_dicom_file_is_at_fault_for_is_no_damaged_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    pytest.importorskip('pydicom', minversion='3.0', reason='pydicom is not installed')
    from dicom_files import jpeg, write
    from pydicom.pixels.decoders.base import Decoder

    file = write(tmp_path / 'x.dcm', picture(1), syntax='JPEGLSLossless', data=[jpeg(picture(1))])

    def fail(path: object, mode: str) -> None:
        raise OSError(errno.EIO, 'Input/output error')

    if fault == 'drive':  # for once: it can be read again at once
        monkeypatch.setattr(data.dicom, 'open', fail, raising=False)
    else:
        monkeypatch.setattr(Decoder, 'available_plugins', ())
    words = {'drive': 'Input/output error', 'decoder': 'no decoder of JPEG-LS'}[fault]
    with pytest.raises(ValueError, match=f'x.dcm cannot be read: {words}.*only damaged') as caught:
        encode(file, SMALL)
    assert not isinstance(caught.value, DamagedPicture)


def test_a_picture_that_is_cut_off_is_damaged_and_a_folder_in_its_place_is_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / 'x.png'
    Image.fromarray(picture(1)).save(file)
    whole = file.read_bytes()
    for end in (0, 20, len(whole) // 2):
        file.write_bytes(whole[:end])
        with pytest.raises(DamagedPicture, match='x.png cannot be read'):
            encode(file, SMALL)
    for name in ('folder.png', 'folder.dcm'):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match='only damaged') as caught:
            encode(tmp_path / name, SMALL)
        assert not isinstance(caught.value, DamagedPicture)


@pytest.mark.parametrize('count, allowed', [(30, 10), (1200, 12)])
def test_many_damaged_pictures_are_a_damaged_copy(tmp_path: Path, count: int, allowed: int) -> None:
    root, store = make_data(tmp_path / 'data', count), tmp_path / 'store'
    whole = {}
    for number in range(2, 3 + allowed):  # one more than allowed
        file = root / file_of(number)
        whole[file] = file.read_bytes()
        file.write_bytes(whole[file][:50])
    for _ in range(2):
        with pytest.raises(ValueError, match=rf'{allowed + 1} of {count} pictures are damaged'):
            pack(root, store, SMALL, skip_bad=True)
    file, content = whole.popitem()
    file.write_bytes(content)
    pack(root, store, SMALL, skip_bad=True)
    assert len(open_store(store).left_out) == allowed


def test_pictures_of_a_copy_that_was_mended_are_packed(tmp_path: Path) -> None:
    root, store = make_data(tmp_path / 'data', 30), tmp_path / 'store'
    wanted = contents(packed(root, tmp_path / 'wanted'))
    whole = {root / file_of(number): None for number in range(5, 20)}
    for file in whole:
        whole[file] = file.read_bytes()
        file.write_bytes(b'')
    with pytest.raises(ValueError, match='pictures are damaged'):
        pack(root, store, SMALL, skip_bad=True)
    for file, content in whole.items():
        file.write_bytes(content)
    lines = []
    pack(root, store, SMALL, report=lines.append)
    assert contents(store) == wanted and '4 of them packed already' in lines[0]


def test_an_unfinished_append_does_not_block_another(tmp_path: Path) -> None:
    root, lines = make_data(tmp_path / 'data', 20), []
    store = packed(root, tmp_path / 'store', csv_names=['train.csv'])
    wanted = packed(root, tmp_path / 'wanted', csv_names=['train.csv'])
    append(root, wanted, 'test.csv')
    with killed_after(2):
        append(root, store, 'valid.csv')
    append(root, store, 'test.csv', report=lines.append)
    assert contents(store) == contents(wanted) and not verify(store)
    assert lines[0].startswith('dropped what an unfinished --append of valid.csv left')
    with killed_after(2):  # the same goes on
        append(root, store, 'valid.csv')
    lines.clear()
    append(root, store, 'valid.csv', report=lines.append)
    assert '2 of them packed already' in lines[0]


@pytest.mark.parametrize('name', ['bad_images.csv', 'Bad_Images.csv', 'store.json', 'pixels_0.bin'])
def test_append_refuses_the_names_of_the_stores_own_files(tmp_path: Path, name: str) -> None:
    root = make_data(tmp_path / 'data')
    store = packed(root, tmp_path / 'store')
    before = contents(store)
    own = write(tmp_path / name, [row(path_of(2))])
    with pytest.raises(ValueError, match=f'another file under this name|must end in .*{name}'):
        append(root, store, own)
    assert contents(store) == before


def test_csv_must_lie_in_the_folder_itself(tmp_path: Path) -> None:
    root = make_data(tmp_path / 'data')
    write(root / 'labels' / 'my.csv', [row(path_of(2))])
    outside = write(tmp_path / 'my.csv', [row(path_of(2))])
    for name in ('labels/my.csv', str(outside), 'absent.csv'):
        with pytest.raises(ValueError, match=f'directly in {root}, got {name!r}'):
            pack(root, tmp_path / 'store', SMALL, csv_names=['train.csv', name])
    assert not (tmp_path / 'store').exists()


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [*PACK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_script_says_that_the_disk_is_full_and_goes_on_when_it_is_not(tmp_path: Path) -> None:
    root, store = make_data(tmp_path / 'data', 40), tmp_path / 'store'

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    arguments = ['--data-path', root, '--output', store, '--size', 16, '--workers', 1]
    full = run(*arguments, preexec_fn=limit)
    assert full.returncode == 2 and 'Traceback' not in full.stderr, full.stderr
    words = f'error: cannot write {store}: File too large: free space and give the same command'
    assert words in full.stderr
    again = run(*arguments)
    assert again.returncode == 0, again.stderr
    assert run('--output', store, '--verify').returncode == 0


def test_script_names_an_output_that_cannot_be(tmp_path: Path) -> None:
    root, file = make_data(tmp_path / 'data'), tmp_path / 'file'
    file.touch()
    for output in (file, file / 'store'):
        made = run('--data-path', root, '--output', output, '--size', 16)
        assert made.returncode == 2 and 'Traceback' not in made.stderr, made.stderr
        assert 'error: ' in made.stderr and str(output) in made.stderr
