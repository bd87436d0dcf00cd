"""Write docs/reference/config.md: every option and flag, from their comments and defaults.

python scripts/config_reference.py            # after a change of an option or of config_flags.py
"""

import argparse
import ast
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import FLAG_KEYS, default_config, value_at

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('config.py', 'config_data.py', 'config_model.py', 'config_training.py')
NEW = '[CheXpert] '  # begins the comment of a key that SimMIM does not have
SECTIONS = {
    '': 'The run',
    'DATA': 'Data',
    'MODEL': 'Model',
    'MODEL.SWIN': 'Swin',
    'MODEL.VIT': 'ViT',
    'MODEL.TIMM': 'Models of timm',
    'MODEL.SIMMIM': 'Reconstruction',
    'MODEL.MAE': 'MAE',
    'TRAIN': 'Training',
    'TRAIN.LR_SCHEDULER': 'Schedule of the learning rate',
    'TRAIN.OPTIMIZER': 'Optimizer',
    'AUG': 'Augmentation',
    'TEST': 'Centre crop',
    'EVAL': 'Evaluation',
    'LOSS': 'Loss of the labels',
    'CONTRASTIVE': 'Contrastive pre-training',
    'FINETUNE': 'What is fine-tuned',
    'REPORT': 'Report',
}
HEADER = """# Options

Made by `python scripts/config_reference.py` from the comments and defaults of `config.py`,
`config_data.py`, `config_model.py` and `config_training.py`.

A run's options come from these defaults, then the `BASE` files of its YAML, the YAML (`--cfg`),
`--opts KEY VALUE ...`, and flags, each over the ones before. Keys and types are checked, and what
does not go together is refused before anything is built.

**Own** marks a key that SimMIM does not have. The other defaults are SimMIM's, but for two that say
so, and were made for ImageNet: the YAML files in `configs/` set what X-rays need.
"""

FLAGS = """## Flags of the mains

`--cfg FILE` is the run's YAML, `--opts KEY VALUE ...` sets options in pairs, and `--local_rank` is
accepted and ignored. The others are short for options:

"""


class Option(NamedTuple):
    """A key of the config."""

    key: str
    default: object
    meaning: str
    is_new: bool


def read_options(source: str) -> list[Option]:
    """The options that `source` sets, text of one of SOURCES, in its order.

    Raises:
        ValueError: if a key has no comment above it.
    """
    lines, options, defaults = source.splitlines(), [], default_config()
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
            continue
        key = ast.unparse(node.targets[0]).removeprefix('_C.')
        if ast.unparse(node.value) in ('CN()', key):
            continue
        start = node.lineno - 1
        while start and lines[start - 1].startswith('# '):
            start -= 1
        comment = ' '.join(line[2:] for line in lines[start : node.lineno - 1])
        if not comment:
            raise ValueError(f'{key} has no comment above it')
        default, is_new = value_at(defaults, key), comment.startswith(NEW)
        default = dict(default) if isinstance(default, dict) else default
        options.append(Option(key, default, comment.removeprefix(NEW), is_new))
    return options


def all_options() -> list[Option]:
    """The options of all SOURCES."""
    return [o for name in SOURCES for o in read_options((ROOT / name).read_text(encoding='utf-8'))]


def cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return str(text).replace('|', '\\|').replace('[', '\\[').replace('<', '&lt;')


def option_table(options: list[Option]) -> str:
    """A row an option."""
    rows = [
        f'| `{o.key}` {"**own** " if o.is_new else ""}| `{o.default!r}` | {cell(o.meaning)} |'
        for o in options
    ]
    return '\n'.join(['| key | default | meaning |', '| --- | --- | --- |', *rows])


def flag_table() -> str:
    """A row a flag that stands for an option."""
    rows = [f'| `--{dest.replace("_", "-")}` | `{key}` |' for dest, key in FLAG_KEYS.items()]
    return '\n'.join(['| flag | option that it sets |', '| --- | --- |', *rows])


def page() -> str:
    """The page.

    Raises:
        ValueError: if there is a section that SECTIONS does not name.
    """
    by_section = {}
    for option in all_options():
        by_section.setdefault(option.key.rpartition('.')[0], []).append(option)
    if unknown := set(by_section) - set(SECTIONS):
        raise ValueError(f'scripts/config_reference.py: SECTIONS lacks {sorted(unknown)}')
    parts = [HEADER, f'{FLAGS}{flag_table()}\n']
    for section, title in SECTIONS.items():
        heading = f'{title}: `{section}`' if section else title
        parts.append(f'## {heading}\n\n{option_table(by_section[section])}\n')
    return '\n'.join(parts)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write the reference of all options.')
    parser.add_argument('--output', type=Path, default=ROOT / 'docs' / 'reference' / 'config.md')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    text = page()
    args.output.write_text(text, encoding='utf-8')
    print(f'{args.output}: {text.count("| `")} options and flags')
    return 0


if __name__ == '__main__':
    raise SystemExit(main(parse_args()))
