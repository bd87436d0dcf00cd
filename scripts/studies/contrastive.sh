#!/usr/bin/env bash
# Contrastive methods against supervised networks: docs/studies/contrastive.md. bash scripts/studies/contrastive.sh full|small|tiny [DATA|--list] [OUT]
exec bash "$(dirname "$0")/run.sh" contrastive "$@"
