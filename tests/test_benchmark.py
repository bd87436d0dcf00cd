"""The input benchmark: figures add up, every row is there, and what is compared is comparable."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms

import data.input_sources as input_sources
import scripts.benchmark as benchmark
from data.chexpert import read_folder
from data.images import image_reader
from data.input_benchmark import (
    Case,
    as_rows,
    format_rates,
    format_stages,
    measure,
    measure_rate,
    measure_stages,
    read_records,
)
from data.input_sources import (
    OwnSource,
    PublishedDataset,
    Setting,
    Source,
    Stopwatch,
    file_sources,
    store_sources,
)
from data.masking import MaskGenerator
from data.packing import pack
from data.packing_images import Settings
from data.sampling import sample_rng
from data.transforms import GREY_STATISTICS, IMAGENET_STATISTICS, draw_crop, resized_crop

SETTING = Setting(size=32 * 2, batch_size=4, device=torch.device('cpu'))
AREA = (0.67, 1.0)


@pytest.fixture
def folder(phantom: Path) -> Path:
    return phantom / 'valid'


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_sources, 'MIN_EPOCH', 20)


class FakeClock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.ticks = count()

    def __call__(self) -> float:
        return float(next(self.ticks))


class FakeSource(Source):
    """Batches of 4 at once; an image is opened in 1 s, masked in 1 s, a batch copied in 1 s."""

    dataset = range(10)

    def batches(self, num_workers: int):
        return [[torch.zeros(4)], [torch.zeros(4)]]

    def sample(self, position: int, watch: Stopwatch) -> tuple[int, int]:
        watch.start()
        watch.lap('open')
        watch.lap('mask')
        return position, 0


def rows_of(*names: str, workers: tuple[int, ...] = (0, 2)) -> list[dict]:
    """Made-up figures: case number i has rates of about 100 * (i + 1)."""
    cases = [Case(FakeSource(name, SETTING), number) for number in workers for name in names]
    for index, case in enumerate(cases):
        case.rates = [100.0 * (index + 1) + extra for extra in (0, 30, 10)]
        case.stages_us = {'open': 2.0, 'decode': 40.0 * (index + 1)}
    return as_rows(cases, needs=1000)


# Figures


def test_rate_counts_images_after_the_warm_up():
    """The clock is looked at before, after each batch, and at the end: batches of 4 in 3 + 1 s."""
    seen = []

    def batches():
        for number in range(100):
            seen.append(number)
            yield [torch.zeros(1000 if number < 5 else 4)]

    rate = measure_rate(batches(), 3, warm_up=5, clock=FakeClock())
    assert rate == 3 * 4 / 4
    assert len(seen) == 5 + 3


def test_rate_goes_on_after_the_last_batch():
    assert measure_rate([[torch.zeros(6)]], 5, warm_up=3, clock=FakeClock()) == 5 * 6 / 6


def test_stages_are_those_of_an_image():
    stages = measure_stages(FakeSource('fake', SETTING), num_images=6, clock=FakeClock())
    # A batch of 4 is copied in one tick of a second.
    assert stages == {'open': 1e6, 'mask': 1e6, 'copy': 0.25e6}
    assert list(stages) == ['open', 'mask', 'copy']


def test_stages_add_up_to_the_time_that_passed(folder):
    """Between the first start and the last lap of an image no time is lost."""
    records = read_folder(folder, allow_all_images=True)
    for source in file_sources(records, SETTING):
        clock = FakeClock()
        watch = Stopwatch(clock)
        source.sample(1, watch)
        laps = sum(watch.seconds.values())
        assert laps == len(watch.seconds)
        assert next(clock.ticks) == 2 + laps  # two starts, and each lap's look


@pytest.mark.parametrize('name, stages', [
    ('published', ['open', 'decode', 'augment', 'mask', 'copy']),
    ('published, grey', ['open', 'decode', 'augment', 'mask', 'copy']),
    ('files', ['open', 'read', 'decode', 'augment', 'mask', 'copy']),
])  # fmt: skip
def test_every_source_has_its_stages(name, stages, folder):
    sources = file_sources(read_folder(folder, allow_all_images=True), SETTING)
    source = {source.name: source for source in sources}[name]
    assert list(measure_stages(source, num_images=1)) == stages


def test_shares_and_ratios():
    rows = rows_of('published', 'files')
    assert [row['images_per_second'] for row in rows] == [110, 210, 310, 410]  # medians
    assert [(row['lowest'], row['highest']) for row in rows][:2] == [(100, 130), (200, 230)]
    assert [row['share_of_needs'] for row in rows] == [0.11, 0.21, 0.31, 0.41]
    # To the published pipeline with as many workers.
    assert [row['times_published'] for row in rows] == [1, 210 / 110, 1, 410 / 310]
    assert [row['stages_sum_us'] for row in rows] == [42, 82, 122, 162]


# Tables


def test_rate_table_has_a_line_a_case():
    head, *lines = format_rates(rows_of('published', 'files')).splitlines()
    assert [line.split() for line in lines] == [
        ['published', '0', '110', '100', 'to', '130', '11%', '1.00'],
        ['files', '0', '210', '200', 'to', '230', '21%', '1.91'],
        ['published', '2', '310', '300', 'to', '330', '31%', '1.00'],
        ['files', '2', '410', '400', 'to', '430', '41%', '1.32'],
    ]
    assert {len(line) for line in (head, *lines)} == {len(head)}


def test_stage_table_has_a_line_a_source():
    rows = rows_of('published', 'files', workers=(0,))
    rows[0]['stages_us'] = {'decode': 3.0, 'copy': 1.25}
    rows[0]['stages_sum_us'] = 4.25
    assert [line.split() for line in format_stages(rows).splitlines()] == [
        ['source', 'open', 'decode', 'copy', 'sum'],
        ['published', '-', '3.0', '1.2', '4.2'],
        ['files', '2.0', '80.0', '-', '82.0'],
    ]


# Measuring


def test_every_source_is_measured_with_every_number_of_workers():
    sources = [FakeSource(name, SETTING) for name in ('published', 'files')]
    turns = []
    cases = measure(
        sources,
        workers=(0, 3),
        seconds=1e-6,
        repeats=2,
        progress=lambda items: turns.extend(items) or items,
    )
    wanted = [('published', 0), ('files', 0), ('published', 3), ('files', 3)]
    assert [(case.source.name, case.num_workers) for case in cases] == wanted
    assert [(case.source.name, case.num_workers) for case in turns] == 2 * wanted  # in turn
    assert all(len(case.rates) == 2 and min(case.rates) > 0 for case in cases)
    assert all(list(case.stages_us) == ['open', 'mask', 'copy'] for case in cases)


@pytest.fixture
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def run(*arguments: str) -> int:
    fast = ('--size', '64', '--batch-size', '4', '--seconds', '0.01', '--repeats', '2')
    return benchmark.main(benchmark.parse_args(['input', *fast, *arguments]))


@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded, use of fork')
def test_the_command_prints_both_tables_and_saves_every_case(folder, tmp_path, capsys, threads):
    file = tmp_path / 'cases.jsonl'
    assert run('--data-path', str(folder), '--workers', '0', '1', '--json', str(file)) == 0
    assert torch.get_num_threads() == 1
    printed, rows = capsys.readouterr().out, [json.loads(line) for line in open(file)]
    names = ('published', 'published, grey', 'files')
    cases = [(name, workers) for workers in (0, 1) for name in names]
    assert [(row['source'], row['workers']) for row in rows] == cases
    assert format_rates(rows) in printed
    assert format_stages(rows) in printed
    assert ('not measured on a GPU' in printed) == (not torch.cuda.is_available())
    for row in rows:
        assert len(row['repeats']) == 2
        assert row['stages_sum_us'] == pytest.approx(sum(row['stages_us'].values()))
        assert row['share_of_needs'] == row['images_per_second'] / 3000


@pytest.fixture
def store(folder, tmp_path) -> Path:
    """The folder packed at the pictures' own size."""
    pack(folder, tmp_path / 'store', Settings(size=None, square=False), all_images=True)
    return tmp_path / 'store'


