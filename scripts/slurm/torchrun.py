"""Run torchrun, but exit with the code of the process that failed first instead of 1.

python scripts/slurm/torchrun.py --nproc_per_node N SCRIPT.py ARGUMENTS...
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

STOPPED = 75, 76  # the process was asked to stop, which is not a failure


def exit_code() -> int:
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code not in STOPPED:
            print(error, file=sys.stderr)
        return code if code > 0 else 128 - code  # a negative code is the signal that killed it
    return 0


if __name__ == '__main__':
    sys.exit(exit_code())
