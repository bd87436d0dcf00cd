"""Runs: settings and folder, the record `run.json`, and the differences between two runs."""

import contextlib
import json
import logging
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import (
    TRAINED,
    Config,
    config_changes,
    config_from_text,
    config_text,
    options_that_affect,
    put,
    value_at,
)
from logger import ScalarLog
from system.downloads import fetch, is_url, split_key
from system.files import BEST_CHECKPOINT, checksum_file, locked, replace_file, sha256

if TYPE_CHECKING:  # scripts that only read records do not need torch
    import numpy as np
    import torch

RECORD_FILE = 'run.json'
OPTIONS_FILE = 'config.yaml'
LOCK_FILE = 'run.lock'
LOCK_ATTEMPTS = 20
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run
EXIT_NOT_KEPT = 76  # stopped by a signal, and the same command begins again
ROOT = Path(__file__).resolve().parents[1]
SHOWN = 3  # maximum number of differences in an error message
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
        if done:
            self.options = self._options_of_scores()
        else:
            start['processes'] = self.facts['processes']
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

    def _options_of_scores(self) -> str:
        """Return the options of the training, and of the present scores and report."""
        file = self.folder / OPTIONS_FILE
        if not file.is_file():
            return self.options
        trained, now = config_from_text(file.read_text('utf-8')), config_from_text(self.options)
        for key in options_that_affect('scores'):
            put(trained, key, value_at(now, key), OPTIONS_FILE)
        return config_text(trained)

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


@dataclass
class Run:
    """A run of a main: options, folder, device, logs and record.

    `batch_rng` has the random numbers of the batch that is trained, see `loop.train_one_batch`.
    """

    config: Config
    stage: str
    folder: Path
    device: 'torch.device'
    logger: logging.Logger
    scalars: ScalarLog
    record: RunRecord = field(default_factory=RunRecord)
    batch_rng: 'np.random.Generator | None' = None

    @property
    def is_pretrain(self) -> bool:
        return self.stage in ('simmim', 'contrastive')

    def close(self, code: int) -> None:
        """Write the remaining metrics and the record. `code` is the exit code of the run."""
        self.scalars.close(code)
        self.record.save()


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
    for fact, compare in _COMPARISONS.items():
        if fact in before and fact in now and before[fact] != now[fact]:
            old, new = before[fact], now[fact]
            lines += compare(old, new) if compare else [f'{fact}: {old} -> {new}']
    return lines


