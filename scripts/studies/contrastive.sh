#!/usr/bin/env bash
# MoCo, SimCLR, BYOL and SwAV against supervised networks. bash scripts/studies/contrastive.sh full|small|tiny [DATA|--list] [OUT]
exec bash "$(dirname "$0")/run.sh" contrastive "$@"
