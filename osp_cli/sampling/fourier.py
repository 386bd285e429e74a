"""High-frequency magnitudes of the first frame, the Fourier guidance of paper section 4.3.

The paper says only "high-frequency magnitude filter" and "cutoff percentile". The rules here are
those of the released model: the percentile is of cumulative *magnitude* (not of energy, not of
frequency), radii are counted in bins without aspect correction, and the output is the magnitude of
the filtered picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Inside the square roots, so that the magnitude has a gradient where the spectrum is zero.
_MAGNITUDE_EPS = 1e-12


def high_frequency_magnitude(latents: Tensor, cutoff: float | Tensor) -> Tensor:
    """`s_high = f_high(s)` (paper, Eq. 20).

    Args:
        latents: First-frame latents `(batch, channels, height, width)`. Half precision is computed
            in fp32 and cast back.
        cutoff: Percentile in [0, 1], one number or one per sample `(batch,)`. 0 keeps everything,
            1 only the corner of the spectrum.

    Returns:
        Non-negative magnitudes, same shape and dtype as `latents`.

    Raises:
        ValueError: `cutoff` outside [0, 1] or of the wrong length, or `latents` not 4-D.
    """
    spectrum = _centred_spectrum(latents)
    radius, limits = _radii_and_limits(spectrum, cutoff)
    kept = radius >= limits[:, None, None]
    spectrum = spectrum * kept[:, None]
    filtered = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1)))
    return _magnitude(filtered).to(latents.dtype)


def cutoff_radius(latents: Tensor, cutoff: float | Tensor) -> Tensor:
    """Radius, in bins, from which frequencies are kept, `(batch,)` fp32.

    Args and errors as in `high_frequency_magnitude`. One radius per sample, shared by its channels.
    """
    return _radii_and_limits(_centred_spectrum(latents), cutoff)[1]


def fourier_features(
    start_frame_latents: Tensor, cutoff: float | Tensor, num_frames: int
) -> Tensor:
    """Features as the transformer takes them: the first frame's magnitudes at every frame.

    Args:
        start_frame_latents: `(batch, channels, 1, height, width)`.
        cutoff: As in `high_frequency_magnitude`.
        num_frames: Latent frames of the clip.

    Returns:
        `(batch, channels, num_frames, height, width)`, a view that repeats one frame.
    """
    if start_frame_latents.ndim != 5 or start_frame_latents.shape[2] != 1:
        raise ValueError(
            f"expected one latent frame (b, c, 1, h, w), got {tuple(start_frame_latents.shape)}"
        )
    high = high_frequency_magnitude(start_frame_latents[:, :, 0], cutoff)
    return high[:, :, None].expand(-1, -1, num_frames, -1, -1)


def cutoff_at(step: int, num_steps: int, start: float, end: float) -> float:
    """Cutoff of `step` (0-based) on a linear ramp: `start` at the first step, `end` at the last."""
    if not 0 <= step < num_steps:
        raise ValueError(f"step {step} is not one of {num_steps}")
    if num_steps == 1:
        return start
    cutoff = start + (end - start) * step / (num_steps - 1)
    # Rounding may not carry it past an end, which may be the end of what is allowed.
    return min(max(cutoff, min(start, end)), max(start, end))


def _centred_spectrum(latents: Tensor) -> Tensor:
    if latents.ndim != 4:
        raise ValueError(f"expected (batch, channels, height, width), got {tuple(latents.shape)}")
    return torch.fft.fftshift(torch.fft.fft2(latents.float()), dim=(-2, -1))


def _magnitude(values: Tensor) -> Tensor:
    return torch.sqrt(values.real**2 + values.imag**2 + _MAGNITUDE_EPS)


def _radii_and_limits(spectrum: Tensor, cutoff: float | Tensor) -> tuple[Tensor, Tensor]:
    """Radius of every bin `(height, width)` and the cutoff radius of every sample `(batch,)`."""
    batch, _, height, width = spectrum.shape
    device = spectrum.device
    cutoff = torch.as_tensor(cutoff, dtype=torch.float32, device=device)
    if cutoff.ndim > 1 or (cutoff.ndim == 1 and cutoff.shape[0] != batch):
        raise ValueError(f"cutoff must be one number or ({batch},), got {tuple(cutoff.shape)}")
    # Written so that NaN is refused too.
    if not bool(((cutoff >= 0) & (cutoff <= 1)).all()):
        raise ValueError(f"cutoff is a percentile between 0 and 1, got {cutoff.tolist()}")
    cutoff = cutoff.expand(batch)

    y = torch.arange(height, device=device, dtype=torch.float32) - height // 2
    x = torch.arange(width, device=device, dtype=torch.float32) - width // 2
    radius = torch.sqrt(y[:, None] ** 2 + x[None, :] ** 2)

    by_radius, order = radius.flatten().sort()
    magnitude = _magnitude(spectrum).mean(dim=1).flatten(1)[:, order]
    cumulative = magnitude.cumsum(dim=1)
    # The share is of the last cumulative sum itself: at 1.0 the last bin is reached, never missed.
    reached = cumulative >= cutoff[:, None] * cumulative[:, -1:]
    first = reached.int().argmax(dim=1)
    return radius, by_radius[first]
