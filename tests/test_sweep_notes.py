"""Notes below the table of a sweep: what a reader is told of its runs and figures."""

from copy import deepcopy

import pytest
from sweep_runs import collect_five

from sweeps.results import notes


@pytest.fixture(scope='module')
def collected(tmp_path_factory):
    return collect_five(tmp_path_factory.mktemp('runs'))


def test_notes_say_how_to_read_it(collected):
    text = ' '.join(notes(collected))
    for part in (
        'AUROC on test, study level, frontal views, n = 60 studies, selected checkpoint, 4',
        'not scored for want of both classes: Fracture',
        'mean of the visible pixels 43.50, interpolation 37.10',
        'random, units of 32 px, 30 of 49 = 61 %)',
        "Student's t",
        'over 200 paired resamples of the patients (seed 0)',
        'by Holm over the compared rows of the table, is below 0.05',
        'With 3 seeds the interval over seeds reaches 2.5 SD',
        '0.7 is not finished: seed 1 (pre-training missing, fine-tuning missing); seed 2',
        'Published, context only: top-1 on ImageNet, A and B 2020. Other data.',
    ):
        assert part in text, part
    assert notes(collected)[-1] == 'Not for clinical use.'
    patients = collected['rows'][0]['patients']
    assert f'selected checkpoint, {patients} patients' in text


def test_one_seed_is_said_to_show_nothing(collected):
    one = collected | {'seeds': [0]}
    assert any(note.startswith('One seed shows nothing') for note in notes(one))


def test_other_code_and_other_tables_are_told(collected):
    changed = deepcopy(collected)
    provenance = changed['rows'][0]['seeds'][0]['finetune']['provenance']
    provenance |= {'code': 'v9', 'tables': {'train.csv': 'other'}}
    text = ' '.join(notes(changed))
    assert 'The runs are of 2 versions of the code: v1-2-gabc, v9.' in text
    assert 'The runs have read 2 different files train.csv.' in text
    assert 'versions of the code' not in ' '.join(notes(collected))


@pytest.mark.parametrize(
    'keys, wanted',
    [
        (['MODEL.SIMMIM.LOSS'], ['a row of another loss']),
        (['DATA.MASK_TYPE'], ['A row whose own masks are nearest']),
        (['DATA.MASK_RATIO', 'MODEL.SIMMIM.LOSS'], ['a row of another', 'A row whose own masks']),
        (['MODEL.SIMMIM.HEAD'], []),
    ],
)
def test_notes_tell_whom_the_shared_error_favours(collected, keys, wanted):
    text = ' '.join(notes(collected | {'keys': {'pretrain': keys, 'finetune': []}}))
    assert [part in text for part in wanted] == [True] * len(wanted)
    assert text.count('a row of another') + text.count('A row whose own') == len(wanted)


def test_notes_tell_the_shared_masks_of_the_runs(collected):
    masks = {'unit_px': 8, 'hidden': 39, 'units': 64}
    assert '(random, units of 8 px, 39 of 64 = 61 %)' in ' '.join(
        notes(collected | {'reference_masks': masks})
    )
    text = ' '.join(notes(collected | {'reference_masks': None}))
    assert 'Held-out L1: none, for the masks that rows would share do not fit' in text


def test_notes_tell_what_was_trained(collected):
    assert notes(collected)[0] == (
        'The reference: pre-training of swin, width 96, blocks 2-2-6-2, 224 px, 1 channel; 300 '
        'epochs, 128 pictures a step, base rate 0.0005 per 512, DATA.TRAIN_FRACTION 1. Then '
        'fine-tuning of the same; 300 epochs, 128 pictures a step, base rate 0.0005 per 512, '
        'DATA.TRAIN_FRACTION 1.'
    )
    changed = deepcopy(collected)
    changed['trained']['finetune'] |= {
        'encoder': 'vit', 'width': 64, 'blocks': [12], 'image_px': 32, 'channels': 3, 'epochs': 1,
        'train_images': 100, 'mode': 'last_layer',
    }  # fmt: skip
    assert notes(changed)[0].endswith(
        'Then fine-tuning (last_layer) of vit, width 64, blocks 12, 32 px, 3 channels; 1 epoch, '
        '128 pictures a step, base rate 0.0005 per 512, DATA.TRAIN_IMAGES 100.'
    )
    changed['trained'] = {'pretrain': None, 'finetune': None}
    assert notes(changed)[0].startswith('AUROC on test')


@pytest.mark.parametrize(
    'key, trained, wanted',
    [
        ('DATA.TRAIN_FRACTION', {}, 'Checkpoint and thresholds are chosen on held-out patients '
         'with labels (DATA.HOLDOUT_FRACTION 0.02 of the patients), which are beside'),
        ('DATA.TRAIN_IMAGES', {'holdout_images': 75}, 'with labels (75 pictures), which'),
        ('DATA.TRAIN_IMAGES', {'select_on': 'valid'}, 'The checkpoint is chosen on valid, '
         'thresholds are chosen on held-out'),
        ('DATA.TRAIN_IMAGES', {'holdout_fraction': 0.0}, None),
        ('TRAIN.EPOCHS', {}, None),
    ],
)  # fmt: skip
def test_rows_of_few_labels_are_said_to_use_more(collected, key, trained, wanted):
    changed = deepcopy(collected) | {'keys': {'pretrain': [], 'finetune': [key]}}
    changed['trained']['finetune'] |= trained
    text = ' '.join(notes(changed))
    assert (wanted or 'no such note') in text or (
        wanted is None and 'held-out patients' not in text
    )
    assert ('has used more of them than its share' in text) == (wanted is not None)


def test_notes_tell_where_runs_are_not_what_the_files_say(collected):
    parts = [
        ('simmim', 'TRAIN.EPOCHS', '1', '40', []),
        ('simmim', 'DATA.TRAIN_IMAGES', '12', '0', []),
        ('finetune', 'AUG.HFLIP', '0.5', '0.0', ['swept_1_seed0', 'swept_1_seed1']),
    ]
    names = ('stage', 'key', 'found', 'expected', 'runs')
    changed = {'differences_from_files': [dict(zip(names, p, strict=True)) for p in parts]}
    assert (
        "The runs differ from the sweep's files in: TRAIN.EPOCHS 1 for 40, DATA.TRAIN_IMAGES 12 "
        'for 0 (pre-training); AUG.HFLIP 0.5 for 0.0 in swept_1_seed0, swept_1_seed1 (fine-tuning).'
    ) in notes(collected | changed)
    assert collected['differences_from_files'] == []
    assert 'differ from' not in ' '.join(notes(collected))
