"""Repeat a step that was not finite, and show where it first is not.

python scripts/replay.py RUN_DIR [--record RUN_DIR/nonfinite_epoch_E_step_S.json]

RUN_DIR is the folder of the run, with its config.yaml; the run goes on from its newest good
checkpoint before the step, or from its start, up to the step, and makes it once more. Start it as
the run was started, with torchrun and as many processes where it had several. Nothing of the run
is changed.
"""

import argparse
import contextlib
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import distributed  # noqa: E402
import main_contrastive  # noqa: E402
import main_finetune  # noqa: E402
import main_simmim  # noqa: E402
from checkpoint_files import check_file, newest_first, place_of  # noqa: E402
from data import build_loader  # noqa: E402
from data.device_loader import on_device  # noqa: E402
from engine import Run, begin, launch  # noqa: E402
from step_record import encode, read_step_record  # noqa: E402
from training_step import LossFunction, NotFiniteError, train_one_batch, undo_step  # noqa: E402
from utils import rng_state  # noqa: E402

SHOWN = 5  # names of a list
MAINS = {'simmim': main_simmim, 'contrastive': main_contrastive, 'finetune': main_finetune}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('run_dir', type=Path, help='folder of the run')
    parser.add_argument('--record', type=Path, help='of the step; default: the newest in RUN_DIR')
    return parser.parse_args(argv)


def checkpoint_before(folder: Path, record: dict[str, Any]) -> Path | None:
    """The newest good checkpoint of a run from which training comes to the step."""
    for path in newest_first(folder):
        if place_of(path.name) < (record['epoch'], record['step']):
            with contextlib.suppress(ValueError):  # damaged: the one before it
                check_file(path)
                return path
    return None


def replay(run: Run, record: dict[str, Any]) -> None:
    """Train up to the step of the record, then look into it."""
    if len(record['ranks']) != distributed.world_size():
        raise ValueError(f'the run had {len(record["ranks"])} processes: start as many (torchrun)')
    kind = {'is_pretrain': run.is_pretrain, 'contrastive': run.stage == 'contrastive'}
    loaders = build_loader(run.config, run.logger, **kind)
    loaders = on_device(loaders, run.device)
    model, loss_fn = MAINS[run.stage].build_training(run, loaders)
    state = begin(run, model, loaders.train)
    step = range(record['batch'], record['batch'] + len(record['ranks'][0]['rows']))
    watch = None
    for epoch in range(state.epoch, record['epoch'] + 1):
        state.model.train()
        loaders.train.batch_sampler.set_epoch(epoch, first_batch=state.batch)
        for i, batch in enumerate(loaders.train, start=state.batch):
            if epoch == record['epoch'] and i == step.start:
                compare_random_states(run, record)
                watch = Watch(state.module)
                loss_fn = watch.losses_of(loss_fn)
            try:
                train_one_batch(run, state, batch, loss_fn, i)
            except NotFiniteError:  # left out, in the run as here
                undo_step(state)
            if epoch == record['epoch'] and i == step[-1]:
                watch.report(run, record)
                return
        state.next_epoch()
    raise ValueError(f'epoch {record["epoch"]} has no micro-batch {step[-1]}: other data?')


def compare_random_states(run: Run, record: dict[str, Any]) -> None:
    wanted = record['ranks'][distributed.rank()]['rng']
    same = {key: encode(value) == wanted.get(key) for key, value in rng_state().items()}
    text = 'as in the run' if all(same.values()) else f'not as in the run ({same})'
    run.logger.info(f'random states at the start of the step: {text}')


class Watch:
    """Losses of a step, and where its first value lies that is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.losses: list[float] = []
        self.outputs: list[str] = []  # modules, in the order of their results
        self.gradients: list[str] = []  # parameters, in the order of the backward pass
        self.weights = [name for name, p in model.named_parameters() if not p.isfinite().all()]
        for name, module in model.named_modules():
            module.register_forward_hook(partial(self._see, name or 'the whole model'))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(self._see_gradient, name))

    def losses_of(self, loss_fn: LossFunction) -> LossFunction:
        def watched(model: nn.Module, batch: Any) -> torch.Tensor:
            loss = loss_fn(model, batch)
            self.losses.append(float(loss.detach()))
            return loss

        return watched

    def report(self, run: Run, record: dict[str, Any]) -> None:
        rows = [[row + 2 for row in rows] for rows in record['ranks'][distributed.rank()]['rows']]
        lines = [
            f'epoch {record["epoch"]}, step {record["step"]}: losses {self.losses}',
            f'rows of the training CSV (the header is row 1), by micro-batch: {rows}',
        ]
        for what, names in (
            ('weights before the step', self.weights),
            ('outputs of modules, the first one first', self.outputs),
            ('gradients, the first one first', self.gradients),
        ):
            some = ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
            lines.append(f'not finite: {len(names)} {what}' + (f': {some}' if names else ''))
        for rank, of_rank in enumerate(distributed.gather(lines)):
            for line in of_rank:
                run.logger.info(f'rank {rank}: {line}' if distributed.world_size() > 1 else line)

    def _see(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple | list) else (output,)
        if any(isinstance(t, torch.Tensor) and not t.isfinite().all() for t in tensors):
            self.outputs.append(name)

    def _see_gradient(self, name: str, parameter: nn.Parameter) -> None:
        if not parameter.grad.isfinite().all():
            self.gradients.append(name)


def main(args: argparse.Namespace) -> int:
    records = sorted(args.run_dir.glob('nonfinite_*.json'), key=lambda path: path.stat().st_mtime)
    if not records and args.record is None:
        print(f'error: there is no nonfinite_*.json in {args.run_dir}', file=sys.stderr)
        return 2
    try:
        record = read_step_record(args.record or records[-1])
        checkpoint = checkpoint_before(args.run_dir, record)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        options = ['--cfg', str(args.run_dir / 'config.yaml'), '--output', scratch]
        if checkpoint is not None:
            options += ['--resume', str(checkpoint)]
        return launch(record['stage'], partial(replay, record=record), options)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