@pytest.fixture
def squares(folder, tmp_path) -> Path:
    """The folder packed in squares."""
    pack(folder, tmp_path / 'squares', Settings(size=72), all_images=True)
    return tmp_path / 'squares'


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded, use of fork')
def test_the_command_measures_a_store_of_squares_by_picture_and_by_batch(
    folder, squares, tmp_path, threads
):
    file = tmp_path / 'cases.jsonl'
    where = ('--data-path', str(folder), '--store', str(squares))
    assert run(*where, '--workers', '0', '1', '--json', str(file)) == 0
    rows = [json.loads(line) for line in open(file)]
    by_picture, by_batch = rows[3], rows[4]
    assert [row['source'] for row in (by_picture, by_batch)] == ['store', 'store, batched']
    assert rows[-1]['workers'] == 1
    stages = ['gather', 'augment', 'mask', 'copy']
    assert list(by_picture['stages_us']) == list(by_batch['stages_us']) == stages


def test_batches_of_a_store_are_its_pictures_but_for_rounding(squares):
    """The batch is not rounded to whole grey levels twice: see data.batches."""
    records = read_records(squares)
    by_picture, by_batch = store_sources(records, SETTING)
    positions = np.array([3, 0, 7, 3])
    images, masks = by_picture.trace(positions, Stopwatch())
    batch_images, batch_masks = by_batch.trace(positions, Stopwatch())
    assert torch.equal(masks, batch_masks)
    dataset = by_batch.dataset
    of_loader = dataset.finish(dataset.__getitems__([(0, index) for index in positions]))
    assert torch.equal(batch_images, of_loader[0])  # what is timed is what training gets
    assert torch.equal(batch_masks, of_loader[1])
    level = 1 / (255 * GREY_STATISTICS[1][0])
    assert 0 < (images - batch_images).abs().max() <= 1.1 * level

    loaded = next(iter(by_batch.batches(0)))
    first = next(iter(by_picture.batches(0)))
    assert torch.equal(loaded[1], first[1])  # the same images in the same order
    assert (loaded[0] - first[0]).abs().max() <= 1.1 * level


