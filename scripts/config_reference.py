"""Write docs/reference/config.md: every option with its default, meaning and allowed values.

python scripts/config_reference.py

The text comes from the comments in config.py, and the allowed values from the registries. Building
the documentation (mkdocs.yml) regenerates the page.
"""

import argparse
import ast
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import main_contrastive  # noqa: F401  (the mains import every module that has a registry)
import main_finetune  # noqa: F401
import main_simmim  # noqa: F401
from config import FLAG_KEYS, LEGACY_KEYS, allowed_values, default_config, value_at
from engine.files import replace_file
from engine.run_record import ROOT

PAGE = 'reference/config.md'
NEW = '[CheXpert] '  # marks a key that SimMIM does not have
HEADER = """# Options

`scripts/config_reference.py` writes this page from the comments in `config.py`.

Options come from these defaults, the `BASE` files of the YAML file, the YAML file (`--cfg`),
`--opts KEY VALUE ...` and the other flags. Each source overrides the previous ones. Keys, types and
combinations are checked before anything is built.

**Own** marks a key that SimMIM does not have. All other defaults are SimMIM's and suit ImageNet.
The YAML files in `configs/` set values for X-rays.

## Flags

`--cfg FILE` is the YAML file of the run, `--opts KEY VALUE ...` sets pairs of key and value, and
`--local_rank` is accepted and ignored. Each of the other flags sets one option:

"""


class Option(NamedTuple):
    """One key of the config."""

    key: str
    default: Any
    meaning: str
    is_new: bool


def read_options(source: str) -> list[Option]:
    """Read the options from the source of config.py, in order."""
    lines, options, defaults = source.splitlines(), [], default_config()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        key = ast.unparse(node.targets[0]).removeprefix('_C.')
        if ast.unparse(node.value) == 'CN()':
            continue
        start = node.lineno - 1
        while lines[start - 1].startswith('# '):
            start -= 1
        comment = ' '.join(line[2:] for line in lines[start : node.lineno - 1])
        default = value_at(defaults, key)
        default = dict(default) if isinstance(default, dict) else default
        options.append(Option(key, default, comment.replace(NEW, ''), comment.startswith(NEW)))
    return options


def options_page() -> str:
    """Return the page as Markdown."""
    rows = [f'| `--{flag.replace("_", "-")}` | `{key}` |' for flag, key in FLAG_KEYS.items()]
    parts = [HEADER + '\n'.join(['| flag | option |', '| --- | --- |', *rows])]
    by_section: dict[str, list[Option]] = {'': []}
    for option in read_options((ROOT / 'config.py').read_text(encoding='utf-8')):
        by_section.setdefault(option.key.rpartition('.')[0], []).append(option)
    for section, options in by_section.items():
        parts.append(f'## {f"`{section}`" if section else "Run"}\n\n{_option_table(options)}')
    rows = [f'| `{old}` | {f"`{new}`" if new else "none"} |' for old, new in LEGACY_KEYS.items()]
    table = '\n'.join(['| key | replaced by |', '| --- | --- |', *rows])
    parts.append(f'## Keys of SimMIM and of earlier versions\n\n{table}')
    return '\n\n'.join(parts) + '\n'


def _option_table(options: list[Option]) -> str:
    rows = ['| key | default | meaning |', '| --- | --- | --- |']
    for option in options:
        meaning = option.meaning
        if allowed := allowed_values(option.key):
            meaning += f' Allowed: {", ".join(f"`{value!r}`" for value in allowed)}.'
        meaning = meaning.replace('|', '\\|').replace('[', '\\[').replace('<', '&lt;')
        mark = ' **own**' if option.is_new else ''
        rows.append(f'| `{option.key}`{mark} | `{option.default!r}` | {meaning} |')
    return '\n'.join(rows)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """MkDocs hook: return the current page of options instead of the file's text."""
    return options_page() if page.file.src_uri == PAGE else markdown


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=ROOT / 'docs' / PAGE, help='page to write')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    replace_file(args.output, options_page())
    print(args.output)
    return 0


if __name__ == '__main__':
    raise SystemExit(main(parse_args()))
