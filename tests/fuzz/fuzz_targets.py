"""What is fuzzed: for each target an attack with mutations of good files.

An attack writes its files below its folder and calls the public entry that reads them.  It returns
if that took them, and then also asserts what must hold of whatever is taken.
"""

import io
import json
import os
import pathlib
import shutil
from pathlib import Path

import fuzz_corpus
import numpy as np
import torch
import yaml
from fuzz_corpus import LOG, Corpus
from fuzz_mutations import (
    CELLS,
    TEXTS,
    Rng,
    mutate_bytes,
    mutate_csv,
    mutate_png,
    mutate_text,
    mutate_tree,
    mutate_zip,
    pick,
)
from PIL import Image

from config import get_config
from data.images import load_image
from data.labels import LABELS
from data.records import (
    Records,
    group_columns,
    match,
    predictions_for,
    read_csv,
    read_label_file,
    read_mimic,
    read_predictions,
    read_split,
)
from data.store import encode_about, open_store, read_about, verify
from logger import ScalarLog, read_metrics

STAGES = ('simmim', 'finetune')


def _linked(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target, copy_function=os.link))


def _replace(path: Path, data: bytes) -> Path:
    path.unlink(missing_ok=True)  # it may be a hard link to the good file
    path.write_bytes(data)
    return path


def _check_inside(records: Records) -> None:
    for file in records.file:
        assert '..' not in file.split('/') and not file.startswith('/'), file


def attack_tables(corpus: Corpus, rng: Rng, out: Path) -> None:
    """train.csv and the like, of images and of studies."""
    source = corpus.get(fuzz_corpus.chexpert)
    root = _linked(source, out / 'CheXpert-phantom')
    data = (source / 'train.csv').read_bytes()
    by_study = rng.random() < 0.3
    if by_study:
        rows = [line.split(b',') for line in data.splitlines()]
        studies = {row[0].rpartition(b'/')[0]: row[5:] for row in rows[1:]}
        header = b','.join([b'Study', *rows[0][5:]])
        data = b'\n'.join([header, *(b','.join([key, *row]) for key, row in studies.items())])
        (root / 'train.csv').unlink()
    _replace(root / 'train.csv', mutate_csv(data + b'\n' * by_study, rng))
    config = get_config(fuzz_corpus.arguments(corpus.get(fuzz_corpus.config), data_path=str(root)))
    _check_inside(read_split(config, 'train', LOG))


def attack_mimic(corpus: Corpus, rng: Rng, out: Path) -> None:
    root = _linked(corpus.get(fuzz_corpus.mimic), out / 'mimic')
    file = pick(rng, sorted(root.glob('mimic-cxr-*.csv*')))
    data = file.read_bytes()
    if file.suffix == '.gz':
        import gzip

        plain = mutate_csv(gzip.decompress(data), rng)
        data = mutate_bytes(data, rng) if rng.random() < 0.3 else gzip.compress(plain)
    else:
        data = mutate_csv(data, rng)
    _replace(file, data)
    _check_inside(read_mimic(root, 'train', labeller='chexpert', logger=LOG))


def attack_predictions(corpus: Corpus, rng: Rng, out: Path) -> None:
    source = corpus.get(fuzz_corpus.predictions)
    paths = read_predictions(source).names
    file = _replace(out / 'p.csv', mutate_csv(source.read_bytes(), rng))
    beside = source.with_suffix('.json').read_bytes()
    if rng.random() < 0.4:
        beside = mutate_bytes(beside, rng)
    file.with_suffix('.json').write_bytes(beside)
    found = predictions_for(file, paths)
    assert found.shape == (len(paths), len(LABELS))
    assert np.all(np.isnan(found) | (0 <= found) & (found <= 1))


def attack_label_files(corpus: Corpus, rng: Rng, out: Path) -> None:
    data = (corpus.get(fuzz_corpus.chexpert) / 'valid.csv').read_bytes()
    file = _replace(out / 'labels.csv', mutate_csv(data, rng))
    task = pick(rng, ['observations', 'any_finding', 'effusion'])
    table = read_label_file(file, task=task, views=pick(rng, ['all', 'frontal']))
    level = pick(rng, ['study', 'image'])
    predictions = read_predictions(corpus.get(fuzz_corpus.predictions))
    cases, notes = match(predictions, table, name='x', level=level, complete=False)
    assert all('\n' not in note for note in notes)
    assert len(cases.path) == len(cases.targets)


