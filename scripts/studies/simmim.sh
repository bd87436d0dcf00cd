#!/usr/bin/env bash
# SimMIM on CheXpert and its ablations: docs/studies/simmim.md. bash scripts/studies/simmim.sh full|small|tiny [DATA|--list] [OUT]
export TABLE_OPTS=${TABLE_OPTS:---subgroups}
exec bash "$(dirname "$0")/run.sh" simmim "$@"
