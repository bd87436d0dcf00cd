"""What an error means to the user: the exit code of the run, and one line with a remedy."""

import os
import re
import shutil
from typing import NamedTuple

import torch
import torch.distributed as dist

from system.tool import EXIT_MISTAKE, EXIT_OTHER_PROCESS, EXIT_UNEXPECTED

SMALL_BYTES = 2**30  # shared memory that a few batches fill
NO_SHARED_MEMORY = 'not enough shared memory (/dev/shm)'
SHARED_MEMORY_ADVICE = 'start Docker with --shm-size 8g or --ipc=host, or set DATA.NUM_WORKERS 0'
# Lines of causes: {text} is the text of the error, {first} its first line and {type} its type.
SHARED_MEMORY = f'{NO_SHARED_MEMORY}: {SHARED_MEMORY_ADVICE}. {{text}}'
HUNG_WORKER = (
    'a worker of the loader hangs, or could not send a batch (see its error above): start the same '
    'command again, with DATA.NUM_WORKERS 0 if this repeats. {text}'
)
LOST_WORKER = (
    'a worker of the loader ended. If the machine ran out of memory (see dmesg), use fewer workers '
    f'(DATA.NUM_WORKERS); if shared memory did, {SHARED_MEMORY_ADVICE}. {{text}}'
)
MEMORY = (
    'not enough main memory: use a smaller --batch-size or fewer workers (DATA.NUM_WORKERS, '
    '--num-workers). {text}'
)
OTHER_PROCESS = (
    'another process of this run ended, or did not answer within TRAIN.RANK_TIMEOUT_MINUTES: see '
    "the last lines of each log_rank<r>.txt, torchrun's output, and the kernel log (dmesg)"
)
NOTHING = (
    'unexpected {type}: {first}. A function without `return` gives None: if you added a part, look '
    'for its name in the traceback above, or for what it should return in docs/howto/extend.md'
)
_WORKER = re.compile(r'\n\w[\w.]*: |\n\w*Error$')  # precedes the message in a worker's traceback


class Cause(NamedTuple):
    """A cause of errors.

    Attributes:
        types: Types of the error.
        words: Words of which the text contains one, in any case; (): any text.
        code: Exit code.
        line: What the user reads.
    """

    types: tuple[type[BaseException], ...]
    words: tuple[str, ...]
    code: int
    line: str


# The first one that applies counts. PyTorch raises many errors as RuntimeError, so that only the
# text tells them apart: errors of workers, of the memory, and of gloo, which connects CPUs.
CAUSES = (
    # Workers put their batches in shared memory.
    Cause((RuntimeError,), ('shared memory', '/torch_', 'bus error'), EXIT_MISTAKE, SHARED_MEMORY),
    Cause((RuntimeError,), ('dataloader timed out',), EXIT_MISTAKE, HUNG_WORKER),
    Cause((RuntimeError,), ('dataloader worker',), EXIT_MISTAKE, LOST_WORKER),
    Cause((MemoryError,), (), EXIT_MISTAKE, MEMORY),
    # The words of PyTorch and of the system.
    Cause((RuntimeError, OSError), ("can't allocate", 'cannot allocate'), EXIT_MISTAKE, MEMORY),
    Cause((dist.DistNetworkError, dist.DistStoreError), (), EXIT_OTHER_PROCESS, OTHER_PROCESS),
    Cause(
        (dist.DistBackendError,),  # of NCCL, which connects GPUs
        ('timeout', 'timed out', 'remote', 'abort', 'connection', 'closed', 'network'),
        EXIT_OTHER_PROCESS,
        OTHER_PROCESS,
    ),
    Cause((RuntimeError,), ('gloo', 'pair closure'), EXIT_OTHER_PROCESS, OTHER_PROCESS),
    Cause((torch.OutOfMemoryError,), (), EXIT_MISTAKE, '{text}'),
    Cause(
        (RuntimeError,),
        ('have a deterministic implementation',),
        EXIT_MISTAKE,
        'TRAIN.DETERMINISTIC: {text}',
    ),
    Cause((ValueError, FloatingPointError, OSError), (), EXIT_MISTAKE, '{text}'),
    Cause((AttributeError, TypeError), ('nonetype',), EXIT_UNEXPECTED, NOTHING),
    Cause((BaseException,), (), EXIT_UNEXPECTED, 'unexpected {type}: {first}'),
)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error and a one-line message."""
    text = str(error).strip()
    if text.startswith('Caught '):  # raised in a worker of the loader
        text = _WORKER.split(text)[-1].strip()
    cause = next(
        cause
        for cause in CAUSES
        if isinstance(error, cause.types)
        and (not cause.words or any(word in text.lower() for word in cause.words))
    )
    kind = type(error).__name__
    text = text or kind
    line = cause.line.format(text=text, first=text.partition('\n')[0], type=kind)
    return cause.code, line


def has_small_shared_memory() -> bool:
    """Return whether a few batches fill the shared memory of this machine or container."""
    return os.path.isdir('/dev/shm') and shutil.disk_usage('/dev/shm').total < SMALL_BYTES
