"""Training steps on one synthetic batch or on data: the engine's own, and the published code's."""

import logging
import math
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

import main_finetune
import main_simmim
from compilation import Compiled
from config import encoder_node, get_config
from config_checks import PROBES
from data import build_loader
from data.data_simmim import mask_generator
from data.device_loader import on_device
from device import autocast_dtype, autocast_to
from engine import begin
from launcher import Run
from lr_scheduler import build_scheduler, scaled_lr
from models.swin_transformer import WindowAttention
from optimizer import param_groups
from speed.cases import Case, Published
from speed.published import as_published
from training_step import settle, train_one_batch

MAINS = {'simmim': main_simmim, 'finetune': main_finetune}
STAGES = {'pretrain': 'simmim', 'finetune': 'finetune'}  # as asked for -> that of a run
NUM_BATCHES = 100_000  # of an epoch: a long run
# A step takes one batch, and begins with random weights.
ALWAYS = (
    ('TRAIN.ACCUMULATION_STEPS', '1'),
    ('TRAIN.AUTO_RESUME', 'False'),
    ('MODEL.RESUME', ''),
    ('PRETRAINED', ''),
)
PRECISIONS = {None: 'float32', torch.float16: 'float16', torch.bfloat16: 'bfloat16'}

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Setting:
    """What is trained: one config at one batch size on one device."""

    cfg: str
    stage: str  # 'pretrain' or 'finetune'
    opts: Sequence[str]
    batch_size: int
    device: torch.device
    data_path: str = ''  # for cases that read data

    def run(self, options: dict[str, str] | None = None) -> Run:
        """A run that writes nothing.

        Args:
            options: in place of the config's.

        Raises:
            ValueError: for options that are not possible, or with which nothing is trained.
        """
        pairs = [*(options or {}).items(), *ALWAYS]
        opts = [*self.opts, *(word for pair in pairs for word in pair)]
        stage = STAGES[self.stage]
        config = get_config(
            Namespace(cfg=self.cfg, opts=opts, batch_size=self.batch_size, stage=stage)
        )
        if stage == 'finetune' and config.FINETUNE.MODE in PROBES:
            raise ValueError(f'FINETUNE.MODE {config.FINETUNE.MODE!r} makes no training steps')
        return Run(config, stage, Path(), self.device, logging.getLogger('speed'), None)


def build(run: Run) -> tuple[nn.Module, Any]:
    """Model and loss of the stage's main, seeded."""
    torch.manual_seed(run.config.SEED)
    targets = _targets(run.config, np.random.default_rng(run.config.SEED))
    loaders = SimpleNamespace(
        train=SimpleNamespace(dataset=SimpleNamespace(targets=targets)), plain=None
    )
    return MAINS[run.stage].build_training(run, loaders)


def synthetic_batch(run: Run) -> Batch:
    """Noise with masks or labels as the stage's loader gives them, seeded, on the device."""
    config, rng = run.config, np.random.default_rng(run.config.SEED)
    size, count = config.DATA.IMG_SIZE, config.DATA.BATCH_SIZE
    shape = (count, encoder_node(config).IN_CHANS, size, size)
    batch = [torch.from_numpy(rng.standard_normal(shape, np.float32))]
    if run.is_pretrain:
        generator = mask_generator(config)
        batch.append(torch.from_numpy(np.stack([generator(rng) for _ in range(count)])))
    else:
        batch += [torch.from_numpy(_targets(config, rng)), torch.arange(count)]
    return tuple(item.to(run.device) for item in batch)


def data_batches(run: Run) -> Iterator[Batch]:
    """Batches of the run's own loader, epoch after epoch.

    Raises:
        ValueError: as the loader.
    """
    loader = on_device(build_loader(run.config, run.logger, run.is_pretrain), run.device).train
    for epoch in count():
        loader.batch_sampler.set_epoch(epoch, first_batch=0)
        yield from loader


def _targets(config: Any, rng: np.random.Generator) -> np.ndarray:
    """[images, labels], 0 or 1."""
    shape = config.DATA.BATCH_SIZE, config.MODEL.NUM_CLASSES
    return rng.integers(2, size=shape).astype(np.float32)


