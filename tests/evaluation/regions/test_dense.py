"""The dense probe against scikit-learn, and its masks, views and folds."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from silhouettes import make_phantom_with_masks
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import ROOT, finished_run, load_script

from data.tables.folds import folds_of
from data.tables.given_folders import read_images
from data.tables.records import images_of
from data.transforms import EvalTransform
from evaluation.probes.features import encoder_config, load_encoder
from evaluation.regions import dense
from evaluation.regions.analysis import find_cases
from evaluation.regions.dense import PENALTIES, DenseProbe, FoldSums, Loading, read_masks, shares_of
from evaluation.regions.readers import read_regions
from evaluation.regions.regions import Size, as_regions
from evaluation.regions.scores import PlacedMap, View, score_map, thresholds_of

SIDE, ENCODER = Size(1024, 1024), 'mae-vit-64px'


def sklearn_model(features: np.ndarray, shares: np.ndarray, penalty: float) -> Any:
    return make_pipeline(StandardScaler(), Ridge(alpha=penalty * len(features))).fit(
        features, shares
    )


def test_the_probe_of_each_fold_is_that_of_scikit_learn() -> None:
    """On tokens in batches, with its penalty by a nested search over the other folds."""
    rng = np.random.default_rng(0)
    images, tokens, width = 40, 9, 12
    features = rng.normal(size=(images, tokens, width)) * rng.uniform(0.1, 30, width) + 5
    features[..., 3] = 2.5  # constant, as a padded pixel
    features[..., 4] = features[..., 5] + 1e-4 * rng.normal(size=(images, tokens))
    shares = 1 / (1 + np.exp(-features[..., 0] / 5 + rng.normal(0, 2, (images, tokens))))
    fold = np.arange(images) % 5
    sums = FoldSums(width)
    for start in range(0, images, 7):
        rows = slice(start, start + 7)
        sums.add(features[rows].astype(np.float32), shares[rows], fold[rows])
    features = features.astype(np.float32).astype(float)
    found = sums.fit()

    def rows_of(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return features[kept].reshape(-1, width), shares[kept].ravel()

    penalties = set()
    for number in range(5):
        errors = np.zeros(len(PENALTIES))
        for other in {*range(5)} - {number}:
            for place, penalty in enumerate(PENALTIES):
                model = sklearn_model(*rows_of((fold != number) & (fold != other)), penalty)
                held_out, target = rows_of(fold == other)
                errors[place] += ((model.predict(held_out) - target) ** 2).sum()
        penalties.add(float(PENALTIES[errors.argmin()]))
        expected = sklearn_model(*rows_of(fold != number), PENALTIES[errors.argmin()])
        held_out, _ = rows_of(fold == number)
        values = held_out @ found[number][:-1] + found[number][-1]
        np.testing.assert_allclose(values, expected.predict(held_out), atol=1e-6)
    assert penalties - {PENALTIES[0]}, 'a penalty was chosen'


@pytest.fixture(scope='module')
def predicted() -> SimpleNamespace:
    """The probe of shipped weights for boxes of Pneumonia on real X-rays, at most 7 at a time."""
    records = read_images(str(ROOT / 'examples/xrays'))
    regions = read_regions(ROOT / 'examples/xrays/boxes.csv').drawn_on(SIDE)
    regions = regions.select((regions.table['label'] == 'Pneumonia').to_numpy())
    probe = DenseProbe(ENCODER, 'mae', records, Loading(torch.device('cpu'), 7, 0))
    cases = find_cases(regions, [probe])
    probe.predict(regions, cases.marked)
    return SimpleNamespace(probe=probe, cases=cases, records=records, regions=regions)


def test_shares_of_real_xrays_are_those_of_scikit_learn_on_the_same_tokens(predicted) -> None:
    marked, probe = predicted.cases.marked, predicted.probe
    config = encoder_config(ENCODER, tokens=True)
    model, _ = load_encoder(config, ENCODER, torch.device('cpu'), is_own=True)
    tokens, shares = [], []
    for path in marked['path']:
        image = EvalTransform(config)(probe.image(path))[None]
        with torch.no_grad():
            tokens.append(model.forward_tokens(image)[0].numpy().astype(float))
        mask = predicted.regions.mask(path, 'Pneumonia', SIDE)
        shares.append(mask.reshape(8, 128, 8, 128).mean(axis=(1, 3)).ravel())
    tokens, shares = np.array(tokens), np.array(shares)
    fold = folds_of(marked['patient'].to_numpy(object), 5)
    for number in np.unique(fold):
        others, own = fold != number, np.flatnonzero(fold == number)
        models = [
            sklearn_model(tokens[others].reshape(-1, 96), shares[others].ravel(), penalty)
            for penalty in PENALTIES
        ]
        for row in own:
            found = probe.maps(marked['path'][row], 'Pneumonia')[''].cells.ravel()
            near = min(np.abs(found - model.predict(tokens[row])).max() for model in models)
            assert near < 1e-4  # tokens are float32, and their batches round in other ways


def test_the_committed_precision_is_that_of_the_probe(predicted) -> None:
    marked, found = predicted.cases.marked, []
    for case in marked.itertuples():
        values = predicted.probe.maps(case.path, 'Pneumonia')[''].at(SIDE)
        mask = predicted.regions.mask(case.path, 'Pneumonia', SIDE)
        found.append(score_map(values, mask).average_precision)
    committed = pd.read_csv(ROOT / 'docs/results/localisation/dense_probe.csv')
    of_row = (committed['row'] == ENCODER) & committed['group'].isna()
    (value,) = committed.loc[of_row & (committed['score'] == 'average_precision'), 'value']
    assert np.mean(found) == pytest.approx(value, abs=0.005)  # CPUs round in their ways


def test_position_alone_is_the_mean_share_of_other_patients(predicted) -> None:
    """Shrunk towards the mean of all cells by the penalty, which keeps their order."""
    marked, probe = predicted.cases.marked, predicted.probe
    fold = folds_of(marked['patient'].to_numpy(object), 5)
    masks = [predicted.regions.mask(path, 'Pneumonia', SIDE) for path in marked['path']]
    shares = np.array([shares_of(mask, View(), 8) for mask in masks])
    for row in range(len(marked)):
        found = probe.maps(marked['path'][row], 'Pneumonia')[dense.POSITION].cells.ravel()
        expected = shares[fold != fold[row]].mean(axis=0)
        assert np.corrcoef(found, expected)[0, 1] == pytest.approx(1, abs=1e-6)


def test_no_more_tokens_are_held_than_a_batch_has(predicted) -> None:
    batches = [len(paths) for paths, _, _ in predicted.probe._batches(predicted.cases.marked.path)]
    assert max(batches) == 7 and sum(batches) == len(predicted.cases.marked)
    held = [value.size for value in predicted.probe.shares.values()]
    assert {*held} == {64}, 'a share for each token'


@pytest.mark.parametrize('crop', [False, True])
def test_shares_lie_where_the_image_was(crop: bool, tmp_path: Path) -> None:
    """Bright pixels of real X-rays of 64 x 48 as masks: grey levels show them, unless mirrored."""
    source = read_images(str(ROOT / 'examples/xrays'))
    files = source.file[:40]
    read = images_of(source).reader(files)
    for number, file in enumerate(files):
        pixels = np.array(read(number))[:, 8:56]
        pixels[:, :24] = 255 - pixels[:, :24]  # an X-ray is nearly the same when it is mirrored
        bright = ((pixels > np.median(pixels)) * 255).astype(np.uint8)
        for folder, values in (('images', pixels), ('masks', bright)):
            path = tmp_path / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    records = read_images(str(tmp_path / 'images'))
    options = None, ['TEST.CROP', crop]
    loading = Loading(torch.device('cpu'), num_workers=0)
    probe = DenseProbe(ENCODER, 'mae', records, loading, options=options)
    regions = read_masks(tmp_path / 'masks', records)
    cases = find_cases(regions, [probe])
    probe.predict(regions, cases.marked)
    errors = np.zeros(4)
    for case in cases.marked.itertuples():
        size = Size(case.height, case.width)
        assert size == (64, 48)
        mask = regions.mask(case.path, case.label, size)
        found = probe.maps(case.path, case.label)[dense.PIXELS].at(size)
        # The crop is a square of 224 / 256 of the short side, in the centre.
        side = 48 * 64 / 73 if crop else None
        top, left = ((64 - side) / 2, (48 - side) / 2) if crop else (0, 0)
        height, width = (side, side) if crop else (64, 48)
        view = top / 64, left / 48, height / 64, width / 48
        assert probe.views[case.path] == pytest.approx(view, abs=1e-3)
        seen = slice(round(top), 64 - round(top)), slice(round(left), 48 - round(left))
        assert not np.delete(found, np.arange(64)[seen[0]], axis=0).any()
        found, mask = found[seen], mask[seen]
        turned = found, found[::-1], found[:, ::-1], found[::-1, ::-1]
        errors += [np.mean((other - mask) ** 2) for other in turned]
    assert errors[0] < 0.5 * errors[1:].min()


@pytest.mark.parametrize('side', [4, 7])
def test_shares_are_the_covered_parts_of_cells_of_the_view(side: int) -> None:
    rng = np.random.default_rng(side)
    mask = rng.random((60, 84)) < np.linspace(0, 1, 84)
    view = View(0.1, 0.25, 0.7, 0.5)
    fine = np.kron(mask, np.ones((side * 4, side * 4)))  # so that the cells end between pixels
    height, width = fine.shape
    part = fine[int(0.1 * height) : int(0.8 * height), int(0.25 * width) : int(0.75 * width)]
    shape = (side, part.shape[0] // side, side, part.shape[1] // side)
    expected = part[: side * shape[1], : side * shape[3]].reshape(shape).mean(axis=(1, 3))
    np.testing.assert_allclose(shares_of(mask, view, side), expected.ravel(), atol=1e-9)


def test_predicted_shares_keep_their_size_and_end_where_the_model_saw_nothing() -> None:
    cells = np.array([[0.2, 0.2], [0.2, 1.4]])
    whole = PlacedMap(cells, is_share=True).at(Size(4, 4))
    assert whole[0, 0] == pytest.approx(0.2) and whole[3, 3] == 1
    assert PlacedMap(cells[:1], is_share=True).at(Size(3, 3)) == pytest.approx(0.2)
    part = PlacedMap(cells, View(0, 0.5, 1, 0.5), is_share=True).at(Size(4, 4))
    assert not part[:, :2].any() and (part[:, 2:] >= 0.2 - 1e-6).all()


def test_lungs_of_phantoms_end_with_tables(tmp_path: Path, capsys) -> None:
    """Frozen tokens draw them better than position does. Not measured on real masks."""
    numbers = {'num_train': 12, 'num_valid': 1, 'num_test': 1, 'size': 72}
    images, masks = make_phantom_with_masks(tmp_path, **numbers)
    first = sorted((masks / 'train').rglob('*.jpg'))[0]
    first.unlink()
    script = load_script('dense_probe')
    words = [str(images / 'train'), '--run', ENCODER, '--masks', str(masks / 'train')]
    words += ['--output', str(tmp_path / 'out'), '--resamples', '200', '--device', 'cpu']
    assert script.main(script.parse_args(words)) == 0
    text = (tmp_path / 'out' / 'dense_probe.md').read_text()
    assert text == capsys.readouterr().out[:-1]
    assert 'images have no mask' in text and 'Not for clinical use' in text
    scores = pd.read_csv(tmp_path / 'out' / 'dense_probe.csv', keep_default_na=False)
    scores = scores[(scores['group'] == '') & (scores['score'] == 'dice')].set_index('row')
    assert scores.loc[ENCODER, 'value'] > scores.loc['position prior', 'value'] > 0.6
    assert scores.loc[ENCODER, 'value'] > scores.loc[f'{ENCODER}: position', 'value']
    assert (tmp_path / 'out' / 'dense_probe.png').is_file()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--masks', 'nowhere'], 'there is no folder nowhere'),
        (['--masks', 'examples/weights'], 'has no mask of the 1000 images'),
        (['--regions', 'examples/xrays/boxes.csv'], '--annotated-size'),
    ],
)
def test_mistakes_end_in_one_line(words: list, message: str, tmp_path: Path, capsys) -> None:
    script = load_script('dense_probe')
    flags = ['examples/xrays', '--run', ENCODER, *words, '--output', str(tmp_path)]
    assert script.main(script.parse_args([*flags, '--device', 'cpu'])) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


def test_a_run_of_a_swin_has_tokens_too(phantom: Path, tmp_path: Path) -> None:
    run = finished_run('simmim', phantom, tmp_path, TRAIN={'EPOCHS': 1, 'WARMUP_EPOCHS': 0})
    records = read_images(str(phantom), 'chexpert').select(np.arange(30))
    rows = [{'path': path, 'label': 'Mass', 'x': n % 9, 'y': 5, 'width': 15, 'height': 20}
            for n, path in enumerate(records.path)]  # fmt: skip
    regions = as_regions(tmp_path / 'boxes.csv', 'own', rows)
    record = json.loads((run / 'run.json').read_text())
    (run / 'run.json').write_text(json.dumps(record | {'finished': None}))
    script = load_script('dense_probe')
    words = ['images', '--run', str(run), '--regions', 'boxes.csv', '--output', 'out']
    words += ['--batch-size', '8', '--num-workers', '0', '--device', 'cpu']
    (probe,) = script.probes(script.parse_args(words), records)
    assert f'{run} has not finished: ckpt_epoch_0.pth is scored' in probe.notes[-1]
    cases = find_cases(regions, [probe])
    probe.predict(regions, cases.marked)
    assert probe.side == 8 and len(probe.shares) == 4 * 30
    (note,) = (note for note in probe.notes if 'had seen' in note)
    count = int(re.search(r'had seen (\d+) patients', note)[1])
    assert 0 < count <= cases.marked['patient'].nunique()


def test_a_crop_to_the_lungs_is_refused(tmp_path: Path) -> None:
    """Nothing keeps where it lay."""
    records = read_images(str(ROOT / 'examples/xrays'))
    options = None, ['DATA.PREPROCESS', "['lung_crop']"]
    with pytest.raises(ValueError, match='lung_crop'):
        DenseProbe(ENCODER, 'mae', records, Loading(torch.device('cpu')), options=options)


def test_masks_keep_their_size_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    """In a store of 64 px: a mask of one of 256 x 256 pixels counts, one of none does not."""
    records = read_images(str(ROOT / 'examples/xrays'))
    files = records.file[:4].tolist()
    drawn = [np.zeros((256, 256), np.uint8) for _ in files]
    drawn[0][100:140, 30:90] = drawn[1][10:90, 200:220] = 255
    drawn[2][101, 103] = 255  # of which 64 px would keep nothing
    for file, pixels in zip(files, drawn, strict=True):
        path = (tmp_path / 'masks' / file).with_suffix('.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    regions = read_masks(tmp_path / 'masks', records)
    for file, path, pixels in zip(files, records.path[:4], drawn, strict=True):
        found = regions.mask(path, 'masks', Size(256, 256))
        np.testing.assert_array_equal(found, pixels > 0, err_msg=file)
    probe = SimpleNamespace(
        find=lambda cases, absent: {*cases},
        notes=[],
        patients=dict(zip(records.path, records.patient, strict=True)),
        image=lambda path: None,
    )
    sized = replace(regions, table=regions.table.assign(image_height=256.0, image_width=256.0))
    cases = find_cases(sized, [probe])
    assert len(cases.marked) == 3
    assert any('1 of 4 regions have no pixel' in note for note in cases.notes)


def test_shares_of_small_regions_have_a_threshold_that_finds_them() -> None:
    region = np.zeros((64, 64), bool)
    region[20:22, 30:32] = True
    share = np.full((8, 8), 0.001)
    share[2, 3] = 0.01  # a probe predicts little where the lesion covers little of the token
    placed = PlacedMap(share, is_share=True)
    ious = score_map(placed.at(Size(64, 64)), region, thresholds_of(placed)).ious
    assert ious.max() > 0.05
    with pytest.raises(ValueError, match='without a pixel'):
        score_map(placed.at(Size(64, 64)), np.zeros((64, 64), bool))
