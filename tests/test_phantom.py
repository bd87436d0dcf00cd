"""The phantom: CheXpert's layout and label values, published prevalences, signs in their places."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.phantom import SEVERITIES, Subject, draw, make_phantom, make_rows, sample_rows

HEADER = (
    'Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,'
    'Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,'
    'Pleural Effusion,Pleural Other,Fracture,Support Devices'
)
LABELS = HEADER.split(',')[5:]
PATHOLOGIES = LABELS[1:13]
# Studies of 187,641 that are positive and uncertain: Irvin et al. 2019, Table 1.
PUBLISHED = {
    'No Finding': (16627, 0),
    'Enlarged Cardiomediastinum': (9020, 10148),
    'Cardiomegaly': (23002, 6597),
    'Lung Opacity': (92669, 4341),
    'Lung Lesion': (6856, 1071),
    'Edema': (48905, 11571),
    'Consolidation': (12730, 23976),
    'Pneumonia': (4576, 15658),
    'Atelectasis': (29333, 29377),
    'Pneumothorax': (17313, 2663),
    'Pleural Effusion': (75696, 9419),
    'Pleural Other': (2441, 1771),
    'Fracture': (7270, 484),
    'Support Devices': (105831, 898),
}
SMALL = {'num_train': 14, 'num_valid': 6, 'num_test': 7, 'seed': 5, 'size': 64}


def study_of(paths: pd.Series) -> pd.Series:
    return paths.str.rsplit('/', n=1).str[0]


@pytest.fixture(scope='module')
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('phantom') / 'CheXpert-phantom'
    make_phantom(folder, workers=2, **SMALL)
    return folder


@pytest.fixture(scope='module')
def many_rows() -> pd.DataFrame:
    return make_rows(None, 'train', 0, rows=60000)


@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_a_split_has_chexperts_columns_and_just_the_files_it_names(
    phantom: Path, split: str
) -> None:
    assert (phantom / f'{split}.csv').read_text().splitlines()[0] == HEADER
    paths = pd.read_csv(phantom / f'{split}.csv')['Path']
    pattern = rf'CheXpert-phantom/{split}/patient\d{{5}}/study\d+/view\d_(frontal|lateral)\.jpg'
    assert all(re.fullmatch(pattern, path) for path in paths)
    found = {str(file.relative_to(phantom.parent)) for file in (phantom / split).rglob('*.*')}
    assert found == set(paths) and len(paths) == len(found) > 0


def test_images_are_grey_jpegs_of_the_size_asked_for(phantom: Path) -> None:
    shapes = set()
    for file in phantom.rglob('*.jpg'):
        with Image.open(file) as image:
            assert image.format == 'JPEG' and image.mode == 'L'
            assert max(image.size) == 64 and 0.74 < min(image.size) / 64 < 0.92
            shapes.add(image.size[0] > image.size[1])
            assert np.asarray(image).std() > 25
    assert shapes == {True, False}


def test_no_patient_is_in_two_splits(phantom: Path) -> None:
    patients = [
        set(pd.read_csv(phantom / f'{split}.csv')['Path'].str.split('/').str[2])
        for split in ('train', 'valid', 'test')
    ]
    assert [len(group) for group in patients] == [14, 6, 7]
    assert len(set.union(*patients)) == 27


def test_the_number_of_workers_changes_no_byte(phantom: Path, tmp_path: Path) -> None:
    again = tmp_path / 'CheXpert-phantom'
    made = make_phantom(again, workers=1, **SMALL)
    files = sorted(file.relative_to(phantom) for file in phantom.rglob('*') if file.is_file())
    assert files == sorted(file.relative_to(again) for file in again.rglob('*') if file.is_file())
    assert all((phantom / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert made['drawn'] == sum(made['images'].values()) == len(files) - 4


def test_another_seed_gives_other_labels_and_images(phantom: Path, tmp_path: Path) -> None:
    make_phantom(tmp_path / 'CheXpert-phantom', **SMALL | {'seed': 6})
    assert (tmp_path / 'CheXpert-phantom/test.csv').read_text() != (
        phantom / 'test.csv'
    ).read_text()
    file = 'test/patient90001/study1/view1_frontal.jpg'
    other = tmp_path / 'CheXpert-phantom' / file
    assert other.read_bytes() != (phantom / file).read_bytes()


def test_label_cells_are_written_as_chexpert_writes_them(tmp_path: Path) -> None:
    made = make_phantom(tmp_path / 'x', rows=3000, num_valid=60, num_test=60, size=0)
    assert made['images']['train'] == 3000 and made['drawn'] == 0
    assert sorted(path.name for path in (tmp_path / 'x').iterdir()) == [
        'phantom.json', 'test.csv', 'train.csv', 'valid.csv',
    ]  # fmt: skip
    tables = {
        split: pd.read_csv(tmp_path / f'x/{split}.csv', dtype=str, keep_default_na=False)
        for split in ('train', 'valid', 'test')
    }
    values = {label: set(tables['train'][label]) for label in LABELS}
    assert values['No Finding'] == {'1.0', ''}
    assert values['Edema'] == values['Atelectasis'] == {'1.0', '0.0', '-1.0', ''}
    assert all(cells <= {'1.0', '0.0', '-1.0', ''} for cells in values.values())
    for split in ('valid', 'test'):
        assert set(np.unique(tables[split][LABELS].to_numpy().astype(str))) == {'0.0', '1.0'}
    assert set(tables['valid']['AP/PA']) == {'AP', 'PA', ''}
    assert all(age.isdigit() for age in tables['train']['Age'])


def test_prevalences_are_chexperts(many_rows: pd.DataFrame) -> None:
    studies = many_rows[~study_of(many_rows['Path']).duplicated()]
    for label, (positive, uncertain) in PUBLISHED.items():
        assert (studies[label] == 1).mean() == pytest.approx(positive / 187641, abs=0.015), label
        assert (studies[label] == -1).mean() == pytest.approx(uncertain / 187641, abs=0.008), label


def test_views_and_patients_are_as_many_as_chexperts(many_rows: pd.DataFrame) -> None:
    lateral = many_rows['Frontal/Lateral'] == 'Lateral'
    assert lateral.mean() == pytest.approx(32387 / 223414, abs=0.01)
    assert many_rows['AP/PA'].isna().equals(lateral)
    assert (many_rows['AP/PA'] == 'PA').mean() == pytest.approx(29420 / 223414, abs=0.01)
    assert many_rows['Path'].str.split('/').str[2].nunique() / 60000 == pytest.approx(
        64540 / 223414, rel=0.06
    )
    assert many_rows['Path'].is_unique


def test_labels_never_differ_within_a_study(many_rows: pd.DataFrame) -> None:
    labels = many_rows[LABELS].fillna(9).groupby(study_of(many_rows['Path']))
    assert (labels.nunique() == 1).all(axis=None)
    assert labels.size().max() == 3


def test_no_finding_is_marked_where_nothing_else_is(many_rows: pd.DataFrame) -> None:
    anything = many_rows[PATHOLOGIES].isin([1, -1]).any(axis=1)
    assert (many_rows['No Finding'] == 1).equals(~anything)
    assert not (many_rows['No Finding'] == 0).any()
    scored = make_rows(3000, 'test', 0)
    assert (scored['No Finding'] == 1).equals(~(scored[PATHOLOGIES] == 1).any(axis=1))
    assert (scored.loc[scored['Edema'] == 1, 'Lung Opacity'] == 1).all()
    assert (scored.loc[scored['Cardiomegaly'] == 1, 'Enlarged Cardiomediastinum'] == 1).all()


def test_training_rows_have_chexperts_odd_cells(many_rows: pd.DataFrame) -> None:
    assert (many_rows['Sex'] == 'Unknown').sum() == 1
    assert (many_rows['Age'] == 0).sum() == 3
    assert (many_rows['AP/PA'] == 'RL').sum() == 1
    assert 1 <= (many_rows['AP/PA'] == 'LL').sum() <= 10
    scored = make_rows(300, 'valid', 0)
    assert set(scored['Sex']) == {'Male', 'Female'} and scored['Age'].min() >= 18


def test_exactly_the_rows_asked_for_are_the_first_of_more(many_rows: pd.DataFrame) -> None:
    few = make_rows(None, 'train', 0, rows=777)
    assert len(few) == 777
    assert few['Path'].tolist() == many_rows['Path'].iloc[:777].tolist()
    assert few[LABELS].equals(many_rows[LABELS].iloc[:777])
    patients = make_rows(40, 'train', 0)['Path']
    assert patients.tolist() == many_rows['Path'].iloc[: len(patients)].tolist()


def test_uncertain_labels_lie_near_the_threshold() -> None:
    table, checked = sample_rows(None, 'train', 1, 20000, 'x'), 0
    for label, severity in zip(PATHOLOGIES, SEVERITIES[1:13], strict=True):
        far = (table[severity] - 0.5).abs()
        uncertain = table[label] == -1
        if uncertain.sum() > 50:
            assert far[uncertain].mean() < 0.7 * far[~uncertain].mean(), label
            assert table.loc[table[label] == 1, severity].mean() > 0.5, label
            checked += 1
    assert checked == 12


def test_findings_go_together_as_in_patients(many_rows: pd.DataFrame) -> None:
    def share(label: str, group: pd.Series) -> float:
        return (many_rows.loc[group, label] == 1).mean()

    edema, old, pa = (
        many_rows['Edema'] == 1,
        many_rows['Age'] > 70,
        many_rows['AP/PA'] == 'PA',
    )
    assert share('Cardiomegaly', edema) > 1.5 * share('Cardiomegaly', ~edema)
    assert share('Cardiomegaly', old) > 1.2 * share('Cardiomegaly', ~old)
    assert share('No Finding', pa) > 1.5 * share('No Finding', ~pa)
    assert share('Support Devices', pa) < 0.6 * share('Support Devices', ~pa)


# Where a sign belongs: least and greatest distance from the midline and height (shares of half the
# width and of the height); how much of its change lies there; whether it is brighter (1) or darker.
PLACES = {
    'Enlarged Cardiomediastinum': ((0.0, 0.5), (0.1, 0.65), 0.85, 1),
    'Cardiomegaly': ((0.15, 0.9), (0.4, 0.9), 0.85, 1),
    'Lung Opacity': ((0.1, 0.95), (0.1, 0.85), 0.9, 1),
    'Lung Lesion': ((0.1, 0.95), (0.1, 0.85), 0.9, 1),
    'Edema': ((0.1, 0.85), (0.15, 0.85), 0.8, 1),
    'Consolidation': ((0.1, 0.95), (0.1, 0.85), 0.9, 1),
    'Pneumonia': ((0.1, 0.95), (0.3, 0.9), 0.9, 1),
    'Atelectasis': ((0.0, 0.95), (0.35, 0.95), 0.6, 1),
    'Pneumothorax': ((0.2, 1.0), (0.05, 0.8), 0.6, -1),
    'Pleural Effusion': ((0.1, 1.0), (0.4, 1.0), 0.85, 1),
    'Pleural Other': ((0.45, 1.0), (0.05, 0.95), 0.8, 1),
    'Fracture': ((0.3, 1.0), (0.1, 0.9), 0.9, None),
    'Support Devices': ((0.0, 1.0), (0.0, 1.0), 1.0, 1),
}


def change(label: str, severity: float, number: int) -> np.ndarray:
    """Return how a sign changes the picture of one patient, [H, W] grey levels."""
    subject = Subject('Male', 50, 'PA', [number, 1], [number, 2])
    pictures = [
        draw({label: value}, subject, np.random.default_rng(number + 40), size=160).astype(float)
        for value in (severity, 0.0)
    ]
    return pictures[0] - pictures[1]


@pytest.mark.parametrize('label', PLACES)
def test_a_sign_changes_its_region_and_grows_with_severity(label: str) -> None:
    (near, far), (top, bottom), least, sign = PLACES[label]
    inside = total = signed = mild = 0.0
    for number in range(10):
        delta = change(label, 1.0, number)
        height, width = delta.shape
        across = np.abs(np.linspace(-1, 1, width))[None]
        along = np.linspace(0, 1, height)[:, None]
        region = (across >= near) & (across <= far) & (along >= top) & (along <= bottom)
        inside += np.abs(delta)[region].sum()
        total += np.abs(delta).sum()
        signed += delta[region].sum()
        mild += np.abs(change(label, 0.4, number)).sum()
    assert inside / total >= least
    assert sign is None or signed * sign > 0
    assert 0 < mild < 0.8 * total


def test_edema_is_on_both_sides_and_consolidation_on_one() -> None:
    for label, low, high in (('Edema', 0.2, 0.5), ('Consolidation', 0.0, 0.1)):
        shares = []
        for number in range(6):
            delta = np.abs(change(label, 1.0, number))
            half = delta[:, : delta.shape[1] // 2].sum() / delta.sum()
            shares.append(min(half, 1 - half))
        assert low <= np.median(shares) <= high, (label, shares)


def test_no_finding_draws_nothing_and_signs_keep_their_place_between_views() -> None:
    assert not change('No Finding', 1.0, 0).any()
    first, second = (
        draw({}, Subject(findings_seed=seed), np.random.default_rng(1), size=96) for seed in (1, 1)
    )
    assert (first == second).all()
    lateral = draw({'Edema': 1.0}, Subject(), np.random.default_rng(1), view='lateral', size=96)
    assert lateral.dtype == np.uint8 and lateral.shape[0] == 96 > lateral.shape[1]


def test_severities_may_be_an_array_in_chexperts_order() -> None:
    array = np.zeros(14)
    array[LABELS.index('Edema')] = 0.9
    named = draw({'Edema': 0.9}, Subject(), np.random.default_rng(0), size=96)
    assert (draw(array, Subject(), np.random.default_rng(0), size=96) == named).all()


def test_a_finished_phantom_is_not_drawn_again(phantom: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in phantom.rglob('*')}
    made = make_phantom(phantom, workers=2, **SMALL)
    assert (
        made['drawn'] == 0
        and made['images'] == json.loads((phantom / 'phantom.json').read_text())['images']
    )
    assert {file: file.stat().st_mtime_ns for file in phantom.rglob('*')} == before


def test_a_folder_that_is_not_this_phantom_is_refused(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='output .* another folder'):
        make_phantom(phantom, **SMALL | {'num_test': 8})
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match=str(tmp_path)):
        make_phantom(tmp_path, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ['notes.txt']
    with pytest.raises(ValueError, match='output'):
        make_phantom(tmp_path / 'notes.txt', **SMALL)


def test_what_is_not_allowed_is_named() -> None:
    with pytest.raises(ValueError, match="split .*'val'"):
        make_rows(5, 'val', 0)
    with pytest.raises(ValueError, match='80000 patients, got 80001'):
        make_rows(80001, 'train', 0)
    with pytest.raises(ValueError, match='one of patients and rows'):
        make_rows(5, 'train', 0, rows=5)
    with pytest.raises(ValueError, match='seed .* -1'):
        make_rows(5, 'train', -1)
    with pytest.raises(ValueError, match='Oedema'):
        draw({'Oedema': 1}, Subject(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="view .*'side'"):
        draw({}, Subject(), np.random.default_rng(0), view='side')
    with pytest.raises(ValueError, match='size .* 5000'):
        draw({}, Subject(), np.random.default_rng(0), size=5000)


def test_the_script_writes_a_phantom_and_its_contact_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / 'scripts/make_phantom.py'))
    options = ['--output', str(tmp_path / 'ph'), '--rows', '9', '--valid', '1', '--test', '0']
    options += ['--size', '48', '--workers', '1', '--contact-sheet', str(tmp_path / 'sheet.png')]
    assert script['main'](script['parse_args'](options)) == 0
    assert 'train 9, valid' in capsys.readouterr().out
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert 20 < np.asarray(sheet).std() < 127
    assert len((tmp_path / 'ph/train.csv').read_text().splitlines()) == 10
    assert script['main'](script['parse_args']([*options, '--seed', '1'])) == 2
    assert 'another folder' in capsys.readouterr().err


def test_the_phantom_needs_no_torch() -> None:
    code = "import sys, data.phantom; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, '-c', code], cwd=root, check=False).returncode == 0
