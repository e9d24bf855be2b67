"""How a transformer's tokens become one feature vector, by name: `timm:NAME:mean`.

`cls` is the class token, `mean` the mean of the image's patches, `map` what the network's own
attention pooling gives.
"""

from __future__ import annotations

from lorkd_deploy.errors import ModelError, UsageError, unknown_name

POOLINGS = ("cls", "mean", "map")
_POOLED = ("timm", "transformers", "open_clip")


def checked_pooling(source: str, name: str) -> tuple[str, str | None]:
    """`name` without its pooling, and that; raises `UsageError` for one that doesn't exist."""
    name, separator, pooling = name.partition(":")
    if not separator:
        return name, None
    if source not in _POOLED:
        raise UsageError(
            f"{source}:{name} has a pooling of its own, which {pooling!r} can't change",
            fix=f"write {source}:{name}; a pooling is named behind {', '.join(_POOLED)}",
        )
    if pooling not in POOLINGS:
        raise unknown_name("pooling", pooling, POOLINGS)
    return name, pooling


def cannot_pool(where: str, pooling: str, why: str) -> ModelError:
    """The network `where` can't pool so."""
    return ModelError(
        f"{where} can't pool by {pooling}: {why}",
        fix=f"name another of {', '.join(POOLINGS)}, or none: what the network does itself",
    )
