"""Good files to mutate, each kind made once; a model to be restored from checkpoints."""

import io
import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tiny import tiny_config

from config import get_config
from data.labels import LABELS
from data.phantom import make_phantom, make_phantom_mimic
from data.records import read_csv, write_predictions

LOG = logging.getLogger('fuzz')
LOG.addHandler(logging.NullHandler())
LOG.propagate = False


class Corpus:
    """Good files, made below a folder when they are first asked for."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.made: dict[str, Any] = {}

    def get(self, make: Callable[['Corpus'], Any]) -> Any:
        if make.__name__ not in self.made:
            self.made[make.__name__] = make(self)
        return self.made[make.__name__]


def arguments(cfg: Path, stage: str = 'finetune', **flags: Any) -> Namespace:
    return Namespace(cfg=str(cfg), stage=stage, **flags)


def config(corpus: Corpus) -> Path:
    return tiny_config(corpus.base / 'run.yaml', 'finetune')


def chexpert(corpus: Corpus) -> Path:
    folder = corpus.base / 'CheXpert-phantom'
    make_phantom(folder, num_train=12, num_valid=4, num_test=4, size=48, seed=0)
    return folder


def mimic(corpus: Corpus) -> Path:
    folder = corpus.base / 'mimic'
    make_phantom_mimic(folder, num_train=12, num_valid=4, num_test=4, size=48)
    return folder


def predictions(corpus: Corpus) -> Path:
    records = read_csv(corpus.get(chexpert), 'valid.csv')
    values = np.random.default_rng(0).random((len(records), len(LABELS)))
    file = corpus.base / 'predictions_valid.csv'
    write_predictions(file, values, paths=records.path, labels=LABELS, source={'task': None})
    return file


def keys(corpus: Corpus) -> list[str]:
    from config import _all_keys, default_config

    return list(_all_keys(default_config()))


def pictures(corpus: Corpus) -> dict[str, bytes]:
    """Files by suffix; several forms of each."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 48), dtype=np.uint8)
    deep = rng.integers(0, 4096, (40, 48), dtype=np.uint16)
    forms = {
        'grey.png': (Image.fromarray(grey), {}),
        'deep.png': (Image.fromarray(deep), {}),
        'palette.png': (Image.fromarray(grey).convert('P'), {'transparency': 0}),
        'rgba.png': (Image.fromarray(grey).convert('RGBA'), {}),
        'grey.jpg': (Image.fromarray(grey), {'quality': 90}),
        'rgb.jpg': (Image.fromarray(grey).convert('RGB'), {'progressive': True}),
        'grey.tif': (Image.fromarray(grey), {}),
        'deep.tif': (Image.fromarray(deep), {'compression': 'tiff_lzw'}),
        'deflate.tif': (Image.fromarray(grey), {'compression': 'tiff_adobe_deflate'}),
        'grey.bmp': (Image.fromarray(grey), {}),
    }
    kinds = {'png': 'PNG', 'jpg': 'JPEG', 'tif': 'TIFF', 'bmp': 'BMP'}
    files = {}
    for name, (image, options) in forms.items():
        file = io.BytesIO()
        image.save(file, kinds[name[-3:]], **options)
        files[name] = file.getvalue()
    return files


def dicoms(corpus: Corpus) -> list[bytes]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    files = []
    pixels = np.random.default_rng(0).integers(0, 4096, (40, 48), dtype=np.uint16)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = '1.2.840.10008.5.1.4.1.1.1.1', '1.2.3'
        dataset.PatientName = 'Doe'
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, 'MONOCHROME2'
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation = 0
        dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
        dataset.PixelData = pixels.tobytes()
        if syntax == RLELossless:
            dataset.compress(RLELossless)
        dataset.file_meta.TransferSyntaxUID = syntax
        file = io.BytesIO()
        dataset.save_as(file, enforce_file_format=True)
        files.append(file.getvalue())
    return files


class Model:
    """A model in training, to be restored from checkpoints."""

    def __init__(self, corpus: Corpus) -> None:
        from lr_scheduler import build_scheduler
        from models.build import build_model
        from optimizer import build_optimizer

        cfg = tiny_config(corpus.base / 'pretrain.yaml', 'simmim')
        self.config = get_config(arguments(cfg, 'simmim'))
        self.model = build_model(self.config, is_pretrain=True)
        self.optimizer = build_optimizer(self.config, self.model, LOG, True)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.scheduler = build_scheduler(self.config, self.optimizer, 7)
        self.scaler = torch.amp.GradScaler('cpu', enabled=False)
        self.rng = torch.get_rng_state()
        contents = self.state().contents(self.config, [{'torch': self.rng}], finished=True)
        file = io.BytesIO()
        torch.save(contents, file)
        self.file = file.getvalue()
        self.contents = torch.load(io.BytesIO(self.file), weights_only=True)

    def state(self) -> Any:
        from engine.train_state import TrainState

        return TrainState(self.model, self.optimizer, self.scheduler, self.scaler, 7, 2)


def store(corpus: Corpus) -> Path:
    from data.packing import Settings, pack

    folder = corpus.base / 'store'
    pack(corpus.get(chexpert), folder, Settings(32, True))
    return folder