def attack_demographics(corpus: Corpus, rng: Rng, out: Path) -> None:
    records = read_csv(corpus.get(fuzz_corpus.chexpert), 'train.csv')
    patients = dict.fromkeys(records.patient)
    rows = ['PATIENT,RACE,ETHNICITY', *(f'{name},A,B{i % 3}' for i, name in enumerate(patients))]
    root = _linked(corpus.get(fuzz_corpus.chexpert), out / 'CheXpert-phantom')
    _replace(root / 'demo.csv', mutate_csv('\n'.join([*rows, '']).encode(), rng))
    records = read_csv(root, 'train.csv')
    found = group_columns(records, ['RACE', 'ETHNICITY'], demographics='demo.csv')
    assert {len(values) for values in found.values()} == {len(records)}


def attack_configs(corpus: Corpus, rng: Rng, out: Path) -> None:
    """YAML files, one of them the base of the other."""
    text = corpus.get(fuzz_corpus.config).read_text()
    if rng.random() < 0.5:
        values = [lambda: pick(rng, [*TEXTS, 0, -1, 2**31, 2**70, 0.5, None, True, [], {}, [[1]]])]
        text = yaml.safe_dump(mutate_tree(yaml.safe_load(text), rng, values))
    else:
        text = mutate_text(text, rng)
    data = text.encode('utf-8', 'surrogatepass')
    file = _replace(out / 'a.yaml', mutate_bytes(data, rng) if rng.random() < 0.2 else data)
    if rng.random() < 0.3:
        names = ['a.yaml', 'b.yaml', '/dev/zero', 'x' * 5000, 'a\0b', '.', '../a.yaml']
        bases = [pick(rng, names) for _ in range(3)]
        file = _replace(out / 'b.yaml', yaml.safe_dump({'BASE': bases}).encode())
    get_config(fuzz_corpus.arguments(file, pick(rng, STAGES)))


def attack_opts(corpus: Corpus, rng: Rng, out: Path) -> None:
    keys, opts = corpus.get(fuzz_corpus.keys), []
    values = [*TEXTS, *CELLS, '1', '2', '0.5', '[1]', '[1,2]', '[0.5]', 'True', "{'a': 'b'}"]
    values += ['1' * 30, '4294967296', '[[1]]', '(' * 300, '-' * 3000, '[1e400]', '"a"', 'None']
    for _ in range(rng.integers(1, 4)):
        key = pick(rng, keys)
        key = mutate_text(key, rng) if rng.random() < 0.1 else key
        opts += [key, pick(rng, values)]
    file = corpus.get(fuzz_corpus.config)
    shutil.copy(file, out / 'run.yaml')
    get_config(fuzz_corpus.arguments(out / 'run.yaml', pick(rng, STAGES), opts=opts))


def attack_pictures(corpus: Corpus, rng: Rng, out: Path) -> None:
    name, data = pick(rng, list(corpus.get(fuzz_corpus.pictures).items()))
    by_chunks = name.endswith('.png') and rng.random() < 0.6
    data = mutate_png(data, rng) if by_chunks else mutate_bytes(data, rng)
    _check_image(load_image(_replace(out / name, data)))


def attack_dicom(corpus: Corpus, rng: Rng, out: Path) -> None:
    data = mutate_bytes(pick(rng, corpus.get(fuzz_corpus.dicoms)), rng)
    _check_image(load_image(_replace(out / 'x.dcm', data)))


def _check_image(image: Image.Image) -> None:
    assert image.mode in ('L', 'F') and min(image.size) > 0
    pixels = np.asarray(image)
    assert pixels.min() >= 0 and pixels.max() <= 255


