"""Run from the folder that a wheel was unpacked in: whether what it needs travels along."""

import importlib
import pkgutil
from pathlib import Path

import tenfold
import tenfold.methods
from tenfold.data.descriptors import shipped_descriptors
from tenfold.models.clip import ClipConfig, load_clip
from tenfold.models.diffusion import DiffusionConfig, load_pipeline

assert Path(tenfold.__file__).resolve().is_relative_to(Path.cwd()), tenfold.__file__
rooms = [module.name for module in pkgutil.iter_modules(tenfold.methods.__path__)]
for room in rooms:
    importlib.import_module(f"tenfold.methods.{room}")
load_clip(ClipConfig())
load_pipeline(DiffusionConfig())
assert shipped_descriptors("handwriting") is not None
print("wheel imports", tenfold.__version__, "with", ", ".join(rooms))
