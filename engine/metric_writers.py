"""Programs that show the metrics of a run (LOGGER): TensorBoard, and Weights & Biases."""

import logging
import re
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from config import Config, config_text, load_yaml
from logger import WRITERS, Writer
from system.files import replace_file

EVENTS = 'events.out.tfevents.'  # followed by the time in seconds, with ten digits
WANDB_ID = 'wandb_id.txt'  # file in the run folder with the id and the name of the run
WANDB_SECONDS = 30  # longest wait for the last uploads; a preempted run has little time


def axis_of(scalars: dict[str, float]) -> str:
    """Return what the values are counted by: 'epoch', or 'step' for batches."""
    return next(iter(scalars)).partition('/')[0]


@WRITERS.register('tensorboard')
class TensorBoard(Writer):
    """Curves and images in RUN/tensorboard/epoch, and curves within epochs in RUN/tensorboard/step.

    A folder has one axis, because TensorBoard forgets all its values from one number on.
    """

    def __init__(self, folder: Path, config: Config, logger: logging.Logger) -> None:
        # It takes seconds, and only rank 0 needs it.
        from torch.utils.tensorboard import summary

        self.summary = summary
        self.folder = folder / 'tensorboard'
        self.first = {'epoch': -1, 'step': 0}  # what a new run writes first
        self.files: dict[str, EventFile] = {}

    def forget_from(self, epoch: int, step: int) -> None:
        self.first = {'epoch': epoch, 'step': step}

    def write_scalars(self, scalars: dict[str, float], step: int) -> None:
        if not scalars:
            return
        summaries = [self.summary.scalar(tag, value) for tag, value in scalars.items()]
        self._file(axis_of(scalars)).write(summaries, step)

    def write_image(self, tag: str, path: Path, step: int) -> None:
        pixels = np.asarray(Image.open(path).convert('RGB'))
        self._file('epoch').write([self.summary.image(tag, pixels, dataformats='HWC')], step)

    def write_file(self, path: Path) -> None:
        """TensorBoard has no files."""

    def close(self, code: int) -> None:
        for file in self.files.values():
            file.records.close()

    def _file(self, axis: str) -> 'EventFile':
        if axis not in self.files:
            self.files[axis] = EventFile(self.folder / axis, self.first[axis])
        return self.files[axis]


class EventFile:
    """A file of a folder that TensorBoard reads after those that are already there.

    It reads files in the order of their names, which begin with a time. What a resumed run writes
    would come first if the clock was set back, or in any order if two starts were in one second. So
    the number in the name is the time or, if that is larger, the number of the newest file plus 1.

    Args:
        folder: Folder of the curves of one axis.
        first: Epoch or batch from which on TensorBoard forgets what earlier files contain.
    """

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        names = (re.match(rf'{re.escape(EVENTS)}(\d+)', path.name) for path in folder.iterdir())
        numbers = [int(name[1]) for name in names if name]
        number = max(int(time.time()), max(numbers, default=-1) + 1)
        self.event = Event
        self.records = RecordWriter(open(folder / f'{EVENTS}{number:010d}', 'xb'))  # noqa: SIM115
        self._write([{'file_version': 'brain.Event:2'}], first)
        self._write([{'session_log': SessionLog(status=SessionLog.START)}], first)

    def write(self, summaries: list[Any], step: int) -> None:
        """Write summaries, such as scalars, at an epoch or batch."""
        self._write([{'summary': summary} for summary in summaries], step)

    def _write(self, contents: list[dict[str, Any]], step: int) -> None:
        for content in contents:
            event = self.event(wall_time=time.time(), step=step, **content)
            self.records.write(event.SerializeToString())
        self.records.flush()  # a killed run must not lose values from before its checkpoint


@WRITERS.register('wandb')
class WeightsAndBiases(Writer):
    """Curves, images, options and report at Weights & Biases, with its package `wandb`.

    A resumed run continues, because the run folder keeps its id. In a copy of the folder with
    another TAG, a run has a new id. The environment variables of wandb apply, such as
    WANDB_PROJECT. WANDB_MODE=offline sends nothing.

    W&B deletes no values and orders them by a number of its own, which never falls. So this number
    follows from the batches of the run, and a resumed run does not send what W&B already has.
    """

    def __init__(self, folder: Path, config: Config, logger: logging.Logger) -> None:
        import wandb

        path, name = folder / WANDB_ID, f'{config.MODEL.NAME}/{config.TAG}'
        known = path.read_text('utf-8').splitlines() if path.exists() else []
        if known[1:] != [name]:
            known = [uuid4().hex, name]
            replace_file(path, '\n'.join(known))
        self.wandb = wandb
        self.run = wandb.init(
            id=known[0],
            resume='allow',
            dir=str(folder),
            name=name,
            config=load_yaml(config_text(config)),
            # Nothing about the computer, the command line or the repository is sent.
            settings=wandb.Settings(
                console='off', host='hidden', disable_git=True, x_disable_meta=True
            ),
        )
        for axis in ('epoch', 'step'):
            self.run.define_metric(f'{axis}/*', step_metric=axis)
        self.num_batches = 0  # of the run so far
        self.first_row = self.run.step  # W&B already has the rows before it
        if not self.run.offline:
            logger.warning(
                f'LOGGER wandb sends options with their paths, metrics, reconstructions and maps '
                f'of X-rays, and the report to {self.run.url}. If your data must not leave your '
                'institution, set WANDB_MODE=offline'
            )

    def forget_from(self, epoch: int, step: int) -> None:
        self.num_batches = step

    def write_scalars(self, scalars: dict[str, float], step: int) -> None:
        if not scalars:
            return
        axis = axis_of(scalars)
        row = 2 * self.num_batches  # of an epoch: between two batches
        if axis == 'step':
            row = 2 * step + 1
            self.num_batches = step + 1
        if row >= self.first_row:
            self.run.log({**scalars, axis: step}, step=row)

    def write_image(self, tag: str, path: Path, step: int) -> None:
        # W&B may have the row without the image, if the run was killed between them.
        row = max(2 * self.num_batches, self.first_row)
        self.run.log({f'epoch/{tag}': self.wandb.Image(str(path)), 'epoch': step}, step=row)

    def write_file(self, path: Path) -> None:
        self.run.log_artifact(path, name=f'{self.run.id}-{path.stem}', type=path.stem)

    def close(self, code: int) -> None:
        # Without network, the last uploads would wait without end.
        ending = threading.Thread(target=self.run.finish, args=(code,), daemon=True)
        ending.start()
        ending.join(WANDB_SECONDS)