def refuse_another_run(folder: Path, config: Config) -> None:
    """Refuse to start a run in the folder of another run, before anything is written.

    A run may resume with other options, and a finished run may be trained for more epochs, as long
    as the pre-trained weights and the options that affect the model, the patients and the outputs
    stay the same. If a finished run is started without more epochs, all options that change the
    trained model must stay the same.

    Raises:
        ValueError: If the folder contains another run or checkpoints that this run would not
            resume from, or its config.yaml cannot be read.
    """
    path, finished = folder / OPTIONS_FILE, is_finished(folder)
    has_regular, reason = any(folder.glob('ckpt_epoch_*.pth')), ''
    if has_regular and not config.TRAIN.AUTO_RESUME:
        reason = 'TRAIN.AUTO_RESUME is False'
    elif finished and not has_regular and (folder / BEST_CHECKPOINT).exists():
        reason = f'only {BEST_CHECKPOINT} was kept'
    if reason and not config.MODEL.RESUME:
        raise ValueError(
            f'{folder} has checkpoints from which this run would not resume, because {reason}: '
            'choose another --tag, or score the run with --eval'
        )
    resumes = config.TRAIN.AUTO_RESUME and has_regular
    if not path.is_file() or not (finished or resumes):
        return
    try:
        before = config_from_text(path.read_text('utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}): restore or remove the file') from error
    # More epochs continue a run; its learning rates may then change, but not what it learns.
    continues = not finished or config.TRAIN.EPOCHS > before.TRAIN.EPOCHS
    kept = ('model', 'outputs', 'patients') if continues else TRAINED
    changes = config_changes(config_text(before), config_text(config), *kept)
    changes = weights_changes(folder, config, before.PRETRAINED) + changes
    if changes:
        raise ValueError(
            f'{folder} contains another run ({"; ".join(changes[:SHOWN])}): choose another --tag '
            'or --output'
        )


def weights_changes(folder: Path, config: Config, before: str) -> list[str]:
    """List how PRETRAINED of a config differs from the initial weights of the run in a folder.

    `before` is PRETRAINED of that run. Files are compared by SHA-256. URLs are compared as text,
    because nothing is downloaded. The list is empty if the run began with a checkpoint, because
    the weights that this checkpoint started from are unknown.
    """
    given, record = config.PRETRAINED, known_record(folder)
    first = next(iter(record.get('starts', [])), {})
    if first.get('resumed_from'):
        return []
    starts_anew = not given and not config.MODEL.RESUME and record.get('pretrained')
    file, key = split_key(given)
    has_other_key = bool(given) and key != split_key(before)[1]
    if not has_other_key and (Path(file).is_file() or starts_anew):
        return run_changes(record, {'pretrained': weights_checksum(given)})
    # Downloading only to compare would take minutes at each start.
    is_other = has_other_key or (is_url(given) and before != given)
    return [f'PRETRAINED: {before or "none"} -> {given}'] if is_other else []


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


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[bool]:
    """Lock a run folder against other runs, see `system.files.locked`.

    Raises:
        ValueError: If another run is writing to the folder.
    """
    with contextlib.ExitStack() as stack:
        for attempt in range(LOCK_ATTEMPTS):
            try:
                is_safe = stack.enter_context(locked(folder / LOCK_FILE, wait=False))
                break
            except ValueError:  # `is_locked` holds the lock for a moment
                if attempt + 1 == LOCK_ATTEMPTS:
                    raise
                time.sleep(0.1)
        yield is_safe


def is_locked(folder: str | Path) -> bool:
    """Return whether another run is writing to this run folder."""
    path = Path(folder) / LOCK_FILE
    try:
        if path.exists():
            with locked(path, wait=False):
                pass
    except ValueError:
        return True
    except PermissionError:  # the folder belongs to another user
        pass
    return False


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
    """Describe the machine and the installed packages, without the names of host and user.

    Args:
        gpus: Names of the GPUs of all processes.
        threads: CPU threads of each process.
    """
    return {
        'python': platform.python_version(),
        'platform': platform.platform(),
        'cpu': _cpu_name(),
        'cpus': os.cpu_count(),
        'threads': threads,
        'gpus': list(gpus),
        'packages': _packages(),
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


def _changed_data(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if before['fingerprint'] == now['fingerprint']:
        return []
    old, new = before['files'], now['files']
    names = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    images = f'{before["images"]} -> {now["images"]} images'
    return [f'data: {", ".join(names) or "other images"} ({images})']


def _changed_environment(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = (
        {key: value for key, value in part.items() if key != 'packages'} | part.get('packages', {})
        for part in (before, now)
    )
    return [
        f'{key}: {old.get(key) or "none"} -> {new.get(key) or "none"}'
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


_COMPARISONS: dict[str, Callable[[Any, Any], list[str]] | None] = {
    'pretrained': lambda old, new: [
        f'PRETRAINED: SHA-256 {(old or "none")[:8]} -> {(new or "none")[:8]}'
    ],
    'code': None,  # the values
    'processes': None,
    'precision': None,
    'environment': _changed_environment,
    'data': _changed_data,
}


def _packages() -> dict[str, str | None]:
    """Return the installed version of each package in requirements.txt, or None if missing."""
    versions = {}
    for line in (ROOT / 'requirements.txt').read_text('utf-8').splitlines():
        if name := re.match(r'[\w.-]+', line):
            try:
                versions[name[0]] = metadata.version(name[0])
            except metadata.PackageNotFoundError:
                versions[name[0]] = None
    return versions


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        text = Path('/proc/cpuinfo').read_text('utf-8', errors='replace')
        if name := re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE):
            return name[1].strip()
    return platform.processor() or platform.machine()


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime())
