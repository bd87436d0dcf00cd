"""Options: how they are declared, read, merged, checked and compared.

In: YAML files, flags and `--opts`. Out: one frozen config. Read `declaration.py` first, then
`config.py` at the root, which lists all options.
"""
