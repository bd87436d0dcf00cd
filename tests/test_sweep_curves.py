"""The figure of the losses that pre-trainings of a sweep left, from made-up records."""

import json
import math
from dataclasses import replace

import pytest
from sweep_runs import SEEDS, MadeRuns, methods_file, saved_figures

from config import default_config
from sweeps.files import load_sweep, run_folder
from sweeps.plots import chance, plot_curves


@pytest.fixture
def sweep(tmp_path):
    return load_sweep(methods_file(tmp_path))


def write_records(folder, epochs):
    folder.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps({'epoch': n - 1} | epoch) + '\n' for n, epoch in enumerate(epochs))
    (folder / 'metrics.jsonl').write_text(text)


def features(loss, rank):
    return {
        'holdout_loss': loss,
        'holdout_feature_spread': 0.5,
        'holdout_effective_rank': rank,
    }


def test_a_line_a_seed_and_what_tells_nothing(sweep, tmp_path, monkeypatch):
    made, figures = MadeRuns(tmp_path, level='image'), saved_figures(monkeypatch)
    simmim, moco = (sweep.methods[name] for name in ('simmim', 'moco'))
    for seed in SEEDS:
        made.add_pretraining(moco, seed)
        folder = run_folder(made.output, 'contrastive', moco, seed)
        write_records(folder, [features(9.0, 1.0), features(5.0, 8.0), features(4.0 + seed, seed)])
    hidden = [{'holdout_l1_grey': l1, 'holdout_l1_grey_mean': 60.0} for l1 in (70.0, 30.0)]
    write_records(run_folder(made.output, 'simmim', simmim, 0), hidden)
    plot_curves(tmp_path / 'curves.png', sweep, SEEDS, made.output)
    first, second = figures[0].axes[:2]
    lines = [[*zip(*line.get_data(), strict=True)] for line in first.lines]
    assert first.get_title() == 'simmim' and lines[0] == [(0, 70.0), (1, 30.0)]
    assert [y for _, y in lines[1]] == [60.0, 60.0]
    # Before the first epoch a contrastive loss is not drawn.
    drawn = [[*map(float, line.get_ydata())] for line in second.lines]
    nothing = [math.log(1 + 4096)] * 2
    assert drawn == [[5.0, 4.0], nothing, [5.0, 5.0], nothing, [5.0, 6.0], nothing]
    assert second.get_title() == 'moco\nrank 1.0, spread 0.50'


@pytest.mark.parametrize(
    ('method', 'wanted'),
    [('moco', math.log(33)), ('simclr', math.log(63)), ('swav', math.log(7)), ('byol', None)],
)
def test_the_loss_of_a_network_that_tells_nothing(method, wanted):
    config = default_config()
    config.CONTRASTIVE.METHOD = method
    config.CONTRASTIVE.QUEUE_SIZE, config.CONTRASTIVE.NUM_PROTOTYPES = 32, 7
    assert chance(config, 32) == (wanted and pytest.approx(wanted))


@pytest.mark.parametrize('logged, compared', [({}, 64), ({'holdout_images_compared': 10}, 10)])
def test_the_line_of_simclr_goes_by_the_images_that_were_compared(
    logged, compared, tmp_path, monkeypatch
):
    """Fewer than a batch where fewer are held out; a batch by logs that do not say it."""
    sweep = load_sweep(methods_file(tmp_path))
    options = {'CONTRASTIVE.METHOD': 'simclr', 'DATA.BATCH_SIZE': 64}
    moco = replace(sweep.methods['moco'], pretrain=options)
    made, figures = MadeRuns(tmp_path, level='image'), saved_figures(monkeypatch)
    made.add_pretraining(moco, 0)
    folder = run_folder(made.output, 'contrastive', moco, 0)
    write_records(folder, [features(4.0, 8.0) | logged, features(3.0, 8.0) | logged])
    plot_curves(tmp_path / 'curves.png', sweep, [0], made.output)
    _, nothing = figures[0].axes[1].lines
    assert nothing.get_ydata()[0] == pytest.approx(math.log(2 * compared - 1))


def test_without_held_out_losses_panels_say_so(sweep, tmp_path, monkeypatch):
    """As of a run that held nobody out: its other figures must not be lost for it."""
    figures, simmim = saved_figures(monkeypatch), sweep.methods['simmim']
    write_records(run_folder(tmp_path, 'simmim', simmim, 0), [{'loss': 1.0}, {'loss': 0.5}])
    plot_curves(tmp_path / 'curves.png', sweep, SEEDS, tmp_path)
    assert [axis.texts[0].get_text() for axis in figures[0].axes[:2]] == [
        'no held-out loss',
        'no held-out loss',
    ]
