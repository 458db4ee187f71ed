"""What all tests share."""
import functools
import importlib.util
import io
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
TOOLS = TESTS.parent / 'tools'
# oracle.py and loss_tester.py, in the processes that tests start, too.
sys.path.insert(0, str(TESTS))

# The tensors of the tests are far too small to be worth two threads.
torch.set_num_threads(1)

# Some tests press Ctrl-C, which a shell's background jobs ignore.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Whole programs first: they are few and long, and others fill in."""
    items.sort(key=lambda item: 'tools' not in item.path.parts)


@pytest.fixture(scope='session', autouse=True)
def _configs_as_they_are():
    """No yapf: laying a config out takes longer than training it."""
    from mmengine.config import config
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(config, 'FormatCode'):
            patch.setattr(config, 'FormatCode', functools.update_wrapper(
                lambda text, **kwargs: (text, True), config.FormatCode))
        yield


@pytest.fixture(params=[
    'cpu',
    pytest.param('cuda', marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            not torch.cuda.is_available(), reason='no CUDA device here')])
])
def device(request):
    """Each kind of device that a test is to run on."""
    return torch.device(request.param)


@pytest.fixture(scope='session')
def call_tool():
    """Call a Python tool's ``main`` with command line arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))

        def call(name, *args):
            path = TOOLS / name
            spec = importlib.util.spec_from_file_location(
                f'tool_{path.stem}', path)
            assert spec is not None and spec.loader is not None
            tool = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(tool)
            patch.setattr(sys, 'argv', [str(path), *map(str, args)])
            tool.main()

        yield call


@pytest.fixture(scope='session')
def refusal(call_tool):
    """Call a tool that refuses, and return the one line that it says."""

    def call(name: str, *args: object) -> str:
        with redirect_stderr(io.StringIO()) as said, pytest.raises(
                SystemExit) as leaving:
            call_tool(name, *args)
        assert leaving.value.code == 2
        # Other packages may warn on being imported.
        line, = [line for line in said.getvalue().splitlines()
                 if line.startswith(f'{name}: ')]
        return line

    return call
