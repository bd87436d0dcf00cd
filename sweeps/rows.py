"""The rows of a sweep: an ablation's around a reference, or methods with subsets of the labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config, build_parser, get_config

ROOT = Path(__file__).resolve().parents[1]
STAGES = ('simmim', 'contrastive', 'finetune')
# Section of a sweep file that a stage belongs to, and the names of sections in texts.
SECTIONS = {'simmim': 'pretrain', 'contrastive': 'pretrain', 'finetune': 'finetune'}
SECTION_NAMES = {'pretrain': 'pre-training', 'finetune': 'fine-tuning'}
MODEL_NAMES = {
    'simmim': 'simmim_pretrain',
    'contrastive': 'contrastive_pretrain',
    'finetune': 'simmim_finetune',
}


@dataclass(frozen=True)
class Row:
    """One ablation config, or one method with one subset of the labels.

    Attributes:
        name: in the sweep, such as '0.1'.
        run: of its folders, scripts and YAML files, such as 'mask_ratio_0.1'.
        pretrain: options changed in pre-training, by key; None: there is none.
        finetune: options changed in fine-tuning, by key.
        configs: YAML file by stage.
        pretrain_run: the run whose pre-training it takes, '' without any.
        weights: environment variable that names the checkpoint it starts from, or ''.
        learns_from: run whose predictions on the training images are its targets, or ''.
        against: name of the row that it is compared with.
        pretraining: stage of its pre-training, 'simmim' or 'contrastive'.
        method: of a sweep of methods, or ''.
        subset: share or number of labelled images, as the file has it, or ''.
    """

    name: str
    run: str
    pretrain: dict[str, Any] | None
    finetune: dict[str, Any]
    configs: dict[str, Path]
    pretrain_run: str = ''
    weights: str = ''
    learns_from: str = ''
    against: str = ''
    pretraining: str = 'simmim'
    method: str = ''
    subset: str = ''

    @property
    def stages(self) -> tuple[str, ...]:
        return ('finetune',) if self.pretrain is None else (self.pretraining, 'finetune')

    def stage_of(self, section: str) -> str:
        """The stage of a section of the sweep file."""
        return self.pretraining if section == 'pretrain' else 'finetune'

    def run_of(self, stage: str) -> str:
        """Name of the run of a stage, '' for one that it does not have."""
        if stage == 'finetune':
            return self.run
        return self.pretrain_run if stage == self.pretraining else ''

    def changes(self, stage: str) -> dict[str, Any]:
        """Options changed in a stage, by key."""
        return (self.finetune if stage == 'finetune' else self.pretrain) or {}


@dataclass(frozen=True)
class Published:
    """Published figures of some rows, by the row's name: context, never a comparison."""

    source: str
    measure: str
    values: dict[str, Any]
    note: str = ''


@dataclass(frozen=True)
class Sweep:
    """Rows around one reference row, which changes nothing, or those of several methods.

    Attributes:
        name: the file's, such as 'mask_ratio'.
        path: of the file.
        title: what is varied.
        keys: 'pretrain' and 'finetune': all options that rows may change.
        rows: in the order of the file.
        reference: one of the rows; of methods that of the reference with most labels.
        published: context, or None.
        subsets: of a sweep of methods how subsets of the labels are given, 'shares' or 'images'; ''
            of an ablation.
    """

    name: str
    path: Path
    title: str
    keys: dict[str, list[str]]
    rows: tuple[Row, ...]
    reference: Row
    published: Published | None = None
    subsets: str = ''

    @property
    def methods(self) -> dict[str, Row]:
        """By name: the row with most labels."""
        rows = sorted(self.rows, key=lambda row: float(row.subset or 0))
        return {row.method: row for row in rows if row.method}

    def base(self, row: Row, stage: str) -> Path:
        """The YAML file that a row's changes are put over: the reference's, or the method's."""
        return (row if row.method else self.reference).configs[stage]


def stage_title(stage: str) -> str:
    """Of a stage, in texts."""
    kind = 'contrastive ' if stage == 'contrastive' else ''
    return kind + SECTION_NAMES[SECTIONS[stage]]


def run_folder(output: str | Path, stage: str, row: Row, seed: int) -> Path | None:
    """Folder of a row's stage; of a shared pre-training the one that is shared, None without."""
    run = row.run_of(stage)
    return Path(output) / MODEL_NAMES[stage] / f'{run}_seed{seed}' if run else None


def changed_config(path: Path, stage: str) -> Config:
    """The options of a YAML file of `stage`, before flags: for comparing files."""
    return get_config(build_parser(stage).parse_args(['--cfg', str(path)]))
