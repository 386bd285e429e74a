"""Two-layer maps from frozen features into the transformer's conditioning space."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class FeatureAdapter(ModelMixin, ConfigMixin):
    """Linear, exact GELU, Linear: f_map of Eq. 2 and f_img of Eq. 4 (paper, section 3.2).

    Args:
        in_features: Width of the frozen features (3584 for Qwen2.5-VL-7B).
        hidden_features: Width between the layers (4096 in the release).
        out_features: `text_dim` of the transformer (4096 in the release).
    """

    @register_to_config
    def __init__(
        self, in_features: int = 3584, hidden_features: int = 4096, out_features: int = 4096
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`, in the dtype of the weights."""
        return self.fc2(self.act(self.fc1(features.to(self.fc1.weight.dtype))))
