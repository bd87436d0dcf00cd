"""Where results come from: version of the code, `run.json` and `config.yaml` of a run's folder."""

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import as_trained, config_text
from data.labels import used_policies
from engine.files import sha256

if TYPE_CHECKING:
    from config import Config
    from data import Loaders
    from data.records import Records

RECORD_FILE = 'run.json'
OPTIONS_FILE = 'config.yaml'
REQUIREMENTS = Path(__file__).resolve().parents[1] / 'requirements.txt'
MACHINE = ('gpus', 'cpu', 'threads')  # of the environment: with the processes they set the speed
FORM = {
    'stage': str,
    'command': list,
    'code': str,
    'seed': int,
    'processes': int,
    'environment': dict,
    'data': dict,
    'pretrained': str | None,
    'starts': list,
    'finished': str | None,
    'seconds': int | float,
}


class RunRecord:
    """`run.json` of a run that trains: what was started, with what, on what data, and its end.

    With it `config.yaml` is written, once a start is accepted.

    Args:
        folder: the run's; None: nothing is recorded.
        facts: what is known when the process starts: stage, command, code, seed, processes,
            environment.
        logger: warned of what cannot be read or written; that never stops a run.
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
        self.contents: dict[str, Any] = {}  # of the file, once training has begun
        self.options = ''  # of config.yaml; none: it is not written
        self.pretrained = ''
        self.began = 0.0
        self.seconds_before = 0.0

    def describe(self, config: 'Config', loaders: 'Loaders') -> None:
        """Take down what will be trained and scored on, and which weights it begins with."""
        if self.folder is not None:
            self.facts['data'] = describe_data(config, loaders)
            self.options, self.pretrained = config_text(config), config.PRETRAINED

    def begin(self, checkpoint: str | Path | None, *, done: bool = False) -> None:
        """Write down a start: of a new run, or of one that goes on from a checkpoint.

        What a run began with stays; a start with other code or other data is warned of.

        Args:
            checkpoint: what the run goes on from.
            done: whether nothing is left to train: a finished run stays finished, and its options
                those that it was trained with.
        """
        if 'data' not in self.facts:
            return
        earlier = self._earlier() if checkpoint else {}
        weights = None if checkpoint else weights_checksum(self.pretrained)
        first = {**self.facts, 'pretrained': weights, **earlier}
        start = {
            'time': _now(),
            'code': self.facts['code'],
            'data': self.facts['data']['fingerprint'],
            'resumed_from': shown_checkpoint(self.folder, checkpoint) if checkpoint else None,
        }
        if done:
            self.options = self._options_as_trained()
        else:  # it trains: on what
            machine = self.facts.get('environment', {})
            start['processes'] = self.facts.get('processes', 1)
            start |= {key: machine.get(key) for key in MACHINE}
        self.seconds_before, self.began = earlier.get('seconds', 0), time.monotonic()
        self.contents = {key: first[key] for key in FORM if key in first} | {
            'starts': [*earlier.get('starts', []), start],
            'finished': earlier.get('finished') if done else None,
            'seconds': self.seconds_before,
        }
        changes = [*code_changes(first, self.facts), *data_changes(first, self.facts)]
        if changes:
            self.logger.warning(
                f'the run goes on with other code or data than it began with: {"; ".join(changes)}'
            )
        self._write()

    def finish(self) -> None:
        """Call the run finished, with all that it writes; `close` puts that into the file."""
        if self.contents:
            self.contents['finished'] = _now()

    def close(self) -> None:
        """Add the time since the start, however the run ends."""
        if self.contents:
            self.contents['seconds'] = self.seconds_before + time.monotonic() - self.began
            self._write()

    def _earlier(self) -> dict[str, Any]:
        try:
            return read_record(self.folder) or {}
        except ValueError as error:
            self.logger.warning(f'{error}; it is begun anew')
            return {}

    def _options_as_trained(self) -> str:
        with contextlib.suppress(OSError, ValueError):  # there are none, or they are damaged
            return as_trained((self.folder / OPTIONS_FILE).read_text('utf-8'), self.options)
        return self.options

    def _write(self) -> None:
        from engine.files import replace_file

        texts = {RECORD_FILE: json.dumps(self.contents, indent=1) + '\n'}
        if self.options:
            texts[OPTIONS_FILE] = self.options
        for name, text in texts.items():
            try:
                replace_file(self.folder / name, text.encode())
            except OSError as error:  # a full disk: training goes on
                path = self.folder / name
                self.logger.warning(f'{path} cannot be written ({error.strerror})')


def shown_checkpoint(folder: Path, checkpoint: str | Path) -> str:
    """The name of a checkpoint in a run's folder; of another the absolute path."""
    path = Path(checkpoint)
    if str(checkpoint).startswith('https://'):
        return str(checkpoint)
    if path.parent.resolve() == folder.resolve():
        return path.name
    return without_home(os.path.abspath(path))


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """What `run.json` in the folder of a run says; None where there is none.

    Raises:
        ValueError: if it is damaged.
    """
    path = Path(folder) / RECORD_FILE
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path} cannot be read: {" ".join(str(error).split()):.200}') from error
    if not isinstance(record, dict):
        raise ValueError(f'{path} is no record of a run: it holds no keys')
    for key, kind in FORM.items():
        if key in record and not isinstance(record[key], kind):
            raise ValueError(f'{path} is no record of a run: {key!r} is {record[key]!r:.100}')
    if not all(isinstance(start, dict) for start in record.get('starts', [])):
        raise ValueError(f"{path} is no record of a run: 'starts' holds other than starts")
    return record


