"""Compare maps with regions, from the sources of maps to the page; also for the report of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from config import Config
from engine.run_record import code_version
from evaluation.maps import AUTO
from evaluation.regions.analysis import analyse, baselines_of, find_cases, score_source
from evaluation.regions.model_maps import RunMaps, Trained
from evaluation.regions.page import Localisation, write_localisation
from evaluation.regions.readers import names_of_models, read_regions
from evaluation.regions.regions import Regions
from evaluation.regions.sources import MapSource

FOLDER = 'regions'  # in the folder of a report


def localise(
    folder: Path,
    regions: Regions,
    sources: Sequence[MapSource],
    *,
    notes: Sequence[str],
    resamples: int,
    seed: int,
    squeezed: bool = False,
) -> tuple[Path, list[str]]:
    """Score all maps, write the page, and return it with its sentences about the models.

    Args:
        folder: Folder of the page.
        regions: Regions whose labels have the names of the sources.
        sources: Sources of maps.
        notes: Sentences about the regions.
        resamples: Resamples of the patients.
        seed: Seed of resamples and baselines.
        squeezed: Whether images may have another shape than the one that was annotated.
    """
    cases = find_cases(regions, sources, squeezed=squeezed)
    rows = [row for source in sources for row in score_source(source, regions, cases)]
    rows += score_source(baselines_of(cases, seed), regions, cases)
    document = analyse(cases, rows, resamples=resamples, seed=seed)
    marked = cases.marked
    about = {
        'Regions': f'{regions.file.name} ({regions.kind})',
        'Cases with a region': f'{len(marked)}, of {marked["path"].nunique()} images and '
        f'{marked["patient"].nunique()} patients',
        'Cases without a region': str(len(cases.absent)),
        'Maps': ', '.join(dict.fromkeys(source.title for source in sources)),
        'Resamples': f'{resamples} of the patients, seed {seed}',
        'Code': code_version(),
    }
    by_name = {source.name: source for source in sources}
    found = Localisation(regions, cases, rows, by_name, document, about, notes)
    return write_localisation(folder, found), document['verdicts']


def renamed_note(names: dict[str, str]) -> list[str]:
    """Say which labels were renamed."""
    renamed = ', '.join(f'{old} as {new}' for old, new in names.items())
    return [f'Labels of the regions with other names: {renamed}.'] if names else []


def localise_run(
    config: Config, checkpoint: str, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Compare the maps of a run with the regions of REPORT.REGIONS, for its report.

    Returns:
        `page`, relative to the folder of the report, or '' if the regions cannot be scored, which
        must not cost the report of a long training; and `lines`, what follows, or the reason.
    """
    try:
        if not Path(checkpoint).is_file():
            raise ValueError('a probe of frozen features keeps no checkpoint')
        options = {'device': device, 'seed': config.SEED, 'method': AUTO}
        source = RunMaps([Trained(Path(checkpoint), config)], config.TAG, **options)
        regions = read_regions(Path(config.REPORT.REGIONS))
        names = names_of_models(regions, source.labels)
        notes = [*regions.notes, *renamed_note(names)]
        options = {'resamples': config.EVAL.RESAMPLES, 'seed': config.SEED}
        page, lines = localise(
            folder / FOLDER, regions.renamed(names), [source], notes=notes, **options
        )
    except (OSError, ValueError) as error:
        what = f'REPORT.REGIONS {config.REPORT.REGIONS}: the maps are not scored: {error}. '
        return {'page': '', 'lines': [f'{what}See scripts/localise.py for further flags']}
    return {'page': page.relative_to(folder).as_posix(), 'lines': lines}
