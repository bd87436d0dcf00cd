"""Downloads of weights from URLs, https://... or hf://... (Hugging Face), and their cache.

The cache stores a file under a hash of the URL, with the SHA-256 of the file and the server's ETag.
Each process asks the server once for a newer version. A server without ETag sends the file again.
"""

import hashlib
import json
import logging
import os
import re
from functools import cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from engine.files import BLOCK_BYTES, atomic_writer, in_one_line, locked, replace_file, sha256

PROCESSOR = 'preprocessor_config.json'  # describes the input images of a model
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # the first one that exists is used
HUB_ADDRESS = re.compile(r'hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?', re.IGNORECASE)
SCHEME = re.compile(r'\w+://')
NO_CONNECTION = (URLError, HTTPException, ConnectionError, TimeoutError, SSLError)
NOT_MODIFIED, TOO_MANY_REQUESTS, SERVER_ERROR = 304, 429, 500
TIMEOUT_SECONDS = 60


class Download(NamedTuple):
    """A downloaded file."""

    path: Path
    sha256: str
    source: str  # URL; for a Hugging Face repository with commit and file
    remark: str = ''  # warning for the log


def is_url(path: str | Path) -> bool:
    """Return whether a path is a URL."""
    return bool(SCHEME.match(str(path)))


def local_path(path: str | Path) -> Path:
    """Return the path itself, or the downloaded file of a URL."""
    return fetch(str(path)).path if is_url(path) else Path(path)


def describe_weights(path: str | Path) -> dict[str, str]:
    """Return the SHA-256 and the source of weights for run.json, without the local folder."""
    if is_url(path):
        return {'sha256': fetch(str(path)).sha256, 'source': fetch(str(path)).source}
    return {'sha256': sha256(path), 'source': Path(path).name}


def log_download(path: str | Path, logger: logging.Logger) -> None:
    """Log the source and the SHA-256 of downloaded weights, and possible warnings."""
    if is_url(path):
        download = fetch(str(path))
        logger.info(f'downloaded {download.source}, SHA-256 {download.sha256}')
        if download.remark:
            logger.warning(download.remark)


@cache
def fetch(address: str) -> Download:
    """Download the file of a URL. Processes with the same cache wait for a single download.

    Raises:
        ValueError: If the URL is wrong, the server does not send the whole file over https, or
            there is no folder for the cache. Incomplete files do not stay in the cache.
    """
    scheme = address.partition('://')[0].lower()
    if scheme == 'hf':
        return _from_hugging_face(address)
    if scheme != 'https':
        raise ValueError(f'{address}: weights must be a file or a URL with https:// or hf://')
    name = re.sub(r'[^\w.-]', '_', PurePosixPath(urlsplit(address).path).name)[-80:]
    path = _cache_folder() / f'{hashlib.sha256(address.encode()).hexdigest()[:16]}-{name}'
    record_file = path.with_name(f'{path.name}.json')
    with locked(path.with_name(f'{path.name}.lock'), wait=True):
        try:
            record = json.loads(record_file.read_bytes())
            record = record if sha256(path) == record['sha256'] else {}
        except (OSError, ValueError, KeyError):
            record = {}
        record, remark = _download(address, path, record)
        replace_file(record_file, json.dumps(record))
    return Download(path, record['sha256'], address, remark)


def _cache_folder() -> Path:
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if not os.path.isabs(folder):
        raise ValueError(
            'there is no home folder: set XDG_CACHE_HOME to the absolute path of a folder for '
            f'downloads, got {folder!r}'
        )
    return Path(folder, 'simmim')


def _download(address: str, path: Path, known: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Download a file if it has changed, and return its record and a warning for the log.

    Args:
        address: URL.
        path: File in the cache.
        known: Record of the file that is already in the cache, or {}.
    """
    etag = {'If-None-Match': known['etag']} if known.get('etag') else {}
    request = Request(address, headers={'User-Agent': 'simmim', **etag})
    try:
        with build_opener(_OnlyHttps).open(request, timeout=TIMEOUT_SECONDS) as response:
            record = _save(response, address, path) | {'etag': response.headers['ETag']}
    except NO_CONNECTION as error:
        code = error.code if isinstance(error, HTTPError) else SERVER_ERROR
        if known and code == NOT_MODIFIED:
            return known, ''
        reason = f'{address} cannot be downloaded ({error})'
        if not known or (code < SERVER_ERROR and code != TOO_MANY_REQUESTS):
            raise ValueError(reason) from error
        return known, f'{reason}; the previously downloaded file is used'
    if known and record['sha256'] != known['sha256']:
        return record, f'{address}: the file has changed; its SHA-256 was {known["sha256"]}'
    return record, ''


def _save(response: Any, address: str, path: Path) -> dict[str, Any]:
    """Write the body of a response to a file, if it is complete."""
    length, size, digest = response.headers['Content-Length'], 0, hashlib.sha256()
    bar = {'desc': path.name, 'total': length and int(length), 'disable': None}
    with atomic_writer(path) as file, tqdm.wrapattr(response, 'read', **bar) as body:
        while block := _read(body):
            file.write(block)
            digest.update(block)
            size += len(block)
        if length and size != int(length):
            raise ValueError(f'{address}: the download is incomplete, {size} of {length} bytes')
    return {'address': address, 'sha256': digest.hexdigest()}


def _read(body: Any) -> bytes:
    try:
        return body.read(BLOCK_BYTES)
    except OSError as error:  # otherwise `atomic_writer` would report it as an error of the file
        raise URLError(error) from error


class _OnlyHttps(HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> Request | None:
        request, target = arguments[0], arguments[-1]
        if urlsplit(target).scheme != 'https':
            raise ValueError(f'{request.full_url} redirects to {target}, which is not https')
        return super().redirect_request(*arguments)


def _from_hugging_face(address: str) -> Download:
    match = HUB_ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f'{address} must have the form hf://OWNER/NAME[@REVISION][/FILE]')
    repository, revision, file = match.groups()
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f'{address} needs a package: pip install huggingface_hub') from error
    for name in (file,) if file else HUB_FILES:
        wanted = [name, str(PurePosixPath(name).with_name(PROCESSOR))]
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=wanted)
        except Exception as error:  # huggingface_hub has no common class of errors
            raise ValueError(f'{address}: {in_one_line(error)}') from error
        path = Path(folder, name)
        if path.is_file():
            commit = Path(folder).name
            return Download(path, sha256(path), f'hf://{repository}@{commit}/{name}')
    raise ValueError(f'{address}: the repository has no {file or " or ".join(HUB_FILES)}')
