"""Score the finished runs of a study or sweep on a second hospital. Not for clinical use.

python scripts/external.py --runs OUT --data-path DATA2 --output OUT2 [--sweep F] [--scale S]

OUT is the output folder of `ablate.py run` or of a study, and DATA2 the folder or packed store of
another data set. The selected checkpoint of each run predicts the test split of DATA2, and OUT2
gets tables as CSV, Markdown and LaTeX: the scores of each row in both hospitals with the
difference, over the labels with enough cases in both, and its scores on DATA2 in groups, with their
gaps, as `ablate.py table --subgroups`. The same command resumes: predictions that fit their
checkpoint and DATA2 are kept. With other --scores, it replaces the tables of the former ones.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from system.tool import Paragraphs, at_least


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    add = parser.add_argument
    add('--runs', required=True, type=Path, metavar='OUT', help='output folder of the runs')
    data = 'folder or packed store of the second hospital'
    add('--data-path', required=True, type=Path, metavar='DATA2', help=data)
    output = 'folder of predictions and tables'
    add('--output', required=True, type=Path, metavar='OUT2', help=output)
    dataset = 'data set in DATA2, as in DATA.DATASET (%(default)s)'
    add('--dataset', default='chexpert', metavar='NAME', help=dataset)
    add('--split', default='test', choices=('train', 'valid', 'test'), help='split of DATA2')
    own = 'split of the own hospital (default: as in ablate.py table)'
    add('--own-split', default='', help=own)
    sweep = 'sweep file of the runs (default: the one that OUT notes, or else names of folders)'
    add('--sweep', type=Path, metavar='F', help=sweep)
    add('--scale', default='', metavar='S', help='scale of the sweep file')
    scores = 'first score of the tables (default: that of the sweep, or the mean over the labels)'
    add('--scores', nargs=1, default=[], metavar='SCORE', help=scores)
    sets = (
        'label sets of the models and of DATA2 (default: by their data sets), such as chexpert nih'
    )
    add('--label-sets', nargs=2, metavar='NAME', help=sets)
    opts = 'options with which DATA2 is read, such as DATA.TEST_CSV external.csv'
    add('--opts', nargs='+', default=[], metavar='KEY VALUE', help=opts)
    resamples = 'resamples of the patients (%(default)s; below 200 there are no intervals)'
    add('--resamples', type=at_least(0), default=10_000, help=resamples)
    add('--device', help='cpu, cuda or cuda:N (default: a GPU if there is one)')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    parse_args()  # answers --help and wrong flags before the imports below, which take seconds

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch

from config import Config, config_text, put
from data.images.store_manifest import STORE_FILE, is_store
from data.tables.groups import all_groups
from data.tables.predictions import LabelTable, read_predictions, write_predictions
from data.tables.reading import read_split
from data.tables.records import Records, select_views, task_of
from engine.model_tool import device_named, model_tool
from engine.run_record import weights_checksum
from evaluation.inference import load_classifier
from evaluation.matching import SharedLabel, label_set, match, share_labels, shared_labels
from evaluation.metrics import OF_LABEL, applicable
from evaluation.run_facts import KNOWN, SEEN, read_known
from scripts.ablate import MOST_PAGES, groups_of_means, write_scores
from scripts.predict import Listed, describe_known, predict_images, read_config, read_elsewhere
from sweeps.external import (
    OTHER,
    OWN,
    about_hospitals,
    labels_of_both,
    only_labels,
    write_hospitals,
)
from sweeps.files import MODEL_NAMES, Sweep, load_config, load_sweep, noted_sweeps, sweep_of_runs
from sweeps.long_table import (
    MEANS,
    Scored,
    known_scores,
    lines_of_known,
    notes_about_labels,
    parts_of,
    score_runs,
)
from sweeps.run_scores import read_runs
from sweeps.runner import folder_state
from sweeps.tables import file_name
from system.device import local_device
from system.pages import page_files
from utils import selected_checkpoint

LOGGER = logging.getLogger('external')
RUN = re.compile(r'(?P<run>.+)_seed(?P<seed>\d+)(?P<fold>_fold\d+)?')
ABOUT_LABELS = (
    'Labels of one name may be defined in another way in each hospital: by other readers, or by '
    'another program that reads reports (evaluation/label_sets.yaml).'
)
ABOUT_PATIENTS = (
    'Patients are compared by their names. Hospitals that number patients alike share names, but '
    'not patients.'
)
SECOND = 'Scored on the second hospital'  # begins a note below its tables
MADE_OF = 'made_of'  # key of the JSON file beside predictions: checksums of checkpoint and data
# Data sets with own names for findings (evaluation/label_sets.yaml); others have CheXpert's.
LABEL_SETS = ('nih', 'vindr')


class Run(NamedTuple):
    """A finished run and the checkpoint that predicts."""

    row: str
    seed: int
    folder: Path
    checkpoint: Path


def sweep_of(args: argparse.Namespace) -> Sweep | None:
    """Return the sweep of the runs: that of --sweep, or else the only one that OUT notes."""
    if args.sweep:
        return load_sweep(args.sweep.absolute(), args.scale)
    noted = noted_sweeps(args.runs)
    if len(noted) > 1:
        several = ', '.join(f'{path} {scale}'.strip() for path, scale in noted)
        raise ValueError(f'--sweep: {args.runs} has runs of several sweeps, name one: {several}')
    return load_sweep(*noted[0]) if noted else None


def find_runs(args: argparse.Namespace) -> tuple[Sweep, list[Run], list[str]]:
    """Return the sweep, its runs that can predict, and notes about the others."""
    root, sweep = args.runs / MODEL_NAMES['finetune'], sweep_of(args)
    folders = sorted(root.glob('*_seed*')) if root.is_dir() else []
    found = {folder: RUN.fullmatch(folder.name) for folder in folders}
    found = {folder: parts for folder, parts in found.items() if parts}
    if not found:
        raise ValueError(f'--runs: {args.runs} has no runs of `ablate.py run` ({root}/*_seed*)')
    named = {row.run: row.name for row in sweep.rows} if sweep else None
    runs, notes = [], []
    for folder, parts in found.items():
        row = parts['run'] if named is None else named.get(parts['run'])
        if row is None or parts['fold']:
            continue
        if folder_state(folder) != 'finished':
            notes.append(f'Not finished: {folder.name}.')
            continue
        checkpoint = selected_checkpoint(folder)
        if checkpoint is None:
            mode = load_config(folder).FINETUNE.MODE
            notes.append(f'Not scored: {folder.name} has no checkpoint (FINETUNE.MODE {mode}).')
            continue
        runs.append(Run(row, int(parts['seed']), folder, checkpoint))
    if not runs:
        if any(parts['fold'] for parts in found.values()):
            notes.append('Runs of --folds are not scored: each fold is another model.')
        why = ' '.join(notes) or f'No folder is of {sweep.path}.'
        raise ValueError(f'--runs: {args.runs} has no finished run with a checkpoint. {why}')
    names = dict.fromkeys(run.row for run in runs)
    return sweep or sweep_of_runs([*names]), runs, notes


class SecondHospital:
    """The images and labels of DATA2, as each model reads them.

    Args:
        args: Parsed flags.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._known: dict[str, Records] = {}  # runs of a sweep mostly read the same

    def config(self, run: Run) -> Config:
        """Return the options with which the model of a run reads DATA2."""
        config = read_config(str(run.checkpoint))
        place = str(self.args.data_path.absolute())
        read_elsewhere(config, place, self.args.dataset, '--data-path')
        # Columns and files of the own hospital.
        own = {'EVAL.GROUPS': [], 'DATA.LEAVE_OUT': ''}
        for key, value in own.items():
            put(config, key, value, '--data-path')
        config.merge_from_list(self.args.opts)
        return config

    def records(self, config: Config, *, labelled: bool) -> Records:
        """Read the images of the split in the views of the run."""
        views = config.EVAL.VIEWS or config.DATA.VIEWS
        key = f'{labelled} {views} {config.DATA} {config.EVAL.GROUPS}'
        if key not in self._known:
            options = {'labelled': labelled, 'optional': True}
            records = read_split(config, self.args.split, LOGGER, **options)
            if records is None:
                raise ValueError(
                    f'--split: {config.DATA.DATA_PATH} has no split {self.args.split!r} as a data '
                    f'set {config.DATA.DATASET!r} (see --dataset and --split)'
                )
            self._known[key] = select_views(records, views)
        return self._known[key]

    def labels(self, run: Run) -> tuple[LabelTable, list[SharedLabel]]:
        """Read the labels, and return the findings that two label sets share.

        Of equal label sets, the labels with the same names are shared, and there are no findings.

        Raises:
            ValueError: If DATA2 has no column of any label of the model.
        """
        config, shared = self.config(run), []
        task, split = task_of(config), self.args.split
        if task.takes_names:
            own = read_config(str(run.checkpoint)).DATA.DATASET
            sets = [name if name in LABEL_SETS else 'chexpert' for name in (own, self.args.dataset)]
            ours, theirs = self.args.label_sets or sets
            shared = [] if ours == theirs else shared_labels(ours, theirs)
            wanted = label_set(theirs) if shared else task.labels
            columns = self.records(config, labelled=False).other_names
            found = [label for label in wanted if label in columns]
            if not found:
                raise ValueError(
                    f'no shared label: the model in {run.folder} has {", ".join(task.labels)}, but '
                    f'the {split} split of {self.args.data_path} has the columns '
                    f'{", ".join(columns) or "of no label"}. --label-sets names two label sets '
                    'that have other names for a finding'
                )
            config.merge_from_list(['DATA.LABELS', found, 'DATA.UNCERTAIN_BY_LABEL', {}])
            task = task_of(config)
        records = self.records(config, labelled=True)
        file, views = records.root / records.csv, config.EVAL.VIEWS or config.DATA.VIEWS
        about = {'file': file, 'key': 'Path', 'task': config.DATA.TASK, 'views': views}
        targets = task.scored(records)
        table = LabelTable(
            **about, records=records, labels=task.labels, targets=targets, missing=()
        )
        return table, shared


