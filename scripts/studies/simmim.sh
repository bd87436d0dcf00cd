#!/usr/bin/env bash
# SimMIM on CheXpert and its ablations: docs/studies/simmim.md. bash scripts/studies/simmim.sh full|small|tiny [DATA|--list] [OUT]
set -euo pipefail
export TABLE_OPTS=${TABLE_OPTS:---subgroups}
. "$(dirname "$0")/run.sh" simmim "$@"
describe --examples 4
if [ "$scale" = tiny ]; then masks --size 64 --units 8 16 --ratios 0.4 0.6 0.8; else masks --units 16 32 --ratios 0.4 0.6 0.8; fi
reconstructions
reports
