"""The sweep of equal time: epochs from measured seconds, and which runs are made anew."""

import json
import logging

import pytest
from sweep_runs import MadeRuns, methods_file, reference_files
from test_readme import load_script

from logger import read_metrics
from provenance import RunRecord, environment
from sweeps.costs import epoch_seconds, machines, training_cost
from sweeps.equal_time import Pace, equal_epochs, write_equal_time
from sweeps.plan import ROOT, load_sweep, plan, run_folder

SCRIPT = load_script(ROOT / 'scripts/equal_time.py')
MACHINE = ('1 process(es)', 'a GPU')


def record(epoch: int, images: float, seconds: float) -> dict:
    return {'epoch': epoch, 'seconds': seconds, 'images_per_second': images / seconds}


def made_runs(folder, *, seeds=(0, 1), moco=4.0, **changes):
    """Pre-trainings of two epochs: of simmim 10 s each, of moco so many."""
    sweep = load_sweep(methods_file(folder, **changes))
    made = MadeRuns(folder)
    for name, row in sweep.methods.items():
        for seed in seeds:
            if row.pretrain is not None:
                made.add_pretraining(row, seed, epoch_seconds=moco if name == 'moco' else 10.0)
    return sweep, made


def edit_record(folder, **changes):
    content = json.loads((folder / 'run.json').read_text())
    (folder / 'run.json').write_text(json.dumps(content | changes))


def begun(folder, checkpoint=None, *, done=False, **machine):
    """A start of a run as its main writes it down, on one GPU or as said."""
    facts = {'processes': 1, 'gpus': ['H200'], 'threads': 2} | machine
    here = environment(gpus=facts['gpus'], threads=facts['threads'])
    known = {'code': 'c0ffee', 'data': {'fingerprint': 'f00'}, 'processes': facts['processes']}
    record = RunRecord(folder, known | {'environment': here}, logging.getLogger('test'))
    record.begin(checkpoint, done=done)
    record.finish()
    record.close()


def begun_runs(folder):
    """Pre-trainings that began on the same machine; and the folder of one of them."""
    sweep, made = made_runs(folder)
    for row in (sweep.methods['simmim'], sweep.methods['moco']):
        for seed in (0, 1):
            begun(run_folder(made.output, row.pretraining, row, seed))
    return sweep, made, run_folder(made.output, 'contrastive', sweep.methods['moco'], 1)


def test_an_epoch_that_was_cut_in_two_counts_as_a_whole_one():
    records = [{'epoch': -1}, record(0, 100, 10), record(1, 25, 3), record(2, 100, 20)]
    assert epoch_seconds(records) == pytest.approx([10, 12, 20])
    assert training_cost(records) == {'epochs': 3, 'images': 300, 'seconds': pytest.approx(36)}


def test_an_epoch_that_was_cut_off_at_its_last_step_was_seen_too():
    records = [{'epoch': -1}, record(0, 100, 10), record(1, 0, 0.2), record(2, 100, 20)]
    assert epoch_seconds(records) == pytest.approx([10, 20])
    assert training_cost(records) == {'epochs': 3, 'images': 300, 'seconds': pytest.approx(45)}


@pytest.mark.parametrize(
    'records', [[], [{'epoch': -1}], [{'epoch': 0, 'loss': 1}], [record(0, 0, 0.2)]]
)
def test_a_log_without_seconds_has_no_cost(records):
    assert epoch_seconds(records) == [] and training_cost(records) is None


@pytest.mark.parametrize(
    ('seconds', 'warmup', 'wanted'),
    [(4, 10, (250, 25)), (30, 10, (33, 3)), (10, 10, (100, 10)), (1000, 0, (1, 0)),
     (28.7, 5, (35, 2))],
)  # fmt: skip
def test_epochs_take_as_long_as_those_of_the_reference(seconds, warmup, wanted):
    reference = Pace(10, 100, 10, MACHINE)
    assert equal_epochs(Pace(seconds, 100, warmup, MACHINE), reference) == wanted


def test_less_than_an_epoch_is_refused():
    with pytest.raises(ValueError, match=r'takes 1000\.1 s, longer than all 100 of the reference'):
        equal_epochs(Pace(1000.1, 100, 0, MACHINE), Pace(10, 100, 10, MACHINE))


