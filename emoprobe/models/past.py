"""What interventions keep from one pass of a generation to the next: further layers of the model's own KV cache.

What transformers does to a cache (cropping, reordering for beams, repeating, selecting, resetting) it does to all of its
layers, so that what is kept here stays with its sequences by itself, and is gone when the cache is.
"""

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from emoprobe.errors import InputError
from emoprobe.interventions import Forward


class _Past(DynamicLayer):  # type: ignore[misc]
    """A layer that grows as it is used, in a cache that may be static.

    A cache is one to compile for only if all of its layers are. For others transformers leaves the mask out where it thinks
    that nothing is to be hidden, and then the unfilled slots of the model's own static layers would be attended to.
    """

    is_compileable = True

    def __init__(self, owner: object) -> None:
        super().__init__()
        self.owner = owner


def remember(
    forward: Forward, owner: object, n_layers: int, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the keys and values of all positions so far, given those of this pass, (batch, heads, position, width).

    `owner` names what they belong to, the same in each pass; the model's own `n_layers` layers stay the first of the cache.
    Without a cache there is nothing before this pass. Raises `InputError` for a cache that was filled without the owner.
    """
    cache = forward.cache
    if cache is None:
        return keys, values
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) < n_layers:  # a cache made without a configuration grows as it is used
            cache.layers.append(cache.layer_class_to_replicate())
    layer = next((layer for layer in cache.layers if getattr(layer, "owner", None) == owner), None)
    if layer is None:
        layer = _Past(owner)
        cache.layers.append(layer)
    if layer.get_seq_length() != forward.start:
        raise InputError(
            "this KV cache was filled outside the injection, so nothing of it is remembered: start the generation inside the "
            "block, and where you call the model yourself give it an empty cache to begin with"
        )
    keys, values = layer.update(keys, values)
    return keys, values