def is_finished(folder: str | Path) -> bool:
    """Whether the run in this folder came to its end, scores and report included."""
    try:
        record = read_record(folder) or {}
    except ValueError:  # to start the run again mends it
        return False
    return record.get('finished') is not None


def code_version() -> str:
    """The commit of this code, 'with changes' if files differ from it; 'unknown' without git."""
    command = ['git', '-C', str(Path(__file__).resolve().parents[1]), 'describe', '--always', '--dirty', '--tags']
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return done.stdout.strip().replace('-dirty', ' with changes')


def environment(*, gpus: Iterable[str], threads: int) -> dict[str, Any]:
    """The machine and the programs that a run computes with; names no host and no user.

    Args:
        gpus: the name of each process's GPU; none on the CPU.
        threads: of each process.
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


def describe_data(config: 'Config', loaders: 'Loaders') -> dict[str, Any]:
    """A fingerprint of the data of a run; no image is opened or looked up.

    It covers the bytes of the tables that are read, and the names of the images that are trained,
    held out, selected and scored on. Of a packed store it covers `store.json`, which holds the
    checksums of the other files of the store. The pixels of images in files it does not cover.

    Returns:
        `fingerprint`, the SHA-256 of all of this; `files`, the SHA-256 of each table; `images`, how
        many different ones there are.
    """
    records = [loader.dataset.records for loader in loaders if loader is not None]
    paths = dict(_tables(config, records, is_pretrain=loaders.valid is None))
    files = {name: sha256(path) for name, path in sorted(paths.items())}
    images = sorted({os.fsencode(file) for part in records for file in part.file})
    total = hashlib.sha256(json.dumps(files).encode())
    for image in images:
        total.update(b'\0' + image)
    return {'fingerprint': total.hexdigest(), 'files': files, 'images': len(images)}


def weights_checksum(path: str) -> str | None:
    """The SHA-256 of pre-trained weights; None without a file, such as for an address."""
    return sha256(path) if path and Path(path).is_file() else None


def without_home(text: str) -> str:
    """A path or an argument with ~ in place of the user's own folder, which has the user's name."""
    return text.replace(f'{Path.home()}{os.sep}', f'~{os.sep}')


def code_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How the code differs between two records, in words; [] where it does not."""
    old, new = before.get('code'), now.get('code')
    return [f'code: {old} -> {new}'] if old != new else []


def data_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How the data differ between two records, in words; [] where they do not."""
    old, new = before.get('data', {}), now.get('data', {})
    if old.get('fingerprint') == new.get('fingerprint'):
        return []
    changes = []
    then, there = old.get('files', {}), new.get('files', {})
    for name in sorted({**then, **there}):
        if name not in there:
            changes.append(f'data: {name} is no longer read')
        elif name not in then:
            changes.append(f'data: {name} was not read')
        elif then[name] != there[name]:
            changes.append(f'data: {name} is another file')
    if old.get('images') != new.get('images'):
        changes.append(f'data: {old.get("images")} images -> {new.get("images")}')
    return changes or ['data: other images']


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How machine and programs differ between two records, in words; [] where they do not."""
    old, new = (
        {**record.get('environment', {}), 'processes': record.get('processes')}
        for record in (before, now)
    )
    then, there = (part.pop('packages', {}) for part in (old, new))
    changes = [
        f'{key}: {_words(old.get(key))} -> {_words(new.get(key))}'
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    return changes + [
        f'package {name}: {_words(then.get(name))} -> {_words(there.get(name))}'
        for name in {**then, **there}
        if then.get(name) != there.get(name)
    ]


def _words(value: object) -> str:
    return ', '.join(map(str, value)) or 'none' if isinstance(value, list) else str(value or 'none')


def _tables(
    config: 'Config', records: list['Records'], *, is_pretrain: bool
) -> Iterator[tuple[str, Path]]:
    """The files besides images that are read, by name."""
    from data.records import find_table
    from data.store import STORE_FILE, is_store

    data, root = config.DATA, records[0].root
    yield from ((part.csv, root / part.csv) for part in records if part.csv)
    if data.DATASET == 'mimic-cxr':
        yield from ((file.name, file) for kind in ('metadata', data.LABELLER)
                    for file in [find_table(root, kind)])  # fmt: skip
    if is_store(root):
        yield STORE_FILE, root / STORE_FILE
    if is_pretrain:
        return
    demographics = root / data.DEMOGRAPHICS
    if config.EVAL.GROUPS and demographics.is_file():
        yield data.DEMOGRAPHICS, demographics
    if any(policy.needs_predictions for policy in used_policies(config)):
        yield 'DATA.SELF_TRAIN_PREDICTIONS', Path(data.SELF_TRAIN_PREDICTIONS)
    if data.PSEUDO_LABELS:
        yield 'DATA.PSEUDO_LABELS', Path(data.PSEUDO_LABELS)


def _packages() -> dict[str, str | None]:
    """The versions of the packages of requirements.txt; None for one that is not there."""
    versions = {}
    for line in REQUIREMENTS.read_text(encoding='utf-8').splitlines():
        if name := re.match(r'[\w.-]+', line):
            try:
                versions[name[0]] = metadata.version(name[0])
            except metadata.PackageNotFoundError:
                versions[name[0]] = None
    return versions


def _cpu_name() -> str:
    try:
        text = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace')
    except OSError:  # no Linux
        text = ''
    name = re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _now() -> str:
    return time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime())
