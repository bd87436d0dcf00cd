"""What is recorded of the run whose model is scored."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import config_with

from engine.lineage import Lineage, training
from engine.run_record import RunRecord
from evaluation.run_facts import BY_HAND, DOUBTS, ON_VALID, PRECISION, SEEN, SHARED, WEIGHTS
from evaluation.scored_run import facts_of, known_of

PATIENTS = {'train': ['1', '2'], 'test': ['3']}


def run_with(lineage: Lineage, **facts: object) -> SimpleNamespace:
    record = RunRecord()
    record.contents = facts
    device = torch.device('cpu')
    return SimpleNamespace(config=lineage.config, lineage=lineage, record=record, device=device)


def seen_of(lineage: Lineage) -> list[str] | None:
    doubts = known_of(run_with(lineage), lineage.config, 'a.pth', 'last', PATIENTS).doubts
    assert {*doubts} | {SEEN} == {*DOUBTS}
    return doubts.get(SEEN)


def test_of_weights_with_unknown_patients_nothing_is_said() -> None:
    config = config_with()
    assert seen_of(Lineage(config)) == []
    assert seen_of(Lineage(config, trainings=[training(config, None)])) is None
    leaking = Lineage(config, trainings=[training(config, None)], warnings=['may have seen'])
    assert seen_of(leaking) == ['may have seen']


@pytest.mark.parametrize('key', ['SELF_TRAIN_PREDICTIONS', 'PSEUDO_LABELS'])
def test_what_a_teacher_has_seen_counts_for_its_student(key: str, tmp_path: Path) -> None:
    file = tmp_path / 'teacher.csv'
    lineage = Lineage(config_with(**{f'DATA__{key}': str(file)}))
    assert seen_of(lineage) is None, 'the teacher has no record'
    for lines in ([], ['x was trained with them']):
        known = {'facts': {}, 'doubts': {SEEN: lines}}
        file.with_suffix('.json').write_text(json.dumps({'known': known}))
        assert seen_of(lineage) == [f'{file}, whose values were learned: {line}' for line in lines]


def test_doubts_are_those_of_splits_and_of_the_checkpoint() -> None:
    config = config_with(EVAL__SELECT_ON='valid')
    shared = {'train': ['007', '2'], 'test': ['7']}
    found = {
        chosen: known_of(run_with(Lineage(config)), config, source, chosen, shared).doubts
        for chosen, source in (('valid', 'ckpt_best.pth'), ('hand', 'ckpt_epoch_3.pth'))
    }
    assert all('1 patient(s) are in both train and test' in d[SHARED][0] for d in found.values())
    assert found['valid'][ON_VALID] and not found['valid'][BY_HAND]
    assert found['hand'][BY_HAND] and not found['hand'][ON_VALID]
    renamed = known_of(run_with(Lineage(config)), config, 'mine.pth', 'hand', shared).doubts
    assert renamed[ON_VALID] and renamed[BY_HAND], 'valid may have chosen it'


def test_the_precision_names_all_starts_and_that_of_the_scores() -> None:
    config = config_with(AMP_OPT_LEVEL='O0', AMP_TF32=True)
    record = {'precision': 'float32', 'pretrained': None}

    def precision(**more: object) -> str:
        given = record | more
        return facts_of(config, config, 'last', given, torch.device('cpu'))[PRECISION]

    assert precision() == 'float32'
    starts = [{'precision': 'float32'}, {'precision': 'bfloat16'}, {}]
    assert precision(starts=starts) == 'float32, then bfloat16, scored in float32'
    assert precision(environment={'gpus': ['A100']}) == 'float32 with TF32'
    facts = facts_of(config, config, 'last', {}, torch.device('cpu'))
    assert PRECISION not in facts and WEIGHTS not in facts, 'the run has no run.json'
