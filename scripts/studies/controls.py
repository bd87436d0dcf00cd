"""Copy a table of labels with sex, age and view as labels of their own.

python scripts/studies/controls.py LABELLED/all.csv OUT.csv
"""

import sys

import pandas as pd

source, target = sys.argv[1:]
table = pd.read_csv(source, dtype=str)
age = table['Age'].astype(float)
table['PA view'] = (table['AP/PA'] == 'PA').astype(float)
table['Male'] = (table['Sex'] == 'Male').astype(float)
table['Older'] = (age > age.median()).astype(float)
table.to_csv(target, index=False)
