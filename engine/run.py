"""A run of a main: its options, folder, device, logs and record."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from config import Config
from engine.lineage import Lineage
from engine.run_record import RunRecord
from logger import ScalarLog


@dataclass
class Run:
    """A run of a main: options, folder, device, logs, record, and trainings behind its weights.

    `batch_rng` has the random numbers of the batch that is trained, see `loop.train_one_batch`.
    """

    config: Config
    stage: str
    folder: Path
    device: torch.device
    logger: logging.Logger
    scalars: ScalarLog
    record: RunRecord = field(default_factory=RunRecord)
    batch_rng: np.random.Generator | None = None
    lineage: Lineage = field(init=False)

    def __post_init__(self) -> None:
        self.lineage = Lineage(self.config)

    @property
    def is_pretrain(self) -> bool:
        return self.stage in ('simmim', 'contrastive')

    def close(self, code: int) -> None:
        """Write the remaining metrics and the record. `code` is the exit code of the run."""
        self.scalars.close(code)
        self.record.save()
