"""scripts/external.py: the runs of a sweep are scored on a second hospital."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packed_data import packed
from sklearn.metrics import roc_auc_score
from sweep_runs import ablation_file, make_sweep
from tiny import arguments, load_script, run_main, run_script, tiny_config

from data.packing import Settings
from data.tables.known_sets import NIH_LABELS
from data.tables.labels import LABELS
from evaluation.intervals import Resamples
from sweeps.external import OTHER, OWN, compare_hospitals
from sweeps.files import note_sweep, noted_sweeps
from sweeps.long_table import MEANS

pytestmark = pytest.mark.usefixtures('few_cases_select')
LACKING = 'Pleural Effusion'


@pytest.fixture(scope='module')
def own(phantom: Path, tmp_path_factory) -> Path:
    """Two probes and the metadata baseline, as `ablate.py run` names them."""
    output = tmp_path_factory.mktemp('own')
    modes = {'wide_seed0': 'linear_probe', 'wide_seed1': 'linear_probe', 'none_seed0': 'metadata'}
    for tag, mode in modes.items():
        sections = {'FINETUNE': {'MODE': mode}, 'MODEL': {'NAME': 'simmim_finetune'}}
        cfg = tiny_config(output / f'{tag}.yaml', 'finetune', **sections)
        cfg.write_text(cfg.read_text().replace('tiny_finetune', 'simmim_finetune'))
        words = ['--tag', tag, '--opts', 'SEED', tag[-1], 'EVAL.LEVEL', 'image']
        assert run_main('finetune', arguments(cfg, phantom, output, *words)) == 0
    return output


@pytest.fixture(scope='module')
def other(phantom: Path, tmp_path_factory) -> Path:
    """The training images of the phantom under other names, without the column of a label."""
    root = tmp_path_factory.mktemp('other') / 'second'
    table = pd.read_csv(phantom / 'train.csv', dtype=str, keep_default_na=False)
    for path in table['Path']:
        file = root / 'test' / path.partition('/train/')[2].replace('patient', 'patient9')
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom.parent / path, file)
    table['Path'] = table['Path'].str.replace('.*/train/patient', 'x/test/patient9', regex=True)
    table.drop(columns=LACKING).to_csv(root / 'test.csv', index=False)
    return root


def score(own: Path, other: Path, output: Path, *more: object) -> int:
    words = ['--runs', own, '--data-path', other, '--output', output, '--resamples', 0]
    return run_script('external', *words, *more)


def test_both_hospitals_are_scored_over_the_labels_that_both_have(own, other, tmp_path, capsys):
    assert score(own, other, tmp_path) == 0
    printed = capsys.readouterr().out
    lines = pd.read_csv(tmp_path / 'runs_external_labels.csv')
    truth = pd.read_csv(other / 'test.csv').set_index('Path')
    for seed in (0, 1):
        scores = json.loads((own / f'simmim_finetune/wide_seed{seed}/scores.json').read_text())
        predicted = pd.read_csv(tmp_path / f'predictions/wide_seed{seed}.csv').set_index('Path')
        assert predicted.std().max() > 0.1 and len(predicted) > 30
        for label in {*lines['score']}:
            known = truth.loc[predicted.index, label].fillna(0)
            chosen = known >= 0
            area = roc_auc_score(known[chosen], predicted.loc[chosen, label])
            of_own = scores['test']['selected']['auroc'][label]
            found = lines[lines['score'] == label].iloc[0]
            # The mean of two seeds: the other one is as far on the other side.
            spread = found['second_sd'] / np.sqrt(2)
            assert abs(abs(area - found['second']) - spread) < 1e-6
            assert abs(abs(of_own - found['own']) - found['own_sd'] / np.sqrt(2)) < 1e-4
            np.testing.assert_allclose(found['difference'], found['second'] - found['own'])
    assert LACKING not in {*lines['score']} and len({*lines['score']}) > 3
    page = (tmp_path / 'runs_external.md').read_text()
    assert page in printed and 'Not for clinical use' in page
    assert f'The second hospital has no column of: {LACKING}' in page
    assert 'none_seed0 has no checkpoint (FINETUNE.MODE metadata)' in page
    counted = truth.loc[predicted.index]
    assert f'Second hospital: {len(counted)} cases' in page
    assert (tmp_path / 'runs_external.tex').is_file()
    groups = pd.read_csv(tmp_path / 'runs_mean_of_defined_subgroups.csv')
    assert {'Sex: Female', 'Sex: Male'} <= {*groups['group']}


def test_it_resumes_and_predicts_again_what_another_checkpoint_has_predicted(
    own, other, tmp_path, capsys
):
    runs = shutil.copytree(own, tmp_path / 'runs')
    assert score(runs, other, tmp_path) == 0
    first = capsys.readouterr().out
    file, kept = (tmp_path / f'predictions/wide_seed{seed}.csv' for seed in (0, 1))
    kept.unlink()  # as after a kill between two runs
    file.with_suffix('.csv').write_text('not read again')
    file.with_suffix('.json').write_text(json.dumps({'made_of': {}}))
    assert score(runs, other, tmp_path) == 0
    second = capsys.readouterr().out
    assert first.count('predicts ') == second.count('predicts ') == 2
    assert score(runs, other, tmp_path) == 0
    assert capsys.readouterr().out.count('kept: ') == 2
    for name in ('ckpt_best.pth', 'ckpt_best.pth.sha256'):
        folder = runs / 'simmim_finetune'
        shutil.copy(folder / f'wide_seed1/{name}', folder / f'wide_seed0/{name}')
    assert score(runs, other, tmp_path) == 0
    again = capsys.readouterr().out
    assert again.count('kept: ') == 1 and f'images: {file}' in again
    assert score(runs, other, tmp_path, '--opts', 'DATA.INTERPOLATION', 'bilinear') == 0
    assert capsys.readouterr().out.count('predicts ') == 2, 'other options, other images'


def test_a_packed_store_is_scored_as_the_folder_that_it_was_packed_from(own, other, tmp_path):
    store = packed(other, tmp_path / 'store', Settings(size=None, square=False))
    for place, name in ((other, 'files'), (store, 'packed')):
        assert score(own, place, tmp_path / name) == 0
    tables = [
        pd.read_csv(tmp_path / name / 'predictions/wide_seed0.csv') for name in ('files', 'packed')
    ]
    pd.testing.assert_frame_equal(*tables)


def test_runs_of_a_sweep_have_its_titles_without_naming_it(own, other, tmp_path, monkeypatch):
    """`ablate.py run`, here with nothing that runs, notes the sweep in the output folder."""
    runs, rows = tmp_path / 'runs', {'0.6': {}, '0.1': {'pretrain': {'DATA.MASK_RATIO': 0.1}}}
    sweep = ablation_file(tmp_path, rows, titles={'0.6': 'Hidden: 60 %'})
    monkeypatch.setattr('scripts.ablate.Runner.run', lambda self: 0)
    for _ in range(2):
        words = ['--output', runs, '--data-path', other, '--seeds', 1]
        assert run_script('ablate', 'run', '--sweep', sweep, *words) == 0
    assert noted_sweeps(runs) == [(sweep, '')]
    folder = runs / 'simmim_finetune'
    shutil.copytree(own / 'simmim_finetune/wide_seed0', folder / 'reference_seed0')
    (folder / 'swept_0.1_seed0').mkdir()
    assert score(runs, other, tmp_path) == 0
    page = (tmp_path / 'swept_external.md').read_text()
    assert '| Hidden: 60 % |' in page and 'Not finished: swept_0.1_seed0' in page
    assert 'A single seed has no interval' in page


def test_mistakes_are_told_in_a_line(own, other, phantom, tmp_path, capsys):
    def refused(*words: object, runs: Path = own, data: Path = other) -> str:
        assert score(runs, data, tmp_path / 'out', *words) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith('error')]
        return line

    assert 'there is no folder' in refused(data=tmp_path / 'absent')
    assert 'has no runs of' in refused(runs=other)
    assert "no split 'valid'" in refused('--split', 'valid')
    assert 'Mars' in refused('--scores', 'Mars')
    assert f'got {LACKING!r}' in refused('--scores', LACKING)
    folds = tmp_path / 'folds/simmim_finetune'
    shutil.copytree(own / 'simmim_finetune/wide_seed0', folds / 'wide_seed0_fold0')
    assert 'each fold is another model' in refused(runs=folds.parent)
    bare = shutil.copytree(other, tmp_path / 'bare')
    table = pd.read_csv(bare / 'test.csv', dtype=str)
    table.drop(columns=[name for name in LABELS if name in table]).to_csv(bare / 'test.csv')
    line = refused(data=bare)
    assert 'no shared label' in line and 'Edema' in line
    note_sweep(tmp_path / 'several', tmp_path / 'a.yaml', 'tiny')
    note_sweep(tmp_path / 'several', tmp_path / 'b.yaml', '')
    note_sweep(tmp_path / 'several', tmp_path / 'b.yaml', '')
    assert noted_sweeps(tmp_path / 'several') == [
        (tmp_path / 'a.yaml', 'tiny'), (tmp_path / 'b.yaml', '')
    ]  # fmt: skip
    assert 'a.yaml tiny' in refused(runs=tmp_path / 'several')


def test_patients_of_the_training_are_told(own, phantom, tmp_path):
    assert score(own, phantom, tmp_path, '--split', 'train') == 0
    page = (tmp_path / 'runs_external.md').read_text()
    assert 'weights that may have seen scored patients' in page and 'number patients alike' in page


def test_findings_of_nih_stand_for_those_of_chexpert(own, tmp_path):
    script = load_script('external')
    root, names = tmp_path / 'nih', [f'{n:08d}_000.png' for n in range(4)]
    (root / 'images').mkdir(parents=True)
    for name in names:
        (root / 'images' / name).touch()
    table = pd.DataFrame({'Image Index': names, 'Patient ID': range(4), 'Follow-up #': 0})
    table['Finding Labels'] = ['Infiltration', 'No Finding', 'Mass|Effusion', 'Hernia']
    table['View Position'], table['Patient Age'], table['Patient Gender'] = 'PA', '050Y', 'F'
    table.to_csv(root / 'Data_Entry_2017.csv', index=False)
    (root / 'test_list.txt').write_text('\n'.join(names))
    (root / 'train_val_list.txt').write_text('')
    words = ['--runs', own, '--data-path', root, '--output', tmp_path, '--dataset', 'nih']
    args = script.parse_args([*map(str, words)])
    _, runs, _ = script.find_runs(args)
    hospital = script.SecondHospital(args)
    labels, shared = hospital.labels(runs[0])
    assert {*labels.labels} <= {*NIH_LABELS, 'No Finding'}
    (opacity,) = [label for label in shared if label.name == 'Lung Opacity']
    assert 'Infiltration' in opacity.labelled
    wanted = np.array(
        [[name in cell for name in labels.labels] for cell in table['Finding Labels']]
    )
    np.testing.assert_array_equal(labels.targets, wanted)
    file = tmp_path / 'p.csv'
    scores = pd.DataFrame(0.5, range(4), LABELS).assign(Path=labels.records.path)
    scores.to_csv(file, index=False)
    (run,) = script.read_runs({'wide': {0: runs[0].folder}}, script.find_runs(args)[0]).scored
    found, notes = script.score_elsewhere(run, runs[0], file, hospital)
    assert any(
        note.startswith('Lung Opacity stands for: labelled Atelectasis or') for note in notes
    )
    positive = dict(zip(found.images.labels, found.images.targets.T.tolist(), strict=True))
    assert positive['Lung Opacity'] == [1, 0, 1, 0] and positive['Pleural Effusion'] == [0, 0, 1, 0]


def test_the_patients_of_the_two_hospitals_are_drawn_with_different_seeds(
    own, phantom, tmp_path, monkeypatch
) -> None:
    """Also if they are the same patients, whose draws would be equal."""
    seeds = []

    def draw(patients, *, resamples: int, seed: int) -> Resamples:
        seeds.append(seed)
        return Resamples(patients, resamples=resamples, seed=seed)

    monkeypatch.setattr('sweeps.long_table.Resamples', draw)
    assert score(own, phantom, tmp_path) == 0
    assert seeds == [0, 1]
    lines = pd.read_csv(tmp_path / 'runs_external_labels.csv')
    np.testing.assert_allclose(lines['difference'], 0, atol=1e-6)


def test_the_intervals_of_the_difference_draw_both_hospitals_independently(tmp_path):
    rng = np.random.default_rng(0)
    sweep = make_sweep(tmp_path, ['0.1', '0.6'])
    drawn = {name: rng.normal(size=(2, 1001)) for name in (OWN, OTHER)}
    tables = []
    for values in drawn.values():
        lines = [
            {'row': '0.6', 'seed': seed, 'label': 'Edema', 'metric': 'auroc', 'group': '',
             'resamples': values[seed]} for seed in (0, 1)]  # fmt: skip
        tables.append(pd.DataFrame(lines))
    (line,) = compare_hospitals(*tables, sweep, 'Edema')
    gaps = (drawn[OTHER] - drawn[OWN]).mean(axis=0)
    assert line['difference'] == pytest.approx(gaps[0])
    low, high = np.quantile(gaps[1:], [0.025, 0.975])
    assert (line['patients_low'], line['patients_high']) == pytest.approx((low, high), abs=0.01)


def with_positives(other: Path, root: Path, numbers: dict[str, int]) -> Path:
    """Return the second hospital with this number of positives of labels, and other negatives."""
    shutil.copytree(other, root)
    table = pd.read_csv(root / 'test.csv', dtype=str, keep_default_na=False)
    frontal = np.flatnonzero(table['Frontal/Lateral'] == 'Frontal')  # which the runs score
    for label, number in numbers.items():
        table[label] = '0.0'
        table.loc[frontal[:: len(frontal) // number][:number], label] = '1.0'
    table.to_csv(root / 'test.csv', index=False)
    return root


def test_without_a_label_that_has_enough_cases_in_both_there_is_no_difference(
    own, other, tmp_path, monkeypatch, capsys
):
    """Each hospital has labels with enough cases, which are not those of the other one."""
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 5)  # the own one: Lung Opacity alone
    data = with_positives(other, tmp_path / 'second', {'Lung Opacity': 4, 'Edema': 40})
    assert score(own, data, tmp_path, '--resamples', 200) == 0
    (line,) = pd.read_csv(tmp_path / 'runs_external.csv').to_dict('records')
    assert np.isnan([line[OWN], line[OTHER]]).all()
    assert not {'difference', 'patients_low', 'p', 'p_holm', 'verdict'} & {*line}
    page = (tmp_path / 'runs_external.md').read_text()
    assert 'No mean, and so no difference' in page and page in capsys.readouterr().out
    assert 'runs_external_labels.md' in page and 'fewer than 95 %' not in page
    labels = pd.read_csv(tmp_path / 'runs_external_labels.csv').set_index('score')
    assert labels['difference'].notna().all() and {'Lung Opacity', 'Edema'} <= {*labels.index}
    assert labels[['patients_low', 'p']].isna().all(axis=None)
    assert 'No mean' not in (tmp_path / 'runs_external_labels.md').read_text()
    alone = pd.read_csv(tmp_path / 'runs_Edema.csv')
    assert alone['value'].tolist() == pytest.approx([labels.loc['Edema', OTHER]])
    assert not {*pd.read_csv(tmp_path / 'runs_scores.csv')['label']} & {*MEANS}
    assert score(own, data, tmp_path, '--scores', 'mean') == 2
    assert "both hospitals), got 'mean'" in capsys.readouterr().err


def test_the_means_of_both_hospitals_are_over_the_same_labels(own, other, tmp_path, monkeypatch):
    """Each hospital has a label with enough cases that has few cases in the other one."""
    monkeypatch.setattr('evaluation.metrics.FEW_CASES', 3)
    rare, both = 'Enlarged Cardiomediastinum', ['Lung Opacity', 'Edema']  # enough in the own one
    data = with_positives(other, tmp_path / 'second', {rare: 2, 'Cardiomegaly': 40})
    assert score(own, data, tmp_path) == 0
    (mean,) = pd.read_csv(tmp_path / 'runs_external.csv').to_dict('records')
    labels = pd.read_csv(tmp_path / 'runs_external_labels.csv').set_index('score')
    assert sorted(labels.index) == sorted(both)
    for column in (OWN, OTHER, 'difference'):
        assert mean[column] == pytest.approx(labels[column].mean())
    # A label that is asked for has its own scores, beside which no mean over more labels stands.
    assert score(own, data, tmp_path, '--scores', 'Cardiomegaly') == 0
    (line,) = pd.read_csv(tmp_path / 'runs_external.csv').to_dict('records')
    assert line['score'] == 'Cardiomegaly'
    assert line['difference'] == pytest.approx(line[OTHER] - line[OWN])
    assert not {*pd.read_csv(tmp_path / 'runs_scores.csv')['label']} & {*MEANS}


def test_a_call_with_another_score_removes_the_tables_of_the_former_one(own, other, tmp_path):
    """What the program has not written stays, even with the name of one of its tables."""
    assert score(own, other, tmp_path, '--scores', 'Lung Opacity') == 0
    former = {*tmp_path.glob('runs_Lung_Opacity*')}
    assert len(former) == 9, 'the score, groups and gaps as CSV, Markdown and LaTeX'
    (tmp_path / 'runs_Lung_Opacity_subgroups_2.tex').write_text('a page of groups')
    (tmp_path / 'runs_Edema.md').write_text('a table of the own hospital')
    (tmp_path / 'runs_notes.md').write_text('Scored on the second hospital: my notes')
    assert score(own, other, tmp_path) == 0
    left = {path.name for path in tmp_path.glob('*.*')}
    tables = ['external', 'external_labels', 'mean_of_defined', 'mean_of_defined_gaps']
    tables = [f'runs_{name}' for name in (*tables, 'mean_of_defined_subgroups')]
    wanted = {f'{name}.{suffix}' for name in tables for suffix in ('csv', 'md', 'tex')}
    assert left == wanted | {'runs_scores.csv', 'runs_Edema.md', 'runs_notes.md'}