class Steps(ABC):
    """Steps of one case; each call makes one.

    Attributes:
        loss: of the last one, on the device.
        dtype: of autocast; None: float32.
    """

    dtype: torch.dtype | None
    loss: torch.Tensor

    @abstractmethod
    def __call__(self) -> None: ...

    @abstractmethod
    def describe(self) -> dict[str, str | bool]:
        """What really runs."""

    def _noted(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        loss = self.loss_fn(model, batch)
        self.loss = loss.detach().clone()  # CUDA graphs write the next one over it
        return loss


class OwnSteps(Steps):
    """The engine's steps."""

    def __init__(self, run: Run, batches: Iterator[Batch]) -> None:
        model, self.loss_fn = build(run)
        self.run, self.batches, self.number = run, batches, 0
        self.state = begin(run, model, range(NUM_BATCHES))
        self.state.model.train()
        self.dtype = autocast_dtype(run.config, run.device)

    def __call__(self) -> None:
        train_one_batch(self.run, self.state, next(self.batches), self._noted, self.number)
        self.number += 1
        if self.number % self.run.config.PRINT_FREQ == 0:
            settle(self.run, self.state)  # as for a line of the log

    def describe(self) -> dict[str, str | bool]:
        config, model = self.run.config, self.state.model
        return {
            'code': 'ours',
            'precision': PRECISIONS[self.dtype],
            'attention': self._attention(),
            'compile': config.TRAIN.COMPILE,
            'compiled': isinstance(model, Compiled) and model.call is not model.module,
            'fused_adamw': bool(self.state.optimizer.defaults.get('fused')),
            'waits': config.TRAIN.ON_NAN == 'skip',
        }

    def _attention(self) -> str:
        """The option; refused if the kernel that it asks for is not what ran."""
        asked = self.run.config.MODEL.ATTENTION
        blocks = [m for m in self.state.module.modules() if isinstance(m, WindowAttention)]
        if asked == 'triton' and any(block.attention == 'eager' for block in blocks):
            raise RuntimeError('the Triton kernel fails here: eager took its place')
        return asked


class PublishedSteps(Steps):
    """Steps written as SimMIM's published code makes them, with the published model."""

    def __init__(self, run: Run, batch: Batch, how: Published) -> None:
        config = run.config
        model, self.loss_fn = build(run)
        model = as_published(model, use_checkpoint=config.TRAIN.USE_CHECKPOINT)
        self.model, self.batch, self.how, self.number = model.to(run.device), batch, how, 0
        self.model.train()
        base_lr = scaled_lr(config, 1).base
        groups = param_groups(
            model,
            weight_decay=config.TRAIN.WEIGHT_DECAY,
            base_lr=base_lr,
            layer_decay=None if run.is_pretrain else config.TRAIN.LAYER_DECAY,
        )
        options = config.TRAIN.OPTIMIZER
        algorithm = {'eps': options.EPS, 'betas': tuple(options.BETAS), 'lr': base_lr}
        self.optimizer = torch.optim.AdamW(groups, fused=how.fused or None, **algorithm)
        self.scheduler = build_scheduler(config, self.optimizer, NUM_BATCHES)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=how.dtype == torch.float16)
        self.device, self.dtype = run.device, how.dtype
        self.limit = config.TRAIN.CLIP_GRAD or math.inf

    def __call__(self) -> None:
        with autocast_to(self.dtype, self.device):
            loss = self._noted(self.model, self.batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step_update(self.number)
        self.number += 1
        if self.how.waits:
            if self.device.type == 'cuda':
                torch.cuda.synchronize()
            loss.item(), norm.item()

    def describe(self) -> dict[str, str | bool]:
        return {
            'code': 'published',
            'precision': PRECISIONS[self.dtype],
            'attention': 'published',
            'compile': 'none',
            'compiled': False,
            'fused_adamw': self.how.fused,
            'waits': self.how.waits,
        }


def build_steps(setting: Setting, case: Case) -> Steps:
    if case.reads_data:
        run = setting.run({**case.options, 'DATA.DATA_PATH': setting.data_path})
        return OwnSteps(run, data_batches(run))
    run = setting.run(dict(case.options))
    batch = synthetic_batch(run)
    if case.published:
        return PublishedSteps(run, batch, case.published)
    return OwnSteps(run, repeat(batch))