def test_the_file_is_the_same_sweep_with_other_epochs(tmp_path):
    sweep, made = made_runs(tmp_path)
    path = write_equal_time(sweep, [0, 1], made.output)
    assert path == made.output / 'mine_equal_time.yaml'
    equal = load_sweep(path)
    assert [row.name for row in equal.rows] == [row.name for row in sweep.rows]
    assert [row.run for row in equal.rows[:3]] == [
        'mine_simmim_0.1', 'mine_equal_time_moco_0.1', 'mine_scratch_0.1'
    ]  # fmt: skip
    # The defaults are 300 epochs and 20 of warm-up.
    assert {name: row.pretrain for name, row in equal.methods.items()} == {
        'simmim': {'TRAIN.EPOCHS': 300, 'TRAIN.WARMUP_EPOCHS': 20},
        'moco': {'TRAIN.EPOCHS': 750, 'TRAIN.WARMUP_EPOCHS': 50},
        'scratch': None,
    }
    assert [row.finetune for row in equal.rows] == [row.finetune for row in sweep.rows]
    text = path.read_text()
    assert '# 1 process(es), ' in text
    assert '#   simmim: 10.00 (300 epochs, here 300)\n#   moco: 4.00 (300 epochs, here 750)' in text
    options = {'seeds': [0], 'data': '/d', 'output': str(made.output)}
    before, after = ({job.folder: job for job in plan(s, **options)} for s in (sweep, equal))
    kept = before.keys() & after.keys()
    assert {folder.name for folder in after if folder not in kept} == {
        'mine_equal_time_moco_seed0', 'mine_equal_time_moco_0.1_seed0',
        'mine_equal_time_moco_1_seed0',
    }  # fmt: skip
    assert all(before[folder].config == after[folder].config for folder in kept)
    assert write_equal_time(sweep, [0, 1], made.output).read_text() == text


def test_seconds_are_the_median_over_epochs_and_seeds(tmp_path):
    sweep, made = made_runs(tmp_path)
    file = run_folder(made.output, 'contrastive', sweep.methods['moco'], 1) / 'metrics.jsonl'
    lines = [record(0, 80, 900.0), record(1, 80, 5.0)]  # the first epoch compiles
    file.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    equal = load_sweep(write_equal_time(sweep, [0, 1], made.output))
    # 4, 4, 5 and 900 seconds: 4.5.
    assert equal.methods['moco'].pretrain['TRAIN.EPOCHS'] == round(300 * 10 / 4.5)


def test_shared_pretraining_stays_shared(tmp_path):
    files = {stage: str(file) for stage, file in reference_files().items()}
    both = {'pretrain': files['contrastive'], 'finetune': files['finetune']}
    methods = {
        'simmim': {'pretrain': files['simmim'], 'finetune': files['finetune']},
        'plain': {'pretrain': files['simmim'], 'finetune': files['finetune'],
                  'finetune_options': {'AUG.HFLIP': 0.5}},
        'moco': both,
        'moco_plain': both | {'finetune_options': {'AUG.HFLIP': 0.5}},
    }  # fmt: skip
    sweep = load_sweep(methods_file(tmp_path, methods=methods))
    made = MadeRuns(tmp_path)
    for name in ('simmim', 'moco'):
        seconds = {'simmim': 10.0, 'moco': 4.0}[name]
        made.add_pretraining(sweep.methods[name], 0, epoch_seconds=seconds)
    equal = load_sweep(write_equal_time(sweep, [0], made.output)).methods
    runs = {name: (row.pretrain_run, row.run) for name, row in equal.items()}
    assert runs == {
        'simmim': ('mine_simmim', 'mine_simmim_1'),
        'plain': ('mine_simmim', 'mine_plain_1'),
        'moco': ('mine_equal_time_moco', 'mine_equal_time_moco_1'),
        'moco_plain': ('mine_equal_time_moco', 'mine_equal_time_moco_plain_1'),
    }


def test_subsets_and_methods_keep_their_names(tmp_path):
    sweep, made = made_runs(tmp_path, shares={'0.10': {}, '1': {'TRAIN.EPOCHS': 30}})
    path = tmp_path / 'mine.yaml'
    path.write_text(path.read_text().replace('moco:', "'007':").replace("'0.10'", '0.10'))
    sweep = load_sweep(path)
    assert [row.name for row in sweep.rows[:2]] == ['simmim_0.10', '007_0.10']
    made.add_pretraining(sweep.methods['007'], 0)
    equal = load_sweep(write_equal_time(sweep, [0], made.output))
    assert [row.name for row in equal.rows] == [row.name for row in sweep.rows]


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        ({'finished': None}, 'mine_moco_seed1 is not finished'),
        ({'processes': 2}, 'differ in epochs or machine'),
        ({'environment': {'gpus': ['H200']}}, 'H200'),
        ({'environment': {'cpu': 'another', 'threads': 8}}, 'another'),
    ],
)
def test_runs_of_other_machines_do_not_compare(tmp_path, changes, said):
    sweep, made = made_runs(tmp_path)
    folder = run_folder(made.output, 'contrastive', sweep.methods['moco'], 1)
    edit_record(folder, **changes)
    with pytest.raises(ValueError, match=said):
        write_equal_time(sweep, [0, 1], made.output)
    assert not (made.output / 'mine_equal_time.yaml').exists()
    edit_record(folder, finished='now')
    edit_record(run_folder(made.output, 'contrastive', sweep.methods['moco'], 0), **changes)
    if 'finished' not in changes:  # all seeds of one method, but not of the other
        with pytest.raises(ValueError, match='moco_seed0 ran on .* their times do not compare'):
            write_equal_time(sweep, [0, 1], made.output)


