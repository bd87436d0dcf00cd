"""scripts/localise.py: runs and given maps against regions end with tables, figures and a page."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import VIT, config_with, finished_run, load_script
from torch import nn
from torch.nn import functional

from data.images.files import load_image
from data.transforms import EvalTransform
from evaluation.regions import model_maps
from evaluation.regions.regions import Size
from evaluation.regions.scores import score_map
from evaluation.saliency import grad_cam
from utils import trained_config

MODEL = VIT | {'VIT': VIT['VIT'] | {'PATCH_SIZE': 4}}  # a grid of 8 x 8
LABEL = 'Edema'
DATA = {'TRAIN_IMAGES': 0, 'HOLDOUT_FRACTION': 0.0}


@pytest.fixture(scope='module')
def runs(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folds of one model: each trains on half of the patients of train."""
    folder = tmp_path_factory.mktemp('folds')
    table = pd.read_csv(phantom / 'train.csv', dtype=str)
    number = table['Path'].str.extract(r'patient(\d+)')[0].astype(int)
    found = []
    for fold in (0, 1):
        for name, keep in (('train', number % 2 != fold), ('valid', number % 2 == fold)):
            table[keep].to_csv(folder / f'{name}_{fold}.csv', index=False)
        data = {f'{n.upper()}_CSV': str(folder / f'{n}_{fold}.csv') for n in ('train', 'valid')}
        options = {
            'DATA': data | DATA,
            'EVAL': {'SELECT_ON': 'last'},
            'TRAIN': {'EPOCHS': 1, 'WARMUP_EPOCHS': 0},
            'TAG': f'model_fold{fold}',
        }
        finished_run('finetune', phantom, folder, model=MODEL, **options)
        found.append(folder / 'tiny_finetune' / f'model_fold{fold}')
    return found


