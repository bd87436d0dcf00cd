"""What a reader of several runs must know of them: doubts, differences, and what is not recorded.

`notices` alone decides what tables, figures, reports and comparisons say about the facts of runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from config import PROBES
from evaluation.run_facts import COMPARED, DOUBTS, MODE, RANDOM, SEED, WEIGHTS, Known

# Fact -> what follows if several seeds of a row share a value of it.
DEPENDENT = {
    SEED: '{} runs have {} value(s) of SEED, so the interval over seeds is too narrow',
    WEIGHTS: '{} seeds start from {} file(s) of weights, so the interval over seeds lacks the '
    'variance of pre-training',
}
# Facts of which a reader is told if they are not recorded. The trained part is recorded with all
# others, and which rows of a study are probes stands in their names.
TOLD = (SEED, *(fact for fact in COMPARED if fact != MODE), WEIGHTS)
# Of an encoder with random weights that is not trained, one draw can be far better than another.
FEW_DRAWS = 3
DRAWS = '{} draw(s) of frozen random weights, and others may score otherwise: take {} seeds or more'
WARNING = 'Warning: '
SHOWN = 3  # sentences of a doubt in a table, and names in a caption


class Notice(NamedTuple):
    """What a reader must know: in the caption of a figure, and below a table."""

    short: str
    text: str


Run = tuple[str, str]  # row, or name of a file, and seed, '' if unknown


def notices(runs: Mapping[Run, Sequence[Known]], *, wanted: int = 0) -> list[Notice]:
    """Say which doubts there are about some runs, which facts differ, and which are not recorded.

    Args:
        runs: (row, seed) -> what is known of the run, or of each of its folds.
        wanted: Number of seeds that each row should have; 0 if any number will do.
    """
    found = [*_doubts(runs), *_differences(runs), *_about_seeds(runs, wanted)]
    for of_runs, (first, *others) in _missing(runs).items():
        rest = f' and {len(others)} more' if others else ''
        short = f'Not recorded{_of(of_runs, runs, SHOWN)}: {first}{rest}.'
        words = f'Not recorded with the predictions{_of(of_runs, runs)}'
        found.append(Notice(short, f'{words}: {", ".join([first, *others])}.'))
    return found


def as_warnings(texts: Iterable[str]) -> list[str]:
    """Return texts of notices for a list whose heading or prefix says that they are warnings."""
    return [text.removeprefix(WARNING) for text in texts]


def _missing(runs: Mapping[Run, Sequence[Known]]) -> dict[tuple[Run, ...], list[str]]:
    """Group the doubts and facts that are not recorded by the runs that lack them."""
    groups: dict[tuple[Run, ...], list[str]] = {}
    for name in (*DOUBTS, *TOLD):
        lacking = tuple(
            run
            for run, parts in runs.items()
            if any(name not in {*part.doubts, *part.facts} for part in parts)
        )
        if lacking:
            groups.setdefault(lacking, []).append(name)
    return groups


def _doubts(runs: Mapping[Run, Sequence[Known]]) -> Iterable[Notice]:
    for doubt in DOUBTS:
        lines: dict[str, list[Run]] = {}
        for run, parts in runs.items():
            for line in (line for part in parts for line in part.doubts.get(doubt, ())):
                lines.setdefault(line, []).append(run)
        if lines:
            doubtful = [run for of_line in lines.values() for run in of_line]
            short = f'{WARNING}{doubt}{_of(doubtful, runs, SHOWN)}.'
            rest = f'; and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''
            shown = '; '.join(line.rstrip('.') for line in [*lines][:SHOWN])
            yield Notice(short, f'{WARNING}{doubt}{_of(doubtful, runs)}: {shown}{rest}.')


def _differences(runs: Mapping[Run, Sequence[Known]]) -> Iterable[Notice]:
    are_files = not any(seed for _, seed in runs)
    for fact in (*((SEED,) if are_files else ()), *COMPARED):
        values: dict[str, list[Run]] = {}
        for run, parts in runs.items():
            for value in dict.fromkeys(part.facts.get(fact, '') for part in parts):
                values.setdefault(value, []).append(run)
        values.pop('', None)
        if len(values) > 1:
            yield _notice(f'Different {fact}: ', values, runs)


def _about_seeds(runs: Mapping[Run, Sequence[Known]], wanted: int) -> Iterable[Notice]:
    """Say which rows lack seeds, have other seeds, or have seeds that are not independent."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run[0], []).append(run)
    found: dict[str, list[Run]] = {}  # words -> runs
    seeds: dict[str, list[Run]] = {}
    for own in rows.values():
        is_random = all(_is_random_and_frozen(part) for run in own for part in runs[run])
        if is_random and len(own) < FEW_DRAWS and len(rows) > 1:
            found.setdefault(DRAWS.format(len(own), FEW_DRAWS), []).extend(own)
        seeds.setdefault(_ranges([seed for _, seed in own]), []).extend(own)
        for fact, words in DEPENDENT.items():
            values = [{part.facts.get(fact, '') for part in runs[run]} for run in own]
            known = [value for value in values if not value & {'', RANDOM}]
            kinds = len({*map(frozenset, known)})
            if kinds < len(known):
                found.setdefault(words.format(len(known), kinds), []).extend(own)
    fewest = min(map(len, rows.values()), default=0)
    if len(seeds) > 1 or fewest < wanted:
        most = f' of {wanted}' if fewest < wanted else ''
        counted = {}
        for numbers, of_runs in seeds.items():
            count = len(rows[of_runs[0][0]])
            word = 'seed' if count == 1 and not most else 'seeds'
            counted[f'{count}{most} {word} found: {numbers}'] = of_runs
        yield _notice('', counted, runs)
    for words, of_runs in found.items():
        yield _notice('', {words: of_runs}, runs)


