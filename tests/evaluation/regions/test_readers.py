"""Files of regions as CheXlocalize, NIH, VinDr-CXR and RSNA have them, and own tables."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.regions.readers import UNION, names_of_models, read_regions
from evaluation.regions.regions import Regions, Size, refuse_other_shape


def write(file: Path, *lines: str) -> Path:
    file.write_text('\n'.join(lines) + '\n')
    return file


def pixels(regions: Regions, path: str, label: str, image: Size | None = None) -> np.ndarray:
    return regions.mask(path, label, regions.size_of(path, label, image))


def box(size: tuple[int, int], top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def coco(mask: np.ndarray) -> dict[str, object]:
    """Encode a mask as CheXlocalize does."""
    encoder = pytest.importorskip('pycocotools.mask', reason='needs the extra regions')
    counts = encoder.encode(np.asfortranarray(mask, np.uint8))['counts'].decode()
    return {'size': [*mask.shape], 'counts': counts}


@pytest.fixture
def chexlocalize(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Two images of other sizes; a finding is absent in one, and one has another name."""
    masks = {
        'effusion': box((232, 282), 100, 220, 30, 90),
        'opacity': box((232, 282), 10, 20, 200, 282) | box((232, 282), 50, 60, 0, 5),
        'other': box((175, 202), 0, 175, 0, 101),
    }
    file = tmp_path / 'gt_segmentations_val.json'
    images = {
        'patient64541_study1_view1_frontal': {
            'Pleural Effusion': coco(masks['effusion']),
            'Airspace Opacity': coco(masks['opacity']),
        },
        'patient64622_study2_view1_frontal': {
            'Pleural Effusion': coco(np.zeros((175, 202), bool)),
            'Airspace Opacity': coco(masks['other']),
        },
    }
    file.write_text(json.dumps(images))
    return file, masks


def test_chexlocalize_has_masks_of_several_sizes_and_absent_findings(chexlocalize) -> None:
    file, masks = chexlocalize
    regions = read_regions(file)
    one, two = 'patient64541/study1/view1_frontal', 'patient64622/study2/view1_frontal'
    assert regions.labels == ['Pleural Effusion', 'Lung Opacity'], 'with the names of CheXpert'
    assert [regions.has_region(*case) for case in regions.rows] == [True, True, False, True]
    assert regions.size_of(one, 'Lung Opacity', Size(20, 20)) == (232, 282)
    np.testing.assert_array_equal(pixels(regions, one, 'Pleural Effusion'), masks['effusion'])
    np.testing.assert_array_equal(pixels(regions, one, 'Lung Opacity'), masks['opacity'])
    np.testing.assert_array_equal(pixels(regions, two, 'Lung Opacity'), masks['other'])


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'size': [282, 233]}, 'does not fit its size'),
        ({'size': [100, 100]}, 'is damaged'),
        ({'counts': 'nonsense!'}, 'is damaged'),
    ],
)
def test_a_damaged_mask_is_refused_with_image_and_finding(
    chexlocalize, change: dict, words: str
) -> None:
    file, _ = chexlocalize
    contents = json.loads(file.read_text())
    contents['patient64541_study1_view1_frontal']['Airspace Opacity'] |= change
    file.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=words) as error:
        pixels(read_regions(file), 'patient64541/study1/view1_frontal', 'Lung Opacity')
    assert 'patient64541_study1_view1_frontal, Airspace Opacity' in str(error.value)


@pytest.mark.parametrize(
    'text', ['{', '[]', '{"a": 3}', '{"a": {"b": {}}}', '{"a": {"b": {"size": [2], "counts": ""}}}']
)
def test_another_json_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r'gt_segmentations_\*.json'):
        read_regions(write(tmp_path / 'a.json', text))


def test_nih_boxes_are_in_pixels_of_1024(tmp_path: Path) -> None:
    regions = read_regions(
        write(
            tmp_path / 'BBox_List_2017.csv',
            'Image Index,Finding Label,Bbox [x,y,w,h],,,',
            '00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169491,79.1,,,',
            '00013118_008.png,Infiltrate,0,0,10,20,,,',
        )
    )
    assert regions.kind == 'NIH' and regions.labels == ['Atelectasis', 'Infiltration']
    mask = pixels(regions, '00013118_008.png', 'Atelectasis', Size(256, 256))
    # Pixel centres 225.5 to 311.5, and 547.5 to 625.5.
    np.testing.assert_array_equal(mask, box((1024, 1024), 547, 626, 225, 312))


