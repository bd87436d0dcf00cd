"""Write the YAML files and shell scripts of all ablations from scripts/ablations/*.yaml.

python scripts/make_ablations.py

Files that it wrote before and that no sweep file needs any more are removed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sweeps.files import FOLDER, ROOT, WRITTEN, all_files


def parse_args() -> argparse.Namespace:
    return argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()


def stale_files(wanted: set[Path]) -> list[Path]:
    """Files that were written before and are not needed any more."""
    found = [*FOLDER.rglob('*.sh'), *(ROOT / 'configs').glob('*__ablations/*.yaml')]
    return [path for path in found if path not in wanted and WRITTEN in path.read_text()]


def main(args: argparse.Namespace) -> int:
    try:
        files = all_files()
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for path, text in files.items():
        path.write_text(text)
    for path in (stale := stale_files(set(files))):
        path.unlink()
    print(f'{len(files)} files written, {len(stale)} removed')
    return 0


if __name__ == '__main__':
    sys.exit(main(parse_args()))
