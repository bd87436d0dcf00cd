"""What is recorded of the run whose model is scored."""

import json
import logging
from pathlib import Path

import numpy as np
import torch
from tiny import config_with

from engine.lineage import Lineage, as_json, training
from evaluation.run_facts import BY_HAND, DOUBTS, ON_VALID, PRECISION, SEEN, SHARED, WEIGHTS
from evaluation.scored_run import facts_of, known_of
from system.downloads import LINEAGE

LOGGER = logging.getLogger('scored_run')
PATIENTS = {'train': ['1', '2'], 'test': ['3']}


def known_doubts(lineage: Lineage, source: str = 'a.pth', chosen: str = 'last', patients=PATIENTS):
    about = {'chosen': chosen, 'patients': patients, 'record': {}, 'device': torch.device('cpu')}
    return known_of(lineage, lineage.config, source, **about).doubts


def seen_of(lineage: Lineage) -> list[str] | None:
    doubts = known_doubts(lineage)
    assert {*doubts} | {SEEN} == {*DOUBTS}
    return doubts.get(SEEN)


def test_of_weights_with_unknown_patients_nothing_is_said() -> None:
    config = config_with()
    assert seen_of(Lineage(config)) == []
    assert seen_of(Lineage(config, trainings=[training(config, None)])) is None
    leaking = Lineage(config, trainings=[training(config, None)], warnings=['may have seen'])
    assert seen_of(leaking) == ['may have seen']


def test_what_a_teacher_has_seen_counts_for_its_student(tmp_path: Path) -> None:
    lineage = Lineage(config_with(), {'train': np.array([1]), 'test': np.array([3])})
    lineage.learn_from(str(tmp_path / 'foreign.csv'), LOGGER)
    assert seen_of(lineage) is None, 'the teacher has no record'
    file, about = tmp_path / 'teacher.csv', tmp_path / 'teacher.json'
    for learned, told in (([1], []), ([1, 3], ['1 of the 1 patients of test'])):
        entry = training(config_with(TAG='teacher'), np.array(learned))
        about.write_text(json.dumps({LINEAGE: as_json([entry])}))
        lineage = Lineage(lineage.config, lineage.patients)
        lineage.learn_from(str(file), LOGGER)
        wanted = f'the teacher of {file} was trained with %s, so their scores are too high'
        assert seen_of(lineage) == [wanted % count for count in told]


def test_doubts_are_those_of_splits_and_of_the_checkpoint() -> None:
    config = config_with(EVAL__SELECT_ON='valid')
    shared = {'train': ['007', '2'], 'test': ['7']}
    found = {
        chosen: known_doubts(Lineage(config), source, chosen, shared)
        for chosen, source in (('valid', 'ckpt_best.pth'), ('hand', 'ckpt_epoch_3.pth'))
    }
    assert all('1 patient(s) are in both train and test' in d[SHARED][0] for d in found.values())
    assert found['valid'][ON_VALID] and not found['valid'][BY_HAND]
    assert found['hand'][BY_HAND] and not found['hand'][ON_VALID]
    renamed = known_doubts(Lineage(config), 'mine.pth', 'hand', shared)
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