@pytest.mark.parametrize(
    ('machine', 'said'),
    [
        ({'gpus': ['A100']}, '1 process(es), H200; then on 1 process(es), A100'),
        ({'processes': 2}, '1 process(es), H200; then on 2 process(es), H200'),
        ({'gpus': []}, '2 threads each'),
    ],
)  # fmt: skip
def test_a_run_that_went_on_elsewhere_has_no_time_of_its_own(tmp_path, machine, said):
    sweep, made, folder = begun_runs(tmp_path)
    begun(folder, 'ckpt_epoch_0.pth')
    path = write_equal_time(sweep, [0, 1], made.output)
    assert '# 1 process(es), H200:' in path.read_text()
    begun(folder, 'ckpt_epoch_0.pth', **machine)
    begun(folder, 'ckpt_epoch_1.pth')
    with pytest.raises(ValueError) as error:
        write_equal_time(sweep, [0, 1], made.output)
    assert str(error.value).startswith(f'{folder} ran on 1 process(es), H200; then on ')
    assert said in str(error.value) and str(error.value).count('H200') < 3
    assert str(error.value).endswith(': its times do not compare')


def test_threads_count_where_there_is_no_gpu(tmp_path):
    begun(tmp_path, gpus=[])
    begun(tmp_path, 'ckpt_epoch_0.pth', gpus=[], threads=4)
    first, second = machines(tmp_path)
    assert first[0] == second[0] == '1 process(es)' and first[1] == second[1]
    assert (first[2], second[2]) == ('2 threads each', '4 threads each')


def test_a_start_that_had_nothing_left_to_train_does_not_count(tmp_path):
    sweep, made, folder = begun_runs(tmp_path)
    begun(folder, 'ckpt_epoch_1.pth', done=True, gpus=['A100'])
    assert machines(folder) == [('1 process(es)', 'H200')]
    assert write_equal_time(sweep, [0, 1], made.output).is_file()


def test_starts_of_an_older_version_say_nothing_of_the_machine(tmp_path):
    begun(tmp_path)
    record = json.loads((tmp_path / 'run.json').read_text())
    old = {key: record['starts'][0][key] for key in ('time', 'code', 'data', 'resumed_from')}
    edit_record(tmp_path, starts=[old, old | {'resumed_from': 'ckpt_epoch_0.pth'}])
    assert machines(tmp_path) == [('1 process(es)', 'H200')]
    begun(tmp_path, 'ckpt_epoch_1.pth', gpus=['A100'])
    assert machines(tmp_path) == [('1 process(es)', 'H200'), ('1 process(es)', 'A100')]
    (tmp_path / 'run.json').unlink()
    assert machines(tmp_path) == [('1 process(es)', 'None', 'None threads each')]


def test_the_script_writes_it_or_says_why_not(tmp_path, capsys):
    _, made = made_runs(tmp_path)
    words = ['--sweep', str(tmp_path / 'mine.yaml'), '--output', str(made.output), '--seeds']
    assert SCRIPT.main(SCRIPT.parse_args([*words, '2'])) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f'{made.output}/mine_equal_time.yaml\n') and 'moco: 4.00' in printed
    assert SCRIPT.main(SCRIPT.parse_args([*words, '3'])) == 2
    assert 'error: ' in (said := capsys.readouterr().err) and 'seed2 is not finished' in said
    assert SCRIPT.main(SCRIPT.parse_args([*words, '0'])) == 2
    assert '--seeds must be at least 1' in capsys.readouterr().err
    words[1] = str(ROOT / 'scripts/ablations/nano/loss.yaml')
    assert SCRIPT.main(SCRIPT.parse_args([*words, '1'])) == 2
    assert 'loss.yaml is no sweep of methods' in capsys.readouterr().err


def test_a_log_of_an_older_version_is_named(tmp_path):
    sweep, made = made_runs(tmp_path)
    file = run_folder(made.output, 'simmim', sweep.reference, 0) / 'metrics.jsonl'
    lines = [{'epoch': line['epoch'], 'loss': line['loss']} for line in read_metrics(file)]
    file.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    with pytest.raises(ValueError, match='metrics.jsonl: no epoch has its seconds'):
        write_equal_time(sweep, [0, 1], made.output)
