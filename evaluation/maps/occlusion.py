"""Occlusion: how much the score of a label falls if a grey square covers a part of the image."""

from itertools import product

import torch
from torch import nn

from config import Config
from data.tables.labels import positive_logits
from evaluation.maps.method import MapMethod

CELLS = 14  # along a side of the map
COVERED = 2  # cells along a side of a square, which moves by one cell
AT_ONCE = 32  # covered images in a batch


@torch.no_grad()
def occlusion_maps(
    config: Config, model: nn.Module, images: torch.Tensor, k: int
) -> torch.Tensor:  # [B, CELLS, CELLS]
    """Return the mean fall of the logit of label k over the squares that cover a cell, at least 0.

    A square has the mean value of its image. The method only needs the outputs of the model.

    Source: Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2.
    """
    model.eval()

    def score(batch: torch.Tensor) -> torch.Tensor:
        return positive_logits(model(batch).float(), config.MODEL.NUM_CLASSES)[:, k]

    height, width = images.shape[-2:]
    places = [*product(range(CELLS - COVERED + 1), repeat=2)]
    maps = []
    for image in images:
        fall = torch.zeros(CELLS, CELLS, device=images.device)
        squares = torch.zeros_like(fall)
        whole, grey = score(image[None]), image.mean(dim=(1, 2))[:, None, None]
        for start in range(0, len(places), AT_ONCE):
            batch = image.repeat(len(places[start : start + AT_ONCE]), 1, 1, 1)
            for covered, (row, column) in zip(batch, places[start : start + AT_ONCE], strict=True):
                top, bottom = (height * cell // CELLS for cell in (row, row + COVERED))
                left, right = (width * cell // CELLS for cell in (column, column + COVERED))
                covered[:, top:bottom, left:right] = grey
            falls = whole - score(batch)
            for value, (row, column) in zip(falls, places[start : start + AT_ONCE], strict=True):
                cells = slice(row, row + COVERED), slice(column, column + COVERED)
                fall[cells] += value
                squares[cells] += 1
        maps.append((fall / squares).relu())
    return torch.stack(maps)


OCCLUSION = MapMethod('occlusion', occlusion_maps, lambda model: '')
