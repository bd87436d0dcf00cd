"""What is recorded beside predictions, and what a reader of several runs is told of it."""

import json
from pathlib import Path

import pytest
from tiny import config_with, run_script

from config import config_text
from data.tables.predictions import write_predictions
from evaluation.notices import TOLD, notices
from evaluation.run_facts import (
    BY_HAND,
    DOUBTS,
    EPOCH,
    KNOWN,
    LABELS,
    MODE,
    ON_VALID,
    PRECISION,
    SEED,
    SEEN,
    SHARED,
    SIZE,
    WEIGHTS,
    Known,
    facts_of_options,
    known_of_run,
    may_be_equal,
    read_known,
)

CLEAN = {doubt: [] for doubt in DOUBTS}
FACTS_OF_A = {SEED: '0', SIZE: '224 px', PRECISION: 'bfloat16', LABELS: '100 % of the patients'}
FACTS_OF_A |= {EPOCH: 'held-out training patients', WEIGHTS: 'random', MODE: 'full'}


def known(doubts: dict = {}, **facts: str) -> list[Known]:  # noqa: B006
    names = {name.lower(): name for name in ('SEED', 'SIZE', 'PRECISION', 'LABELS', 'EPOCH')}
    changed = {globals()[names.get(key, key.upper())]: value for key, value in facts.items()}
    return [Known(FACTS_OF_A | changed, CLEAN | doubts)]


def texts(runs: dict, **options: int) -> list[str]:
    return [notice.text for notice in notices(runs, **options)]


def test_runs_without_doubts_or_differences_are_not_mentioned() -> None:
    runs = {(row, seed): known(seed=seed) for row in 'ab' for seed in '01'}
    assert notices(runs) == notices({('file', ''): known()}) == notices({}) == []


@pytest.mark.parametrize('doubt', DOUBTS)
def test_each_doubt_is_told_with_the_runs_that_have_it(doubt: str) -> None:
    runs = {(row, seed): known(seed=seed) for row in 'ab' for seed in '01'}
    runs['b', '1'] = known({doubt: ['3 of them']}, seed='1')
    (notice,) = notices(runs)
    assert notice.text == f'Warning: {doubt} (b with seed 1): 3 of them.'
    assert notice.short == f'Warning: {doubt} (b with seed 1).'


@pytest.mark.parametrize('fact', [SIZE, PRECISION, LABELS, EPOCH, MODE])
def test_each_fact_that_differs_is_told_with_its_values(fact: str) -> None:
    other = Known(FACTS_OF_A | {fact: 'other'}, CLEAN)
    runs = {('a', '0'): known(), ('b', '0'): [other], ('c', '0'): known(), ('d', '0'): [other] * 2}
    assert texts(runs) == [f'Different {fact}: {FACTS_OF_A[fact]} (a, c); other (b, d).']
    # A probe has no epoch, and the metadata baseline no input: this is no difference.
    assert texts(runs | {(row, '0'): [Known(FACTS_OF_A | {fact: ''}, CLEAN)] for row in 'bd'}) == []


def test_a_caption_says_all_but_only_where_it_names_all_others() -> None:
    runs = {(row, '0'): known() for row in 'abcdefghij'}
    runs |= {(row, '0'): [Known()] for row in 'abcd'}
    *_, notice = notices(runs)
    assert notice.short.startswith('Not recorded (a, b, c and 1 more): ')
    runs |= {(row, '0'): [Known()] for row in 'efg'}
    *_, notice = notices(runs)
    assert notice.short.startswith('Not recorded (all but h, i, j): ')


def test_runs_are_named_by_the_few_others_and_seeds_by_their_ranges() -> None:
    runs = {(row, str(seed)): known(seed=str(seed)) for row in 'abc' for seed in range(5)}
    runs |= {run: known(seed=run[1], size='384 px') for run in [('a', '4'), ('b', '4')]}
    assert texts(runs) == [
        f'Different {SIZE}: 224 px (a with seed 0 to 3, b with seed 0 to 3, c); '
        '384 px (a with seed 4, b with seed 4).'
    ]
    runs['b', '4'] = known(seed='4')
    assert texts(runs) == [
        f'Different {SIZE}: 224 px (all but a with seed 4); 384 px (a with seed 4).'
    ]


