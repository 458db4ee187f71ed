"""download_checkpoints.py, and the tools on files that it fetches."""
from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

HERE = Path(__file__).parent
DISTILLATION = HERE / 'tiny_distillation.py'
TEACHER = HERE.parents[1] / 'configs' / 'ce_r34_digits.py'
# The scans that tiny_distillation.py validates on.
ON_VAL = ('--cfg-options', 'test_dataloader.dataset.split=val',
          'test_dataloader.dataset.indices=64')

Call = Callable[..., None]


def publish(folder: Path, name: str, content: Any) -> str:
    """Save a file under a name with its hash."""
    torch.save(content, folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()[:8]
    return (folder / name).rename(folder / f'{name}-{digest}.pth').name


@pytest.fixture(scope='module')
def zoo(
    tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """A folder and where it is served."""
    folder = tmp_path_factory.mktemp('zoo')

    class Handler(SimpleHTTPRequestHandler):

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01, ))
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('no_proxy', '*')
        patch.setenv('MMENGINE_HOME',
                     str(tmp_path_factory.mktemp('home')))
        yield folder, f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    thread.join()
    server.server_close()


def test_tool_prints_paths_and_all_that_failed(
        zoo: tuple[Path, str], call_tool: Call, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    folder, base = zoo
    names = [publish(folder, name, {name: torch.rand(9)}) for name in 'ab']
    tool = ('download_checkpoints.py', f'{base}/{names[0]}', 'resnet34_8xb32',
            f'{base}/nowhere.pth', f'https://models.invalid/{names[1]}')
    with pytest.raises(SystemExit) as leaving:
        call_tool(*tool, '--out', tmp_path, '--mirror', base)
    assert leaving.value.code == 2
    out, error = capsys.readouterr()
    assert [line for line in out.splitlines() if line[0] == '/'
            ] == [f'{tmp_path}/{name}' for name in names]
    # Other packages may warn on being imported.
    unknown, missing = [
        line for line in error.splitlines()
        if line.startswith('download_checkpoints.py: ')
    ]
    assert unknown.startswith('download_checkpoints.py: name_or_url=resnet34')
    assert f'{base}/nowhere.pth: HTTP Error 404' in missing
    assert {path.name for path in tmp_path.glob('[!.]*')} == {*names}


def test_offline_says_which_file_goes_where(
        call_tool: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    with pytest.raises(SystemExit):
        call_tool('download_checkpoints.py', 'wsld_r34_r18_in1k-evalbn',
                  'torchvision://resnet34', '--offline')
    lines = re.findall(r'offline: (\S+) is missing; fetch (\S+) elsewhere and '
                       'put it there', capsys.readouterr().err)
    assert [Path(path).parent for path, _ in lines
            ] == [tmp_path / 'checkpoints'] * 2
    assert [path.rsplit('/')[-1] for path, _ in lines
            ] == [url.rsplit('/')[-1] for _, url in lines]


def test_torchvision_teacher_from_a_url(
        zoo: tuple[Path, str], call_tool: Call, tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    """The teacher of a distillation is what test.py makes of the file."""
    torch.manual_seed(0)
    network = torchvision.models.resnet34(num_classes=10)
    teacher = f'{zoo[1]}/{publish(zoo[0], "resnet34", network.state_dict())}'
    call_tool('test.py', TEACHER, teacher, '--work-dir', tmp_path / 'test',
              *ON_VAL)
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    call_tool('train.py', DISTILLATION, '--work-dir', tmp_path,
              '--cfg-options', f'model.teacher_ckpt={teacher}',
              'train_cfg.max_epochs=1',
              'train_dataloader.dataset.indices=16',
              'model.teacher.backbone.base_channels=64',
              'model.teacher.backbone.stem_channels=64',
              'model.teacher.head.in_channels=512')
    log, = tmp_path.glob('*/*.log')
    text = log.read_text()
    measured = re.search(r'teacher/accuracy/top1: ([\d.]+)', text)
    assert measured is not None
    assert float(measured[1]) == pytest.approx(alone['accuracy/top1'])
    assert 'do not match' not in text + capsys.readouterr().out
