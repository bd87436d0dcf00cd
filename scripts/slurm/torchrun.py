"""torchrun that ends with the code of the process that failed first, where its own is always 1.

python scripts/slurm/torchrun.py --nproc_per_node N SCRIPT.py ARGUMENTS...
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

EXIT_PREEMPTED = 75  # it was asked to stop and has saved: no failure to be shown


def exit_code() -> int:
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code != EXIT_PREEMPTED:
            print(error, file=sys.stderr)
        return code if code > 0 else 128 - code  # negative: the signal that killed it
    return 0


if __name__ == '__main__':
    sys.exit(exit_code())
