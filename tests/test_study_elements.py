"""The elements of the three studies: the page is current, and options have the stated values."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from config import load_yaml
from scripts.study_elements import (
    FACTS,
    PAGE,
    VERDICTS,
    Element,
    Place,
    Study,
    elements_page,
    main,
    parse_args,
    read_studies,
    wrong_values,
)

STUDIES = {study.name: study for study in read_studies()}


def with_place(study: str, place: Place) -> Study:
    """Return a study whose only element has this place."""
    element = Element('views', 'frontal', 'frontal', 'same', where=[place])
    return replace(STUDIES[study], elements={'Data': [element]})


def test_the_page_is_the_one_that_the_facts_make() -> None:
    written = PAGE.read_text(encoding='utf-8')
    assert written == elements_page([*STUDIES.values()]), 'run python scripts/study_elements.py'


@pytest.mark.parametrize('name', STUDIES)
def test_options_have_the_stated_values_in_the_runs_of_the_study(name) -> None:
    assert wrong_values(STUDIES[name]) == []
    places = [place for element in STUDIES[name].all_elements for place in element.where]
    assert sum(len(place.pretrain) + len(place.finetune) for place in places) > 30


@pytest.mark.parametrize(
    ('study', 'place', 'named'),
    [
        ('simmim', Place(finetune={'DATA.VIEWS': 'all'}), ['DATA.VIEWS', 'frontal']),
        ('simmim', Place(pretrain={'TRAIN.EPOCHS': 100}, scale='small'), ['TRAIN.EPOCHS', '40']),
        ('simmim', Place(pretrain={'MODEL.IN_CHANS': True}), ['MODEL.IN_CHANS', 'True']),
        ('simmim', Place(pretrain={'DATA.MASKTYPE': 'random'}), ['DATA.MASKTYPE', 'option']),
        ('simmim', Place(finetune={'DATA.VIEWS': 'all'}, rows=['sqare']), ['sqare', 'simmim.yaml']),
        ('contrastive', Place(pretrain={'SEED': 0}, rows=['resnet50']), ['pretrain', 'stage']),
        ('contrastive', Place(finetune={'TRAIN.EPOCHS': 10}, scale='small'), ['EPOCHS', '4']),
        ('mae_resnet', Place(weights='MAE_WEIGHTS', rows=['resnet*']), ['RESNET_WEIGHTS']),
        ('mae_resnet', Place(sweep={'split': 'test'}), ['split', 'valid']),
        ('mae_resnet', Place(sweep={'seeds': 2}), ['seeds', '3']),
    ],
)
def test_a_wrong_fact_is_reported_with_its_option_or_row(study, place, named) -> None:
    faults = wrong_values(with_place(study, place))
    assert faults and all(word in faults[0] for word in named)


def test_the_options_of_a_row_and_of_a_scale_override_the_file() -> None:
    mlp = Place(pretrain={'MODEL.SIMMIM.HEAD': 'mlp'}, rows=['mlp'])
    tiny = Place(finetune={'MODEL.TIMM.NAME': 'resnet18'}, rows=['moco'], scale='tiny')
    assert wrong_values(with_place('simmim', mlp)) == []
    assert wrong_values(with_place('contrastive', tiny)) == []


def test_the_summaries_count_the_verdicts_of_the_file() -> None:
    studies = load_yaml(FACTS.read_text(encoding='utf-8'))['studies'].values()
    counts = [
        Counter(entry['verdict'] for group in study['elements'].values() for entry in group)
        for study in studies
    ]
    counts.insert(0, sum(counts, Counter()))  # the page begins with all studies together
    page = PAGE.read_text(encoding='utf-8')
    shown = re.findall(r'(\d+) elements: (.*)\.', page)
    assert [int(total) for total, _ in shown] == [found.total() for found in counts]
    for (_, parts), found in zip(shown, counts, strict=True):
        assert parts == ', '.join(f'{found[verdict]} **{verdict}**' for verdict in VERDICTS)


@pytest.mark.parametrize(
    ('entry', 'named'),
    [
        ({'verdict': 'almost'}, 'almost'),
        ({'verdict': 'chosen'}, 'not stated'),
        ({'document': 'not stated'}, 'missing'),
        ({'documnet': 'frontal'}, 'documnet'),
        ({'where': [{'fine_tune': {}}]}, 'fine_tune'),
    ],
)
def test_a_faulty_element_is_refused_by_name(entry, named, tmp_path) -> None:
    views = {'element': 'views', 'document': 'frontal', 'here': 'frontal', 'verdict': 'same'}
    study = {'title': 'A', 'about': 'B', 'elements': {'Data': [views | entry]}}
    file = tmp_path / 'elements.yaml'
    file.write_text(yaml.safe_dump({'studies': {'simmim': study}}))
    with pytest.raises(ValueError, match=r'simmim: Data: views') as caught:
        read_studies(file)
    assert named in str(caught.value)


def test_a_wrong_value_keeps_the_page_and_ends_with_a_message(
    tmp_path, monkeypatch, capsys
) -> None:
    page, wrong = tmp_path / 'page.md', Place(finetune={'DATA.VIEWS': 'lateral'})
    monkeypatch.setattr(
        'scripts.study_elements.read_studies', lambda: [with_place('mae_resnet', wrong)]
    )
    monkeypatch.setattr('sys.argv', ['study_elements.py', '--output', str(page)])
    assert main(parse_args()) == 2
    assert 'DATA.VIEWS' in capsys.readouterr().err
    assert not page.exists()
