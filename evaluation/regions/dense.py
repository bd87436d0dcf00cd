"""Dense probe: what the tokens of a frozen encoder say about the share of a mask inside a token.

A ridge regression predicts the share from each token. It only needs sums of products over the
tokens, so they are read in batches and never held together, and the result is exact: that of a
regression on all tokens at once. The images are read twice: for the sums, and for the predictions.
Each patient is predicted by a probe that was fitted to the other folds of patients, which also
choose its penalty.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from config import Config
from data.fingerprint import patient_numbers
from data.images.files import BadImageError
from data.images.image_source import open_images
from data.images.noted_images import NotedImages, NotedLoader
from data.images.preprocess_steps import own_mask
from data.tables.folds import folds_of
from data.tables.reading import require_packed_steps
from data.tables.records import Records, images_of
from data.transforms import EvalTransform
from engine.lineage import trainings_of
from evaluation.inference import require_finite
from evaluation.probes.features import batch_features, encoder_config, load_encoder
from evaluation.regions.model_maps import RANDOM_WEIGHTS, seen_by, view_of
from evaluation.regions.regions import Regions, Size, as_regions
from evaluation.regions.scores import FOLDS, PlacedMap, View, shares_of
from evaluation.regions.sources import OWN, Case, MapSource, find_names
from models.build import build_model
from utils import read_checkpoint

PIXELS, POSITION = 'position and grey levels', 'position'
EMPTY = 'all pixels are 0'  # of an image that is refused, and of a mask that marks nothing
PENALTIES = 10.0 ** np.arange(-6, 1)  # of standardised features, relative to the number of tokens


class Loading(NamedTuple):
    """How images are read, and where the encoder computes."""

    device: torch.device
    batch_size: int | None = None
    num_workers: int | None = None


@dataclass(frozen=True, eq=False)
class MaskFolder(Regions):
    """The masks of a folder or store as regions: one of each image that has a mask."""

    records: Records = None

    def has_region(self, path: str, label: str) -> bool:
        return True

    def mask(self, path: str, label: str, size: Size) -> np.ndarray:  # [H, W] bool
        file = self.records.file[self._places[path]]
        image = images_of(self.records).reader([file])(0)
        try:
            mask = own_mask(image, str(self.file))
        except BadImageError as error:
            if not str(error).endswith(EMPTY):
                raise
            return np.zeros(size, bool)
        if mask.size != size[::-1]:  # packed at another size
            mask = mask.resize(size[::-1], Image.Resampling.NEAREST)
        return np.asarray(mask) > 0

    @cached_property
    def _places(self) -> dict[str, int]:
        return {path: place for place, path in enumerate(self.records.path)}


def read_masks(folder: Path, records: Records) -> MaskFolder:
    """Find the masks of images, which have their names and any suffix below the folder.

    Raises:
        ValueError: If no image has a mask.
    """
    if not folder.is_dir():
        raise ValueError(f'--masks: there is no folder {folder}')
    known = {file.rpartition('.')[0] for file in open_images(folder).below()}
    has_mask = [file.rpartition('.')[0] in known for file in records.file]
    rows = [
        {'path': path, 'label': folder.absolute().name, 'patient': patient, 'row': file}
        for path, patient, file in zip(
            records.path[has_mask], records.patient[has_mask], records.file[has_mask], strict=True
        )
    ]
    if not rows:
        raise ValueError(
            f'--masks: {folder} has no mask of the {len(records)} images, such as '
            f'{records.file[0].rpartition(".")[0]} with a suffix of an image'
        )
    lacking = len(records) - len(rows)
    notes = [f'{lacking} of {len(records)} images have no mask, and are left out.'] * bool(lacking)
    found = as_regions(folder, 'masks', rows, notes)
    return MaskFolder(folder, 'masks', found.table, found.notes, records)


class FoldSums:
    """Sums over the tokens of each fold of patients, which are all that a regression needs.

    Attributes:
        gram: Sums of products of the features, [folds, F + 1, F + 1]; the last feature is 1.
        moment: Sums of products of features and shares, [folds, F + 1].
        square: Sums of squares of the shares, [folds].
    """

    def __init__(self, num_features: int) -> None:
        self.gram = np.zeros((FOLDS, num_features + 1, num_features + 1))
        self.moment = np.zeros((FOLDS, num_features + 1))
        self.square = np.zeros(FOLDS)

    def add(self, features: np.ndarray, shares: np.ndarray, fold: np.ndarray) -> None:
        """Add the tokens [B, L, F] and shares [B, L] of images in these folds [B]."""
        for number in np.unique(fold):
            share = shares[fold == number].ravel()
            rows = features[fold == number].reshape(len(share), -1).astype(np.float64)
            rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
            self.gram[number] += rows.T @ rows
            self.moment[number] += rows.T @ share
            self.square[number] += share @ share

    def fit(self) -> dict[int, np.ndarray]:
        """Return the weights [F + 1] of each fold, fitted to the tokens of all other folds.

        The penalty of a fold has the lowest squared error when each of the other folds is
        predicted from the rest of them.

        Raises:
            ValueError: If the images are of fewer than three folds.
        """
        folds = np.flatnonzero(self.gram[:, -1, -1])
        if len(folds) < 3:
            raise ValueError(
                f'a dense probe needs patients in at least 3 of {FOLDS} folds, got {len(folds)}: '
                'there are too few patients with a region'
            )
        # Without two folds in either order, the fit is the same.
        fitted = {
            pair: self._fit_without(pair)
            for pair in {frozenset((a, b)) for a in folds.tolist() for b in folds.tolist()}
        }
        found = {}
        for fold in folds.tolist():
            errors = np.zeros(len(PENALTIES))
            for other in (number for number in folds.tolist() if number != fold):
                weights = fitted[frozenset((fold, other))]  # [P, F + 1]
                errors += np.einsum('pf,fg,pg->p', weights, self.gram[other], weights)
                errors += self.square[other] - 2 * weights @ self.moment[other]
            found[fold] = fitted[frozenset((fold,))][np.argmin(errors)]
        return found

    def _fit_without(self, left_out: frozenset[int]) -> np.ndarray:  # [P, F + 1]
        used = [number for number in range(FOLDS) if number not in left_out]
        return ridge(self.gram[used].sum(axis=0), self.moment[used].sum(axis=0))


def ridge(gram: np.ndarray, moment: np.ndarray) -> np.ndarray:  # [P, F + 1]
    """Fit ridge regressions on standardised features with each of PENALTIES, from their sums.

    A penalty p is the one that scikit-learn's Ridge calls alpha = p * number of tokens. The result
    is for the original features; the last weight is the bias.
    """
    count, mean, target = gram[-1, -1], gram[-1, :-1] / gram[-1, -1], moment[-1] / gram[-1, -1]
    covariance = gram[:-1, :-1] / count - np.outer(mean, mean)
    variance = np.diag(covariance).clip(0)
    # As in scikit-learn, a feature that only varies by rounding is constant.
    rounding = np.finfo(float).eps * count * (variance + mean**2)
    scale = np.where(variance > rounding, np.sqrt(variance), np.inf)
    cross = (moment[:-1] / count - mean * target) / scale
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    shrunk = (vectors.T @ cross) / (values.clip(0) + PENALTIES[:, None])
    weights = shrunk @ vectors.T / scale
    return np.concatenate([weights, (target - weights @ mean)[:, None]], axis=1)


class PlacedTransform:
    """Returns the input of a model, [C, S, S], and which part of the image it shows."""

    def __init__(self, config: Config) -> None:
        self.transform = EvalTransform(config, is_scored=False)

    def __call__(self, image: Image.Image, _rng: None) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.transform.preprocess(image)
        pixels = self.transform.normalize(self.transform.square(image))
        view = view_of(self.transform, image)
        return torch.from_numpy(pixels), torch.tensor(view, dtype=torch.float64)


class DenseProbe(MapSource):
    """Shares that dense probes predict of held-out patients, for an encoder and its baselines.

    Args:
        checkpoint: Checkpoint, file or name of weights.
        name: Name in tables.
        records: Images with their patients.
        loading: How they are read.
        options: YAML file and pairs of options of the encoder, see `encoder_config`.
        seed: Seed of the random weights.
    """

    kinds = (OWN, RANDOM_WEIGHTS, PIXELS, POSITION)
    title = 'shares by a ridge regression on frozen tokens'

    def __init__(
        self,
        checkpoint: str,
        name: str,
        records: Records,
        loading: Loading,
        *,
        options: tuple[str | None, Sequence[str]] = (None, ()),
        seed: int = 0,
    ) -> None:
        super().__init__(name)
        self.records, self.loading = records, loading
        self.config = encoder_config(checkpoint, *options, tokens=True)
        if 'lung_crop' in self.config.DATA.PREPROCESS:
            raise ValueError(
                f"{checkpoint}: DATA.PREPROCESS 'lung_crop' cuts a part out of each image, and "
                'where it lay is not kept, so that its tokens cannot be laid on masks'
            )
        require_packed_steps(self.config, records.root)
        is_own = not any(options)
        device = loading.device
        model, remarks = load_encoder(self.config, checkpoint, device, is_own=is_own)
        self.notes += [f'{name}: {remark}' for remark in remarks]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            untrained = build_model(self.config, is_pretrain=False, num_outputs=0)
        self.models = {OWN: model, RANDOM_WEIGHTS: untrained.to(device).eval()}
        self.side = model.output_side
        self.trainings = trainings_of(checkpoint, read_checkpoint(checkpoint))
        self.patients = dict(zip(records.path, records.patient, strict=True))
        self.places: dict[str, int] = {}  # image -> row of the records
        self.shares: dict[tuple[str, Case], np.ndarray] = {}  # (kind, case) -> [L]
        self.views: dict[str, View] = {}

    def find(self, cases: Sequence[Case], absent: Sequence[Case] = ()) -> set[Case]:
        paths = [*dict.fromkeys(path for path, _ in cases)]
        places = find_names(paths, self.records.path, f'{self.records.root / self.records.csv}')
        self.places = {
            path: place for path, place in zip(paths, places.tolist(), strict=True) if place >= 0
        }
        if lacking := [path for path in paths if path not in self.places]:
            self.notes.append(
                f'{len(lacking)} of {len(paths)} images with a region are not in '
                f'{self.records.root}, such as {lacking[0]}'
            )
        for path, place in self.places.items():
            self.patients[path] = self.records.patient[place]
        patients = self.records.patient[[*self.places.values()]]
        numbers = patient_numbers(self.config.DATA.DATASET, patients)
        for name, count in seen_by(self.trainings, numbers):
            self.notes.append(
                f'{self.name}: the training {name} had seen {count} patients with regions, but not '
                'the regions'
            )
        return {case for case in cases if case[0] in self.places}

    def image(self, path: str) -> Image.Image | None:
        if path not in self.places:
            return None
        file = self.records.file[self.places[path]]
        return images_of(self.records).reader([file])(0)

    def maps(self, path: str, label: str) -> dict[str, PlacedMap]:
        return {
            kind: PlacedMap(
                self.shares[kind, (path, label)].reshape(self.side, self.side),
                self.views[path],
                is_share=True,
            )
            for kind in self.kinds
        }

    def predict(self, regions: Regions, marked: pd.DataFrame) -> None:
        """Fit the probes of all labels, and keep what they predict of each case.

        Args:
            regions: Masks.
            marked: Cases, `RegionCases.marked`.
        """
        cases = dict(iter(marked.groupby('path', sort=False)))
        paths = [*cases]
        patients = np.array([cases[path]['patient'].iloc[0] for path in paths], object)
        fold = dict(zip(paths, folds_of(patients, FOLDS).tolist(), strict=True))
        sums: dict[tuple[str, str], FoldSums] = {}
        for batch, views, kinds in self._batches(paths):
            self.views |= dict(zip(batch, views, strict=True))
            by_label: dict[str, tuple[list[int], list[np.ndarray]]] = {}
            for row, path in enumerate(batch):
                for case in cases[path].itertuples():
                    mask = regions.mask(path, case.label, Size(case.height, case.width))
                    rows, shares = by_label.setdefault(case.label, ([], []))
                    rows.append(row)
                    shares.append(shares_of(mask, self.views[path], self.side))
            for label, (rows, shares) in by_label.items():
                folds = np.array([fold[batch[row]] for row in rows])
                for kind, features in kinds.items():
                    found = sums.setdefault((kind, label), FoldSums(features.shape[-1]))
                    found.add(features[rows], np.stack(shares), folds)
        weights = {key: found.fit() for key, found in sums.items()}
        for batch, _, kinds in self._batches(paths):
            for row, path in enumerate(batch):
                for label in cases[path]['label']:
                    for kind, features in kinds.items():
                        weight = weights[kind, label][fold[path]]
                        share = features[row] @ weight[:-1] + weight[-1]
                        self.shares[kind, (path, label)] = share.astype(np.float32)

    def _batches(
        self, paths: Sequence[str]
    ) -> Iterator[tuple[Sequence[str], list[View], Mapping[str, np.ndarray]]]:
        """Yield paths, views and the features [B, L, F] of each kind, a batch at a time."""
        device, batch_size, num_workers = self.loading
        files = [self.records.file[self.places[path]] for path in paths]
        transform = PlacedTransform(self.config)
        images = NotedImages(images_of(self.records), files, transform, skip_bad=False)
        cell = self.config.DATA.IMG_SIZE // self.side
        for (pixels, views), _, index in NotedLoader(images, self.config, batch_size, num_workers):
            found = {
                kind: batch_features(model, pixels, device, tokens=True)
                for kind, model in self.models.items()
            }
            require_finite(found[OWN], images, start=int(index[0]))
            position = np.broadcast_to(np.eye(self.side**2), (len(index), *[self.side**2] * 2))
            # All channels of an X-ray are alike up to their scale.
            cells = nn.functional.unfold(pixels[:, :1], cell, stride=cell).transpose(1, 2).numpy()
            found |= {PIXELS: np.concatenate([cells, position], axis=2), POSITION: position}
            yield [paths[i] for i in index.tolist()], [View(*row) for row in views.tolist()], found
