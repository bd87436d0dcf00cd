"""Programs that show the metrics of a run (LOGGER): TensorBoard, and Weights & Biases."""

import logging
import threading
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from config import Config, config_text, load_yaml
from logger import WRITERS, Writer
from system.files import replace_file

WANDB_ID = 'wandb_id.txt'  # file in the run folder with the id and the name of the run
WANDB_SECONDS = 30  # longest wait for the last uploads; a preempted run has little time


@WRITERS.register('tensorboard')
class TensorBoard(Writer):
    """Curves and images in RUN/tensorboard."""

    def __init__(self, folder: Path, config: Config, logger: logging.Logger) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, and only rank 0 needs it

        self.board = SummaryWriter(str(folder / 'tensorboard'))

    def write_scalars(self, scalars: dict[str, float], step: int) -> None:
        for tag, value in scalars.items():
            self.board.add_scalar(tag, value, step)

    def write_image(self, tag: str, path: Path, step: int) -> None:
        pixels = np.asarray(Image.open(path).convert('RGB'))
        self.board.add_image(tag, pixels, step, dataformats='HWC')

    def write_file(self, path: Path) -> None:
        """TensorBoard has no files."""

    def close(self, code: int) -> None:
        self.board.close()


@WRITERS.register('wandb')
class WeightsAndBiases(Writer):
    """Curves, images, options and report at Weights & Biases, with its package `wandb`.

    A resumed run continues, because the run folder keeps its id. In a copy of the folder with
    another TAG, a run has a new id. The environment variables of wandb apply, such as
    WANDB_PROJECT. WANDB_MODE=offline sends nothing.
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
        for kind in ('epoch', 'step'):
            self.run.define_metric(f'{kind}/*', step_metric=kind)
        if not self.run.offline:
            logger.warning(
                f'LOGGER wandb sends options with their paths, metrics, reconstructions and maps '
                f'of X-rays, and the report to {self.run.url}. If your data must not leave your '
                'institution, set WANDB_MODE=offline'
            )

    def write_scalars(self, scalars: dict[str, float], step: int) -> None:
        if scalars:
            kind = next(iter(scalars)).split('/')[0]
            self.run.log({**scalars, kind: step})

    def write_image(self, tag: str, path: Path, step: int) -> None:
        self.run.log({f'epoch/{tag}': self.wandb.Image(str(path)), 'epoch': step})

    def write_file(self, path: Path) -> None:
        self.run.log_artifact(path, name=f'{self.run.id}-{path.stem}', type=path.stem)

    def close(self, code: int) -> None:
        # Without network, the last uploads would wait without end.
        ending = threading.Thread(target=self.run.finish, args=(code,), daemon=True)
        ending.start()
        ending.join(WANDB_SECONDS)
