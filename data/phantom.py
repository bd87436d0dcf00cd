"""Synthetic chest X-rays in CheXpert's layout, for the demo and the tests.

Everything is a function of the seed and of the numbers of split, patient, study and view.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from data.labels import LABELS, NO_FINDING
from data.phantom_anatomy import Subject, add_vessels, frontal, lateral, make_body
from data.phantom_rows import SEVERITIES, SPLITS, make_rows, sample_rows, with_odd_cells
from data.phantom_scene import add_marker, expose, make_scene
from data.phantom_signs import NUM_UNIFORMS, SIGNS

VIEWS = {'frontal': frontal, 'lateral': lateral}
__all__ = ['Subject', 'contact_sheet', 'draw', 'make_phantom', 'make_rows']

SETTINGS_FILE = 'phantom.json'
SIZES = (32, 1000)


def draw(
    findings: Mapping[str, float] | np.ndarray,
    subject: Subject,
    rng: np.random.Generator,
    *,
    view: str = 'frontal',
    size: int = 390,
) -> np.ndarray:
    """Draw one X-ray.

    Args:
        findings: severity (0 to 1) by label, or [14] in CheXpert's order; 0.5 is the threshold.
        subject: whose; its seeds fix the anatomy and where the signs sit.
        rng: for what differs from picture to picture: position, exposure, noise, marker.
        view: 'frontal' or 'lateral'.
        size: long side in pixels.

    Returns:
        uint8 [H, W].

    Raises:
        ValueError: if a label, the view or the size is not allowed.
    """
    if view not in VIEWS:
        raise ValueError(f'view must be one of {sorted(VIEWS)}, got {view!r}')
    if not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f'size must be between {SIZES[0]} and {SIZES[1]}, got {size}')
    if not isinstance(findings, Mapping):
        findings = dict(zip(LABELS, findings, strict=True))
    if unknown := set(findings) - set(LABELS):
        raise ValueError(f'findings must be among {LABELS}, got {sorted(unknown)}')
    severity = {label: min(max(float(findings.get(label, 0)), 0.0), 1.0) for label in LABELS}
    uniforms = np.random.default_rng(subject.findings_seed).random((len(LABELS), NUM_UNIFORMS))
    where = dict(zip(LABELS, uniforms.tolist(), strict=True))
    body = make_body(subject)
    scene, shape, angle = make_scene(rng, view, subject.projection, size, where[NO_FINDING][:2])
    VIEWS[view](scene, body, severity, where, rng.normal(0, 0.03))
    scene.bare = np.zeros_like(scene.air)
    for label, sign in SIGNS.items():
        if severity[label] > 0.02:
            sign(scene, severity[label], where[label])
    add_vessels(scene, body)
    add_marker(scene, rng)
    return expose(scene, rng, shape, angle)


def make_phantom(
    output: str | Path,
    *,
    num_train: int = 700,
    num_valid: int = 100,
    num_test: int = 300,
    seed: int = 0,
    workers: int = 1,
    size: int = 390,
    rows: int | None = None,
) -> dict:
    """Write train.csv, valid.csv, test.csv and their images into a folder.

    Args:
        output: folder, empty or absent; its name begins every `Path`.
        num_train: patients (about 3.5 images each).
        num_valid: patients (one study, about 1.2 images each).
        num_test: as `num_valid`.
        seed: of everything.
        workers: processes that draw; what they draw does not depend on their number.
        size: long side of the images in pixels; 0 writes the CSV files alone.
        rows: exact number of training images, in place of `num_train`.

    Returns:
        What phantom.json holds, and 'drawn' (images drawn by this call) and 'seconds'.

    Raises:
        ValueError: if the folder holds anything but this very phantom, finished.
    """
    if size and not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f'size must be 0 or between {SIZES[0]} and {SIZES[1]}, got {size}')
    start, output = time.perf_counter(), Path(output).resolve()
    patients = {'train': None if rows else num_train, 'valid': num_valid, 'test': num_test}
    settings = {'patients': patients, 'rows': rows, 'seed': seed, 'size': size}
    if (found := finished(output, settings)) is not None:
        return found | {'drawn': 0, 'seconds': time.perf_counter() - start}
    output.mkdir(parents=True, exist_ok=True)
    counts, images = {}, 0
    for split in SPLITS:
        limit = rows if split == 'train' else None
        table = sample_rows(patients[split], split, seed, limit, output.name)
        csv = with_odd_cells(table, split, seed)
        csv.to_csv(output / f'{split}.csv', index=False)
        counts[split] = len(table)
        if size:
            images += draw_all(table, output, (SPLITS.index(split), seed, size), workers)
    done = settings | {'images': counts}
    temporary = output / (SETTINGS_FILE + '.tmp')
    temporary.write_text(json.dumps(done, indent=1) + '\n')
    os.replace(temporary, output / SETTINGS_FILE)
    return done | {'drawn': images, 'seconds': time.perf_counter() - start}


def contact_sheet(output: str | Path, file: str | Path, *, split: str = 'train') -> None:
    """Write a picture of a phantom's first 24 images with their positive labels."""
    output, cell, columns = Path(output).resolve(), 280, 6
    table = pd.read_csv(output / f'{split}.csv').head(24)
    sheet = Image.new('L', (columns * cell, -(-len(table) // columns) * (cell + 30)), 255)
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(table.itertuples(index=False)):
        x, y = number % columns * cell, number // columns * (cell + 30)
        with Image.open(output.parent / row[0]) as image:
            sheet.paste(ImageOps.contain(image, (cell - 4, cell - 4)), (x, y))
        marks = [label for label, value in zip(LABELS, row[5:], strict=True) if value == 1]
        half = -(-len(marks) // 2)
        text = ', '.join(marks[:half]) + '\n' + ', '.join(marks[half:])
        pen.text((x, y + cell - 2), text, fill=0)
    sheet.save(file)


def finished(output: Path, settings: dict) -> dict | None:
    """Return phantom.json of a finished phantom with these settings, None for an empty folder."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        found = json.loads((output / SETTINGS_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        found = {}
    if {key: found.get(key) for key in settings} != settings:
        raise ValueError(
            f'output must be empty, absent or this very phantom, finished; {output} is none of '
            f'these (asked for: {settings}): remove it or choose another folder'
        )
    return found


def draw_all(table: pd.DataFrame, output: Path, key: tuple[int, int, int], workers: int) -> int:
    """Draw and write the images of a split; return their number."""
    folders = sorted({os.path.dirname(path) for path in table['Path']})
    for folder in folders:
        (output.parent / folder).mkdir(parents=True, exist_ok=True)
    columns = ['Path', 'Sex', 'Age', 'projection', 'index', 'study', 'view', 'Frontal/Lateral']
    severity = table[SEVERITIES].to_numpy()
    rows = zip(table[columns].itertuples(index=False, name=None), severity, strict=True)
    tasks = [(output.parent, key, *row) for row in rows]
    with tqdm(total=len(tasks), desc=SPLITS[key[0]], unit='image', disable=None) as progress:
        if workers <= 1:
            for task in tasks:
                progress.update(_draw_one(task))
        else:
            with multiprocessing.Pool(workers) as pool:
                for done in pool.imap_unordered(_draw_one, tasks, chunksize=16):
                    progress.update(done)
    return len(tasks)


def _draw_one(task: tuple) -> int:
    root, (split, seed, size), row, severity = task
    path, sex, age, projection, patient, study, view, kind = row
    who = [split, seed, patient]
    subject = Subject(sex, age, projection, [2, *who], [3, *who, study])
    rng = np.random.default_rng([5, *who, study, view])
    image = draw(severity, subject, rng, view=kind.lower(), size=size)
    Image.fromarray(image).save(root / path, quality=90)
    return 1
