"""Where results come from: the version of the code that made them."""

import subprocess
from pathlib import Path


def code_version() -> str:
    """The commit of this code, 'with changes' if files differ from it; 'unknown' without git."""
    command = ['git', '-C', str(Path(__file__).parent), 'describe', '--always', '--dirty', '--tags']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return done.stdout.strip().replace('-dirty', ' with changes')
