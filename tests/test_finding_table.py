"""The table of a binary task's study: what a run's files say, as Markdown and as CSV."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from config import CHOICES, PROBES, default_config
from sweeps.files import load_sweep, run_folder
from sweeps.results import MASKED, is_augmented, markdown, read_runs, write_csv

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {'AUTO_AUGMENT': 'none', 'COLOR_JITTER': 0.0, 'REPROB': 0.0, 'HFLIP': 0.0}
PLAIN |= {'CROP_AREA': [1.0, 1.0]}
PUBLISHED = [
    {
        'images': 1000,
        'model': 'MAE ViT-B',
        'augmented': True,
        'pretraining': 'MAE',
        'masked': 0.75,
        'accuracy': 0.71,
        'precision': 0.695,
        'f1': 0.739,
        'recall': 0.788,
        'auroc': 0.729,
    },
]


def score(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return {'value': value, 'low': low, 'high': high}


def scores() -> dict[str, dict]:
    """Of 4 true and 1 false positives, 2 false and 3 true negatives."""
    return {
        'auroc': score(0.8125, 0.55, 0.9996),
        'average_precision': score(0.111),
        'f1': score(8 / 11, 0.5, 0.9),
        'kappa': score(0.222),
        'accuracy': score(0.7, 0.4, 1.0),
        'precision': score(0.8),
        'recall': score(4 / 6, 0.25, 1.0),
        'specificity': score(0.333),
        'brier': score(0.444),
        'ece': score(0.555),
    }


def run(folder: Path, *, label: str = 'Any Finding', report: object = None, **sections) -> Path:
    """Write a run's config.yaml and report.json."""
    config = {
        'DATA': {'TASK': 'any_finding', 'TRAIN_IMAGES': 1000} | sections.pop('DATA', {}),
        'AUG': PLAIN | sections.pop('AUG', {}),
        'MODEL': {'TYPE': 'vit'},
    }
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config | sections))
    entry = {'label': label, 'n': 10, 'positives': 6, 'scores': scores()}
    other = entry | {'n': 5, 'scores': {name: score(0.999) for name in scores()}}
    valid = {'name': 'valid', 'level': 'study', 'views': 'all', 'labels': [other]}
    test = {'name': 'test', 'level': 'image', 'views': 'frontal', 'labels': [entry]}
    document = {'format': 1, 'sets': [valid, test]} if report is None else report
    (folder / 'report.json').write_text(json.dumps(document))
    return folder


def test_a_run_becomes_a_row_of_its_files(tmp_path: Path) -> None:
    folder = run(tmp_path / 'r')
    (row,) = read_runs([folder], masked=[0.75])
    assert row == {
        'images': 1000,
        'model': 'vit, width 768',
        'augmented': False,
        'pretraining': None,
        'masked': 0.75,
        'accuracy': score(0.7, 0.4, 1.0),
        'precision': score(0.8),
        'f1': score(8 / 11, 0.5, 0.9),
        'recall': score(4 / 6, 0.25, 1.0),
        'auroc': score(0.8125, 0.55, 0.9996),
        'label': 'Any Finding',
        'set': 'test',
        'n': 10,
        'positives': 6,
        'level': 'image',
        'views': 'frontal',
        'run': str(folder),
    }
    (row,) = read_runs([folder], masked=[None], split='valid')
    assert (row['auroc'], row['n'], row['level']) == (score(0.999), 5, 'study')
    assert row['masked'] is None


def pretraining(folder: Path, stage: str = 'simmim', **sections: dict) -> Path:
    """Write what a run of pre-training says of itself."""
    folder.mkdir(parents=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump({'TAG': 'a'} | sections))
    (folder / 'run.json').write_text(json.dumps({'stage': stage, 'finished': 'now'}))
    return folder


