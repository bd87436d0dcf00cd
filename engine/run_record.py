"""The record of a run, `run.json` and `config.yaml`, and the differences between two runs."""

import contextlib
import json
import logging
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from config import (
    Config,
    config_from_text,
    config_text,
    options_that_affect,
    put,
    value_at,
)
from system.downloads import fetch, is_url, split_key
from system.files import checksum_file, replace_file, sha256

RECORD_FILE = 'run.json'
OPTIONS_FILE = 'config.yaml'
ROOT = Path(__file__).resolve().parents[1]
EVALUATIONS = 'evaluations'  # key of run.json
HARDWARE = ('gpus', 'cpu', 'threads')  # facts about the environment recorded at each start


class RunRecord:
    """Writes `run.json` (command, code, data, starts and end of a run) and `config.yaml`.

    Problems with these files are logged and never stop a run. `facts` are known when the process
    starts. Without a folder, nothing is recorded.
    """

    def __init__(
        self,
        folder: Path | None = None,
        facts: dict[str, Any] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.folder = folder
        self.facts = facts or {}
        self.logger = logger
        self.contents: dict[str, Any] = {}  # contents of run.json, once training has begun
        self.options = ''  # contents of config.yaml
        self.pretrained = ''
        self.start_time = 0.0
        self.seconds_before = 0.0

    def describe(self, config: Config, fingerprint: Callable[[], dict[str, Any]]) -> None:
        """Store options, data and initial weights, without writing them yet.

        `fingerprint` describes the data, see `data.fingerprint.describe_data`.
        """
        if self.folder is not None:
            self.facts['data'] = fingerprint()
            self.options, self.pretrained = config_text(config), config.PRETRAINED

    def begin(self, checkpoint: str | Path | None, *, done: bool = False) -> None:
        """Record a start, and warn if code, data or precision changed since the first start.

        Args:
            checkpoint: Checkpoint that the run resumes from; None for a new run.
            done: Whether all epochs are already trained. In this case a finished run stays
                finished, and config.yaml keeps the options of the training and gets the
                options of the new scores.
        """
        if 'data' not in self.facts:
            return
        earlier = known_record(self.folder) if checkpoint else {}
        first = self.facts | earlier
        if not checkpoint:
            first['pretrained'] = weights_checksum(self.pretrained)
            if is_url(self.pretrained):
                first['pretrained_source'] = fetch(self.pretrained).source
        start = {
            'time': _now(),
            'code': self.facts['code'],
            'data': self.facts['data']['fingerprint'],
            'resumed_from': shown_checkpoint(self.folder, checkpoint) if checkpoint else None,
        }
        trained = self.folder / OPTIONS_FILE
        if done and trained.is_file():
            now = config_from_text(self.options)
            options = config_from_text(trained.read_text('utf-8'))
            for key in options_that_affect('scores'):
                put(options, key, value_at(now, key), OPTIONS_FILE)
            self.options = config_text(options)
        if not done:
            start |= {key: self.facts[key] for key in ('processes', 'precision')}
            start |= {key: self.facts['environment'].get(key) for key in HARDWARE}
        self.seconds_before, self.start_time = earlier.get('seconds', 0), time.monotonic()
        self.contents = first | {
            'starts': [*earlier.get('starts', []), start],
            'finished': earlier.get('finished') if done else None,
            'seconds': self.seconds_before,
        }
        now = {key: self.facts[key] for key in ('code', 'data', 'precision')}
        if changes := run_changes(first, now):
            self.logger.warning(f'changed since the first start: {"; ".join(changes)}')
        self._write()

    def finish(self) -> None:
        """Mark the run as finished, including all its files. `save` writes the record."""
        if self.contents:
            self.contents['finished'] = _now()

    def save(self) -> None:
        """Write the record with the time since the start, after each epoch and at the end."""
        if self.contents:
            self.contents['seconds'] = self.seconds_before + time.monotonic() - self.start_time
            self._write()

    def _write(self) -> None:
        # Evaluations of a checkpoint may have been noted since.
        if noted := known_record(self.folder).get(EVALUATIONS):
            self.contents[EVALUATIONS] = noted
        texts = {
            RECORD_FILE: json.dumps(self.contents, indent=1) + '\n',
            OPTIONS_FILE: self.options,
        }
        for name, text in texts.items():
            try:
                if text:
                    replace_file(self.folder / name, text)
            except OSError as error:
                self.logger.warning(f'{self.folder / name} cannot be written ({error.strerror})')


def note_evaluation(
    folder: Path, checkpoint: str | Path, splits: Iterable[str], logger: logging.Logger
) -> int:
    """Add a line about an evaluation (--eval) of a checkpoint to the run.json of its run.

    This is the run in the folder of the checkpoint, or else the one in the run folder. Whoever
    chooses between models after looking at their scores looks several times, which the lines show.

    Returns:
        The number of evaluations of the run, with this one; 0 if there is no run.json.
    """
    place = next((p for p in (Path(checkpoint).parent, folder) if known_record(p)), None)
    if place is None:
        return 0
    record = known_record(place)
    line = {
        'time': _now(),
        'code': code_version(),
        'checkpoint': shown_checkpoint(place, checkpoint),
        'splits': [*splits],
        'run': str(folder.name),
    }
    record[EVALUATIONS] = [*record.get(EVALUATIONS, []), line]
    try:
        replace_file(place / RECORD_FILE, json.dumps(record, indent=1) + '\n')
    except OSError as error:
        logger.warning(f'{place / RECORD_FILE} cannot be written ({error.strerror})')
    return len(record[EVALUATIONS])


def run_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List the differences between two runs. Without any, they count as the same run.

    Args:
        before: Facts about a run, such as the contents of run.json: `pretrained` (SHA-256 of the
            initial weights), `code`, `data` (see `data.fingerprint`), `processes`, `environment`.
        now: Facts about the other run. Only facts that exist for both runs are compared.

    Returns:
        One line for each difference.
    """
    lines = []
    different = {fact for fact in before.keys() & now.keys() if before[fact] != now[fact]}
    if 'pretrained' in different:
        old, new = (run['pretrained'] or 'none' for run in (before, now))
        lines.append(f'PRETRAINED: SHA-256 {old[:8]} -> {new[:8]}')
    for fact in ('code', 'processes', 'precision'):
        if fact in different:
            lines.append(f'{fact}: {before[fact]} -> {now[fact]}')
    if 'environment' in different:
        old, new = (
            {key: value for key, value in run['environment'].items() if key != 'packages'}
            | run['environment'].get('packages', {})
            for run in (before, now)
        )
        lines += [
            f'{key}: {old.get(key) or "none"} -> {new.get(key) or "none"}'
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    if 'data' in different and before['data']['fingerprint'] != now['data']['fingerprint']:
        old, new = before['data'], now['data']
        names = {**old['files'], **new['files']}
        changed = sorted(n for n in names if old['files'].get(n) != new['files'].get(n))
        images = f'{old["images"]} -> {new["images"]} images'
        lines.append(f'data: {", ".join(changed) or "other images"} ({images})')
    return lines


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """Read `run.json` in a run folder, or return None if it does not exist.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(folder) / RECORD_FILE
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error


def files_read(record: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the SHA-256 of each table that a run read, from the contents of its run.json."""
    return ((record or {}).get('data') or {}).get('files') or {}


def is_finished(folder: str | Path) -> bool:
    """Return whether the run in this folder has finished, including scores and report."""
    return known_record(folder).get('finished') is not None


def shown_checkpoint(folder: Path, checkpoint: str | Path) -> str:
    """Return the name of a checkpoint in the run folder, or the path or URL of another one."""
    path = Path(checkpoint)
    is_own = path.parent.resolve() == folder.resolve()
    return path.name if is_own else without_home(str(checkpoint))


def code_version() -> str:
    """Return the commit of this code, such as 'c0ffee with changes', or the wheel's version."""
    if not (ROOT / '.git').exists():  # the wheel may lie in another project's repository
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f'version {metadata.version("simmim-xray")}'
        return 'unknown'
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--tags']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return done.stdout.strip().replace('-dirty', ' with changes')


def environment(*, gpus: Iterable[str], threads: int) -> dict[str, Any]:
    """Describe the machine and the packages of requirements.txt, without names of host and user.

    Args:
        gpus: Names of the GPUs of all processes.
        threads: CPU threads of each process.
    """
    packages = {}
    for line in (ROOT / 'requirements.txt').read_text('utf-8').splitlines():
        if name := re.match(r'[\w.-]+', line):
            try:
                packages[name[0]] = metadata.version(name[0])
            except metadata.PackageNotFoundError:
                packages[name[0]] = None
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path('/proc/cpuinfo').read_text('utf-8', errors='replace')
        if name := re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE):
            cpu = name[1].strip()
    return {
        'python': platform.python_version(),
        'platform': platform.platform(),
        'cpu': cpu,
        'cpus': os.cpu_count(),
        'threads': threads,
        'gpus': list(gpus),
        'packages': packages,
    }


def processes_of(record: Mapping[str, Any]) -> int:
    """Return the number of processes of the last start that trained, as config.yaml assumes."""
    processes = record.get('processes', 1)
    for start in record.get('starts', []):
        processes = start.get('processes', processes)
    return processes


def weights_checksum(path: str) -> str | None:
    """Return the SHA-256 of pre-trained weights, or None if the file does not exist."""
    if is_url(path):
        return fetch(path).sha256
    path, _ = split_key(path)
    if not Path(path).is_file():
        return None
    # Computing the checksums of all runs of a sweep would take long.
    file = checksum_file(Path(path))
    known = file.read_text('utf-8', 'replace').split() if file.is_file() else []
    return known[0] if known else sha256(path)


def without_home(text: str) -> str:
    """Replace the home folder in a text by ~, because it often contains the user's name."""
    home = os.path.expanduser('~').rstrip(os.sep)  # may be '~' or '/' in containers
    return text.replace(f'{home}{os.sep}', f'~{os.sep}') if home else text


def known_record(folder: str | Path) -> dict[str, Any]:
    """Read `run.json`, or return {} if it is missing or damaged. The next start repairs it."""
    try:
        return read_record(folder) or {}
    except ValueError:
        return {}


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime())