@pytest.fixture(scope='module')
def boxes(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A box in 30 images of train, in pixels of images of twice the size."""
    table = pd.read_csv(phantom / 'train.csv', dtype=str)
    rng, rows = np.random.default_rng(0), []
    for path in table['Path'][:30]:
        image = Image.open(phantom.parent / path)
        x, y = rng.integers(0, image.width), rng.integers(0, image.height)
        rows.append((path, LABEL, x, y, 30, 24, 2 * image.height, 2 * image.width))
    columns = ['Path', 'Label', 'x', 'y', 'width', 'height', 'image_height', 'image_width']
    file = tmp_path_factory.mktemp('regions') / 'boxes.csv'
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


@pytest.fixture(scope='module')
def localise() -> Any:
    script = load_script('localise')

    def run(*words: object) -> int:
        return script.main(script.parse_args([*map(str, words), '--device', 'cpu']))

    return run


@pytest.fixture(scope='module')
def page(localise, runs, boxes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('page')
    words = '--run', *runs, '--regions', boxes, '--output', folder, '--resamples', 200
    assert localise(*words) == 0
    return folder


def test_folds_are_one_model_and_no_image_is_explained_by_its_training(
    runs: list[Path], boxes: Path, phantom: Path
) -> None:
    script = load_script('localise')
    words = ['--run', *map(str, runs), '--regions', str(boxes), '--output', '.', '--device', 'cpu']
    (source,) = script.model_sources(script.parse_args(words))
    assert source.name == 'model'
    table = pd.read_csv(boxes)
    cases = [*zip(table['Path'], table['Label'], strict=True)]
    assert source.find(cases) == {*cases}
    for path, found in source.found.items():
        number = int(re.search(r'patient(\d+)', path)[1])
        assert number % 2 == found.run and found.split == 'valid', 'held out in this fold'
    # One fold alone leaves out the images of the patients that it was trained on.
    (alone,) = script.model_sources(script.parse_args([words[0], words[1], *words[3:]]))
    half = {case for case in cases if int(re.search(r'patient(\d+)', case[0])[1]) % 2 == 0}
    assert alone.find(cases) == half
    assert f'{len(cases) - len(half)} of {len(cases)} images' in alone.notes[0]
    assert 'the model was trained on their patients' in alone.notes[0]


def test_the_map_is_grad_cam_of_the_image_and_of_other_weights(
    runs: list[Path], boxes: Path, phantom: Path
) -> None:
    script = load_script('localise')
    words = ['--run', str(runs[0]), '--regions', str(boxes), '--output', '.', '--device', 'cpu']
    (source,) = script.model_sources(script.parse_args(words))
    table = pd.read_csv(boxes)
    path, label = sorted(source.find([*zip(table['Path'], table['Label'], strict=True)]))[0]
    maps, k = source.maps(path, label), source.labels.index(label)
    model, _ = source._models(0)
    config = trained_config(source.runs[0].checkpoint, 'finetune')
    image = EvalTransform(config)(load_image(phantom.parent / path))[None]
    expected = grad_cam(model, image, lambda outputs: outputs[:, k])[0]
    np.testing.assert_allclose(maps[''].cells, expected.numpy(), atol=1e-6)
    assert {*maps} == {'', model_maps.RANDOM_WEIGHTS, model_maps.OTHER_LABEL}
    assert not np.allclose(maps[model_maps.RANDOM_WEIGHTS].cells, maps[''].cells)
    others = [
        grad_cam(model, image, lambda outputs, other=other: outputs[:, other])[0].numpy()
        for other in range(len(source.labels))
        if other != k
    ]
    cells = maps[model_maps.OTHER_LABEL].cells
    assert min(np.abs(cells - other).max() for other in others) < 1e-6


def test_a_method_without_labels_has_no_map_of_another_label(runs: list[Path], boxes: Path) -> None:
    script = load_script('localise')
    words = ['--run', str(runs[0]), '--regions', str(boxes), '--output', '.', '--device', 'cpu']
    (source,) = script.model_sources(script.parse_args([*words, '--method', 'rollout']))
    table = pd.read_csv(boxes)
    found = source.find([*zip(table['Path'], table['Label'], strict=True)])
    assert {*source.maps(*min(found))} == {'', model_maps.RANDOM_WEIGHTS}
    assert source.title == 'attention rollout'


def test_tables_have_all_rows_with_intervals_and_the_sentence(page: Path) -> None:
    scores = pd.read_csv(page / 'localisation.csv', keep_default_na=False)
    rows = ['model', 'model: random weights', 'model: another label']
    rows += ['position prior', 'centre', 'random map']
    assert [*dict.fromkeys(scores['row'])] == rows
    everyone = scores[(scores['group'] == '') & (scores['score'] == 'hit_rate')]
    assert {*everyone['cases'].astype(int)} == {30}
    differences = pd.read_csv(page / 'localisation_differences.csv')
    assert [*dict.fromkeys(differences['against'])] == rows[1:]
    text = (page / 'localisation.md').read_text()
    assert 'the position prior for Edema' in text and 'Not for clinical use' in text
    assert 'Synthetic X-rays' in text
    for name in ('localisation.tex', 'localisation.html', 'localisation_differences.tex'):
        assert 'Not for clinical use' in (page / name).read_text(), name
    assert {file.suffix for file in page.glob('examples_model_1.*')} == {'.png', '.svg'}


def test_the_page_loads_nothing_and_shows_figure_and_examples(page: Path) -> None:
    text = (page / 'localisation.html').read_text()
    assert text.count('<img') == 2 and 'src="http' not in text
    assert "default-src 'none'" in text
    svg = (page / 'examples_model_1.svg').read_text()
    shown = re.findall(r'>(best|median|worst): IoU (\d\.\d\d)', svg)
    assert [name for name, _ in shown] == ['best', 'median', 'worst']
    assert shown[0][1] >= shown[1][1] >= shown[2][1]
    assert 'patient' not in svg


def test_given_maps_of_the_position_prior_score_as_the_prior(
    localise, boxes: Path, phantom: Path, tmp_path: Path
) -> None:
    """The mean of the boxes of all other patients, drawn by hand."""
    table, grid = pd.read_csv(boxes), 512
    place = (np.arange(grid) + 0.5) / grid
    masks = [
        np.outer(
            (place * row.image_height >= row.y) & (place * row.image_height < row.y + row.height),
            (place * row.image_width >= row.x) & (place * row.image_width < row.x + row.width),
        )
        for row in table.itertuples()
    ]
    patients = table['Path'].str.extract(r'(patient\d+)')[0]
    (tmp_path / 'maps').mkdir()
    for number, path in enumerate(table['Path']):
        others = [
            mask for mask, who in zip(masks, patients, strict=True) if who != patients[number]
        ]
        name = path.replace('/', '_').rpartition('.')[0]
        np.save(tmp_path / 'maps' / f'{name}__{LABEL}.npy', np.mean(others, axis=0))
    words = '--maps', tmp_path / 'maps', '--regions', boxes, '--images', phantom
    assert localise(*words, '--output', tmp_path / 'page', '--resamples', 0) == 0
    scores = pd.read_csv(tmp_path / 'page' / 'localisation.csv', keep_default_na=False)
    scores = scores[(scores['group'] == '') & (scores['label'] == LABEL)]
    values = scores.pivot(index='row', columns='score', values='value')
    for score, error in (('average_precision', 0.02), ('mass', 0.02), ('miou', 0.03)):
        assert values.loc['maps', score] == pytest.approx(
            values.loc['position prior', score], abs=error
        )


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        (['--rename', 'Oedema=Edema'], ['--rename', 'Oedema', LABEL]),
        (['--rename', f'{LABEL}=Nothing'], ['does not predict', 'Nothing']),
        (['--device', 'gpu'], ['--device', 'gpu']),
        (['--method', 'attention'], ['no head with queries']),
    ],
)
def test_mistakes_end_in_one_line(
    localise, runs, boxes, tmp_path: Path, capsys: pytest.CaptureFixture, words: list, parts: list
) -> None:
    script = load_script('localise')
    flags = ['--run', str(runs[0]), '--regions', str(boxes), '--output', str(tmp_path), *words]
    assert script.main(script.parse_args(flags)) == 2
    error = capsys.readouterr().err
    assert 'Traceback' not in error and all(part in error for part in parts), error


def test_boxes_at_another_size_are_refused(localise, runs, boxes, tmp_path, capsys) -> None:
    table = pd.read_csv(boxes).drop(columns=['image_height', 'image_width'])
    table.to_csv(tmp_path / 'boxes.csv', index=False)
    words = '--run', *runs, '--regions', tmp_path / 'boxes.csv', '--output', tmp_path
    assert localise(*words) == 2
    assert '--annotated-size' in capsys.readouterr().err


def test_cropped_images_put_the_map_where_the_image_was(
    runs: list[Path], phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the input of the model as the map, an image is its own map, whatever the run reads."""
    monkeypatch.setattr(
        model_maps, 'label_maps', lambda config, model, images, k, method: images[:, 0]
    )
    table = pd.read_csv(phantom / 'train.csv', dtype=str)
    script = load_script('localise')
    words = ['--run', str(runs[0]), '--regions', 'x', '--output', '.', '--device', 'cpu']
    (source,) = script.model_sources(script.parse_args(words))
    for crop in (False, True):
        source.runs[0].config.defrost()
        source.runs[0].config.TEST.CROP = crop
        cases = [(path, LABEL) for path in table['Path'][:6]]
        for path, _ in source.find(cases):
            image = source.image(path)
            size = model_maps.full_size(image)
            placed = source.maps(path, LABEL)['']
            values, pixels = placed.at(Size(*size)), np.asarray(image, float)
            inside = values > 0
            assert np.corrcoef(values[inside], pixels[inside])[0, 1] > 0.9
            assert inside.mean() > 0.95 if not crop else 0.5 < inside.mean() < 0.85


class SquareDetector(nn.Module):
    """Its logits of Edema and Pneumonia are the amount of white and of black."""

    def __init__(self, labels: list[str], black: float, white: float) -> None:
        super().__init__()
        self.places = [labels.index(label) for label in ('Edema', 'Pneumonia')]
        self.ends, self.features, self.size = (black, white), nn.Identity(), len(labels)

    def saliency_layer(self) -> nn.Module:
        return self.features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        black, white = self.ends
        both = torch.cat([images - white, black - images], dim=1).relu()
        found = self.features(functional.avg_pool2d(both, 2)).sum(dim=(2, 3))
        return found @ functional.one_hot(torch.tensor(self.places), self.size).float()


@pytest.fixture(scope='module')
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rectangles in real X-rays of 64 x 48, which have neither white nor black elsewhere."""
    folder = tmp_path_factory.mktemp('squares')
    load_script('studies/pasted_squares').paste(folder, 90)
    inside = pd.read_csv(folder / 'boxes.csv').groupby('Path')
    for file in (folder / 'Set').rglob('*.png'):
        pixels = np.array(Image.open(file))
        grey = (60 + pixels * 0.5).astype(np.uint8)
        path = file.relative_to(folder).as_posix()
        for box in inside.get_group(path).itertuples() if path in inside.groups else ():
            place = slice(box.y, box.y + box.height), slice(box.x, box.x + box.width)
            grey[place] = pixels[place]
        Image.fromarray(grey).save(file)
    return folder


@pytest.mark.parametrize('method', ['grad-cam', 'occlusion'])
@pytest.mark.parametrize('crop', [False, True])
def test_a_model_that_sees_rectangles_alone_is_hit_where_they_are_in_real_xrays(
    runs: list[Path], squares: Path, crop: bool, method: str
) -> None:
    script = load_script('localise')
    words = ['--run', str(runs[0]), '--regions', str(squares / 'boxes.csv'), '--output', '.']
    words += ['--data-path', str(squares / 'Set'), '--dataset', 'chexpert', '--method', method]
    args = script.parse_args([*words, '--device', 'cpu'])
    (source,) = script.model_sources(args)
    source.runs[0].config.defrost()
    source.runs[0].config.TEST.CROP = crop
    normalize = EvalTransform(source.runs[0].config).normalize
    ends = (float(normalize(np.full((1, 1), grey, np.float32)).item()) for grey in (50, 200))
    detector = SquareDetector([*source.labels], *ends)
    source._models = lambda number: (detector, detector)
    regions, _ = script.wanted_regions(args, source.labels)
    table, hits = pd.read_csv(squares / 'boxes.csv'), []
    # With a crop, only what lies in it can be found.
    is_seen = table['y'].between(8, 42) & table['x'].between(6, 30) | (not crop)
    single = ~table['Path'].duplicated(keep=False)  # no rectangle covers another
    cases = [*table.loc[is_seen & single, ['Path', 'Label']].itertuples(index=False, name=None)]
    for path, label in sorted(source.find(cases))[:8]:
        size = Size(64, 48)
        values = source.maps(path, label)[''].at(size)
        hits.append(score_map(values, regions.mask(path, label, size)).hit)
    assert len(hits) >= 6 and np.mean(hits) > (0.99 if method == 'grad-cam' else 0.9)


def test_an_unfinished_run_is_named(
    localise, runs: list[Path], boxes: Path, tmp_path: Path
) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    record = json.loads((copies[1] / 'run.json').read_text())
    (copies[1] / 'run.json').write_text(json.dumps(record | {'finished': None}))
    words = '--run', *copies, '--regions', boxes, '--output', tmp_path / 'page', '--resamples', 0
    assert localise(*words) == 0
    text = (tmp_path / 'page' / 'localisation.md').read_text()
    assert f'The run {copies[1]} has not finished: ckpt_epoch_0.pth is scored' in text
    assert text.count('has not finished') == 1


def test_thresholds_of_the_report_decide_where_a_region_is_marked(tmp_path: Path) -> None:
    labels = [{'label': 'Edema', 'threshold': 0.3}, {'label': 'Mass', 'threshold': None}]
    report = {'headline': {'set': 'valid'}, 'sets': [{'name': 'valid', 'labels': labels}]}
    (tmp_path / 'report.json').write_text(json.dumps(report))
    assert model_maps.thresholds_of([tmp_path]) == {'Edema': 0.3}
    assert model_maps.thresholds_of([tmp_path, tmp_path]) == {}


def test_chexlocalize_in_imitation_ends_with_a_page(
    localise, runs: list[Path], phantom: Path, tmp_path: Path
) -> None:
    """Masks of twice the size, an absent finding, another name, and an image that is missing."""
    encoder = pytest.importorskip('pycocotools.mask', reason='needs the extra regions')
    table, contents = pd.read_csv(phantom / 'train.csv', dtype=str), {}
    for number, path in enumerate(table['Path'][:12]):
        height, width = (2 * side for side in load_image(phantom.parent / path).size[::-1])
        masks = np.zeros((2, height, width), np.uint8)
        masks[:, 10 + number : 40, 20:50] = 1
        masks[1] *= number % 2
        names = path.rpartition('.')[0].split('/')[-3:]
        contents['_'.join(names)] = {
            name: {
                'size': [height, width],
                'counts': encoder.encode(np.asfortranarray(mask))['counts'].decode(),
            }
            for name, mask in zip(('Edema', 'Airspace Opacity'), masks, strict=True)
        }
    contents['patient99999_study1_view1_frontal'] = contents[next(iter(contents))]
    file = tmp_path / 'gt_segmentations_val.json'
    file.write_text(json.dumps(contents))
    words = '--run', *runs, '--regions', file, '--output', tmp_path / 'page', '--resamples', 0
    assert localise(*words) == 0
    scores = pd.read_csv(tmp_path / 'page' / 'localisation.csv', keep_default_na=False)
    scores = scores[(scores['row'] == 'model') & (scores['score'] == 'hit_rate')]
    cases = scores[scores['group'] == ''].set_index('label')['cases']
    assert cases.to_dict() == {'Edema': 12, 'Lung Opacity': 6}
    text = (tmp_path / 'page' / 'localisation.md').read_text()
    assert '1 of 13 images with a region are not scored, because the run has no such images' in text
    assert 'nothing follows about where a model looks' in text


def test_the_report_of_a_run_links_the_page_that_reports_regions_names(
    runs: list[Path], phantom: Path, boxes: Path, tmp_path: Path
) -> None:
    """Or says why there is none: that must not cost the report."""
    checkpoint = str(runs[0] / 'ckpt_epoch_0.pth')
    folds = runs[0].parents[1]
    data = {f'{name.upper()}_CSV': str(folds / f'{name}_0.csv') for name in ('train', 'valid')}
    sections = {'DATA': DATA | data, 'REPORT': {'WRITE': True, 'MAPS': 0}}
    sections['EVAL'] = {'RESAMPLES': 0, 'SELECT_ON': 'last'}
    found = {}
    for name, file in (('boxes', str(boxes)), ('lost', str(tmp_path / 'lost.csv'))):
        words = ['--eval', '--resume', checkpoint, '--opts', 'REPORT.REGIONS', file]
        folder = finished_run('finetune', phantom, tmp_path / name, *words, model=MODEL, **sections)
        report = json.loads((folder / 'report_eval' / 'report.json').read_text())
        found[name] = report['localisation']
        page = (folder / 'report_eval' / 'report.html').read_text()
        assert ('href="regions/localisation.html"' in page) == (name == 'boxes')
        assert (folder / 'report_eval' / 'regions').is_dir() == (name == 'boxes')
    assert found['boxes']['page'] == 'regions/localisation.html' and found['boxes']['lines']
    assert found['lost']['page'] == '' and 'lost.csv' in found['lost']['lines'][0]


def test_runs_that_differ_in_more_than_their_fold_are_several_models() -> None:
    def trained(name: str, **options: object) -> model_maps.Trained:
        return model_maps.Trained(Path('out') / name / 'ckpt.pth', config_with(**options))

    folds = [{'DATA__TRAIN_CSV': f'/f/train_{k}.csv', 'DATA__VALID_CSV': f'/f/valid_{k}.csv'}
             for k in (0, 1)]  # fmt: skip
    runs = [trained(f'a_fold{k}', **folds[k]) for k in (0, 1)]
    runs += [trained(f'b_fold{k}', **folds[k], MODEL__HEAD='attention') for k in (0, 1)]
    runs += [trained('c_fold0', **folds[0], SEED=5), trained('d_fold0', **folds[0])]
    groups = model_maps.folds_of_one_model(runs)
    assert [[run.checkpoint.parent.name for run in group] for group in groups] == [
        ['a_fold0', 'a_fold1'],
        ['b_fold0', 'b_fold1'],
        ['c_fold0'],
        ['d_fold0'],
    ]
    assert model_maps.run_names(groups) == ['a', 'b', 'c_fold0', 'd_fold0']