@pytest.mark.parametrize(
    'stage, sections, name',
    [
        ('simmim', {}, 'SimMIM'),
        ('simmim', {'MODEL': {'PRETRAIN': 'mae'}}, 'MAE'),
        ('contrastive', {}, 'MoCo v2'),
        ('contrastive', {'CONTRASTIVE': {'METHOD': 'swav'}}, 'SwAV'),
        ('contrastive', {'CONTRASTIVE': {'METHOD': 'byol'}, 'MODEL': {'PRETRAIN': 'mae'}}, 'BYOL'),
        ('finetune', {}, 'n/a'),
        (None, {}, 'n/a'),
    ],
)
def test_the_method_of_pretraining_is_that_of_its_run(
    tmp_path: Path, stage: str | None, sections: dict, name: str
) -> None:
    if stage:
        pretraining(tmp_path / 'before', stage, **sections)
    folder = run(tmp_path / 'r', PRETRAINED=str(tmp_path / 'before/ckpt_epoch_9.pth'))
    (row,) = read_runs([folder], masked=[None])
    assert row['pretraining'] == name
    other = pretraining(tmp_path / 'elsewhere', 'contrastive', CONTRASTIVE={'METHOD': 'simclr'})
    (row,) = read_runs([folder], masked=[None], pretraining=[other])
    assert row['pretraining'] == 'SimCLR'


def test_every_masked_pretraining_has_its_name() -> None:
    assert set(MASKED) == set(CHOICES['MODEL.PRETRAIN'])


def test_images_model_and_mode_come_from_the_config(tmp_path: Path) -> None:
    swin = {'TYPE': 'swin', 'SWIN': {'EMBED_DIM': 96}}
    tenth = {'TRAIN_IMAGES': 0, 'TRAIN_FRACTION': 0.1}
    folders = [
        run(tmp_path / 'a', DATA=tenth, MODEL=swin),
        run(tmp_path / 'b', DATA={'TRAIN_IMAGES': 0}, FINETUNE={'MODE': 'last_layer'}),
    ]
    first, second = read_runs(folders, masked=[0.5, None])
    assert (first['images'], first['model']) == ('10 %', 'swin, width 96')
    assert (second['images'], second['model']) == ('all', 'vit, width 768, last_layer')


@pytest.mark.parametrize(
    'key, value',
    [
        ('COLOR_JITTER', 0.2),
        ('REPROB', 0.1),
        ('HFLIP', 0.5),
        ('CROP_AREA', [0.5, 1.0]),
        ('CROP_AREA', []),
        ('ROTATION', 5.0),
        ('TRANSLATE', 0.1),
        ('SCALE', [0.9, 1.1]),
        ('SHEAR', 3.0),
        ('DISTORTION', 0.2),
        ('AUTO_AUGMENT', 'rand-m9-mstd0.5-inc1'),
    ],
)
def test_any_random_change_counts_as_augmentation(key: str, value: object) -> None:
    config = default_config()
    config.merge_from_other_cfg({'AUG': PLAIN})
    assert not is_augmented(config)
    config.AUG.SCALE = [1.0, 1.0]
    assert not is_augmented(config)
    config.AUG[key] = value
    assert is_augmented(config)
    for mode in PROBES:
        config.FINETUNE.MODE = mode
        assert not is_augmented(config)


def test_the_markdown_has_runs_and_published_rows(tmp_path: Path) -> None:
    first = run(tmp_path / 'r|<1>')
    second = run(tmp_path / 'two', AUG={'ROTATION': 9.0}, DATA={'TRAIN_IMAGES': 0})
    report = json.loads((second / 'report.json').read_text())
    for name in ('accuracy', 'precision', 'f1', 'recall'):  # no threshold
        report['sets'][1]['labels'][0]['scores'][name] = score(None)
    report['sets'][1]['labels'][0] |= {'n': 1200, 'positives': 1000}
    report['sets'][1]['level'] = 'study'
    (second / 'report.json').write_text(json.dumps(report))
    before = [pretraining(tmp_path / 'before'), None]
    rows = read_runs([first, second], masked=[0.25, None], pretraining=before)
    text = markdown(rows, PUBLISHED).replace(str(tmp_path), 'T').splitlines()
    assert text[0].startswith('Any Finding against No Finding.')
    header = (
        '| images | model | augmented | pre-training | masked | accuracy | precision | F1 | recall '
        '| AUC |'
    )
    assert text[2:6] == [
        header + ' n | run |',
        '|' + ' --- |' * 12,
        '| 1,000 | vit, width 768 | no | SimMIM | 0.25 | 0.700 (0.400 to 1.000) | 0.800 | '
        '0.727 (0.500 to 0.900) | 0.667 (0.250 to 1.000) | 0.812 (0.550 to 1.000) | '
        r'10 images (6 positive), frontal, test | T/r\|&lt;1> |',
        '| all | vit, width 768 | yes | - | - | n/a | n/a | n/a | n/a | 0.812 (0.550 to 1.000) | '
        '1,200 studies (1,000 positive), frontal, test | T/two |',
    ]
    assert text[7].startswith('Fradkin and Boxer 2023, as context only')
    assert text[9:] == [
        header,
        '|' + ' --- |' * 10,
        '| 1,000 | MAE ViT-B | yes | MAE | 0.75 | 0.710 | 0.695 | 0.739 | 0.788 | 0.729 |',
    ]
    assert markdown(rows).splitlines() == markdown(rows, PUBLISHED).splitlines()[:6]