@pytest.mark.parametrize('mode', ['linear_probe', 'last_layer', 'full'])
@pytest.mark.parametrize('count', [1, 2, 3])
def test_few_draws_of_frozen_random_weights_are_told(mode: str, count: int) -> None:
    """Two draws of one network had .819 and .783 where methods differ by .02."""
    runs = {('own', str(seed)): known(seed=str(seed), mode=mode) for seed in range(count)}
    trained = {
        ('mae', str(seed)): [Known(FACTS_OF_A | {WEIGHTS: f'{seed}.pth', MODE: mode}, CLEAN)]
        for seed in range(count)
    }
    told = [text for text in texts(trained | runs) if 'frozen random' in text]
    wanted = f'{count} draw(s) of frozen random weights, and others may score otherwise'
    assert told == (
        [] if mode == 'full' or count == 3 else [f'{wanted}: take 3 seeds or more (own).']
    )
    assert not any('frozen random' in text for text in texts(runs))


def test_a_row_whose_folds_differ_is_in_each_value() -> None:
    runs = {('a', '0'): known() + known(size='384 px'), ('b', '0'): known()}
    assert texts(runs) == ['Different input size: 224 px (all); 384 px (a).']


def test_what_is_not_recorded_is_named_and_not_assumed() -> None:
    facts = {fact: value for fact, value in FACTS_OF_A.items() if fact != PRECISION}
    old = [Known(facts, {doubt: [] for doubt in (ON_VALID, BY_HAND)})]
    runs = {('a', '0'): old, ('b', '0'): known()}
    assert texts(runs) == [f'Not recorded with the predictions (a): {SHARED}, {SEEN}, {PRECISION}.']
    older = [Known({fact: value for fact, value in facts.items() if fact != SIZE}, old[0].doubts)]
    assert texts({('a', '0'): old, ('b', '0'): older}) == [
        f'Not recorded with the predictions (all): {SHARED}, {SEEN}, {PRECISION}.',
        f'Not recorded with the predictions (b): {SIZE}.',
    ]
    (notice,) = notices({('a', '0'): [Known()], ('b', '0'): [Known()]})
    assert notice.text.endswith(f'(all): {", ".join([*DOUBTS, *TOLD])}.')
    assert notice.short == f'Not recorded (all): {SHARED} and {len([*DOUBTS, *TOLD]) - 1} more.'


def test_seeds_are_counted_and_compared() -> None:
    runs = {('a', str(n)): known(seed=str(n)) for n in range(5)}
    runs |= {('b', str(n)): known(seed=str(n)) for n in range(2)}
    assert texts(runs, wanted=5) == [
        '5 of 5 seeds found: 0 to 4 (a); 2 of 5 seeds found: 0, 1 (b).'
    ]
    assert texts(runs) == ['5 seeds found: 0 to 4 (a); 2 seeds found: 0, 1 (b).']
    runs = {('a', n): known(seed=n) for n in ('3', '5', '6', '9')}
    assert texts(runs, wanted=10) == ['4 of 10 seeds found: 3, 5, 6, 9 (a).']
    files = {('a.csv', ''): known(), ('b.csv', ''): known(seed='1')}
    assert texts(files) == ['Different seed: 0 (a.csv); 1 (b.csv).']
    same = {('a', '0'): known(), ('a', '1'): known()}
    assert texts(same) == [
        '2 runs have 1 value(s) of SEED, so the interval over seeds is too narrow (a).'
    ]


def test_seeds_that_share_their_initial_weights_lack_a_variance() -> None:
    """With weights of their own, or none, they do not."""
    runs = {('a', str(n)): known(seed=str(n), weights='abc') for n in range(3)}
    runs |= {('b', str(n)): known(seed=str(n), weights=f'{n}') for n in range(3)}
    runs |= {('c', str(n)): known(seed=str(n)) for n in range(3)}
    assert texts(runs) == [
        '3 seeds start from 1 file(s) of weights, so the interval over seeds lacks the variance '
        'of pre-training (a).'
    ]
    runs = {
        ('a', n): known(seed=n, weights=weights) for n, weights in zip('0123', 'xxyy', strict=True)
    }
    assert '4 seeds start from 2 file(s) of weights' in texts(runs)[0]


def test_only_probes_of_equal_weights_may_predict_the_same_with_two_seeds() -> None:
    probe, other = known(mode='linear_probe', weights='a'), known(mode='knn', weights='b')
    assert may_be_equal(probe, probe) and may_be_equal([Known()], [Known()], 'metadata')
    assert not may_be_equal(probe, other) and not may_be_equal(known(), known())
    assert not may_be_equal([Known()], [Known()]) and not may_be_equal(probe, known())


def test_the_options_tell_the_share_of_labels_and_the_input_of_a_network() -> None:
    facts = facts_of_options(config_with(DATA__TRAIN_FRACTION=0.1, DATA__IMG_SIZE=384, SEED=7))
    assert (facts[LABELS], facts[SIZE], facts[SEED]) == ('10 % of the patients', '384 px', '7')
    few = {'DATA__TRAIN_IMAGES': 500, 'DATA__PSEUDO_LABELS': 'p.csv', 'FINETUNE__MODE': 'metadata'}
    facts = facts_of_options(config_with(**few))
    assert (facts[LABELS], facts[SIZE]) == ('500 images and pseudo-labels', '')


