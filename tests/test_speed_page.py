"""Computed figures on the page about speed follow from those beside them."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / 'docs' / 'explanation' / 'speed.md').read_text()


def rows(section: str) -> list[list[str]]:
    """Cells of the table in a section, without its head."""
    text = PAGE[PAGE.index(f'## {section}') :].split('\n## ')[0]
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    return [[cell.strip().replace(',', '') for cell in line.split('|')[1:-1]] for line in lines[2:]]


def test_batches_that_fit_follow_from_the_memory_of_an_image() -> None:
    found = rows('Memory, and small cards: computed')
    assert [row[0].split()[0] for row in found[::3]] == ['Swin-B', 'ViT-B', 'Swin-T', 'ViT-S']
    for _, parameters, fixed, _, image, *batches in found:
        assert float(fixed) == pytest.approx(float(parameters) * 16e6 / 2**30, abs=0.005)
        for batch, card in zip(batches, (14, 7), strict=True):
            assert int(batch) == int((card - float(fixed)) * 1024 / (1.15 * float(image)))


def test_efficiencies_follow_from_bytes_and_links() -> None:
    step = 128 / 2519 * 1e3
    found = rows('Several GPUs: computed')
    assert len(found) == 8
    for where, link, kind, megabytes, ms, alone, hidden in found:
        number = int(re.match(r'\d+', where)[0])
        sent = 87.8 * {'float32': 4, 'bfloat16': 2}[kind] * 2 * (number - 1) / number
        wait = sent / float(link)
        assert (int(megabytes), float(ms)) == (round(sent), pytest.approx(wait, abs=0.051))
        assert alone == f'{100 * step / (step + wait):.0f} %'
        assert hidden == f'{100 * step / max(step, step / 3 + wait):.0f} %'