def test_the_csv_has_exact_numbers_and_no_formulas(tmp_path: Path) -> None:
    rows = read_runs([run(tmp_path / 'r')], masked=[None])
    write_csv(tmp_path / 'table.csv', [dict(rows[0], run='=1+1')], PUBLISHED)
    with open(tmp_path / 'table.csv', newline='') as file:
        ours, theirs = csv.DictReader(file)
    assert ours['run'] == "'=1+1"
    assert list(ours)[:8] == [
        *('source', 'images', 'model', 'augmented', 'pretraining', 'masked'),
        *('accuracy', 'accuracy_low'),
    ]
    assert float(ours['f1']) == 8 / 11 and float(ours['auroc_high']) == 0.9996
    assert (ours['source'], ours['masked'], ours['precision_low'], ours['n']) == (
        *('run', '', '', '10'),
    )
    assert (theirs['source'], theirs['auroc'], theirs['auroc_low']) == ('published', '0.729', '')
    assert (theirs['masked'], theirs['run'], theirs['n']) == ('0.75', '', '')
    assert (ours['pretraining'], theirs['pretraining']) == ('', 'MAE')


def test_what_is_no_run_of_a_binary_task_is_refused(tmp_path: Path) -> None:
    good = run(tmp_path / 'good')

    def refusal(folder: Path, **options) -> str:
        with pytest.raises(ValueError) as error:
            read_runs([good, folder], masked=[None, 0.5], **options)
        return str(error.value).replace(str(tmp_path), 'T')

    assert 'no config file T/nothing/config.yaml' in refusal(tmp_path / 'nothing')
    folder = run(tmp_path / 'a')
    (folder / 'report.json').unlink()
    assert refusal(folder).startswith('T/a/report.json is missing')
    assert 'T/b/report.json is no report' in refusal(run(tmp_path / 'b', report=[]))
    assert 'T/c/report.json is no report' in refusal(run(tmp_path / 'c', report={'sets': [{}]}))
    observations = run(tmp_path / 'd', DATA={'TASK': 'observations'})
    assert refusal(observations) == (
        "T/d/config.yaml: DATA.TASK must be 'any_finding' or 'effusion', got 'observations'"
    )
    effusion = run(tmp_path / 'e', DATA={'TASK': 'effusion'}, label='Pleural Effusion')
    assert refusal(effusion) == (
        'T/e: DATA.TASK must be that of T/good (Any Finding), got Pleural Effusion'
    )
    assert refusal(run(tmp_path / 'f', label='Edema')) == (
        "T/f/report.json: the set 'test' has no label 'Any Finding', only Edema"
    )
    assert refusal(good, split='holdout') == (
        "T/good/report.json: there is no set 'holdout', only valid, test"
    )
    with pytest.raises(ValueError, match='one value a run, got 1 for 2 runs'):
        read_runs([good, good], masked=[None])


def test_the_script_prints_and_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = runpy.run_path(str(ROOT / 'scripts/finding_table.py'))
    runs = [str(run(tmp_path / 'a')), str(run(tmp_path / 'b', AUG={'HFLIP': 0.5}))]
    table = tmp_path / 'table.csv'
    given = [*runs, '--masked', '0.75', 'none', '--csv', str(table)]
    assert script['main'](script['parse_args'](given)) == 0
    printed = capsys.readouterr().out
    assert f'| {runs[0]} |' in printed and f'| {runs[1]} |' in printed
    # Fradkin and Boxer 2023.
    assert (
        '| 1,000 | MAE ViT-B | yes | MAE | 0.75 | 0.710 | 0.695 | 0.739 | 0.788 | 0.729 |'
        in printed
    )
    assert '| 10,000 | ResNet-18 | no | n/a | - | 0.743 | 0.759 | 0.788 | 0.819 |' in printed
    with open(table, newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['source'] for row in rows] == ['run'] * 2 + ['published'] * 12
    assert [row['masked'] for row in rows[:3]] == ['0.75', '', '0.25']
    effusion = run(tmp_path / 'e', DATA={'TASK': 'effusion'}, label='Pleural Effusion')
    assert script['main'](script['parse_args']([str(effusion), '--masked', 'none'])) == 0
    assert 'MAE ViT-B' not in capsys.readouterr().out
    assert script['main'](script['parse_args']([*runs, '--masked', 'none'])) == 2
    assert 'error: masked: give one value a run' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script['parse_args']([*runs, '--masked', '75'])
    assert "must be 'none' or between 0 and 1, got '75'" in capsys.readouterr().err


