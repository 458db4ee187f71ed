"""Packaging of wsld_plugin."""
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).resolve().parent
# Of use in a checkout only.
NOT_SHIPPED = ('benchmarks', 'experiments')
about: dict = {}
exec((HERE / 'wsld_plugin' / 'version.py').read_text(), about)


class BuildWithMim(build_py):
    """Put configs and tools where mim and `wsld_plugin::` look for them.

    In an editable installation they are links, so that edits count.
    """

    def run(self) -> None:
        """Build as usual, then fill wsld_plugin/.mim."""
        super().run()
        root = HERE if self.editable_mode else Path(self.build_lib)
        mim = root / 'wsld_plugin' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            if self.editable_mode:
                (mim / name).symlink_to(Path('..', '..', name))
            elif (HERE / name).is_dir():
                shutil.copytree(
                    HERE / name,
                    mim / name,
                    ignore=shutil.ignore_patterns('__pycache__', *NOT_SHIPPED))
            else:
                shutil.copy(HERE / name, mim / name)


class EditableWithMim(editable_wheel):
    """Let mim and mmengine find an editable installation's folder.

    They join the folder of the distribution's metadata with the first line
    of its top_level.txt; an absolute path there wins.
    """

    def _install_namespaces(self, installation_dir, pth_prefix):
        super()._install_namespaces(installation_dir, pth_prefix)
        for path in Path(installation_dir).glob('*.dist-info/top_level.txt'):
            path.write_text(f'{HERE / "wsld_plugin"}\n{path.read_text()}')


setup(
    name='wsld_plugin',
    version=about['__version__'],
    description='Weighted Soft Label Distillation for MMRazor on '
    'today\'s PyTorch',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['wsld_plugin', 'wsld_plugin.*']),
    cmdclass={
        'build_py': BuildWithMim,
        'editable_wheel': EditableWithMim
    },
    python_requires='>=3.9',
    # The OpenMMLab packages are extras, not requirements: their onedl forks
    # and both builds of mmcv provide the same modules under other
    # distribution names, and requiring one name would install it over the
    # other's files.
    install_requires=[
        'torch>=1.13', 'numpy', 'scipy', 'pandas', 'jinja2', 'rich',
        'filelock', 'tenacity'
    ],
    extras_require={
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv-lite>=2.1.0,<2.3',
            'mmpretrain>=1.2.0',
            'mmrazor==1.0.0',
            # Undeclared by mmpretrain and mmrazor, which import them.
            'torchvision',
            'joblib',
            # The digits and the drawings of the quickstart.
            'scikit-learn',
            'matplotlib',
        ],
        # Files of the student for programs without mmpretrain.
        'deploy': ['onnx', 'onnxruntime', 'onnxscript'],
        # The one call: teachers of other packages.
        'distil': ['timm', 'transformers'],
        # Plans of trainings: tools/experiments.
        'experiments': [
            'snakemake>=9; python_version >= "3.11"',
            'pydantic>=2; python_version >= "3.11"',
        ],
        'test': ['pytest', 'pytest-timeout', 'pytest-xdist', 'tensorboard'],
        'lint': ['ruff', 'mypy'],
        # Pages of the API.
        'docs': ['pdoc'],
    },
)
