"""Weights from an address: a server with a certificate of its own, and a repository."""

import hashlib
import json
import logging
import shutil
import ssl
import subprocess
import sys
import threading
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from tiny import ROOT
from transfers import make_config, make_model

from system import downloads
from system.downloads import MODEL_CONFIG, PROCESSOR, fetch
from utils import load_model_state, load_pretrained, read_checkpoint

LOGGER = logging.getLogger('test')


class Handler(BaseHTTPRequestHandler):
    """Sends `server.files`, with `server.error` if it is set; `server.asked` lists the paths."""

    def do_GET(self) -> None:
        body, headers = self.server.files.get(self.path, (b'', {}))
        self.server.asked.append(self.path)
        self.send_response(self.server.error or (302 if 'Location' in headers else 200))
        for name, value in ({'Content-Length': len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope='module')
def certificate(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('tls') / 'server.pem'
    if not shutil.which('openssl'):
        pytest.skip('openssl makes the certificate of the server')
    command = 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2'
    command += f' -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {path}.key'
    subprocess.run([*command.split(), '-out', str(path)], check=True, capture_output=True)
    return path


@pytest.fixture
def server(certificate, tmp_path, monkeypatch):
    server = HTTPServer(('localhost', 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f'{certificate}.key')
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files, server.asked, server.error = {}, [], 0
    server.address = f'https://localhost:{server.server_port}'
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    fetch.cache_clear()
    yield server
    server.shutdown()
    server.server_close()


def weights(value: float, folder: Path) -> bytes:
    torch.save({'model': {'weight': torch.full((1, 1000), float(value))}}, folder / 'made.pth')
    return (folder / 'made.pth').read_bytes()


def value_of(address: str) -> float:
    (value,) = read_checkpoint(address)['model']['weight'].unique().tolist()
    return value


def test_addresses_with_the_same_last_part_are_different_weights(server, tmp_path):
    for value, path in enumerate(('/a/w.pth', '/b/w.pth', '/b/w.pth?v=2')):
        server.files[path] = weights(value, tmp_path), {}
    assert [value_of(server.address + path) for path in server.files] == [0, 1, 2]
    assert value_of(server.address.replace('https', 'HTTPS') + '/b/w.pth') == 1


def test_a_file_is_downloaded_once_and_logged(server, tmp_path, log):
    address = f'{server.address}/w.pth'
    server.files['/w.pth'] = weights(1, tmp_path), {}
    model = torch.nn.Linear(1000, 1, bias=False)
    load_model_state(model, read_checkpoint(address)['model'], address, LOGGER)
    assert model.weight.unique().tolist() == [1]
    digest = hashlib.sha256(server.files['/w.pth'][0]).hexdigest()
    assert any(digest in message and address in message for message in log.messages)
    fetch.cache_clear()  # as in a new process
    server.error = 503
    assert value_of(address) == 1 and server.asked == ['/w.pth']
    for path in tmp_path.glob('cache/simmim/*w.pth'):
        path.unlink()
    fetch.cache_clear()
    with pytest.raises(ValueError, match='503'):
        fetch(address)


def test_an_address_with_a_key_downloads_the_file_and_chooses_its_weights(server, tmp_path):
    states = {name: {'weight': torch.full((1000,), k)} for k, name in enumerate(('old', 'new'))}
    torch.save(states, tmp_path / 'made.pth')
    server.files['/w.pth'] = (tmp_path / 'made.pth').read_bytes(), {}
    assert [value_of(f'{server.address}/w.pth::{name}') for name in states] == [0, 1]
    assert server.asked == ['/w.pth']
    with pytest.raises(ValueError, match=r'w\.pth::old$'):
        value_of(f'{server.address}/w.pth')


def test_a_server_without_a_trusted_certificate_is_refused(server, monkeypatch):
    monkeypatch.delenv('SSL_CERT_FILE')
    with pytest.raises(ValueError, match=r'w\.pth.*certificate'):
        fetch(f'{server.address}/w.pth')


def test_an_incomplete_or_broken_download_leaves_nothing(server, tmp_path, monkeypatch):
    body = weights(1, tmp_path)
    chunked = {'Transfer-Encoding': 'chunked'}
    server.files['/short.pth'] = body[:999], {'Content-Length': len(body)}
    server.files['/chunk.pth'] = b'%x\r\n' % len(body) + body[:999], chunked
    for path in server.files:
        with pytest.raises(ValueError, match=path):
            fetch(server.address + path)

    def read(*_: object) -> bytes:
        raise ssl.SSLError(1, 'bad record')

    server.files['/w-20240131.pth'] = body, {}
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r'-20240131.*bad record'):
        patch.setattr(HTTPResponse, 'read', read)
        fetch(f'{server.address}/w-20240131.pth')
    fetch(f'{server.address}/w-20240131.pth')  # a date, not a checksum
    cached = [path.name for path in tmp_path.glob('cache/simmim/*') if path.suffix != '.lock']
    assert [name.rpartition('-')[2] for name in cached] == ['20240131.pth']


@pytest.mark.parametrize('scheme', ['http', 'file', 'ftp'])
def test_only_https_is_followed(server, tmp_path, scheme):
    plain = f'{scheme}://localhost:{server.server_port}/w.pth'
    server.files['/w.pth'] = weights(1, tmp_path), {}
    server.files['/moved.pth'] = b'', {'Location': plain}
    server.files['/other.pth'] = b'', {'Location': '/w.pth'}
    assert value_of(f'{server.address}/other.pth') == 1
    for address in (f'{server.address}/moved.pth', plain):
        with pytest.raises(ValueError, match='https') as caught:
            fetch(address)
        assert address in str(caught.value)


def test_several_processes_download_one_file(server, tmp_path):
    server.files['/w.pth'] = weights(1, tmp_path), {}
    code = 'import sys; from system.downloads import fetch; fetch(sys.argv[1])'
    command = [sys.executable, '-c', code, f'{server.address}/w.pth']
    for process in [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]:
        assert process.wait() == 0
    assert server.asked == ['/w.pth']


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folders of repositories by name and revision; `asked` lists the patterns."""
    fetch.cache_clear()
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')  # not used: the package has its own cache
    asked = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: list) -> str:
        asked.append((revision, *allow_patterns))
        if repository != 'owner/name':
            raise OSError('401 Client Error.\nRepository Not Found')
        return str(tmp_path / 'c0ffee')

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
    (tmp_path / 'c0ffee' / 'sub').mkdir(parents=True)
    return asked


def test_a_repository_gives_its_weights_and_the_statistics_of_their_pixels(hub, tmp_path, log):
    config, file = make_config('swin', 3), tmp_path / 'c0ffee/pytorch_model.bin'
    model = make_model(config, is_pretrain=False)
    torch.save(model.state_dict(), file)
    statistics = {'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.4, 0.5, 0.6]}
    file.with_name(PROCESSOR).write_text(json.dumps(statistics))
    config.PRETRAINED = 'hf://owner/name@main'
    target = make_model(config, seed=2, is_pretrain=False)
    load_pretrained(config, target, LOGGER)
    assert torch.equal(target.norm.weight, model.norm.weight)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    _, *about = fetch(config.PRETRAINED)
    assert about == [checksum, 'hf://owner/name@c0ffee/pytorch_model.bin']
    assert any(checksum in line and 'c0ffee' in line for line in log.messages)
    assert hub == [('main', name, PROCESSOR, MODEL_CONFIG) for name in downloads.HUB_FILES]


def test_a_file_of_a_repository_and_what_is_wrong_are_named(hub, tmp_path):
    path = tmp_path / 'c0ffee/sub/w.pth'
    path.write_bytes(b'1')
    assert fetch('hf://owner/name/sub/w.pth').path == path
    assert fetch('hf://owner/name/sub/w.pth::teacher').path == path
    assert hub == 2 * [(None, 'sub/w.pth', f'sub/{PROCESSOR}', f'sub/{MODEL_CONFIG}')]
    for address in ('hf://owner/name', 'hf://owner/other', 'hf://owner'):
        with pytest.raises(ValueError, match=address) as caught:
            fetch(address)
        assert '\n' not in str(caught.value)