def _checkpoint(rng: Rng, model: fuzz_corpus.Model) -> bytes:
    """A checkpoint with other contents, in another zip, of other bytes, or of the old format."""
    kind = rng.random()
    if kind < 0.15:
        return mutate_bytes(model.file, rng)
    if kind < 0.35:
        return mutate_zip(model.file, rng)
    values = [
        lambda: torch.full((3,), float('nan')),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(0),
        lambda: torch.zeros(2, 2, dtype=torch.complex64),
        lambda: torch.zeros(3, 3).to_sparse(),
        lambda: pathlib.PurePosixPath('x'),
        lambda: os.mkdir,
        lambda: pick(rng, [None, 0, -1, 2**40, 2**70, 1.5, float('nan'), True, [], {}, (), b'x']),
        lambda: pick(rng, [*TEXTS, *CELLS]),
        lambda: {'a': {'b': [torch.ones(1)]}},
    ]
    contents = dict(model.contents)
    for _ in range(rng.integers(1, 3)):
        key = pick(rng, list(contents)) if rng.random() < 0.8 else 'model'
        if kind < 0.5 and 'config' in contents and rng.random() < 0.5:
            contents['config'] = mutate_text(str(contents['config']), rng)
        elif key in contents:
            contents[key] = mutate_tree(contents[key], rng, values)
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=bool(rng.random() < 0.8))
    return mutate_bytes(file.getvalue(), rng) if rng.random() < 0.1 else file.getvalue()


def attack_resume(corpus: Corpus, rng: Rng, out: Path) -> None:
    from engine.train_state import accumulation_steps
    from utils import read_resumable

    model = corpus.get(fuzz_corpus.Model)
    file = _replace(out / 'ckpt_epoch_0.pth', _checkpoint(rng, model))
    saved = read_resumable(file)
    accumulation_steps(model.config, saved, LOG)
    model.state().restore(saved, model.config, source=str(file), logger=LOG)


def attack_pretrained(corpus: Corpus, rng: Rng, out: Path) -> None:
    from models.pretrained import fit_pretrained
    from utils import load_pretrained, trained_config

    model = corpus.get(fuzz_corpus.Model)
    file = _replace(out / 'given.pth', _checkpoint(rng, model))
    config = model.config.clone()
    config.defrost()
    config.PRETRAINED = str(file)
    trained_config(file)
    load_pretrained(config, model.model, LOG, fit_pretrained)


def attack_stores(corpus: Corpus, rng: Rng, out: Path) -> None:
    """Files of a store; half of the time store.json then says that this is what was written."""
    root = _linked(corpus.get(fuzz_corpus.store), out / 'store')
    about = read_about(root)
    if rng.random() < 0.4:
        values = [lambda: pick(rng, [*CELLS, 0, -1, 2**40, 2**70, 1.5, None, True, [], {}, [[]]])]
        changed = json.loads(json.dumps(mutate_tree(about, rng, values), skipkeys=True))
        _replace(root / 'store.json', encode_about(changed) if isinstance(changed, dict) else b'1')
    else:
        file = pick(rng, sorted(path for path in root.iterdir() if path.is_file()))
        data = mutate_bytes(file.read_bytes(), rng)
        _replace(file, data)
        if rng.random() < 0.6 and file.name in about['files']:
            import zlib

            about['files'][file.name] = [len(data), zlib.crc32(data)]
            _replace(root / 'store.json', encode_about(about))
    store = open_store(root)
    for place in range(len(store)):
        _check_image(store.image(place))
    read_csv(root, 'train.csv')
    verify(root)


def attack_metrics(corpus: Corpus, rng: Rng, out: Path) -> None:
    lines = [json.dumps({'epoch': i, 'loss': 0.5, 'auroc': {'a': None}}) + '\n' for i in range(4)]
    file = _replace(out / 'metrics.jsonl', mutate_bytes(''.join(lines).encode(), rng))
    scalars = ScalarLog(out)
    scalars.forget_from(2)
    scalars.close()
    assert all(record['epoch'] < 2 for record in read_metrics(file))


TARGETS = {
    name.removeprefix('attack_'): value
    for name, value in list(globals().items())
    if name.startswith('attack_')
}
