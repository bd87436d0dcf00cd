"""An interpreter that has imported what the mains need: each command is a fork of it.

python tests/helpers/warm_python.py SOCKET        serves until its standard input is closed

`warm_python(folder)` starts one and gives an executable that stands for Python and hands its
command over. Starting a run so takes a fraction of a second, which counts where there are many.
A SIGTERM reaches the run, which may save a checkpoint before it ends.
"""

import array
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENT = """\
#!{python} -SE
import array, json, os, signal, socket, sys
if sys.argv[1:] == ['-']:  # a program on standard input
    os.execv({python!r}, [{python!r}, '-'])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()
streams = array.array('i', [1, 2])
server.sendmsg([len(call).to_bytes(8, 'big')], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(call)
answer = server.makefile()
process = int(answer.readline())
signal.signal(signal.SIGTERM, lambda number, frame: os.kill(process, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
sys.exit(int(answer.read() or 1))
"""


@contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """The executable that hands its command over, as long as the server runs."""
    address, path = str(folder / 'socket'), folder / 'python'
    path.write_text(CLIENT.format(python=sys.executable, address=address))
    path.chmod(0o755)
    env = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, __file__, address], cwd=ROOT, env=env, **pipes
    ) as server:
        assert server.stdout.readline() == b'ready\n'
        yield path
        server.stdin.close()


def serve(address: str) -> None:
    sys.path.insert(0, str(ROOT))
    import scipy.stats  # noqa: F401
    import timm  # noqa: F401

    import main_finetune  # noqa: F401
    import main_simmim  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print('ready', flush=True)  # noqa: T201
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


def _answer(connection: socket.socket) -> None:
    """In a process of its own: send its number, run the command, send its exit code."""
    length, rights, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(2 * array.array('i').itemsize))
    for target, stream in zip((1, 2), array.array('i', rights[0][2]), strict=True):
        os.dup2(stream, target)
    with connection.makefile('rb') as file:
        folder, environment, (script, *arguments) = json.loads(
            file.read(int.from_bytes(length, 'big'))
        )
    connection.sendall(f'{os.getpid()}\n'.encode())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    code = 1
    try:
        runpy.run_path(script, run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(code).encode())
        connection.close()
        os._exit(0)


if __name__ == '__main__':
    serve(sys.argv[1])
