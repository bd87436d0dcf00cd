"""The files that a sweep file stands for: a YAML per row and stage, a shell script per row."""

import os
from pathlib import Path
from typing import Any

import yaml

from sweeps.plan import (
    MAINS,
    MODEL_NAMES,
    ROOT,
    SECTIONS,
    SOFT_TARGETS,
    Row,
    Sweep,
    load_sweep,
    micro_batches,
    stage_title,
)
from sweeps.run_options import expected_config

FOLDER = ROOT / 'scripts' / 'ablations'
WRITTEN = 'Written by scripts/make_ablations.py.'

SCRIPT = """\
#!/usr/bin/env bash
{purpose}
#   bash {path} DATA OUTPUT [GPUS]
# SEED=1: another seed. PRETRAIN_OPTS, FINETUNE_OPTS: further options as 'KEY VALUE ...'.
# {weights}Started again after a stop, it goes on. {written}
set -euo pipefail
data=$(realpath "${{1:?usage: bash {path} DATA OUTPUT [GPUS]}}")
output=$(realpath -m "${{2:?usage: bash {path} DATA OUTPUT [GPUS]}}")
{start}gpus=${{3:-1}}
seed=${{SEED:-0}}
cd "$(dirname "$0")/{up}"
if [ -z "${{PYTHON:-}}" ] && [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
launch=("${{PYTHON:-python}}")
# On several GPUs each takes its share of the micro-batches of an optimizer step.
if [[ ! $gpus =~ ^[1-9][0-9]*$ ]] || {indivisible}; then
    echo "error: GPUS must {gpus}, got $gpus" >&2
    exit 2
fi
if [ "$gpus" -gt 1 ]; then
    launch+=(-m torch.distributed.run --standalone --nproc_per_node "$gpus")
fi
finished() {{ # whether a run came to its end
    grep -qs '"finished": "' "$1/run.json" && echo "finished before: $1"
}}
"""
TEACHER = """
# The targets of uncertain labels: what this run predicts on the training images.
SEED="$seed" bash {script} "$data" "$output" "$gpus"
"""
RUN = """
finished "$output/{folder}/{run}_seed$seed" || "${{launch[@]}}" {main} \\
    --cfg {config} \\
    --data-path "$data" --output "$output" --tag "{run}_seed$seed"{pretrained} \\
    --accumulation-steps $(({steps} / gpus)) --opts SEED "$seed"{soft_targets} ${{{options}:-}}
"""
WEIGHTS = """
pretrained=$output/simmim_pretrain/{run}_seed$seed
weights=$(cd "$pretrained" && ls -v ckpt_epoch_*.pth | grep -v _step_ | tail -n 1)"""


def sweep_files() -> list[Path]:
    return sorted(FOLDER.rglob('*.yaml'))


def all_files() -> dict[Path, str]:
    """Every file that the sweep files stand for, by path, as it should be."""
    files = {}
    for path in sweep_files():
        sweep = load_sweep(path)
        for row in sweep.rows:
            files.setdefault(script_path(sweep, row), script_text(sweep, row))
            for stage in row.stages:
                if row.changes(stage):
                    files[row.configs[stage]] = yaml_text(sweep, row, stage)
    return files


def script_path(sweep: Sweep, row: Row) -> Path:
    return sweep.path.parent / f'{row.run}.sh'


def yaml_text(sweep: Sweep, row: Row, stage: str) -> str:
    """A row's YAML of a stage: the reference's, and what is changed."""
    run = row.run_of(stage)
    base = sweep.reference.configs[stage].name
    nested: dict[str, Any] = {}
    for key, value in row.changes(stage).items():
        *sections, name = key.split('.')
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return (
        f'# bash {_shown(sweep.path.parent / f"{run}.sh")} DATA OUTPUT [GPUS]\n'
        f'# {sweep.title}: {row.name}. {WRITTEN}\n'
        f'BASE: [{base}]\n'
        f'{yaml.safe_dump(nested, sort_keys=False)}'
        f'TAG: {run}\n'
    )


def script_text(sweep: Sweep, row: Row) -> str:
    """The shell script of a row, which can be read alone."""
    path = script_path(sweep, row)
    steps = {stage: micro_batches(expected_config(sweep, row, stage)) for stage in row.stages}
    counts = sorted(set(steps.values()))
    shares = ' and '.join(map(str, counts))
    text = SCRIPT.format(
        purpose=_purpose(sweep, row),
        path=_shown(path),
        weights=f'{row.weights}: the checkpoint it starts from. ' if row.weights else '',
        start=f'start=$(realpath "${{{row.weights}:?names the checkpoint}}")\n'
        if row.weights
        else '',
        written=WRITTEN,
        up=os.path.relpath(ROOT, path.parent),
        indivisible=' || '.join(f'[ $(({n} % gpus)) -ne 0 ]' for n in counts),
        gpus='be 1 (one micro-batch a step)' if 1 in counts else f'divide {shares}',
    )
    if row.learns_from:
        text += TEACHER.format(script=_shown(path.with_name(f'{row.learns_from}.sh')))
    for stage in row.stages:
        text += _stage_text(row, stage, steps[stage])
    return text


def _stage_text(row: Row, stage: str, steps: int) -> str:
    pretrained = soft_targets = before = ''
    if stage == 'finetune' and row.pretrain is not None:
        before = WEIGHTS.format(run=row.pretrain_run)
        pretrained = ' \\\n    --pretrained "$pretrained/$weights"'
    elif row.weights:
        pretrained = ' \\\n    --pretrained "$start"'
    if stage == 'finetune' and row.learns_from:
        teacher = f'$output/simmim_finetune/{row.learns_from}_seed$seed'
        soft_targets = f' \\\n    {SOFT_TARGETS} "{teacher}/predictions_train.csv"'
    return before + RUN.format(
        main=MAINS[stage],
        folder=MODEL_NAMES[stage],
        config=_shown(row.configs[stage]),
        run=row.run_of(stage),
        pretrained=pretrained,
        soft_targets=soft_targets,
        steps=steps,
        options=f'{SECTIONS[stage].upper()}_OPTS',
    )


def _purpose(sweep: Sweep, row: Row) -> str:
    """The first lines of a script: what it runs, what is changed."""
    if row is sweep.reference:
        return '# The reference of the ablations: pre-training, then fine-tuning.'
    stages = ', then '.join(stage_title(stage) for stage in row.stages).capitalize()
    lines = [f'# {sweep.title}: {row.name}. {stages}.']
    for stage in row.stages:
        if changes := row.changes(stage):
            pairs = ', '.join(f'{key} {value}' for key, value in changes.items())
            lines.append(f'# Changed in {stage_title(stage)}: {pairs}.')
    return '\n'.join(lines)


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
