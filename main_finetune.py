"""Fine-tune or probe an encoder on CheXpert's observations, or evaluate a fine-tuned model.

torchrun --nproc_per_node N main_finetune.py --cfg configs/... --data-path DIR --pretrained CKPT
"""

import sys

from system.start import check_command

if __name__ == '__main__':
    check_command('finetune')  # before PyTorch is imported

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from config import PROBES, Config, module_of_option, selected_part
from data.data_finetune import build_loader_finetune, patient_leaks
from data.fingerprint import describe_data, hash_patients
from data.loader import Loaders
from data.tables.records import task_of
from data.tables.splits import selecting_split
from engine.launch import launch
from engine.loop import LossFunction, fit
from engine.run import Run
from evaluation.final_scores import FinalScores, check_scoring
from evaluation.inference import load_classifier, patient_inputs, predict, score
from evaluation.metrics import (
    FEW_CASES,
    OF_CLASSES,
    applicable,
    describe_scores,
    labels_with_few_cases,
    selecting_labels,
)
from logger import DETAIL
from models import build_model
from models.classifier_heads import freeze_encoder
from models.kept_patches import draw_kept, num_patches
from models.losses import build_label_loss, smoothed
from system.files import BEST_CHECKPOINT, checkpoint_name
from system.tool import command_of
from utils import checkpoint_to_evaluate, load_model_state, read_checkpoint

CHECK_DATA = f'{command_of("scripts/check_data.py")} compares all images, also near copies'
# Scores that are written for each epoch, as far as the task has them.
LOGGED = ('loss', *applicable(OF_CLASSES), 'mean_of_five', 'mean_of_defined', 'auroc')


def label_loss(run: Run, loader: DataLoader) -> LossFunction:
    """Return the loss function of a batch.

    With FINETUNE.MODE 'last_layer' it keeps the model in evaluation mode, so that the frozen
    encoder applies neither dropout nor drop path.
    """
    config = run.config
    loss_fn = build_label_loss(config, loader.dataset.targets)
    mix = selected_part(config, 'AUG.MIXER', with_options=True)(config.AUG)
    smoothing = config.MODEL.LABEL_SMOOTHING
    exclusive = selected_part(config, 'DATA.TASK').exclusive
    is_frozen = config.FINETUNE.MODE == 'last_layer'
    ratio, count = config.FINETUNE.MASK_RATIO, num_patches(config)
    patient = patient_inputs(config, loader.dataset)

    def batch_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        # [B, C, S, S], [B, K], and the positions of the images.
        images, targets, index = batch
        if is_frozen:
            model.eval()
        images, targets = mix(images, targets, run.batch_rng)
        if smoothing:
            targets = smoothed(targets, smoothing, exclusive=exclusive)
        inputs = (images, draw_kept(images, count, ratio)) if ratio else (images,)
        more = {} if patient is None else {'patient': patient[index.cpu()].to(images.device)}
        return loss_fn(model(*inputs, **more), targets)

    return batch_loss


class Selection:
    """Scores the model at each validation on the patients that select the checkpoint.

    Attributes:
        split: Split that is scored, 'holdout' or 'valid'.
        loader: Loader of the split; None if no patients are held out.
        labels: Labels whose mean AUROC is the score, see `selecting_labels`.
        name: What the selecting score is, such as 'holdout mean AUROC of 3 labels'. It is '' if the
            last epoch is used.
        explanation: What selects the epoch, in one sentence.
        warning: Labels of the split with few cases, in one sentence, or ''.
    """

    def __init__(self, config: Config, loaders: Loaders) -> None:
        chosen = selecting_split(config, len((loaders.train or loaders.plain).dataset))
        self.split = 'holdout' if chosen == 'last' else chosen
        self.loader = getattr(loaders, self.split)
        self.labels, self.name, self.warning = (), '', ''
        if self.loader is not None:
            targets = self.loader.dataset.targets
            # Only the numbers of cases are read, so the scores of zeros will do.
            counts = score(config, np.zeros(targets.shape, np.float32), self.loader)
            self.labels = selecting_labels(counts)
            selects = chosen != 'last' and config.FINETUNE.MODE not in PROBES
            if few := labels_with_few_cases(counts):
                effects = 'have no reliable threshold'
                if selects:
                    effects = f'do not select an epoch and {effects}'
                named = ', '.join(f'{label} ({number})' for label, number in few.items())
                self.warning = (
                    f'{self.split} has fewer than {FEW_CASES} cases of one class: {named}. Such '
                    f'labels {effects}. DATA.HOLDOUT_FRACTION holds out more patients'
                )
        if config.FINETUNE.MODE in PROBES:
            self.explanation = 'a probe has no epochs'
        elif chosen == 'last':
            self.explanation = f'EVAL.SELECT_ON {config.EVAL.SELECT_ON}: the last epoch is used'
        elif not self.labels:
            self.explanation = f'no label has enough cases in {self.split}: the last epoch is used'
        else:
            several = f'mean AUROC of {len(self.labels)} labels'
            score_name = several if len(self.labels) > 1 else f'AUROC of {self.labels[0]}'
            self.name = f'{self.split} {score_name}'
            self.explanation = f'the {self.name} selects the epoch'

    def __call__(self, run: Run, model: nn.Module, epoch: int) -> dict[str, Any]:
        if self.loader is None:
            return {}
        values = predict(run.config, run.device, model, self.loader)
        scores = score(run.config, values, self.loader)
        line = f'{self.split}: {describe_scores(scores)}'
        run.logger.info(line, extra=DETAIL if epoch >= 0 else None)
        keys = [key for key in LOGGED if key in scores]
        found = {f'{self.split}_{key}': scores[key] for key in keys}
        if self.labels:
            areas = [scores['auroc'][label] for label in self.labels]
            found['score'] = float(np.mean(areas))
        return found