def test_the_runs_of_a_sweep_are_found_by_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = runpy.run_path(str(ROOT / 'scripts/finding_table.py'))
    sweep = load_sweep(ROOT / 'scripts/comparison/mae_resnet.yaml')
    rows = {row.name: row for row in sweep.rows}

    def finish(name: str, **sections: dict) -> None:
        folder = run(run_folder(tmp_path, 'finetune', rows[name], 1), **sections)
        (folder / 'run.json').write_text(json.dumps({'finished': 'now'}))

    before = run_folder(tmp_path, 'simmim', rows['mae_0.25_1000'], 1)
    pretraining(before, DATA={'MASK_RATIO': 0.25}, MODEL={'PRETRAIN': 'mae'})
    finish('mae_0.25_1000', AUG={'HFLIP': 0.5}, PRETRAINED='moved/since.pth')
    finish('resnet18_plain_10000', MODEL={'TYPE': 'timm'}, DATA={'TRAIN_IMAGES': 9999})
    run(run_folder(tmp_path, 'finetune', rows['resnet18_10000'], 0))  # is not finished
    words = ['--sweep', str(sweep.path), '--output', str(tmp_path), '--seeds', '2']
    assert script['main'](script['parse_args'](words)) == 0
    output = capsys.readouterr()
    printed = output.out.splitlines()
    own = [line for line in printed if str(tmp_path) in line]
    assert [line.split(' | ')[:5] for line in own] == [
        ['| 1,000', 'vit, width 768', 'yes', 'MAE', '0.25'],
        ['| 9,999', 'resnet50', 'no', '-', '-'],
    ]
    left_out = output.err.splitlines()
    assert len(left_out) == len(sweep.rows)
    assert left_out[0] == 'left out: mae_0.25_1000 seed 0, not finished'
    assert left_out[1] == 'left out: mae_0.5_1000 seeds 0, 1, not finished'
    assert 'left out: resnet18_10000 seeds 0, 1, not finished' in left_out
    assert own[0].endswith('simmim_finetune/mae_resnet_mae_0.25_1000_seed1 |')
    assert '| 1,000 | ResNet-18 | no | n/a | - | 0.685 | 0.667 | 0.722 | 0.788 | 0.734 |' in printed
    assert script['main'](script['parse_args']([*words[:-1], '1'])) == 2
    assert f'no fine-tuning of {sweep.path} is finished' in capsys.readouterr().err
    for wrong in ([], words[:2], [str(tmp_path), *words]):
        assert script['main'](script['parse_args'](wrong)) == 2
        assert 'with --masked, or --sweep with --output' in capsys.readouterr().err


def test_what_cannot_be_read_or_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = runpy.run_path(str(ROOT / 'scripts/finding_table.py'))
    sweep = load_sweep(ROOT / 'scripts/comparison/mae_resnet.yaml')
    row = next(row for row in sweep.rows if row.name == 'mae_0.25_1000')
    folder = run(run_folder(tmp_path, 'finetune', row, 0))
    (folder / 'run.json').write_text(json.dumps({'finished': 'now'}))
    words = ['--sweep', str(sweep.path), '--output', str(tmp_path), '--seeds', '1']
    assert script['main'](script['parse_args'](words)) == 2  # its pre-training was removed
    removed = run_folder(tmp_path, 'simmim', row, 0) / 'config.yaml'
    assert f"error: [Errno 2] No such file or directory: '{removed}'" in capsys.readouterr().err
    table = tmp_path / 'missing/table.csv'
    given = [str(folder), '--masked', '0.25', '--csv', str(table)]
    assert script['main'](script['parse_args'](given)) == 2
    said = capsys.readouterr()
    assert f'| {folder} |' in said.out
    assert said.err == f"error: [Errno 2] No such file or directory: '{table}'\n"


def test_the_table_needs_no_torch() -> None:
    code = "import sys, evaluation.finding_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
