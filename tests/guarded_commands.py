"""Runs commands of the project in this process and notes every use that they make of a network.

python tests/guarded_commands.py LOG COMMANDS.json    (a list of lists: script and its arguments)
"""

import json
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESSED = ('socket.connect', 'socket.bind', 'socket.sendto', 'socket.sendmsg')
ASKED = ('socket.getaddrinfo', 'socket.gethostbyname', 'socket.gethostbyaddr')
LOOPBACK = ('localhost', '127.0.0.1', '::1')


def is_local(event: str, arguments: tuple) -> bool:
    """Whether an audit event of a socket stays on this machine."""
    address = arguments[1] if event in ADDRESSED else arguments[0]
    if event in ADDRESSED and isinstance(address, str | bytes):
        return True  # a file: AF_UNIX
    host = address[0] if isinstance(address, tuple) else address
    return host is None or host in LOOPBACK


def note_network(log: Path) -> None:
    """From now on write a line for whatever would leave this machine, to its end."""
    log.touch()

    def hook(event: str, arguments: tuple) -> None:
        if event in (*ADDRESSED, *ASKED) and not is_local(event, arguments):
            with open(log, 'a') as file:
                file.write(f'{event} {arguments}\n')

    sys.addaudithook(hook)


def run(script: str, arguments: list[str]) -> int:
    """The exit code of a script that is run as a command."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main(log: Path, commands: Path) -> int:
    note_network(log)
    sys.path.insert(0, str(ROOT))
    for script, *arguments in json.loads(commands.read_text()):
        print(f'COMMAND {script}', flush=True)  # noqa: T201
        if code := run(script, arguments):
            return code
    return 0


if __name__ == '__main__':
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    sys.exit(main(*map(Path, sys.argv[1:])))
