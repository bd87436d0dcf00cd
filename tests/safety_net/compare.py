"""Compare the runs that record.sh made with two checkouts: the largest difference in every file.

python tests/safety_net/compare.py BEFORE AFTER
"""

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Keys that differ between any two runs.
SKIPPED = re.compile(
    r'code$|checkpoint|^run$|time|second|per_s|memory|date|version|commit|path|wait'
)
STEP = re.compile(r'Train: \[(\d+)/\d+\]\[(\d+)/.*?loss ([-\d.enaif]+)')


def flatten(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if not SKIPPED.search(str(name).lower()):
                yield from flatten(item, f'{key}/{name}')
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from flatten(item, f'{key}/{i}')
    else:
        yield key, value


def values_of(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.log':
        return {f'{epoch}/{step}': float(loss) for epoch, step, loss in STEP.findall(text)}
    if path.suffix == '.csv':
        return dict(flatten([list(row) for row in csv.reader(text.splitlines())]))
    if path.suffix == '.jsonl':
        return dict(flatten([json.loads(line) for line in text.splitlines()]))
    return dict(flatten(json.loads(text)))


def compare(before: Path, after: Path) -> str:
    if not after.exists():
        return 'missing'
    old, new = values_of(before), values_of(after)
    largest, where, changed = 0.0, '', sorted(set(old) ^ set(new))
    for key in set(old) & set(new):
        try:
            difference = abs(float(old[key]) - float(new[key]))
        except (TypeError, ValueError):
            changed += [key] if str(old[key]) != str(new[key]) else []
            continue
        if difference > largest:
            largest, where = difference, key
    return (
        f'{len(old)} values, largest difference {largest:.3g} {where}, '
        f'other differences {len(changed)} {changed[:3] if changed else ""}'
    )


def main(before: Path, after: Path) -> int:
    patterns = ('*.log', 'runs/*/*/*.json*', 'runs/*/*/*.csv', 'evaluate/*.json', 'evaluate/*.csv')
    for path in sorted(path for pattern in patterns for path in before.glob(pattern)):
        if path.name != 'run.json':
            name = path.relative_to(before)
            sys.stdout.write(f'{name}: {compare(path, after / name)}\n')
    return 0


if __name__ == '__main__':
    sys.exit(main(*map(Path, sys.argv[1:])))
