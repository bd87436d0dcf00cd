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

Later sources override earlier ones: these defaults, `BASE` files, the YAML file (`--cfg FILE`),
`--opts KEY VALUE ...`, and the other flags. All are checked before anything is built. A file of
another stage is refused: `main_<stage>.py` uses the options of its stage. Where a meaning begins
with stages, only they use the option.

Defaults are SimMIM's and suit ImageNet; the files in `configs/` have values for X-rays. SimMIM does
not have the keys with a star. `python tools/config_reference.py` writes this page from `config.py`.

## Flags

`--local_rank` is ignored. Each other flag sets one option:
"""


def options_page() -> str:
    """Return the page as Markdown."""
    flags = [f'`--{flag.replace("_", "-")}` `{key}`' for flag, key in FLAG_KEYS.items()]
    chapters = [f'{HEADER}{", ".join(flags)}.']
    for section in dict.fromkeys(['', *(_section(key) for key in OPTIONS)]):
        rows = ['| key | default | meaning |', '| --- | --- | --- |']
        for key, option in OPTIONS.items():
            if _section(key) == section:
                star = '\\*' if isinstance(option, Own) else ''
                # Characters that Markdown or HTML would read as marks.
                meaning = (
                    option.meaning.replace('|', '\\|').replace('[', '\\[').replace('<', '&lt;')
                )
                stages = f'*{", ".join(option.stage)}*: ' if option.stage else ''
                meaning = f'{stages}{meaning}{_allowed(option)}'
                rows.append(f'| `{key}`{star} | `{option.default!r}` | {meaning} |')
        title = f'`{section}`' if section else 'Run'
        chapters.append('\n'.join([f'## {title}\n', *rows]))
    rows = [f'| `{old}` | {f"`{new}`" if new else "none"} |' for old, new in LEGACY_KEYS.items()]
    table = '\n'.join(['| key | replaced by |', '| --- | --- |', *rows])
    chapters.append(f'## Keys of SimMIM\n\n{table}')
    return '\n\n'.join(chapters) + '\n'


def _section(key: str) -> str:
    return key.partition('.')[0] if '.' in key else ''


def _allowed(option: Option) -> str:
    """Return the allowed values, unless the meaning has them or they are numbers without limit."""
    names = option.names
    if all(repr(name) in option.meaning for name in names):
        names = ()
    values = [f'`{name!r}`' for name in names]
    if option.within and not option.within.endswith('inf)'):
        values.append(f'`{option.within}`')
    if option.suffix:
        values.append(f'`*{option.suffix}`')
    return f' ({", ".join(values)})' if values else ''


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
