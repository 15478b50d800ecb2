"""How the bases of each family are trained: their clips encoded, their transformers called. One family a file."""

from pathlib import Path

from p2e.adapt.config import FineTuneConfig
from p2e.adapt.families.adapter import Adapter
from p2e.bases.base import Base

__all__ = ["Adapter", "open_adapter"]


def open_adapter(base: Base, folder: str | Path, config: FineTuneConfig) -> Adapter:
    """The adapter of a base whose diffusers pipeline lies in `folder`; no weights are read yet.

    Raises:
        FormatError: the folder is no pipeline of a form that can be trained.
    """
    from p2e.adapt.families.cogvideox import CogVideoXAdapter
    from p2e.adapt.families.hunyuan import HunyuanAdapter
    from p2e.adapt.families.ltx import LTXAdapter
    from p2e.adapt.families.wan import WanAdapter

    adapters = {"wan": WanAdapter, "ltx": LTXAdapter, "hunyuan": HunyuanAdapter, "cogvideox": CogVideoXAdapter}
    return adapters[base.family](base, Path(folder), config)