def evaluate(run: Run, loaders: Loaders) -> None:
    """Score a checkpoint."""
    path = checkpoint_to_evaluate(run.config, run.folder)
    check_scoring(run, path)
    run.lineage.start_from(str(path), read_checkpoint(path), run.logger)
    model = load_classifier(run.config, path, run.device, run.logger)
    final = FinalScores(run, loaders)
    final.score('given', model)
    final.write(model, str(path))


def fit_probe(run: Run, model: nn.Module, loaders: Loaders) -> None:
    """Fit a probe on frozen features and score it."""
    final = FinalScores(run, loaders)
    probe, chosen = module_of_option('FINETUNE.MODE').build_probe(run, model, loaders)
    final.score('selected', probe, chosen=chosen)
    final.write(probe, run.config.FINETUNE.MODE)


def finetune(
    run: Run, model: nn.Module, loaders: Loaders, loss_fn: LossFunction, selection: Selection
) -> None:
    """Train the classifier and score its last and its selected checkpoint."""
    logger, final = run.logger, FinalScores(run, loaders)
    logger.info(selection.explanation)
    if selection.split == 'valid':
        logger.warning('EVAL.SELECT_ON valid: valid selects the epoch, so its scores are too high')
    state = fit(
        run, model, loaders.train, loss_fn, after_epoch=selection, selects_by=selection.name
    )
    model = state.scored
    final.score('last', model)
    # Two lines of scores: the last epoch, which nothing chose, and the selected one.
    source, best = checkpoint_name(run.config.TRAIN.EPOCHS - 1), run.folder / BEST_CHECKPOINT
    saved = read_checkpoint(best) if best.exists() else {}
    # A file with another score is of epochs that were discarded when the run resumed.
    is_of_this_run = saved.get('best_score') == state.best_score
    if is_of_this_run:
        load_model_state(model, saved['model'], str(best), logger)
        final.score(
            'selected',
            model,
            selected_on=selection.split,
            selecting_images=len(selection.loader.dataset),
            selecting_labels=[*selection.labels],
        )
        source = best.name
    elif selection.name:
        logger.warning(
            f'{run.folder} has no selected checkpoint: no checkpoint is better than the one this '
            'run resumed from. Only the last checkpoint is scored.'
        )
    final.write(model, str(run.folder / source))


def main(run: Run) -> int:
    """Fine-tune or probe, or do what --eval, --throughput or --check asks for.

    Returns:
        Exit code.
    """
    config, logger = run.config, run.logger
    loaders = build_loader_finetune(config, logger)
    run.record.describe(config, lambda: describe_data(config, loaders))
    run.lineage.patients = hash_patients(config, loaders)
    if config.EVAL_MODE:
        evaluate(run, loaders)
        return 0
    learns_predictions = task_of(config).needs_predictions
    soft_targets = config.DATA.SELF_TRAIN_PREDICTIONS if learns_predictions else ''
    for predictions in filter(None, [soft_targets, config.DATA.PSEUDO_LABELS]):
        run.lineage.learn_from(predictions, logger)

    is_probe = config.FINETUNE.MODE in PROBES
    # Before the model is built: a score that cannot be computed should cost no time.
    selection = Selection(config, loaders)
    model = build_model(config, is_pretrain=False).to(run.device)
    if model.head.takes_patient:
        training = (loaders.train or loaders.plain).dataset
        model.head.standardise(patient_inputs(config, training).to(run.device))
    if config.FINETUNE.MODE == 'last_layer':
        freeze_encoder(model)
        if not (config.PRETRAINED or config.MODEL.RESUME):
            logger.warning('--pretrained is not given, so the encoder stays random')
    if config.TRAIN.AVERAGE:
        module_of_option('TRAIN.AVERAGE').average_weights(model, config.TRAIN.AVERAGE)
    loss_fn = None if is_probe else label_loss(run, loaders.train)

    if config.THROUGHPUT_MODE:
        return module_of_option('THROUGHPUT_MODE').log_throughput(
            run, model, loaders._asdict(), num_inputs=1
        )
    if config.CHECK_MODE:
        found = [('patients', line, 'see scripts/check_data.py') for line in patient_leaks(loaders)]
        found.append(('copies', 'X-rays that are in two splits were not searched', CHECK_DATA))
        found.append(('selection', selection.explanation, selection.warning))
        return module_of_option('CHECK_MODE').preflight(
            run, model, loaders._asdict(), loss_fn, found
        )

    if selection.warning:
        logger.warning(selection.warning)
    if is_probe:
        fit_probe(run, model, loaders)
    else:
        finetune(run, model, loaders, loss_fn, selection)
    return 0


if __name__ == '__main__':
    sys.exit(launch('finetune', main))