def save(file: Path, content: object) -> Path:
    options = {'paths': ['p1/s1/a.png', 'p2/s1/b.png'], 'labels': ['Edema']}
    file.parent.mkdir(exist_ok=True)
    write_predictions(file, [[0.1], [0.9]], source={KNOWN: content}, **options)
    return file


@pytest.mark.parametrize(
    'content',
    [
        None,
        [],
        'x',
        {'facts': [1], 'doubts': 3},
        {'facts': {SEED: 3, 'x': 'y'}, 'doubts': {SEEN: 1}},
    ],
)
def test_a_record_of_another_form_is_no_record(content: object, tmp_path: Path) -> None:
    assert read_known(save(tmp_path / 'a.csv', content)) == Known({}, {})
    (tmp_path / 'a.json').write_text('[' * 10**5)
    assert read_known(tmp_path / 'a.csv') == read_known(tmp_path / 'none.csv') == Known({}, {})


def test_an_older_run_tells_facts_by_its_own_files(tmp_path: Path) -> None:
    """Which patients its weights have seen is in none of them."""
    file = save(tmp_path / 'predictions_test.csv', None)
    config = config_with(SEED=4, DATA__IMG_SIZE=256, TAG='mine')
    (tmp_path / 'config.yaml').write_text(config_text(config))
    (tmp_path / 'run.json').write_text('{"precision": "float16", "pretrained": null}')
    facts, doubts = known_of_run(file)
    assert (facts[SEED], facts[SIZE], facts[PRECISION]) == ('4', '256 px', 'float16')
    assert facts[WEIGHTS] == 'random' and EPOCH not in facts and doubts == {}
    other = save(tmp_path / 'predictions_other.model.csv', None)
    assert known_of_run(other) == Known({}, {}), 'of a program that is not ours'


def test_predictions_of_another_run_in_a_run_folder_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / 'predictions_test.csv', {'facts': FACTS_OF_A, 'doubts': CLEAN})
    about = json.loads(file.with_suffix('.json').read_text()) | {'run': 'simmim_finetune/a_seed0'}
    file.with_suffix('.json').write_text(json.dumps(about))
    (tmp_path / 'run.json').write_text('{"precision": "float16"}')
    for tag in ('a_seed0', 'a_seed1'):
        config = config_with(TAG=tag, MODEL__NAME='simmim_finetune', SEED=7)
        (tmp_path / 'config.yaml').write_text(config_text(config))
        if tag == 'a_seed0':
            assert known_of_run(file).facts[SEED] == '0', 'that of its checkpoint'
    with pytest.raises(ValueError, match=r'predictions_test\.csv was written by .*/a_seed0'):
        known_of_run(file)


def test_a_comparison_of_files_tells_what_differs_also_in_latex(tmp_path: Path, capsys) -> None:
    files = [
        save(tmp_path / 'a.csv', {'facts': FACTS_OF_A, 'doubts': CLEAN}),
        save(tmp_path / 'b.csv', {
            'facts': FACTS_OF_A | {SIZE: '384 px', SEED: '1'},
            'doubts': CLEAN | {SEEN: ['w.pth was trained with 2 of the 2 patients of test']},
        }),
        save(tmp_path / 'c.csv', None),
    ]  # fmt: skip
    labels = tmp_path / 'labels.csv'
    labels.write_text('Path,Edema\np1/s1/a.png,0\np2/s1/b.png,1\n')
    words = ['--predictions', *files, '--labels', labels, '--output', tmp_path / 'out']
    assert run_script('evaluate', *words, '--resamples', 0) == 0
    wanted = [
        f'Warning: {SEEN} (b): w.pth was trained with 2 of the 2 patients of test.',
        'Different seed: 0 (a); 1 (b).',
        'Different input size: 224 px (a); 384 px (b).',
    ]
    report = json.loads((tmp_path / 'out/report.json').read_text())
    assert report['warnings'][:3] == [line.removeprefix('Warning: ') for line in wanted]
    assert report['warnings'][3].startswith('Not recorded with the predictions (c): ')
    shown, latex = capsys.readouterr().out, (tmp_path / 'out/report_scores.tex').read_text()
    assert all(line in latex and line.removeprefix('Warning: ') in shown for line in wanted)
    assert run_script('evaluate', *words[:2], *words[4:], '--resamples', 0) == 0
