"""Which sites of a base a LoRA adapts: by patterns over their names and module types."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from p2e.bases.base import Base, Site
from p2e.errors import ConfigError

__all__ = ["choose_sites", "narrowed"]

REGEX = "re:"


def choose_sites(base: Base, patterns: Sequence[str]) -> tuple[Site, ...]:
    """The sites that any of the patterns names, in the base's order; all of them where there is no pattern.

    A pattern is a glob that must match the whole of a site's key ("blocks.3.self_attn.q"), its name without the expert,
    or its module type ("self_attn.q"); or "re:" and a regular expression found anywhere in the key.

    Raises:
        ConfigError: a pattern names no site, or is no regular expression.
    """
    if not patterns:
        return base.sites
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern.startswith(REGEX):
            try:
                search = re.compile(pattern.removeprefix(REGEX)).search
            except re.error as error:
                raise ConfigError(f"sites: {pattern!r} is no regular expression ({error})") from None
            found = {site.key for site in base.sites if search(site.key)}
        else:
            found = {
                site.key
                for site in base.sites
                if any(fnmatchcase(name, pattern) for name in (site.key, site.name, site.module))
            }
        if not found:
            raise ConfigError(
                f"sites: {pattern!r} names no site of {base.name}; its module types are {', '.join(base.modules)}"
            )
        chosen |= found
    return tuple(site for site in base.sites if site.key in chosen)


def narrowed(base: Base, sites: Iterable[Site]) -> Base:
    """The same base with these sites alone."""
    return replace(base, sites=tuple(sites))
