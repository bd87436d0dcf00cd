"""A head that reads age, sex and view beside the image (MODEL.HEAD 'patient').

The numbers are those of FINETUNE.MODE 'metadata' (`data.tables.metadata`), an unknown value
included. They are standardised by the training images alone, and their mean and deviation are part
of the weights, so that every later scoring uses them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from config import PROBES, Config, refuse_unless
from data.tables.metadata import FEATURES, columns_of
from models.classifier_heads import CLASSIFIER_HEADS, LinearHead


@CLASSIFIER_HEADS.register('patient')
class PatientHead(LinearHead):
    """A linear layer on the pooled features and the standardised numbers of the patient."""

    takes_patient = True

    def __init__(self, num_features: int, num_classes: int, *, inputs: Sequence[str]) -> None:
        count = len(columns_of(inputs))
        super().__init__(num_features + count, num_classes)
        self.register_buffer('mean', torch.zeros(count))
        self.register_buffer('deviation', torch.ones(count))

    @staticmethod
    def check(config: Config, stage: str | None) -> None:
        """Check the names of what enters, and refuse mixed images: nobody has a mixed age."""
        inputs = config.MODEL.PATIENT.INPUTS
        is_allowed = 0 < len(inputs) == len({*inputs} & {*FEATURES})
        allowed = f'a list of some of {", ".join(FEATURES)}'
        refuse_unless(is_allowed, config, 'MODEL.PATIENT.INPUTS', allowed)
        mixes = stage == 'finetune' and config.FINETUNE.MODE not in PROBES
        for key in ('MIXUP', 'CUTMIX'):
            is_allowed = not (mixes and config.AUG[key])
            refuse_unless(is_allowed, config, f'AUG.{key}', "0 with MODEL.HEAD 'patient'")
        allowed = "off with MODEL.HEAD 'patient', which needs more than images"
        refuse_unless(not config.THROUGHPUT_MODE, config, 'THROUGHPUT_MODE', allowed)

    def standardise(self, numbers: Tensor) -> None:
        """Take mean and deviation of the numbers [N, P] of the training images."""
        self.mean.copy_(numbers.mean(dim=0))
        deviation = numbers.std(dim=0, correction=0)
        self.deviation.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def standard(self, numbers: Tensor) -> Tensor:
        """Return standardised numbers [B, P]."""
        return (numbers - self.mean) / self.deviation

    def forward(self, inputs: Tensor, patient: Tensor | None = None) -> Tensor:
        if patient is None:
            raise ValueError(
                "MODEL.HEAD 'patient' also reads MODEL.PATIENT.INPUTS, but here images alone are "
                "given: use a model with MODEL.HEAD 'linear'"
            )
        return super().forward(torch.cat([inputs, self.standard(patient).to(inputs.dtype)], dim=1))