def test_vindr_joins_readers_and_states_absent_findings(tmp_path: Path) -> None:
    regions = read_regions(
        write(
            tmp_path / 'annotations_train.csv',
            'image_id,rad_id,class_name,x_min,y_min,x_max,y_max',
            'aa,R1,Cardiomegaly,10,20,30,40',
            'aa,R2,Cardiomegaly,20,30,50,60',
            'aa,R3,Aortic enlargement,1,1,5,5',
            'bb,R1,No finding,,,,',
        )
    )
    assert regions.kind == 'VinDr-CXR' and regions.notes == (UNION,)
    mask = pixels(regions, 'aa', 'Cardiomegaly', Size(100, 80))
    both = box((100, 80), 20, 40, 10, 30) | box((100, 80), 30, 60, 20, 50)
    np.testing.assert_array_equal(mask, both)
    absent = [case for case in regions.rows if not regions.has_region(*case)]
    assert absent == [('bb', 'Cardiomegaly'), ('bb', 'Aortic enlargement')]


def test_rsna_has_images_without_a_box(tmp_path: Path) -> None:
    regions = read_regions(
        write(
            tmp_path / 'stage_2_train_labels.csv',
            'patientId,x,y,width,height,Target',
            '0004cfab,,,,,0',
            '00436515,264.0,152.0,213.0,379.0,1',
            '00436515,562.0,152.0,256.0,453.0,1',
        )
    )
    assert regions.patients() == {name: name for name in ('0004cfab', '00436515')}
    assert regions.kind == 'RSNA' and not regions.has_region('0004cfab', 'Lung Opacity')
    mask = pixels(regions, '00436515', 'Lung Opacity')
    assert mask.shape == (1024, 1024) and mask.sum() == 213 * 379 + 256 * 453


def test_an_own_table_has_boxes_masks_and_images_without_a_region(tmp_path: Path) -> None:
    mask = coco(box((6, 8), 1, 3, 2, 5))
    regions = read_regions(
        write(
            tmp_path / 'own.csv',
            'Path,label,x,y,w,h,counts,image_height,image_width,Patient',
            'a.png,Mass,2,1,3,2,,,,P1',
            'b.png,Mass,,,,,,,,P1',
            f'c.png,Mass,,,,,{mask["counts"]},6,8,P2',
        )
    )
    assert regions.patients() == {'a.png': 'P1', 'b.png': 'P1', 'c.png': 'P2'}
    expected = box((6, 8), 1, 3, 2, 5)
    np.testing.assert_array_equal(pixels(regions, 'a.png', 'Mass', Size(6, 8)), expected)
    np.testing.assert_array_equal(pixels(regions, 'c.png', 'Mass', Size(60, 80)), expected)
    assert not regions.has_region('b.png', 'Mass')
    with pytest.raises(ValueError, match='must state one size'):
        regions.size_of('a.png', 'Mass', None)
    assert regions.drawn_on(Size(12, 16)).size_of('a.png', 'Mass', Size(6, 8)) == (12, 16)


def test_the_boxes_of_an_image_with_several_spellings_are_united(tmp_path: Path) -> None:
    names = ['Set/train/patient00007/study1/view1_frontal.jpg', 'b.png', 'c/d.png']
    others = ['patient00007/study1/view1_frontal.png', 'b', ' c/d.jpg']
    lines = [f'{name},Mass,0,0,3,4' for name in names]
    lines += [f'{name},Mass,5,6,3,2' for name in others]
    # Other folders, numbers and patients are other images.
    apart = ['other/a.png', 'a.png', 'b1.png', 'patient00008/study1/view1_frontal.jpg']
    lines += [f'{name},Mass,5,6,3,2' for name in apart]
    regions = read_regions(write(tmp_path / 'own.csv', 'Path,Label,x,y,width,height', *lines))
    both = box((9, 9), 0, 4, 0, 3) | box((9, 9), 6, 8, 5, 8)
    assert [path for path, _ in regions.rows] == names + apart
    for name in names:
        np.testing.assert_array_equal(pixels(regions, name, 'Mass', Size(9, 9)), both)
    assert f'{others[0]} is {names[0]}' in regions.notes[0]


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('a.png,Mass,2,1,3,,,', 'row 2 .*needs all of x, y, width, height'),
        ('a.png,Mass,2,1,3,2,abc,', 'row 2 .*or counts alone'),
        ('a.png,Mass,,,,,abc,', 'row 2 .*a mask needs image_height'),
        ('a.png,Mass,two,1,3,2,,', "row 2 .*'two' is not allowed"),
        (',Mass,2,1,3,2,,', r'own.csv, row 2 .*the path must not be empty'),
        ('  ,Mass,2,1,3,2,,', r'own.csv, row 2 .*the path must not be empty'),
        ('a.png,,2,1,3,2,,', r'own.csv, row 2 .*the label must not be empty'),
    ],
)
def test_a_wrong_row_of_an_own_table_is_named(tmp_path: Path, line: str, words: str) -> None:
    header = 'Path,Label,x,y,width,height,counts,image_height'
    with pytest.raises(ValueError, match=words):
        read_regions(write(tmp_path / 'own.csv', header, line))


