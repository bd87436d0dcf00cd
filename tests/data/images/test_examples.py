"""The X-rays in examples/: the store is whole, and its tables and boxes fit each other."""

import pandas as pd
from tiny import ROOT

from data.images.store_files import verify

XRAYS = ROOT / 'examples' / 'xrays'


def test_the_store_of_examples_is_whole() -> None:
    assert verify(XRAYS) == []


def test_patients_are_in_one_split_and_boxes_lie_in_images_of_the_tables() -> None:
    train, valid = (pd.read_csv(XRAYS / f'{name}.csv') for name in ('train', 'valid'))
    assert (len(train), len(valid)) == (800, 200)
    patients = [{*table['Path'].str.split('/').str[2]} for table in (train, valid)]
    assert patients[0].isdisjoint(patients[1]) and len(patients[0] | patients[1]) == 682
    boxes = pd.read_csv(XRAYS / 'boxes.csv')
    assert len(boxes) == 49 and boxes['Path'].nunique() == 44
    assert {*boxes['Path']} <= {*train['Path'], *valid['Path']}
    ends = boxes[['x', 'y']].to_numpy() + boxes[['w', 'h']].to_numpy()
    assert (boxes[['x', 'y', 'w', 'h']] > 0).all(axis=None) and (ends <= 1024).all()