def predictions_of(run: Run, hospital: SecondHospital, device: torch.device) -> Path:
    """Predict the second hospital with a run, unless that was done, and return the file."""
    args = hospital.args
    file = args.output / 'predictions' / f'{run.row}_seed{run.seed}.csv'
    config = hospital.config(run)
    records = hospital.records(config, labelled=False)
    digest = hashlib.sha256(f'{args.split}\n{config_text(config)}'.encode())
    digest.update('\0'.join(records.file).encode('utf-8', 'surrogateescape'))
    if is_store(config.DATA.DATA_PATH):
        digest.update((Path(config.DATA.DATA_PATH) / STORE_FILE).read_bytes())
    made_of = {'checkpoint': weights_checksum(str(run.checkpoint)), 'data': digest.hexdigest()}
    about = file.with_suffix('.json')
    if file.is_file() and about.is_file() and json.loads(about.read_bytes())[MADE_OF] == made_of:
        print(f'kept: {file}')
        return file
    print(f'predicts {len(records)} images: {file}', flush=True)
    model = load_classifier(config, run.checkpoint, device, LOGGER)
    images = {
        path: Listed(view, patient)
        for path, view, patient in zip(records.file, records.view, records.patient, strict=True)
    }
    table, _ = predict_images(config, model, images, device=device, records=records)
    asked = argparse.Namespace(dataset=args.dataset, checkpoint=str(run.checkpoint))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(
        file,
        table.to_numpy(),
        paths=records.path,
        labels=[*table],
        source={
            'checkpoint': str(run.checkpoint),
            'run': load_config(run.folder).TAG,
            'task': config.DATA.TASK,
            'trained_views': config.DATA.VIEWS,
            'rows': len(table),
            KNOWN: describe_known(read_config(str(run.checkpoint)), asked, images, device),
            MADE_OF: made_of,
        },
    )
    return file


