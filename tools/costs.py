"""Count what the networks of a sweep cost: parameters, operations, and minutes of one CPU core.

python tools/costs.py --sweep scripts/comparison/sizes.yaml --output DIR [--scale S] [--measure]

DIR/SWEEP_costs.md, .csv and .tex have a line for each row. Operations are those of
torch.utils.flop_counter (a multiplication and an addition are two): of the classifier for one
image, and forward and backward for a training image. They are counted without computing, so that
large networks take seconds. With --measure, minutes are the CPU time of training steps on random
images, for 1,000 images; without it, they are not measured.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from config import NO_ENCODER, PROBES, Config, encoder_name
from sweeps.files import Row, Sweep, expected_config, load_sweep
from sweeps.tables import row_cells, shown
from system.tables import write_table
from system.tool import Paragraphs, tool
from tools.benchmark import build_task, random_batch

IMAGES = 4  # in a batch: contrastive methods compare some
STEPS = 3  # that are measured, after one for warm-up
NOT_MEASURED = 'not measured'
COLUMNS = {  # column of the CSV file -> title and format
    'parameters': ('M parameters', '.3g'),
    'classifier': ('GFLOP, classifier, one image', '.3g'),
    'pretrain': ('GFLOP, pre-training image', '.3g'),
    'finetune': ('GFLOP, fine-tuning image', '.3g'),
    'pretrain_minutes': ('CPU minutes, 1,000 pre-training images', '.2g'),
    'finetune_minutes': ('CPU minutes, 1,000 fine-tuning images', '.2g'),
}
FACTORS = {'parameters': 1e-6, 'classifier': 1e-9, 'pretrain': 1e-9, 'finetune': 1e-9}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument('--sweep', required=True, type=Path, metavar='F', help='sweep file')
    parser.add_argument('--scale', default='', metavar='S', help='scale of the sweep file')
    parser.add_argument('--output', required=True, type=Path, metavar='DIR')
    parser.add_argument('--measure', action='store_true', help='also measure CPU minutes')
    return parser.parse_args()


def small_batches(config: Config) -> Config:
    """Return options with IMAGES in a batch, which the costs of one image do not depend on."""
    config = config.clone()
    config.defrost()
    config.DATA.BATCH_SIZE = IMAGES
    return config


def is_frozen(config: Config) -> bool:
    """Return whether fine-tuning computes nothing backward through the encoder."""
    return config.FINETUNE.MODE in (*PROBES, 'last_layer')


def operations(config: Config, stage: str) -> tuple[int, float, float]:
    """Return the parameters, and operations for one image forward, and forward and backward."""
    config = small_batches(config)
    batch = random_batch(config, stage, torch.device('cpu'))
    # Tensors without values cost neither memory nor time, and have the same operations. Contrastive
    # losses choose a precision, which such tensors do not have.
    device = torch.device('cpu' if stage == 'contrastive' else 'meta')
    with device:
        model, loss_fn = build_task(config, stage)
        batch = tuple(part.to(device) for part in batch)
        counted = []
        for is_backward in (False, True):
            with FlopCounterMode(display=False) as counter:
                loss = loss_fn(model.train(), batch)
                if is_backward:
                    loss.backward()
            counted.append(counter.get_total_flops() / IMAGES)
    return sum(weight.numel() for weight in model.parameters()), *counted


def minutes(config: Config, stage: str) -> float:
    """Return the CPU minutes of one core for training steps with 1,000 images."""
    config = small_batches(config)
    model, loss_fn = build_task(config, stage)
    batch = random_batch(config, stage, torch.device('cpu'))
    begun = 0.0
    for step in range(1 + STEPS):
        if step == 1:
            begun = time.process_time()
        loss = loss_fn(model.train(), batch)
        if stage != 'finetune' or not is_frozen(config):
            loss.backward()
    return (time.process_time() - begun) / (STEPS * IMAGES) * 1000 / 60


def costs_of(row: Row, *, measure: bool) -> dict[str, Any]:
    """Return the costs of a row by the names of COLUMNS; those of absent stages are missing."""
    config = expected_config(row, 'finetune')
    parameters, forward, both = operations(config, 'finetune')
    found = {'encoder': encoder_name(config), 'size_px': config.DATA.IMG_SIZE}
    found |= {'parameters': parameters, 'classifier': forward}
    found['finetune'] = forward if is_frozen(config) else both
    if measure:
        found['finetune_minutes'] = minutes(config, 'finetune')
    if row.pretraining:
        config = expected_config(row, row.pretraining)
        found['pretrain'] = operations(config, row.pretraining)[2]
        if measure:
            found['pretrain_minutes'] = minutes(config, row.pretraining)
    return found


def rows_to_count(sweep: Sweep) -> Iterator[Row]:
    """Yield the rows with a network, each method once, because shares of the labels cost alike."""
    known = set()
    for row in sweep.rows:
        mode = expected_config(row, 'finetune').FINETUNE.MODE
        name = row.method or row.name
        if mode not in NO_ENCODER and name not in known:
            known.add(name)
            yield row


def write_costs(folder: Path, sweep: Sweep, *, measure: bool) -> Path:
    """Write the table of costs, and return the path of the Markdown file."""
    lines, cells = [], []
    for row in rows_to_count(sweep):
        found = costs_of(row, measure=measure)
        lines.append({'row': row.name, **found})
        name = row_cells(sweep, row.name)[sweep.title]
        cell = {sweep.title: name, 'encoder': found['encoder'], 'px': str(found['size_px'])}
        for key, (title, form) in COLUMNS.items():
            absent = '' if key.startswith('pretrain') and not row.pretraining else NOT_MEASURED
            value = found.get(key)
            text = shown(value * FACTORS.get(key, 1), form) if value is not None else absent
            cell[title] = text
        cells.append(cell)
    notes = ['Parameters are those of the classifier. Operations of training are forward and '
             'backward; of a frozen encoder, forward alone.']  # fmt: skip
    if measure:
        notes.append(f'Minutes: CPU time of one core, {STEPS} steps of {IMAGES} random images.')
    return write_table(folder, f'{sweep.name}_costs', lines, cells, notes)


@tool
def main(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    sweep = load_sweep(args.sweep, args.scale)
    path = write_costs(args.output, sweep, measure=args.measure)
    print(path.read_text('utf-8'))
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
