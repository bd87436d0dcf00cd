"""Pre-train SimMIM, MAE or another masked method on unlabelled chest X-rays.

torchrun --nproc_per_node N main_simmim.py --cfg configs/... --data-path DIR [--opts KEY VALUE ...]
"""

import sys

from system.start import check_command

if __name__ == '__main__':
    check_command('simmim')  # before PyTorch is imported

from torch import Tensor, nn

from config import module_of_option
from data.data_simmim import build_loader_simmim
from data.fingerprint import describe_data, hash_patients
from engine.launch import launch
from engine.loop import evaluate, fit, total_steps
from engine.run import Run
from evaluation.held_out import HeldOutReconstruction
from models import build_model


def reconstruction_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Return the loss of images [B, C, S, S] with masks [B, h, w]."""
    return model(*batch)


def main(run: Run) -> int:
    """Pre-train, or do what --eval, --throughput or --check asks for. Returns the exit code."""
    config = run.config
    loaders = build_loader_simmim(config, run.logger)
    run.record.describe(config, lambda: describe_data(config, loaders))
    run.lineage.patients = hash_patients(config, loaders)
    # Methods with a schedule, such as the momentum of a teacher, need the length of the run.
    steps = total_steps(config, loaders.train)
    model = build_model(config, is_pretrain=True, total_steps=steps)
    validate = HeldOutReconstruction(loaders)
    if config.EVAL.PROBE_EVERY:
        validate = module_of_option('EVAL.PROBE_EVERY').OnlineProbe(config, run.logger, validate)

    if config.EVAL_MODE:
        evaluate(run, model, loaders.holdout, validate)
        return 0
    if config.THROUGHPUT_MODE:
        return module_of_option('THROUGHPUT_MODE').log_throughput(run, model, loaders._asdict())
    if config.CHECK_MODE:
        return module_of_option('CHECK_MODE').preflight(
            run, model, loaders._asdict(), reconstruction_loss
        )

    fit(run, model, loaders.train, reconstruction_loss, after_epoch=validate)
    return 0


if __name__ == '__main__':
    sys.exit(launch('simmim', main))
