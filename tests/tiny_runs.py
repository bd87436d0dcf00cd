"""Record tiny runs of every kind at one commit, and compare them with the runs of another one.

python tests/tiny_runs.py record --code CHECKOUT --output FOLDER [--only NAME ...]
python tests/tiny_runs.py compare FOLDER_A FOLDER_B

For a change of the code that must not change any number. `record` starts the programs of CHECKOUT,
a folder with any commit of this repository, on a small data set that it makes once, and writes what
they computed to FOLDER/NAME.json. It uses no code of the project and no file of configs/, so that
both commits get the same images and options. An option that every run sets and that the commit does
not know is left out. `compare` exits with 1 if a run failed, or if numbers are missing or differ by
more than rounding. A run that ends with exit code 2, such as one with an option that was removed,
counts as refused.
"""

import argparse
import csv
import fnmatch
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tqdm import tqdm

RELATIVE, ABSOLUTE = 1e-5, 1e-6  # a difference above both is more than rounding
TIMES = re.compile('seconds|per_second|time|date')  # keys whose numbers differ in each run
# Kind of numbers -> files in the folder of a run.
FILES = {
    'losses': ('*metrics.jsonl',),
    'predictions': ('*predictions*.csv', '*features.npz'),
    'scores': ('*scores.json', '*report.json', 'sweep.csv'),
    'weights': ('*.pth', '*.bin'),
}
# Imports the main scripts once. Each command is a fork that starts at once and ends on its own.
SERVER = """
import importlib, json, os, runpy, sys
sys.path.insert(0, os.getcwd())
for name in ('main_simmim', 'main_contrastive', 'main_finetune'):
    if os.path.exists(name + '.py'):
        importlib.import_module(name)
answers = os.fdopen(os.dup(1), 'w')
for line in sys.stdin:
    log, *sys.argv = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        runpy.run_path(sys.argv[0], run_name='__main__')
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""

# Data --------------------------------------------------------------------------------------------

LABELS = (
    *('No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion'),
    *('Edema', 'Consolidation', 'Pneumonia', 'Atelectasis', 'Pneumothorax', 'Pleural Effusion'),
    *('Pleural Other', 'Fracture', 'Support Devices'),
)
COLUMNS = ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA', *LABELS, 'Finding')
FINDINGS = ('clear', 'fluid', 'mass')
SPLITS = {'train': 120, 'valid': 60, 'test': 24}  # images


def make_data(folder: Path) -> None:
    """Write folder/CheXpert-tiny in CheXpert's layout, and folder/unlabelled."""
    random = np.random.RandomState(0)
    for split, count in SPLITS.items():
        rows = []
        for number in range(count):
            # Patients have two studies, and every second study of training has a lateral view.
            study, view = divmod(number, 2) if split == 'train' else (number, 0)
            view = ('frontal', 'lateral')[view and study % 2]
            name = f'patient{study // 2:05d}/study{study % 2 + 1}/view{number % 2 + 1}_{view}.png'
            cells = random.choice(['1.0', '0.0', '-1.0', ''], len(LABELS), p=[0.4, 0.3, 0.15, 0.15])
            if split != 'train':
                cells = np.where(np.isin(cells, ['1.0', '-1.0']), '1.0', '0.0')
            cells[0] = '1.0' if number % 3 == 0 else ''  # and no other finding, for single tasks
            cells[1:-1] = '0.0' if cells[0] else cells[1:-1]
            _write_image(folder / 'CheXpert-tiny' / split / name, random, cells[5:8] == '1.0')
            about = [('Female', 'Male')[study // 2 % 2], 20 + 7 * study % 70, view.title()]
            path, projection = f'CheXpert-tiny/{split}/{name}', 'AP' if view == 'frontal' else ''
            rows.append([path, *about, projection, *cells, FINDINGS[number % 3]])
        with open(folder / 'CheXpert-tiny' / f'{split}.csv', 'w', newline='') as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    for number in range(30):
        path = folder / 'unlabelled' / f'scan{number // 3}' / f'{number}.png'
        _write_image(path, random, random.rand(3) < 0.5)
    (folder / 'made').touch()


def _write_image(path: Path, random: np.random.RandomState, findings: np.ndarray) -> None:
    """A slope with noise, whose thirds are brighter where there is a finding."""
    height, width = random.randint(40, 65, 2)
    pixels = np.linspace(20, 160, width)[None] * np.linspace(0.4, 1, height)[:, None]
    pixels += random.randint(0, 30, (height, width))
    pixels += 40 * findings[np.arange(height) * 3 // height][:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


# Runs --------------------------------------------------------------------------------------------

SWIN = {
    **{'MODEL.TYPE': 'swin', 'MODEL.DROP_PATH_RATE': 0.1, 'MODEL.SWIN.PATCH_SIZE': 2},
    **{'MODEL.SWIN.EMBED_DIM': 8, 'MODEL.SWIN.DEPTHS': [2, 2], 'MODEL.SWIN.NUM_HEADS': [1, 2]},
    'MODEL.SWIN.WINDOW_SIZE': 4,
}
VIT = {
    **{'MODEL.TYPE': 'vit', 'MODEL.DROP_PATH_RATE': 0.1, 'MODEL.VIT.PATCH_SIZE': 8},
    **{'MODEL.VIT.EMBED_DIM': 16, 'MODEL.VIT.DEPTH': 2, 'MODEL.VIT.NUM_HEADS': 2},
}
MAE = {
    **VIT,
    **{'MODEL.PRETRAIN': 'mae', 'MODEL.DROP_PATH_RATE': 0.0, 'MODEL.VIT.USE_SINCOS': True},
    **{'MODEL.VIT.USE_SHARED_RPB': False, 'MODEL.VIT.INIT_VALUES': None},
    **{'MODEL.MAE.DECODER_EMBED_DIM': 16, 'MODEL.MAE.DECODER_DEPTH': 1},
    'MODEL.MAE.DECODER_NUM_HEADS': 2,
}
TIMM = {'MODEL.TYPE': 'timm', 'MODEL.DROP_PATH_RATE': 0.0, 'MODEL.TIMM.NAME': 'test_resnet'}
COMMON = {
    **{'DATA.DATASET': 'chexpert', 'DATA.IMG_SIZE': 32, 'DATA.BATCH_SIZE': 8},
    **{'DATA.NUM_WORKERS': 0, 'DATA.HOLDOUT_FRACTION': 0.4, 'MODEL.NAME': 'run', 'LOGGER': []},
    **{'MODEL.IN_CHANS': 1, 'TRAIN.EPOCHS': 1, 'TRAIN.WARMUP_EPOCHS': 0, 'TRAIN.BASE_LR': 0.05},
    **{'AMP_ON_CPU': 'never', 'SEED': 3, 'PRINT_FREQ': 4},
}
OF_STAGE = {
    'simmim': {'DATA.MASK_PATCH_SIZE': 8, 'DATA.VIEWS': 'all', 'EVAL.HOLDOUT_IMAGES': 12},
    'contrastive': {'DATA.VIEWS': 'all', 'EVAL.HOLDOUT_IMAGES': 12, 'AUG.COLOR_JITTER': 0.2},
    'finetune': {
        **{'MODEL.LABEL_SMOOTHING': 0.0, 'AUG.AUTO_AUGMENT': 'none', 'AUG.MIXUP': 0.0},
        **{'AUG.CUTMIX': 0.0, 'TEST.CROP': False, 'REPORT.WRITE': False, 'DATA.VIEWS': 'frontal'},
    },
}
DATA, UNLABELLED = '<data>/CheXpert-tiny', '<data>/unlabelled'
SOURCES = [
    {'name': 'a', 'dataset': 'chexpert', 'path': 'CheXpert-tiny', 'images': 40},
    {'name': 'b', 'dataset': 'folder', 'path': 'unlabelled'},
]
REPORT = {'REPORT.WRITE': True, 'EVAL.RESAMPLES': 20, 'REPORT.MAPS': 1}


def run_of(stage: str, model: dict, *words: str, data: str = DATA, processes: int = 1, **changes):
    """(command, options) of a run; `__` in the name of a changed option stands for a dot."""
    changed = {key.replace('__', '.'): value for key, value in changes.items()}
    torchrun = ['torchrun', str(processes)] if processes > 1 else []
    command = [*torchrun, f'main_{stage}.py', '--cfg', '<runs>/<name>.yaml', '--data-path', data]
    options = {**COMMON, **OF_STAGE[stage], **model, **changed}
    return [*command, '--output', '<runs>/<name>', *words], options


def simmim(model: dict, *words: str, **changes):
    return run_of('simmim', model, *words, **changes)


def contrastive(model: dict, method: str, **changes):
    return run_of('contrastive', model, CONTRASTIVE__METHOD=method, **changes)


def finetune(model: dict, *words: str, **changes):
    return run_of('finetune', model, *words, **changes)


def script(name: str, *words: str):
    return [f'scripts/{name}.py', *words], None


def file_of(run: str, name: str = 'ckpt_epoch_0.pth') -> str:
    return f'<runs>/{run}/run/default/{name}'


FOLD = {f'DATA__{split.upper()}_CSV': f'<runs>/folds/{split}_1.csv' for split in ('train', 'valid')}
# Name -> (command, options). A run may use files of the runs before it.
RUNS = {
    'pack': script('pack', '--data-path', DATA, '--output', '<runs>/pack', '--size', '32'),
    'simmim_swin': simmim(SWIN, TRAIN__EPOCHS=2, TRAIN__WARMUP_EPOCHS=1, TRAIN__SAVE_EVERY_STEPS=4),
    'simmim_swin_resumed': simmim(
        SWIN, '--resume', file_of('simmim_swin', 'ckpt_epoch_1_step_3.pth'),
        TRAIN__EPOCHS=2, TRAIN__WARMUP_EPOCHS=1, TRAIN__SAVE_EVERY_STEPS=4,
    ),
    'simmim_swin_continued': simmim(SWIN, '--pretrained', file_of('simmim_swin')),
    'simmim_accumulation': simmim(SWIN, TRAIN__ACCUMULATION_STEPS=2, DATA__BATCH_SIZE=4),
    'simmim_sources': simmim(SWIN, data='<data>', DATA__SOURCES=SOURCES),
    'simmim_store': simmim(SWIN, data='<runs>/pack'),
    'simmim_folder': simmim(SWIN, data=UNLABELLED, DATA__DATASET='folder'),
    'folds': script('folds', '--data-path', DATA, '--output', '<runs>/folds', '--folds', '3'),
    'simmim_fold': simmim(SWIN, **FOLD),
    'simmim_patch_normalised': simmim(SWIN, MODEL__SIMMIM__TARGET='patch_normalised'),
    'simmim_hog': simmim(SWIN, MODEL__SIMMIM__TARGET='hog', MODEL__SIMMIM__TARGET_SIZE=8),
    'simmim_target_size': simmim(SWIN, MODEL__SIMMIM__TARGET_SIZE=16),
    'simmim_inverse_head': simmim(SWIN, MODEL__SIMMIM__HEAD='inverse_swin_nano'),
    'simmim_mlp_head': simmim(SWIN, MODEL__SIMMIM__HEAD='mlp'),
    'simmim_l2_all': simmim(SWIN, MODEL__SIMMIM__LOSS='l2', MODEL__SIMMIM__LOSS_PIXELS='all'),
    'simmim_smooth_l1': simmim(SWIN, MODEL__SIMMIM__LOSS='smooth_l1'),
    'simmim_square': simmim(SWIN, DATA__MASK_TYPE='square'),
    'simmim_block': simmim(SWIN, DATA__MASK_TYPE='block'),
    'simmim_three_channels': simmim(SWIN, MODEL__IN_CHANS=3),
    'simmim_checkpointing': simmim(SWIN, TRAIN__USE_CHECKPOINT=True),
    'simmim_vit': simmim(VIT),
    'mae': simmim(MAE),
    'mae_normalised': simmim(MAE, MODEL__MAE__NORM_PIX_LOSS=True),
    'moco': contrastive(TIMM, 'moco', CONTRASTIVE__QUEUE_SIZE=32),
    'moco_groups': contrastive(TIMM, 'moco', CONTRASTIVE__QUEUE_SIZE=32, CONTRASTIVE__BN_GROUPS=2),
    'simclr': contrastive(SWIN, 'simclr'),
    'byol': contrastive(VIT, 'byol'),
    'swav': contrastive(TIMM, 'swav', CONTRASTIVE__NUM_PROTOTYPES=8, CONTRASTIVE__LOCAL_CROPS=2),
    'finetune_swin': finetune(
        SWIN, '--pretrained', file_of('simmim_swin'), TRAIN__EPOCHS=2, TRAIN__SAVE_EVERY_STEPS=4,
        TRAIN__LAYER_DECAY=0.8, EVAL__SELECT_ON='valid', **REPORT,
    ),
    'finetune_swin_resumed': finetune(
        SWIN, '--resume', file_of('finetune_swin', 'ckpt_epoch_0_step_4.pth'), TRAIN__EPOCHS=2,
        TRAIN__LAYER_DECAY=0.8, EVAL__SELECT_ON='valid',
    ),
    'finetune_eval': finetune(
        SWIN, '--eval', '--resume', file_of('finetune_swin'), EVAL__AGGREGATE='mean', **REPORT
    ),
    'finetune_vit': finetune(VIT, '--pretrained', file_of('simmim_vit'), **REPORT),
    'finetune_mae': finetune(
        MAE, '--pretrained', file_of('mae'), MODEL__PRETRAIN='simmim', TRAIN__LAYER_DECAY=0.7,
    ),
    'finetune_timm': finetune(TIMM, '--pretrained', file_of('moco'), **REPORT),
    'finetune_store': finetune(SWIN, data='<runs>/pack'),
    'finetune_fold': finetune(SWIN, **FOLD),
    'finetune_share': finetune(SWIN, DATA__TRAIN_FRACTION=0.5, EVAL__SELECT_ON='holdout'),
    'finetune_images': finetune(SWIN, DATA__TRAIN_IMAGES=16, DATA__SAMPLER='weighted'),
    'finetune_last': finetune(SWIN, EVAL__SELECT_ON='last', EVAL__LEVEL='image'),
    'finetune_all_views': finetune(SWIN, DATA__VIEWS='all', EVAL__INTERNAL_SHARE=0.5),
    'finetune_blank': finetune(SWIN, DATA__BLANK='ignore', EVAL__THRESHOLD='f1', **REPORT),
    'finetune_labels': finetune(SWIN, DATA__LABELS=['Edema', 'Cardiomegaly']),
    'finetune_accumulation': finetune(SWIN, TRAIN__ACCUMULATION_STEPS=2, DATA__BATCH_SIZE=4),
    'any_finding': finetune(SWIN, DATA__TASK='any_finding'),
    'effusion': finetune(SWIN, DATA__TASK='effusion'),
    'single_label': finetune(
        SWIN, DATA__TASK='single_label', DATA__LABEL_COLUMN='Finding', DATA__LABELS=[*FINDINGS],
        **REPORT,
    ),
    'regression': finetune(SWIN, DATA__TASK='regression', DATA__LABELS=['Age'], **REPORT),
    'policy_ignore': finetune(VIT, DATA__UNCERTAIN='ignore', EVAL__PREDICT_TRAIN=True),
    **{
        f'policy_{name}': finetune(VIT, DATA__UNCERTAIN=name)
        for name in ('zeros', 'ones', 'zeros_smooth', 'ones_smooth', 'multiclass')
    },
    'policy_self_train': finetune(
        VIT, DATA__UNCERTAIN='self_train',
        DATA__SELF_TRAIN_PREDICTIONS=file_of('policy_ignore', 'predictions_train.csv'),
    ),
    'policy_by_label': finetune(VIT, DATA__UNCERTAIN_BY_LABEL={'Edema': 'zeros'}),
    **{
        f'loss_{name}': finetune(VIT, LOSS__NAME=name)
        for name in ('weighted_bce', 'focal', 'asymmetric')
    },
    **{
        name: finetune(SWIN, '--pretrained', file_of('simmim_swin'), FINETUNE__MODE=name)
        for name in ('linear_probe', 'knn', 'last_layer')
    },
    'attentive_probe': finetune(
        VIT, '--pretrained', file_of('simmim_vit'), FINETUNE__MODE='attentive_probe',
        MODEL__HEAD='attention',
    ),
    'attention_head': finetune(VIT, MODEL__HEAD='attention'),
    'dropped_patches': finetune(MAE, MODEL__PRETRAIN='simmim', FINETUNE__MASK_RATIO=0.5),
    'geometry': finetune(
        VIT, AUG__ROTATION=10.0, AUG__DISTORTION=0.2, AUG__TRANSLATE=0.1, AUG__SCALE=[0.9, 1.1],
        AUG__SHEAR=5.0,
    ),
    'randaugment': finetune(VIT, AUG__RANDAUGMENT=[2, 9], AUG__REPROB=0.0),
    'jitter': finetune(VIT, AUG__COLOR_JITTER=0.4, AUG__JITTER_CONTRAST=False, AUG__HFLIP=0.0),
    'equalize': finetune(VIT, DATA__PREPROCESS=['equalize'], DATA__NORMALIZE='image'),
    'tta': finetune(VIT, EVAL__TTA='crops', TEST__CROP=True),
    'onecycle': finetune(VIT, TRAIN__LR_SCHEDULER__NAME='onecycle', TRAIN__WARMUP_EPOCHS=0),
    'sgd': finetune(VIT, TRAIN__OPTIMIZER__NAME='sgd', TRAIN__LR_SCHEDULER__NAME='linear'),
    'pixel_floor': finetune(VIT, REPORT__PIXEL_FLOOR=True),
    'evaluate': script(
        'evaluate', '--predictions', file_of('finetune_swin', 'predictions_test.csv'),
        file_of('finetune_vit', 'predictions_test.csv'), '--labels', f'{DATA}/test.csv',
        '--output', '<runs>/evaluate', '--resamples', '20',
    ),
    'features': script(
        'features', f'{DATA}/test.csv', '--checkpoint', file_of('simmim_vit'),
        '--output', '<runs>/features/features.npz',
    ),
    'simmim_processes': simmim(SWIN, processes=2, DATA__BATCH_SIZE=4),
    'moco_processes': contrastive(TIMM, 'moco', processes=2, CONTRASTIVE__QUEUE_SIZE=32),
    'finetune_processes': finetune(SWIN, processes=2, DATA__BATCH_SIZE=4),
    'sweep': script('ablate', 'run', *'--sweep <runs>/sweep.yaml --output <runs>/sweep'.split(),
                    *f'--data-path {DATA} --seeds 1 --row l1 l2'.split()),
    'sweep_table': script(
        'ablate', 'table', *'--sweep <runs>/sweep.yaml --output <runs>/sweep'.split()
    ),
}  # fmt: skip


class Recorder:
    """Starts the runs of a checkout, and reads what they wrote."""

    def __init__(self, code: Path, output: Path, data: Path) -> None:
        self.code, self.output, self.data = code.resolve(), output.resolve(), data.resolve()
        self.runs = self.output / 'runs'
        self.runs.mkdir(parents=True, exist_ok=True)
        own = self.code / '.venv/bin/python'
        self.python = str(own) if own.is_file() else sys.executable
        self.env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        self.unknown = set()  # common options that the code does not know
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        self.server = self._start(subprocess.Popen, ['-c', SERVER], **pipes)
        self._write_sweep()

    def _start(self, how: Any, words: list[str], **options: Any) -> Any:
        return how([self.python, *words], cwd=self.code, env=self.env, **options)

    def _write_sweep(self) -> None:
        files = {}
        for stage, name in (('simmim', 'pretrain'), ('finetune', 'finetune')):
            files[name] = self.runs / f'{stage}__reference.yaml'
            options = run_of(stage, SWIN)[1] | {'MODEL.NAME': f'simmim_{name}'}
            self._write_options(files[name], options)
        sweep = {
            'title': 'Loss',
            'reference': {name: str(file) for name, file in files.items()},
            'keys': {'pretrain': ['MODEL.SIMMIM.LOSS']},
            'rows': {'l1': {}, 'l2': {'pretrain': {'MODEL.SIMMIM.LOSS': 'l2'}}},
        }
        (self.runs / 'sweep.yaml').write_text(yaml.safe_dump(sweep, sort_keys=False))

    def _write_options(self, path: Path, options: dict[str, Any]) -> None:
        nested = {}
        for key, value in options.items():
            *sections, name = key.split('.')
            node = nested
            for section in sections:
                node = node.setdefault(section, {})
            if key not in self.unknown:
                node[name] = value
        path.write_text(self._filled(yaml.safe_dump(nested), path.stem))

    def _filled(self, text: str, name: str) -> str:
        values = {'<data>': self.data, '<runs>': self.runs, '<name>': name}
        return re.sub('<data>|<runs>|<name>', lambda found: str(values[found[0]]), text)

    def record(self, name: str) -> dict[str, Any]:
        """Start a run, and return its outcome and numbers."""
        begin = time.time()
        command, options = RUNS[name]
        words = [self._filled(word, name) for word in command]
        log = self.runs / f'{name}.log'
        shutil.rmtree(self.runs / name, ignore_errors=True)
        code, tried = None, set(self.unknown)
        while code is None or self.unknown > tried:  # again without the options that are unknown
            tried = set(self.unknown)
            if options:
                self._write_options(self.runs / f'{name}.yaml', options)
            log.write_text('')
            code = self._run(words, log)
            unknown = set(re.findall(r'unknown key (\S+) in', ' '.join(log.read_text().split())))
            self.unknown |= unknown & (COMMON.keys() | OF_STAGE['finetune'].keys())
        status = {0: 'ok', 2: 'refused'}.get(code, 'failed')
        message = '' if code == 0 else ' '.join(log.read_text().split())[-300:]
        about = {'status': status, 'message': message, 'left_out': sorted(self.unknown)}
        folder = Path(words[words.index('--output') + 1])
        folder = folder if folder.is_dir() else folder.parent
        values = read_numbers(folder, begin - 0.1) if code == 0 else {}
        return about | {'seconds': round(time.time() - begin, 1), 'values': values}

    def _run(self, words: list[str], log: Path) -> int:
        if words[0] == 'torchrun':
            launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
            with log.open('w') as file:
                streams = {'stdout': file, 'stderr': subprocess.STDOUT}
                code = self._start(subprocess.call, [*launcher, *words[1:]], **streams)
            return 2 if re.search(r'exitcode\s*: 2 ', log.read_text()) else code
        if not (self.code / words[0]).is_file():
            log.write_text(f'there is no {words[0]}')
            return 2
        self.server.stdin.write(json.dumps([str(log), *words]) + '\n')
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


def read_numbers(folder: Path, begin: float) -> dict[str, dict[str, Any]]:
    """Return kind -> {file and key: number, text, or list of numbers} of files since `begin`."""
    found = {kind: {} for kind in FILES}
    files = (path for path in folder.rglob('*') if path.is_file())
    for path in sorted(path for path in files if path.stat().st_mtime >= begin):
        name = str(path.relative_to(folder))
        for kind, patterns in FILES.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                found[kind] |= {f'{name}: {key}': value for key, value in read_file(path)}
    return found


def read_file(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == '.jsonl':
        for line in path.read_text().splitlines():
            record = json.loads(line)
            yield from flat(record, f'epoch {record["epoch"]} ')
    elif path.suffix == '.json':
        yield from flat(json.loads(path.read_text()))
    elif path.suffix == '.csv':
        with open(path, newline='') as file:
            for number, row in enumerate(csv.DictReader(file)):
                first, *values = row.values()
                yield f'{number} {first}', [as_number(value) for value in values]
    elif path.suffix == '.npz':
        with np.load(path, allow_pickle=False) as arrays:
            yield from ((key, arrays[key].tolist()) for key in arrays)
    elif path.suffix == '.pth':
        for key, tensor in flat(torch.load(path, weights_only=True), tensors=True):
            digest = hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy())
            values = tensor.double().flatten()
            summary = [values.mean().item() if len(values) else 0.0, values.norm().item()]
            yield key, [digest.hexdigest(), [*tensor.shape], summary, values[:4].tolist()]
    else:
        yield 'sha256', hashlib.sha256(path.read_bytes()).hexdigest()


def flat(value: Any, key: str = '', tensors: bool = False) -> Iterator[tuple[str, Any]]:
    """The numbers, or only the tensors, below a value, without times."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, entry in items:
            if tensors or not TIMES.search(str(name)):
                yield from flat(entry, f'{key}/{name}', tensors)
    elif isinstance(value, torch.Tensor if tensors else (int, float)):
        yield key, value


def as_number(text: str) -> float | str:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


# Comparison --------------------------------------------------------------------------------------


def compare_values(a: Any, b: Any) -> tuple[float, float, bool]:
    """Return the largest absolute and relative difference, and whether it is only rounding."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = [compare_values(*pair) for pair in zip(a, b, strict=True)] or [(0.0, 0.0, True)]
        return max(p[0] for p in parts), max(p[1] for p in parts), all(p[2] for p in parts)
    is_hash = isinstance(a, str) and isinstance(b, str) and len(a) == len(b) == 64
    if a == b or a != a and b != b or is_hash:  # the numbers after a hash decide
        return 0.0, 0.0, True
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        difference = abs(a - b)
        relative = difference / max(abs(a), abs(b))
        return difference, relative, difference <= ABSOLUTE or relative <= RELATIVE
    return math.inf, math.inf, False


def compare_kind(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, bool]:
    """Describe the differences of one kind of numbers; (text, whether it is only rounding)."""
    notes, is_same = [], True
    both = [key for key in a if key in b and a[key] != b[key]]
    results = {key: compare_values(a[key], b[key]) for key in both}
    if results:
        largest = max(results, key=lambda key: results[key][1])
        absolute, relative = (max(r[n] for r in results.values()) for n in (0, 1))
        is_same = all(r[2] for r in results.values())
        notes.append(
            f'{len(results)} of {len(a)} entries differ by up to {absolute:.2g} '
            f'({relative:.2g} relative, {largest})'
        )
    for word, keys in (('missing', [*a.keys() - b.keys()]), ('new', [*b.keys() - a.keys()])):
        if keys:
            notes.append(f'{len(keys)} {word}, such as {min(keys)}')
            is_same &= word == 'new'
    return '; '.join(notes), is_same


def compare_runs(a: dict[str, Any], b: dict[str, Any]) -> tuple[str, str]:
    """Return (result, description) of a run."""
    for side, run in (('A', a), ('B', b)):
        if run['status'] != 'ok':
            return run['status'], f'in {side}: {run["message"]}'
    lines, is_same = [], True
    for kind in FILES:
        text, same = compare_kind(a['values'][kind], b['values'][kind])
        is_same &= same
        lines += [f'\n    {kind}: {text}'] if text else []
    left_out = sorted({*a['left_out']} ^ {*b['left_out']})
    lines += [f'\n    options that only one of the two has: {left_out}'] if left_out else []
    result = 'rounding' if is_same and lines else 'same' if is_same else 'different'
    return result, ''.join(lines)


def compare(folder_a: Path, folder_b: Path) -> int:
    results = Counter()
    names = [path.stem for path in sorted({*folder_a.glob('*.json')})]
    for name in sorted({*names, *(path.stem for path in folder_b.glob('*.json'))}):
        paths = [folder / f'{name}.json' for folder in (folder_a, folder_b)]
        if all(path.is_file() for path in paths):
            result, text = compare_runs(*(json.loads(path.read_text()) for path in paths))
        else:
            result, text = 'not in both', str(next(p.parent for p in paths if not p.is_file()))
        results[result] += 1
        shown = 'equal bit for bit' if result == 'same' else result
        print(f'{name}: {shown} {text}'.rstrip())  # noqa: T201
    print(', '.join(f'{count} {result}' for result, count in results.most_common()))  # noqa: T201
    return int(bool(results['different'] or results['failed'] or not results))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    add = commands.add_parser('record', help='start all runs').add_argument
    add('--code', type=Path, required=True, metavar='CHECKOUT', help='folder of the code')
    add('--output', type=Path, required=True, metavar='FOLDER', help='what was recorded')
    add('--data', type=Path, metavar='DIR', help='images, made if absent (default: FOLDER/../data)')
    add('--only', nargs='+', metavar='NAME', choices=RUNS, help='only these runs')
    add = commands.add_parser('compare', help='show the differences').add_argument
    add('folder_a', type=Path)
    add('folder_b', type=Path)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    if args.command == 'compare':
        return compare(args.folder_a, args.folder_b)
    data = args.data or args.output.parent / 'data'
    if not (data / 'made').exists():
        make_data(data)
    recorder, failed = Recorder(args.code, args.output, data), 0
    for name in tqdm(args.only or RUNS, unit='run'):
        found = recorder.record(name)
        (args.output / f'{name}.json').write_text(json.dumps(found))
        if found['status'] != 'ok':
            tqdm.write(f'{name}: {found["status"]}: {found["message"]}')
        failed += found['status'] == 'failed'
    recorder.server.stdin.close()
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
