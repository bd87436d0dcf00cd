"""Mutations of files: bytes, cells of tables, values in trees, chunks of PNGs, entries of zips."""

import csv
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
CELLS = (
    *('', ' ', '0', '1', '-1', '1.0', '-1.0', '2', '0.5', '1e400', '-0', 'nan', 'inf', 'NaN', '٣'),
    *('=1+1', '+1', '-1+1', '@SUM(A1)', '\t=1', '<script>alert(1)</script>', "'", '"', ',', '""'),
    *('a\nb', 'a\r\nb', '\0', '\ufeff', '\udcff', '\u202e', 'x' * 300, 'x' * 200_000, '9' * 5000),
    *('/etc/passwd', '../../x', 'a/../b', '//', '.', '..', 'C:\\x', 'patient1/study1/', 'None'),
    *('CheXpert/' * 500 + 'patient1/study1/', 'patient1/study1/' * 600, 'p10/s1/x', 'NULL'),
)
TEXTS = (
    *('', ' ', 'yes', 'null', '~', '{}', '[]', '0x' + 'f' * 6000, '9' * 6000, '1e400', '.inf'),
    *('.nan', '-1', '0', '1:2:3', '2020-13-45', '!!python/object/apply:os.system [id]', '&a [*a]'),
    *(
        '*a',
        '<<: *a',
        '!!binary x',
        '!!int x',
        '!!set {a}',
        '? [a]',
        '[[[[[[[[',
        '{{{{',
        '\0',
        '\t',
    ),
    *('"' + 'x' * 5000 + '"', '2147483648', '4611686018427387904', '99999999999999999999', '0.1'),
    *('[' * 500, '- ' * 500, 'a: ' * 50, '%YAML 9.9', '---', '...', '\u2028', '| \n', 'BASE: [x]'),
)