@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded, use of fork')
def test_the_command_measures_a_store_beside_its_files(folder, store, tmp_path, capsys, threads):
    file = tmp_path / 'cases.jsonl'
    where = ('--data-path', str(folder), '--store', str(store))
    assert run(*where, '--workers', '0', '--json', str(file)) == 0
    rows = [json.loads(line) for line in open(file)]
    names = ['published', 'published, grey', 'files', 'store']
    assert [row['source'] for row in rows] == names
    assert list(rows[-1]['stages_us']) == ['gather', 'augment', 'mask', 'copy']
    assert format_rates(rows) in capsys.readouterr().out


def test_samples_of_a_store_are_those_of_its_files(folder, store):
    files, packed = (read_records(path) for path in (folder, store))
    sources = OwnSource('files', files, SETTING), OwnSource('store', packed, SETTING)
    for position in range(3):
        samples = [source.sample(position, Stopwatch()) for source in sources]
        assert torch.equal(samples[0][0], samples[1][0])
        assert torch.equal(samples[0][1], samples[1][1])


def test_the_command_says_what_is_wrong(tmp_path, capsys, threads):
    assert run('--data-path', str(tmp_path / 'nowhere')) == 2
    assert str(tmp_path / 'nowhere') in capsys.readouterr().err


@pytest.mark.parametrize('flags', [
    ('--needs', '0'), ('--seconds', '-1'), ('--workers', '-1'), ('--repeats', '0'), ('--size', 'x')
])  # fmt: skip
def test_the_command_refuses_figures_that_make_no_sense(flags, capsys):
    with pytest.raises(SystemExit):
        run('--data-path', '.', *flags)
    assert f'argument {flags[0]}: invalid' in capsys.readouterr().err


def test_records_are_those_of_train_csv_or_else_of_the_folder(phantom, folder):
    assert read_records(phantom).csv == 'train.csv'
    assert len(read_records(folder)) == len(list(folder.rglob('*.jpg')))


# What is compared


@pytest.mark.parametrize('flipped', [False, True])
@pytest.mark.parametrize('channels', ['RGB', 'L'])
def test_published_pixels_are_ours_for_the_same_crop(channels, flipped, folder, monkeypatch):
    """Three times over, and but for the rounding of float32."""
    records, size = read_folder(folder, allow_all_images=True), SETTING.size
    image = image_reader(records)(2)
    box = draw_crop(sample_rng(0, 0, 2), image.height, image.width, area=AREA)
    published = PublishedDataset(records, size, channels, MaskGenerator(size, 32, 4, 0.6))
    crop, flip, *_ = published.transform.transforms
    assert crop.scale == AREA
    flip.p = float(flipped)
    place = box.top, box.left, box.height, box.width
    monkeypatch.setattr(transforms.RandomResizedCrop, 'get_params', lambda *args: place)
    got, mask = published[2]

    own = OwnSource('files', records, SETTING).without_mask
    pixels = resized_crop(image, box, size, own.filters[0])
    grey = (pixels[:, ::-1] if flipped else pixels) / 255
    mean, std = IMAGENET_STATISTICS if channels == 'RGB' else GREY_STATISTICS
    for channel, m, s in zip(got, mean, std, strict=True):
        np.testing.assert_allclose(channel, (grey - m) / s, atol=1e-6)
    assert mask.shape == (size // 4, size // 4)


def test_own_samples_are_those_of_training(folder):
    """What is timed stage by stage is what the loader gives, mask and pixels."""
    source = OwnSource('files', read_folder(folder, allow_all_images=True), SETTING)
    for position in range(3):
        pixels, mask = source.sample(position, Stopwatch())
        wanted_pixels, wanted_mask = source.dataset[0, position]
        assert torch.equal(pixels, wanted_pixels)
        assert torch.equal(mask, wanted_mask)


def test_epochs_are_long_and_have_all_images(folder):
    records = read_folder(folder, allow_all_images=True)
    source = OwnSource('files', records, SETTING)
    assert len(source.dataset) == -(-20 // len(records)) * len(records)
    files = source.dataset.records.file.tolist()
    assert files[: len(records)] == records.file.tolist()
    assert set(files) == set(records.file)


@pytest.mark.parametrize('missing', ['batches', 'sample'])
def test_a_source_without_a_part_of_its_own_cannot_be_made(missing: str) -> None:
    parts = {'batches': lambda *_: [], 'sample': lambda *_: (0, 0)}
    type('Whole', (Source,), dict(parts))('whole', SETTING)
    del parts[missing]
    with pytest.raises(TypeError, match=missing):
        type('Part', (Source,), parts)('part', SETTING)
