"""A process that is attacked, and the one that watches it.

python tests/fuzz/fuzz_worker.py TARGET INDEX FOLDER repeats one attack; its files stay in FOLDER.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
SECONDS = 5.0  # of processor time that an attack may take: others may keep the machine busy
WALL_SECONDS = 120.0
MEMORY = 2**31  # that it may add to what the process takes
ADDRESSES = 2**32
MOST_CHARACTERS = 6000  # of a message
OUTCOMES = ('ok', 'refused', 'foreign error', 'bad message', 'memory', 'wrote', 'hang', 'crash')

CHANGES = {'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod'}
CHANGES |= {'os.truncate', 'shutil.rmtree', 'shutil.move', 'os.chown', 'os.utime'}
RUNS = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'socket.connect')


class Watch:
    """What the process does to files outside a folder, and what it starts."""

    def __init__(self, base: Path) -> None:
        self.base = os.path.realpath(base) + os.sep
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(RUNS):
            self.seen.append(f'{event} {args!r:.200}')
            return
        writes = event in CHANGES
        if event == 'open':
            _, mode, flags = args
            writes = bool(set(mode or '') & set('wxa+') or (flags or 0) & (os.O_WRONLY | os.O_RDWR))
        if writes and isinstance(args[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(self.base) and path != '/dev/null':
                self.seen.append(f'{event} {path}')


class Attacked:
    """The attacked side."""

    def __init__(self, base: Path) -> None:
        from fuzz_corpus import Corpus
        from fuzz_targets import TARGETS

        self.targets, self.base, self.corpus = TARGETS, base, Corpus(base / 'corpus')
        self.watch = Watch(base)

    def run(self, target: str, index: int, folder: Path) -> tuple[str, str]:
        """Outcome and what is to be said of it."""
        import numpy as np

        rng = np.random.default_rng([SEED, zlib.crc32(target.encode()), index])
        folder.mkdir(parents=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            self.targets[target](self.corpus, rng, folder)
            outcome, detail = 'ok', ''
        except BaseException as error:
            outcome, detail = judge(error, folder)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if more > MEMORY:
            outcome, detail = 'memory', f'{more:,} bytes; {detail}'
        if self.watch.seen:
            outcome, detail = 'wrote', '; '.join(self.watch.seen)
            self.watch.seen.clear()
        return outcome, detail

    def prepare(self, target: str) -> None:
        """Make the good files, and import what is imported late."""
        import numpy as np

        for index in range(3):
            folder = self.base / 'warm-up' / f'{target}{index}'
            folder.mkdir(parents=True)
            try:
                self.targets[target](self.corpus, np.random.default_rng(index), folder)
            except Exception:  # told when it is counted
                continue
        self.watch.seen.clear()


def judge(error: BaseException, folder: Path) -> tuple[str, str]:
    """Whether an exception is a refusal of ours, in a line that names the file."""
    chain = [error]
    while (link := chain[-1].__cause__ or chain[-1].__context__) and link not in chain:
        chain.append(link)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{type(error).__name__} in {last.filename}:{last.lineno}: {str(error)[:500]!r}'
    if any(isinstance(link, MemoryError) or 'allocate' in str(link) for link in chain):
        return 'memory', place
    ours = last.filename.startswith(str(ROOT)) and '.venv' not in last.filename
    if not isinstance(error, ValueError) or not ours:
        return 'foreign error', place
    message = str(error)
    named = str(folder) in message or folder.name in message or _names_option(message)
    if not named or '\n' in message or len(message) > MOST_CHARACTERS:
        return 'bad message', place
    return 'refused', message


def _names_option(message: str) -> bool:
    """Checks of options name the key, whichever file set it."""
    return bool(re.match(r'[A-Z_]+(\.[A-Z_0-9]+)*\b', message)) or ' in --opts' in message


class Watcher:
    """The watching side: a worker at a time, started again when it ended."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.process: subprocess.Popen | None = None
        self.starts = 0

    def run(self, target: str, index: int) -> tuple[str, str]:
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(f'{target} {index}\n')
            self.process.stdin.flush()
            line = self._answer()
        except (BrokenPipeError, TimeoutError) as error:
            return self._ended(str(error) or 'it ended')
        return tuple(json.loads(line)) if line else self._ended('it ended')

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> None:
        self.starts += 1
        folder = self.base / f'worker{self.starts}'
        env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
        env |= {'CUDA_VISIBLE_DEVICES': '', 'TMPDIR': str(self.base)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            cwd=ROOT,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _answer(self) -> str:
        import select

        ready, _, _ = select.select([self.process.stdout], [], [], WALL_SECONDS)
        if not ready:
            raise TimeoutError(f'no answer in {WALL_SECONDS} s')
        return self.process.stdout.readline()

    def _ended(self, reason: str) -> tuple[str, str]:
        if 'no answer' in reason:
            self.process.kill()
        code = self.process.wait()
        self.close()
        is_slow = code == -signal.SIGPROF or 'no answer' in reason
        return ('hang' if is_slow else 'crash'), f'{reason} ({code})'


def serve(base: Path) -> None:
    """Run the attacks that standard input names, a line each; an answer is a line of JSON."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what the code under attack prints is no answer
    attacked = start(base)
    prepared = set()
    for number, line in enumerate(sys.stdin):
        target, index = line.split()
        if target not in prepared:
            attacked.prepare(target)
            prepared.add(target)
        folder = base / 'attacks' / f'{target}_{number}'
        outcome = attacked.run(target, int(index), folder)
        shutil.rmtree(folder)
        attacked.watch.seen.clear()
        answers.write(json.dumps(outcome) + '\n')
        answers.flush()


def start(base: Path) -> Attacked:
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests' / 'fuzz')]
    import warnings

    warnings.simplefilter('ignore')
    (base / 'corpus').mkdir(parents=True)
    attacked = Attacked(base)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return attacked


def main(argv: list[str]) -> None:
    if len(argv) == 1:
        serve(Path(argv[0]))
        return
    target, index, folder = argv
    attacked = start(Path(folder))
    attacked.prepare(target)
    print(*attacked.run(target, int(index), Path(folder) / 'attack'))  # noqa: T201


if __name__ == '__main__':
    main(sys.argv[1:])