def score_elsewhere(
    own: Scored, run: Run, file: Path, hospital: SecondHospital
) -> tuple[Scored, list[str]]:
    """Return the scored images of the second hospital, and notes about its labels."""
    config, notes = hospital.config(run), []
    table, shared = hospital.labels(run)
    predictions = read_predictions(file, labels=task_of(config).labels)
    if shared:
        predictions, table, note = share_labels(predictions, table, shared)
        notes.append(f'{note.replace(str(file), "Findings of both label sets")}.')
        kept = [label for label in shared if label.name in table.labels and label.made_of]
        notes += [f'{label.name} stands for: {label.made_of}.' for label in kept]
    elif missing := [label for label in predictions.labels if label not in table.labels]:
        notes.append(f'The second hospital has no column of: {", ".join(missing)}.')

    def groups(records: Records) -> dict[str, Any]:
        return all_groups(records, config.EVAL.GROUPS, config.DATA.DEMOGRAPHICS)

    cases, _ = match(predictions, table, name=run.row, level=own.level, groups=groups)
    scored = Scored(
        run.row,
        run.seed,
        cases,
        hospital.args.split,
        own.level,
        own.thresholds,
        (read_known(file),),
    )
    if any(
        'patients of the predicted images' in line for line in scored.known[0].doubts.get(SEEN, ())
    ):
        notes.append(ABOUT_PATIENTS)
    return scored, notes


def first_score(
    asked: Sequence[str], scores: Sequence[str], tables: Sequence[pd.DataFrame]
) -> str | None:
    """Return the first score of the tables that both hospitals define, None if there is no mean."""
    known = [{*known_scores(table)} for table in tables]
    for score in (*asked, *scores, *MEANS[1:]):
        defined = all(parts_of(score)[1] in found for found in known)
        if defined:
            return score
        if asked:
            allowed = ', '.join(sorted(set.intersection(*known)))
            raise ValueError(f'--scores must be of {allowed} (both hospitals), got {score!r}')
    return None


