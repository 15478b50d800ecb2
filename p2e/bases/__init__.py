"""Base models: site tables by name, and lazy reading of their weights.

To add a size of a known family, add an entry to its `*_BASES`. To add a family, write one file beside wan.py:
1. `NAME_base(name, *, num_layers, heads, ...)`: builds the site table. Original names are those that LoRA files use;
   each site lists the diffusers layers that make up its rows. Take every linear layer of a block that some LoRA
   trainer adapts; say in the file's docstring which layers are left out, and why.
2. `NAME_BASES`: the registered sizes.
3. A `Family` with `build` (from a diffusers config), `identity` (what tells sizes apart) and `configs` (from the names
   and shapes of a checkpoint).
4. Add it to `registry.FAMILIES`, and its sizes and exclusions to tests/bases/test_base_tables.py, which holds every
   table against the diffusers class on the meta device.
"""

from p2e.bases.base import Base, Family, Part, Site
from p2e.bases.opening import open_base, world_base_folder
from p2e.bases.registry import base_names, get_base
from p2e.bases.weights import WeightReader

__all__ = ["Base", "Family", "Part", "Site", "WeightReader", "base_names", "get_base", "open_base", "world_base_folder"]