def test_a_file_of_another_kind_is_refused_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='NIH: Image Index') as error:
        read_regions(write(tmp_path / 'train.csv', 'Path,Edema', 'a.png,1'))
    assert 'Path, Label, x, y, width, height' in str(error.value)
    with pytest.raises(ValueError, match='does not exist'):
        read_regions(tmp_path / 'none.csv')


@pytest.mark.parametrize('cells', ['700,10,50,50', '10,700,50,50', '-40,10,60,60', '256,10,1,50'])
def test_a_box_outside_its_image_is_refused_with_what_helps(tmp_path: Path, cells: str) -> None:
    """Such as boxes in pixels of 1,024 on images of 256, or with x and y exchanged."""
    regions = read_regions(
        write(tmp_path / 'own.csv', 'Path,Label,x,y,width,height', f'a.png,Mass,{cells}')
    )
    with pytest.raises(ValueError, match=r'row 2 .*must lie in the image a.png of 256 x 256') as e:
        pixels(regions, 'a.png', 'Mass', Size(256, 256))
    assert '--annotated-size' in str(e.value)


@pytest.mark.parametrize('cells', ['5,5,0,10', '5,5,10,0', '5,5,-3,10'])
def test_a_box_without_an_area_is_refused_with_its_sides(tmp_path: Path, cells: str) -> None:
    regions = read_regions(
        write(tmp_path / 'own.csv', 'Path,Label,x,y,width,height', f'a.png,Mass,{cells}')
    )
    with pytest.raises(ValueError, match=r'own.csv, row 2 .*width and height .* above 0, got'):
        pixels(regions, 'a.png', 'Mass', Size(256, 256))


def test_a_box_that_rounding_moved_over_the_edge_is_cut(tmp_path: Path) -> None:
    regions = read_regions(
        write(tmp_path / 'own.csv', 'Path,Label,x,y,width,height', 'a.png,Mass,-0.4,98,20,2.7')
    )
    mask = pixels(regions, 'a.png', 'Mass', Size(100, 100))
    np.testing.assert_array_equal(mask, box((100, 100), 98, 100, 0, 20))


def test_an_image_of_another_shape_is_refused() -> None:
    refuse_other_shape('a', Size(2320, 2828), Size(320, 390))
    refuse_other_shape('a', Size(1024, 1024), Size(256, 256))
    with pytest.raises(ValueError, match='Are height and width swapped'):
        refuse_other_shape('a', Size(2320, 2828), Size(2828, 2320))
    with pytest.raises(ValueError, match='--squeezed'):
        refuse_other_shape('a', Size(2320, 2828), Size(224, 224))


def test_findings_with_other_names_are_those_of_the_label_sets(tmp_path: Path) -> None:
    rows = [f'a.png,{name},0,0,9,9,,,' for name in ('Effusion', 'Mass', 'Nodule', 'Infiltrate')]
    rows += ['a.png,Pneumonia,0,0,9,9,,,', 'a.png,Hernia,0,0,9,9,,,']
    regions = read_regions(
        write(tmp_path / 'b.csv', 'Image Index,Finding Label,Bbox [x,y,w,h],,,', *rows)
    )
    chexpert = ['Pleural Effusion', 'Lung Lesion', 'Lung Opacity', 'Pneumonia']
    assert names_of_models(regions, chexpert) == {
        'Effusion': 'Pleural Effusion',
        'Mass': 'Lung Lesion',
        'Nodule': 'Lung Lesion',
        'Infiltration': 'Lung Opacity',
    }
    assert names_of_models(regions, ['Effusion', 'Mass']) == {}
    joined = regions.renamed({'Mass': 'Lung Lesion', 'Nodule': 'Lung Lesion'})
    assert len(joined.rows['a.png', 'Lung Lesion']) == 2