def pick(rng: Rng, choices: Sequence[Any]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """One to four times: flip, cut, repeat, insert, overwrite by a number, cut off."""
    mutable = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(len(mutable) + 1))
        # Headers are short beside what follows.
        start = start if rng.random() < 0.5 else min(start, int(rng.integers(200)))
        length = int(rng.integers(1, 1 + 2 ** rng.integers(11)))
        kind = rng.integers(7)
        if kind == 0 and mutable:
            for place in rng.integers(len(mutable), size=1 + length % 8):
                mutable[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del mutable[start : start + length]
        elif kind == 2:
            mutable[start:start] = mutable[start : start + length] * int(rng.integers(1, 5))
        elif kind == 3:
            mutable[start:start] = rng.bytes(length)
        elif kind == 4:
            form = pick(rng, ['<', '>']) + pick(rng, 'BHIQ')
            number = pick(rng, NUMBERS) % 256 ** struct.calcsize(form)
            mutable[start : start + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 5:
            mutable[start : start + length] = rng.bytes(length)
        else:
            del mutable[start:]
    return bytes(mutable)


def mutate_text(text: str, rng: Rng, tokens: Sequence[str] = TEXTS) -> str:
    """Words of a text replaced, repeated, removed, or with others before them."""
    words = text.replace('\n', ' \n ').split(' ')
    for _ in range(rng.integers(1, 5)):
        place, kind = int(rng.integers(len(words))), rng.integers(4)
        if kind == 0:
            words[place] = pick(rng, tokens)
        elif kind == 1:
            words.insert(place, pick(rng, tokens))
        elif kind == 2:
            words[place:place] = words[place : place + int(rng.integers(1, 30))]
        else:
            del words[place : place + int(rng.integers(1, 4))]
        words = words or ['']
    return ' '.join(words).replace(' \n ', '\n')


def mutate_csv(data: bytes, rng: Rng) -> bytes:
    """Cells, rows and columns changed; now and then also bytes."""
    rows = [list(row) for row in csv.reader(io.StringIO(data.decode(), newline=''))]
    for _ in range(rng.integers(0, 4)):
        row = pick(rng, rows) if rng.random() < 0.8 else rows[0]
        place, kind = int(rng.integers(max(1, len(row)))), rng.integers(9)
        if kind < 4 and row:
            row[place] = pick(rng, CELLS)
        elif kind == 4 and row:
            row[place] = mutate_bytes(row[place].encode(), rng).decode('utf-8', 'surrogateescape')
        elif kind == 5:
            row.insert(place, pick(rng, CELLS))
        elif kind == 6:
            rows.insert(1 + place % len(rows), list(row))
        elif kind == 7:
            for other in rows:
                del other[place : place + 1]
        else:
            for other in rows:
                other.insert(place, other[place] if place < len(other) else 'x')
    text = io.StringIO()
    csv.writer(text, lineterminator=pick(rng, ['\n', '\r\n'])).writerows(rows)
    data = text.getvalue().encode('utf-8', 'surrogateescape')
    return mutate_bytes(data, rng) if rng.random() < 0.35 else data


def mutate_tree(tree: Any, rng: Rng, values: Sequence[Callable[[], Any]]) -> Any:
    """A nested dict or list with one entry, anywhere in it, replaced, removed, or new."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return pick(rng, values)()
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = pick(rng, keys)
    changed = tree.copy()
    kind = rng.random()
    if kind < 0.1:
        del changed[key]
    elif kind < 0.2 and isinstance(changed, dict):
        changed[pick(rng, [*CELLS[:20], 0, None, (1, 2)])] = pick(rng, values)()
    else:
        changed[key] = mutate_tree(tree[key], rng, values)
    return changed


def mutate_png(data: bytes, rng: Rng) -> bytes:
    """Chunks with other lengths, contents and order, their checksums mostly made good."""
    place, chunks = 8, []
    while place + 12 <= len(data):
        (length,) = struct.unpack('>I', data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    out = bytearray(data[:8])
    target = int(rng.integers(len(chunks)))
    for number, (name, body) in enumerate(chunks):
        length = len(body)
        if number == target:
            kind = rng.integers(6)
            if kind == 0 and name == b'IHDR':
                sizes = [pick(rng, [*NUMBERS, 9000, 30_000, 60_000]) for _ in range(2)]
                body = struct.pack('>II', *sizes) + body[8:]
            elif kind == 1:
                body = mutate_bytes(body, rng)
            elif kind == 2:
                length = pick(rng, NUMBERS)
            elif kind == 3:
                name = pick(rng, [b'tRNS', b'PLTE', b'eXIf', b'zTXt', b'iCCP', b'acTL', b'fdAT'])
            elif kind == 4:
                out += _chunk(name, body, len(body))
            length = length if kind == 2 else len(body)
        out += _chunk(name, body, length)
    return bytes(out) if rng.random() < 0.9 else mutate_bytes(bytes(out), rng)


def mutate_zip(data: bytes, rng: Rng) -> bytes:
    """Entries of a zip compressed, changed, renamed, doubled or removed; bytes of it changed."""
    source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    names = source.namelist()
    target, kind = pick(rng, names), rng.integers(6)
    method = zipfile.ZIP_DEFLATED if kind == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, 'w', method) as copy:
        for name in names:
            contents = source.read(name)
            if name == target:
                if kind == 1:
                    contents = mutate_bytes(contents, rng)
                elif kind == 2:
                    continue
                elif kind == 3:
                    name = pick(rng, ['../../evil', '/tmp/evil', 'archive/data/999', name + 'x'])
                elif kind == 4:
                    contents += contents
            copy.writestr(name, contents)
    return mutate_bytes(out.getvalue(), rng) if rng.random() < 0.3 else out.getvalue()


def _chunk(name: bytes, body: bytes, length: int) -> bytes:
    return struct.pack('>I', length) + name + body + struct.pack('>I', zlib.crc32(name + body))
