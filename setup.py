"""Packaging of wsld_plugin."""
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
about: dict = {}
exec((HERE / 'wsld_plugin' / 'version.py').read_text(), about)

setup(
    name='wsld_plugin',
    version=about['__version__'],
    description='Weighted Soft Label Distillation for MMRazor on '
    'today\'s PyTorch',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['wsld_plugin', 'wsld_plugin.*']),
    python_requires='>=3.9',
    # The OpenMMLab packages are extras, not requirements: their onedl forks
    # and both builds of mmcv provide the same modules under other
    # distribution names, and requiring one name would install it over the
    # other's files.
    install_requires=['torch>=1.13', 'numpy', 'rich'],
    extras_require={
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv-lite>=2.1.0,<2.3',
            'mmpretrain>=1.2.0',
            'mmrazor==1.0.0',
            'torchvision',
            'joblib',
            'scikit-learn',
        ],
        'test': ['pytest', 'pytest-timeout'],
        'lint': ['ruff', 'mypy'],
    },
)
