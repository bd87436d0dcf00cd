"""What a run costs: its memory, disk and time, from what was measured."""

import math
import os
import shutil

import torch

import distributed
from data.packed import is_store
from engine import Run
from preflight_bench import Times, Trial, available_memory
from preflight_report import Findings, amount, duration, rate
from train_state import TrainState

WAITING = 0.1  # share of the time that the model may wait for data
NEARLY_FULL = 0.95  # of memory or disk: used up to here without a warning
SLIGHT = 0.01  # of memory: less than that is no more than noise
LOG_BYTES = 2**19, 2**9  # of an epoch with its pictures, of a line of the log: upper estimates


class Costs:
    """Adds a line for each cost to the findings.

    Args:
        run: the run.
        state: where it would start.
        findings: added to.
        trains: whether the model is trained; else it gives features.
    """

    def __init__(self, run: Run, state: TrainState, findings: Findings, *, trains: bool) -> None:
        self.run, self.config, self.state, self.findings = run, run.config, state, findings
        self.trains = trains
        self.ranks_here = int(os.environ.get('LOCAL_WORLD_SIZE', 1))

    def step(self, trial: Trial) -> None:
        """Whether loss and gradient are numbers."""
        images = trial.images[1]
        if not self.trains:
            self.findings.add('step', f'features of {images} images computed')
            return
        found = f'loss {trial.loss:.4g}, gradient norm {trial.norm:.4g} over {images} images'
        # A gradient scaler finds its scale in the first steps.
        has_norm = math.isfinite(trial.norm) or self.state.scaler.is_enabled()
        if math.isfinite(trial.loss) and has_norm:
            self.findings.add('step', found)
        else:
            advice = 'check DATA.MEAN, DATA.STD and the weights; then try --amp-opt-level O0'
            self.findings.problem('step', found, advice)

    def memory(self, trial: Trial, asked: int) -> None:
        """What a micro-batch takes, on the line through the two that were measured."""
        on_cpu, (less, measured) = self.run.device.type == 'cpu', trial.images
        overflowed = measured < asked and not on_cpu  # on the CPU a part is measured to be quick
        # A copy waits in memory while it is written.
        fixed = trial.fixed + (checkpoint_bytes(self.state) if on_cpu else 0)
        activations, largest = trial.per_image * asked, asked
        available = available_memory(self.run.device, self.ranks_here)
        found = f'{amount(fixed + activations)} of {amount(available)}: {amount(activations)} for '
        found += f'{asked} images, {amount(fixed)} for all else'
        if trial.per_image:
            largest = max(0, int((NEARLY_FULL * available - fixed) / trial.per_image))
        if overflowed:  # whatever the line says
            largest = min(largest, asked - 1)
            found = f'{asked} images overflow it: {found}'
        if activations > SLIGHT * available:
            found += f'; at most about {largest:,} would fit'
        if measured < asked:
            found += f' (by steps over {less} and {measured})'
        smaller = f'--batch-size {largest} and more --accumulation-steps'
        if self.run.stage == 'contrastive':  # it compares the images of a micro-batch
            smaller = 'more processes with less --batch-size (the same product), a smaller model'
        advice = f'take {smaller if largest else "a smaller model"}, or --use-checkpoint'
        if overflowed or fixed + activations > available:
            self.findings.problem('memory', found, advice)
        else:
            self.findings.add('memory', found, advice if largest < asked else '')

    def speed(self, times: Times) -> None:
        """Who waits for whom."""
        data, world = self.config.DATA, distributed.world_size()
        share = 1 - times.step / times.pace(times.step)
        found = f'loader {rate(world / times.read)} images/s, model {rate(world / times.step)}'
        if times.images < data.BATCH_SIZE:
            found += f' ({times.images} at a time, not {data.BATCH_SIZE})'
        found += f': the model waits {share:.0%} of the time' if share > 0 else ': no waiting'
        more = []
        if data.NUM_WORKERS * self.ranks_here < num_cores():
            more.append(f'raise DATA.NUM_WORKERS from {data.NUM_WORKERS}')
        if not is_store(data.DATA_PATH):
            more.append('pack the images with scripts/pack.py')
        advice = ', or '.join(more) or 'take a machine with more cores'
        self.findings.add('speed', found, advice if share > WAITING else '')

    def time(self, times: Times, num_trained: int, num_scored: int) -> float:
        """Seconds of what is left.

        Args:
            times: measured.
            num_trained: images of an epoch and process, or whose features are computed.
            num_scored: held-out images of a process, after each epoch.
        """
        state, epochs = self.state, self.config.TRAIN.EPOCHS
        left = max(0, epochs - state.epoch - state.batch / state.num_batches)
        left = left if self.trains else 1
        training = left * num_trained * times.pace(times.step)
        validation = math.ceil(left) * num_scored * times.pace(times.scored)
        work = 'training' if self.trains else 'features'
        found = f'{duration(training)} of {work} and {duration(validation)} of validation'
        self.findings.add('time', found)
        return training + validation

    def disk(self, seconds: float) -> None:
        """Checkpoints that are kept, and logs, against what is free."""
        config, train, state = self.config, self.config.TRAIN, self.state
        epochs = range(state.epoch, train.EPOCHS) if self.trains else range(1)
        count = sum(e % config.SAVE_FREQ == 0 or e + 1 == train.EPOCHS for e in epochs)
        if train.SAVE_EVERY_STEPS:
            count += len(epochs) * state.steps_per_epoch // train.SAVE_EVERY_STEPS
        if train.SAVE_EVERY_MINUTES and not math.isnan(seconds):
            count += int(seconds / 60 / train.SAVE_EVERY_MINUTES)
        count = min(count, config.SAVE_KEEP or count)
        # Beside them the best one, and one that is whole before another goes.
        count = count + (not self.run.is_pretrain) + 1 if self.trains else 0
        each, lines = checkpoint_bytes(state), len(epochs) * state.num_batches / config.PRINT_FREQ
        needed = count * each + len(epochs) * LOG_BYTES[0] + lines * LOG_BYTES[1]
        free = shutil.disk_usage(self.run.folder).free
        found = f'{amount(needed)} of {amount(free)} that are free'
        if count:
            found += f': up to {count:,} checkpoints of {amount(each)}, and logs'
        advice = 'set SAVE_KEEP (such as 3), raise SAVE_FREQ, or choose another --output'
        if needed > free:
            self.findings.problem('disk', found, advice)
        else:
            self.findings.add('disk', found, advice if needed > NEARLY_FULL * free else '')


def checkpoint_bytes(state: TrainState) -> int:
    """Bytes of a checkpoint's tensors: the model's, and moments as the optimizer will have."""
    model = sum(v.numel() * v.element_size() for v in state.module.state_dict().values())
    trained = [p for group in state.optimizer.param_groups for p in group['params']]
    moments = sum(p.numel() * p.element_size() for p in trained)
    if isinstance(state.optimizer, torch.optim.AdamW):
        return model + 2 * moments + 4 * len(trained)  # and how many steps, for each
    return model + moments


def num_cores() -> int:
    """Cores that this process may use."""
    known = getattr(os, 'sched_getaffinity', None)  # not on macOS
    return len(known(0)) if known else os.cpu_count() or 1
