"""From the files of a data set to `Records`: tables, names, patients, splits and groups."""
