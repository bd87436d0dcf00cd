"""Batches of a sweep's runs: shared out over GPUs, and what makes them those of another run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sweep_runs import MadeRuns, methods_file, reference_files

from config import config_text
from engine.run_record import RECORD_FILE
from sweeps.files import Job, batch_counts, changed_config, load_sweep, plan, share_of_steps
from sweeps.results import collect, differences_from_files, notes
from sweeps.runner import state_of

ON_FOUR = {'processes': 4}
FROM_FOUR_TO_TWO = {
    'processes': 4,
    'starts': [{'processes': 4}, {}, {'processes': 2}, {'resumed_from': 'ckpt_epoch_9.pth'}],
}


def batch(size: int, steps: int) -> dict[str, int]:
    return {'DATA.BATCH_SIZE': size, 'TRAIN.ACCUMULATION_STEPS': steps}


def words(options: dict[str, int]) -> list[str]:
    return [str(word) for pair in options.items() for word in pair]


def config_of(stage: str, size: int, steps: int):
    config = changed_config(reference_files()[stage], stage).clone()
    config.defrost()
    config.TAG = 'mine'
    config.merge_from_list(words(batch(size, steps)))
    return config


def pretraining(folder: Path, stage: str, size: int, steps: int, *, gpus: int = 1) -> Job:
    """One with these options over those of the sweep."""
    jobs = plan(
        load_sweep(methods_file(folder)),
        seeds=[0],
        data=str(folder),
        output=str(folder),
        gpus=gpus,
        options={name: words(batch(size, steps)) for name in ('simmim', 'contrastive')}
        | {'finetune': words(batch(64, 2))},
    )
    return next(job for job in jobs if job.stage == stage)


def finish(job: Job, record: dict) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / 'config.yaml').write_text(config_text(job.config))
    (job.folder / RECORD_FILE).write_text(json.dumps(record | {'finished': 'now'}))


@pytest.mark.parametrize(
    ('stage', 'before', 'record', 'now', 'gpus', 'change'),
    [
        ('contrastive', (256, 1), {}, (256, 1), 1, ''),
        ('contrastive', (256, 1), {}, (64, 4), 1, 'pictures compared at once: 256 -> 64'),
        ('contrastive', (64, 4), {}, (128, 2), 1, 'pictures compared at once: 64 -> 128'),
        ('contrastive', (256, 1), {}, (128, 2), 2, ''),  # 1 micro-batch on each of 2
        ('contrastive', (64, 4), {}, (64, 4), 2, 'pictures compared at once: 64 -> 128'),
        ('contrastive', (64, 1), ON_FOUR, (256, 1), 1, ''),
        ('contrastive', (64, 1), ON_FOUR, (64, 4), 1, 'pictures compared at once: 256 -> 64'),
        ('contrastive', (128, 1), FROM_FOUR_TO_TWO, (256, 1), 1, ''),
        ('contrastive', (128, 1), ON_FOUR, (256, 1), 1, 'pictures a step: 512 -> 256'),
        ('simmim', (256, 1), {}, (64, 4), 1, ''),
        ('simmim', (64, 4), {}, (64, 4), 2, ''),
        ('simmim', (64, 4), {}, (64, 2), 1, 'pictures a step: 256 -> 128'),
    ],
)
def test_a_run_that_compared_as_many_is_the_same_run(
    stage, before, record, now, gpus, change, tmp_path
) -> None:
    finish(pretraining(tmp_path, stage, *before), record)
    job = pretraining(tmp_path, stage, *now, gpus=gpus)
    if change:
        with pytest.raises(ValueError, match=rf'holds another run \(.*{change}'):
            state_of(job)
    else:
        assert state_of(job) == 'finished'


def test_the_table_tells_of_runs_that_compared_other_numbers(tmp_path) -> None:
    made, sweep = MadeRuns(tmp_path), load_sweep(methods_file(tmp_path))
    for name in ('simmim', 'moco'):
        for seed, options in enumerate(({}, batch(32, 4), batch(128, 1))):
            made.add_pretraining(replace(sweep.methods[name], pretrain=options), seed)
    found = differences_from_files(sweep, [0, 1, 2], made.output)
    assert found == [
        {'stage': 'contrastive', 'key': 'pictures compared at once', 'found': '32',
         'expected': '128', 'runs': ['mine_moco_seed1']},
    ]  # fmt: skip
    (note,) = [
        note
        for note in notes(collect(sweep, [0, 1, 2], made.output, resamples=2))
        if 'differ from the sweep' in note
    ]
    assert note.endswith(
        ': pictures compared at once 32 for 128 in mine_moco_seed1 (contrastive pre-training).'
    )


@pytest.mark.parametrize(
    ('stage', 'size', 'steps', 'gpus', 'said'),
    [
        ('simmim', 256, 1, 2, '1 micro-batch of 256 images a step cannot be shared among 2 GPUs: '
         'take one GPU a run, or DATA.BATCH_SIZE 128 with TRAIN.ACCUMULATION_STEPS 2'),
        ('simmim', 256, 1, 3, 'among 3 GPUs: take one GPU a run'),
        ('simmim', 64, 4, 3, '4 micro-batches of 64 images a step cannot be shared among 3 GPUs: '
         'take a number of GPUs that divides 4'),
        ('contrastive', 256, 3, 2, 'among 2 GPUs: take one GPU a run, or DATA.BATCH_SIZE 128 '
         'with TRAIN.ACCUMULATION_STEPS 6'),
        ('contrastive', 64, 4, 3, 'among 3 GPUs: take one GPU a run'),
    ],
)  # fmt: skip
def test_steps_that_gpus_cannot_share_are_refused_with_a_way_out(
    stage, size, steps, gpus, said
) -> None:
    with pytest.raises(ValueError) as caught:
        share_of_steps(config_of(stage, size, steps), gpus)
    message = str(caught.value)
    assert message.startswith('mine: ') and message.endswith(said)


@pytest.mark.parametrize('steps', [1, 3])
def test_the_way_out_keeps_what_a_step_takes_and_what_is_compared(steps) -> None:
    one, wanted = config_of('contrastive', 256, steps), config_of('contrastive', 128, 2 * steps)
    with pytest.raises(ValueError, match=rf'_SIZE 128 with TRAIN.ACCUMULATION_STEPS {2 * steps}$'):
        share_of_steps(one, 2)
    wanted.TRAIN.ACCUMULATION_STEPS = share_of_steps(wanted, 2)
    on_two = batch_counts(wanted, {'processes': 2}, 'contrastive')
    assert on_two == batch_counts(one, {}, 'contrastive')
