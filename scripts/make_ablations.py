"""Write the YAML files and shell scripts of all ablations from scripts/ablations/*.yaml.

python scripts/make_ablations.py
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from sweeps.files import ROOT, Row, Sweep, load_sweep
from system.files import replace_files
from system.tool import tool

FOLDER = ROOT / 'scripts' / 'ablations'
WRITTEN = 'Written by scripts/make_ablations.py.'


def parse_args() -> argparse.Namespace:
    return argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()


def all_files() -> dict[Path, str]:
    """Return path and text of every file to write."""
    files: dict[Path, str] = {}
    for path in sorted(FOLDER.rglob('*.yaml')):
        sweep = load_sweep(path)
        for row in sweep.rows:
            files.setdefault(path.with_name(f'{row.run}.sh'), script_text(sweep, row))
            for stage in row.stages:
                if row.changes[stage]:
                    files[config_file(row, stage)] = yaml_text(sweep, row, stage)
    return files


def config_file(row: Row, stage: str) -> Path:
    """Return the YAML file for a stage of a row: the reference's, or one next to it."""
    reference = row.configs[stage]
    run = row.run if stage == 'finetune' else row.pretrain_run
    name = f'{reference.stem.rpartition("__")[0]}__{run}.yaml'
    return reference.with_name(name) if row.changes[stage] else reference


def script_text(sweep: Sweep, row: Row) -> str:
    """Return the shell script of a row, which calls the launcher."""
    path = sweep.path.with_name(f'{row.run}.sh')
    what = 'Reference' if row is sweep.reference else f'{sweep.title}: {row.name}'
    configs = ', '.join(config_file(row, stage).name for stage in row.stages)
    weights = f'{row.weights}=CKPT ' if row.weights else ''
    launcher = os.path.relpath(FOLDER / 'run_row.sh', path.parent)
    return (
        '#!/usr/bin/env bash\n'
        f'# {what} ({configs}). {weights}bash {_shown(path)} DATA OUTPUT [GPUS]. {WRITTEN}\n'
        f'exec bash "$(dirname "$0")/{launcher}" {_shown(sweep.path)} {row.name} "$@"\n'
    )


def yaml_text(sweep: Sweep, row: Row, stage: str) -> str:
    """Return the YAML file for a stage of a row: the reference as BASE, and the changed options."""
    run = row.run if stage == 'finetune' else row.pretrain_run
    nested: dict[str, Any] = {}
    for key, value in row.changes[stage].items():
        *sections, name = key.split('.')
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return (
        f'# bash {_shown(sweep.path.with_name(f"{run}.sh"))} DATA OUTPUT [GPUS]\n'
        f'# {sweep.title}: {row.name}. {WRITTEN}\n'
        f'BASE: [{row.configs[stage].name}]\n'
        f'{yaml.safe_dump(nested, sort_keys=False)}'
        f'TAG: {run}\n'
    )


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@tool
def main(args: argparse.Namespace) -> int:
    files = all_files()
    replace_files(files)
    print(f'{len(files)} files written')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
