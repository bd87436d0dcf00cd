"""Options: how they are declared, read, merged, checked and compared."""
