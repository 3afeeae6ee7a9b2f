"""Random directions for controls: as long as the real ones and at the same angles to each other, but turned at random.

Directions of neighbouring layers are alike, so that their effects add up. Controls drawn independently for each layer would
partly cancel, and flatter whatever stands beside them.
"""

import torch
from torch import Tensor

OFFSET = 7_919_000_000  # so that seed 0 does not draw again what a user drew with seed 0


def turned_at_random(rows: Tensor, seed: int) -> Tensor:
    """Return vectors (…, width) turned by one random rotation: all norms and angles between them are kept.

    Each row alone is uniform on the sphere of its norm.
    """
    flat = rows.detach().reshape(-1, rows.shape[-1]).cpu().double()
    basis, coordinates = torch.linalg.qr(flat.T)
    noise = torch.randn(
        basis.shape, generator=torch.Generator().manual_seed(OFFSET + seed), dtype=torch.float64
    )
    turned, triangle = torch.linalg.qr(noise)
    turned = turned * triangle.diagonal().sign()  # without this a QR's first coordinates are not random
    kind = torch.promote_types(rows.dtype, torch.float32)
    result: Tensor = (turned @ coordinates).T.reshape(rows.shape).to(rows.device, kind)
    return result