@model_tool
def main(args: argparse.Namespace) -> int:
    if not args.data_path.is_dir():
        raise ValueError(f'--data-path: there is no folder {args.data_path}')
    if args.dataset.endswith('.py'):
        args.dataset = str(Path(args.dataset).absolute())
    sweep, runs, notes = find_runs(args)
    folders: dict[str, dict[int, Path]] = {}
    for run in runs:
        folders.setdefault(run.row, {})[run.seed] = run.folder
    read = read_runs(folders, sweep, split=args.own_split)
    own = {(scored.row, scored.seed): scored for scored in read.scored}
    device = device_named(args.device) if args.device else local_device()
    hospital, pairs, about_labels = SecondHospital(args), [], {}
    for run in runs:
        file = predictions_of(run, hospital, device)
        scored, told = score_elsewhere(own[run.row, run.seed], run, file, hospital)
        pairs.append((own[run.row, run.seed], scored))
        about_labels |= dict.fromkeys(told)
    asked = [parts_of(score)[1] for score in args.scores or sweep.scores]
    counted, labels = labels_of_both(pairs, asked)
    shared = [name for name in pairs[0][1].images.labels if name in pairs[0][0].images.labels]
    hospitals = about_hospitals(pairs, labels, [name for name in shared if name not in labels])
    pairs = [tuple(only_labels(run, labels) for run in pair) for pair in pairs]
    scores = [score for score in args.scores or sweep.scores if parts_of(score)[1] in labels]
    wanted = [*dict.fromkeys([*args.scores, *scores, *MEANS[1:], *labels])]
    if labels != counted:  # a mean would be over other labels in each hospital
        wanted = [score for score in wanted if parts_of(score)[1] not in MEANS]
    tables = {}
    for seed, place in enumerate((OWN, OTHER)):  # the patients of the two are drawn independently
        of_place = [pair[seed] for pair in pairs]
        options = {'resamples': args.resamples, 'seed': seed, 'by_group': place == OTHER}
        drawn = score_runs(of_place, wanted, **options)
        known = lines_of_known(of_place, max(map(len, folders.values())))
        tables[place] = pd.concat([drawn, pd.DataFrame([*known])], ignore_index=True)
    score = first_score(args.scores, scores, [*tables.values()])
    below = [*hospitals, *about_labels, *notes, ABOUT_LABELS]
    alone = [score] if score else labels
    write_second(args, sweep, [pair[1] for pair in pairs], tables[OTHER], alone)
    every = dict.fromkeys(label for scored in read.scored for label in scored.images.labels)
    remove_earlier(args.output, sweep, alone, [*every])
    chosen = [score or MEANS[2], *labels]
    files = write_hospitals(args.output, sweep, tables, chosen, notes=below)
    print(files[0].read_text('utf-8'))
    print(*files, sep='\n')
    return 0


def write_second(
    args: argparse.Namespace,
    sweep: Sweep,
    runs: Sequence[Scored],
    drawn: pd.DataFrame,
    scores: Sequence[str],
) -> None:
    """Write the tables of the second hospital alone, as `ablate.py table --subgroups` does."""
    flags = {'against': [], 'row': [], 'columns': [], 'subgroups': [], 'scores': scores}
    asked = argparse.Namespace(save=args.output, **flags)
    repeated, means = notes_about_labels(runs)
    about = {'means': means, 'about_groups': groups_of_means(asked, runs, drawn)}
    notes = [f'{SECOND}, {args.data_path}. Higher is better.', *repeated, '']
    write_scores(asked, sweep, drawn, notes=notes, protocols={}, **about)


def remove_earlier(
    folder: Path, sweep: Sweep, scores: Sequence[str], labels: Sequence[str]
) -> None:
    """Remove the tables of other scores, which an earlier call has written to the folder.

    `labels` are those of the models, of which the scores of an earlier call can be.
    """
    known = [*MEANS, *labels]
    known += [f'{metric}:{label}' for metric in applicable(OF_LABEL) for label in known]
    names = {file_name(sweep.name, score) for score in known}
    if len(scores) == 1:
        names.add(f'{sweep.name}_all_scores')
    for name in sorted(names - {file_name(sweep.name, score) for score in scores}):
        page = folder / f'{name}.md'
        # Tables of the own hospital, of `ablate.py table`, may be in the same folder.
        if not page.is_file() or SECOND not in page.read_text('utf-8'):
            continue
        for path in (folder / f'{name}{end}.tex' for end in ('_gaps', '_subgroups', '')):
            for old in page_files(path, MOST_PAGES):
                if not old.with_suffix('.csv').is_file():  # the table of label 'Grade 1'
                    old.unlink(missing_ok=True)
            for suffix in ('.tex', '.csv', '.md'):  # a removal that was stopped finds the last one
                path.with_suffix(suffix).unlink(missing_ok=True)


if __name__ == '__main__':
    sys.exit(main(parse_args()))
