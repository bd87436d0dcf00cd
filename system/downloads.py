"""Where weights are: files, names of the weights that come with the project, and downloads.

URLs are https://... or hf://... (Hugging Face). A file is downloaded once and cached under a hash
of the URL. Remove it from the cache to download a newer version.
"""

import hashlib
import logging
import os
import re
from functools import cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from system.files import BLOCK_BYTES, atomic_writer, in_one_line, locked, sha256

PROCESSOR = 'preprocessor_config.json'  # describes the input images of a model
MODEL_CONFIG = 'config.json'  # describes a model
LINEAGE = 'lineage'  # key of a checkpoint and of FACTS: the trainings behind its weights
FACTS = 'simmim'  # its entry of an export, and key of the metadata in an .onnx file
HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # the first one that exists is used
HUB_ADDRESS = re.compile(r'hf://([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?', re.IGNORECASE)
SCHEME = re.compile(r'\w+://')
KEY_IN_FILE = re.compile(r'(.+)::([^:/]+)')
NO_CONNECTION = (URLError, HTTPException, ConnectionError, TimeoutError, SSLError)
TIMEOUT_SECONDS = 60
CHECKPOINT_FILES = ('*.pth', '*.safetensors')
NUM_LISTED = 6  # files that an error message lists
SHIPPED = Path(__file__).resolve().parents[1] / 'examples' / 'weights'  # also in the wheel
NAME = re.compile(r'[\w-]+')  # of shipped weights; a path has a dot or a slash


class Download(NamedTuple):
    """A downloaded file."""

    path: Path
    sha256: str
    source: str  # URL; for a Hugging Face repository with commit and file


def is_url(path: str | Path) -> bool:
    """Return whether a path is a URL."""
    return bool(SCHEME.match(str(path)))


def split_key(path: str | Path) -> tuple[str, str]:
    """Split FILE::KEY into the file, a path or URL, and the key of the weights; '' without one.

    The name of `shipped_weights` becomes their path, unless there is a file of this name.
    """
    match = KEY_IN_FILE.fullmatch(str(path))
    file, key = (match[1], match[2]) if match else (str(path), '')
    return str(shipped_weights().get(file, file)) if not Path(file).exists() else file, key


def shipped_weights() -> dict[str, Path]:
    """Return the paths of the weights that come with the project, by their names."""
    return {file.stem: file for file in sorted(SHIPPED.glob('*.safetensors'))}


def check_exists(path: str | Path) -> None:
    """Raise a ValueError with the files that are there if a checkpoint does not exist.

    URLs are not checked.
    """
    path, _ = split_key(path)
    if is_url(path) or Path(path).is_file():
        return
    if NAME.fullmatch(path) and not Path(path).exists():
        raise ValueError(
            f'{path} is neither a file nor the name of weights of this project, which are '
            f'{", ".join(shipped_weights()) or "not here"}'
        )
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    names = sorted(file.name for kind in CHECKPOINT_FILES for file in folder.glob(kind))
    more = f' and {len(names) - NUM_LISTED} others' if len(names) > NUM_LISTED else ''
    found = f'there are {", ".join(names[:NUM_LISTED])}{more}' if names else 'there are none'
    raise ValueError(f'{path} is not a checkpoint file; in the folder {folder} {found}')


def local_path(path: str | Path) -> Path:
    """Return the path of a file, or of the downloaded file of a URL, without a key."""
    return fetch(str(path)).path if is_url(path) else Path(split_key(path)[0])


def log_download(path: str | Path, logger: logging.Logger) -> None:
    """Log the source and the SHA-256 of downloaded weights."""
    if is_url(path):
        download = fetch(str(path))
        logger.info(f'downloaded {download.source}, SHA-256 {download.sha256}')


@cache
def fetch(address: str) -> Download:
    """Download the file of a URL, which may end in ::KEY.

    Processes with the same cache wait for a single download.

    Raises:
        ValueError: If the URL is wrong, the server does not send the whole file over https, or
            there is no folder for the cache. Incomplete files do not stay in the cache.
    """
    address, _ = split_key(address)
    scheme = address.partition('://')[0].lower()
    if scheme == 'hf':
        return _from_hugging_face(address)
    if scheme != 'https':
        raise ValueError(f'{address}: weights must be a file or a URL with https:// or hf://')
    name = re.sub(r'[^\w.-]', '_', PurePosixPath(urlsplit(address).path).name)[-80:]
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if not os.path.isabs(cache):
        raise ValueError(
            'there is no home folder: set XDG_CACHE_HOME to the absolute path of a folder for '
            f'downloads, got {cache!r}'
        )
    key = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = Path(cache, 'simmim', f'{key}-{name}')
    with locked(path.with_name(f'{path.name}.lock'), wait=True):
        if not path.is_file():
            _download(address, path)
    return Download(path, sha256(path), address)


def _download(address: str, path: Path) -> None:
    """Download a file over https. An incomplete file is not kept."""
    request = Request(address, headers={'User-Agent': 'simmim'})
    try:
        with build_opener(_OnlyHttps).open(request, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers['Content-Length']
            bar = {'desc': path.name, 'total': length and int(length), 'disable': None}
            with atomic_writer(path) as file, tqdm.wrapattr(response, 'read', **bar) as body:
                while block := _read(body):
                    file.write(block)
                if length and file.tell() != int(length):
                    raise ValueError(
                        f'{address}: the download is incomplete, {file.tell()} of {length} bytes'
                    )
    except NO_CONNECTION as error:
        raise ValueError(f'{address} cannot be downloaded ({error})') from error


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
    from huggingface_hub import snapshot_download  # slow to import

    match = HUB_ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f'{address} must have the form hf://OWNER/NAME[@REVISION][/FILE]')
    repository, revision, file = match.groups()
    for name in (file,) if file else HUB_FILES:
        beside = (PROCESSOR, MODEL_CONFIG)
        wanted = [name, *(str(PurePosixPath(name).with_name(file)) for file in beside)]
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=wanted)
        except Exception as error:  # huggingface_hub has no common class of errors
            raise ValueError(f'{address}: {in_one_line(error)}') from error
        path = Path(folder, name)
        if path.is_file():
            commit = Path(folder).name
            return Download(path, sha256(path), f'hf://{repository}@{commit}/{name}')
    raise ValueError(f'{address}: the repository has no {file or " or ".join(HUB_FILES)}')
