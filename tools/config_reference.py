"""Write docs/reference/config.md: every option with its default, meaning and allowed values.

python tools/config_reference.py

The text comes from the declarations in config.py. Building the documentation
(mkdocs.yml) regenerates the page.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import FLAG_KEYS, LEGACY_KEYS, OPTIONS, Option, Own
from engine.run_record import ROOT
from system.files import replace_file

PAGE = 'reference/config.md'
HEADER = """# Options

`tools/config_reference.py` writes this page from the declarations in `config.py`.

Options come from these defaults, the `BASE` files of the YAML file, the YAML file (`--cfg`),
`--opts KEY VALUE ...` and the other flags. Each source overrides the previous ones. Keys, types and
combinations are checked before anything is built.

**Affects** says what changes with an option: `weights`, the `model` (what the same weights
compute), the `outputs` of a classifier, the `patients` who train, select and are scored, the
`selection` of a checkpoint, `scores`, or `nothing` of these. A run resumes with the same model,
outputs and patients.

**Own** marks a key that SimMIM does not have. All other defaults are SimMIM's and suit ImageNet.
The YAML files in `configs/` set values for X-rays.

## Flags

`--cfg FILE` is the YAML file of the run, `--opts KEY VALUE ...` sets pairs of key and value, and
`--local_rank` is accepted and ignored. Each of the other flags sets one option:

"""


def options_page() -> str:
    """Return the page as Markdown."""
    rows = [f'| `--{flag.replace("_", "-")}` | `{key}` |' for flag, key in FLAG_KEYS.items()]
    parts = [HEADER + '\n'.join(['| flag | option |', '| --- | --- |', *rows])]
    for section in dict.fromkeys(['', *(key.rpartition('.')[0] for key in OPTIONS)]):
        keys = [key for key in OPTIONS if key.rpartition('.')[0] == section]
        parts.append(f'## {f"`{section}`" if section else "Run"}\n\n{_option_table(keys)}')
    rows = [f'| `{old}` | {f"`{new}`" if new else "none"} |' for old, new in LEGACY_KEYS.items()]
    table = '\n'.join(['| key | replaced by |', '| --- | --- |', *rows])
    parts.append(f'## Keys of SimMIM and of earlier versions\n\n{table}')
    return '\n\n'.join(parts) + '\n'


def _option_table(keys: list[str]) -> str:
    rows = ['| key | default | allowed | affects | meaning |', '| --- ' * 5 + '|']
    for key in keys:
        option = OPTIONS[key]
        mark = ' **own**' if isinstance(option, Own) else ''
        cells = [
            f'`{key}`{mark}',
            f'`{option.default!r}`',
            _allowed(option),
            ', '.join(option.affects),
            _escaped(option.meaning),
        ]
        rows.append(f'| {" | ".join(cells)} |')
    return '\n'.join(rows)


def _allowed(option: Option) -> str:
    values = [f'`{value!r}`' for value in option.names]
    values += [f'`{option.within}`'] if option.within else []
    values += [f'a path that ends in `{option.suffix}`'] if option.suffix else []
    return ', '.join(values + (['`None`'] if values and option.or_none else []))


def _escaped(text: str) -> str:
    return text.replace('|', '\\|').replace('[', '\\[').replace('<', '&lt;')


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