def _is_random_and_frozen(part: Known) -> bool:
    return part.facts.get(WEIGHTS) == RANDOM and part.facts.get(MODE) in {*PROBES, 'last_layer'}


def _ranges(seeds: Sequence[str]) -> str:
    """Return seeds as text, such as '0 to 4, 7'."""
    numbers = sorted(int(seed) for seed in seeds if seed)
    words = []
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        own = [number for _, number in group]
        words += map(str, own) if len(own) < 3 else [f'{own[0]} to {own[-1]}']
    return ', '.join(words)


def _notice(start: str, words: Mapping[str, Sequence[Run]], runs: Iterable[Run]) -> Notice:
    """Return a notice with some words, each about other runs."""
    short, text = (
        '; '.join(f'{word}{_of(of_runs, runs, most)}' for word, of_runs in words.items())
        for most in (SHOWN, None)
    )
    return Notice(f'{start}{short}.', f'{start}{text}.')


def _of(chosen: Sequence[Run], runs: Iterable[Run], most: int | None = None) -> str:
    """Name runs in brackets, or "all but" the others if these are few.

    Return '' if the runs have no names.
    """
    everyone = [*runs]
    names, others = _names(chosen, everyone), _names([*{*everyone} - {*chosen}], everyone)
    if not any(names):
        return ''
    if not others and len(names) > 1:
        return ' (all)'
    few = min(most or len(names), (len(names) - 1) // 2)
    but = 'all but ' if 0 < len(others) <= few else ''
    shown = others if but else names
    rest = f' and {len(shown) - most} more' if most and len(shown) > most else ''
    return f' ({but}{", ".join(shown[:most])}{rest})'


def _names(chosen: Sequence[Run], runs: Sequence[Run]) -> list[str]:
    """Return the names of the rows of some runs, with their seeds where a row has others, too."""
    names = []
    for row in dict.fromkeys(row for row, _ in runs):
        seeds = [run[1] for run in runs if run[0] == row]
        own = [seed for seed in seeds if (row, seed) in chosen]
        if own:
            names.append(row if own == seeds else f'{row} with seed {_ranges(own)}')
    return names
