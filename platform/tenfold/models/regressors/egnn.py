"""E(n)-equivariant graph network for molecular properties, invariant to rotation, translation and atom order.

Satorras, Hoogeboom and Welling, "E(n) Equivariant Graph Neural Networks", ICML 2021, the invariant form for properties.
The graph is fully connected; molecules are padded to one size, with a mask of the real atoms.
Shapes: B molecules, N atoms with padding, F features, W width.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold.models.regressors.base import LOG_VARIANCE_LIMIT, check_widths


class EGNN(nn.Module):
    """Properties of a molecule from the features of its atoms and their distances.

    Args:
        n_features: F.
        width: W.
        n_layers: Message-passing layers.
        attention: Weight each message by a number in (0, 1) computed from it.
        n_outputs: Outputs for each molecule.
        dropout: Dropout probability of the node states after every layer.

    Raises:
        ValueError: A size is below 1.
    """

    def __init__(
        self,
        n_features: int,
        *,
        width: int = 128,
        n_layers: int = 7,
        attention: bool = True,
        n_outputs: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_widths((n_features, width, n_layers, n_outputs))
        self.embedding = nn.Linear(n_features, width)
        for number in range(n_layers):
            self.add_module(f"gcl_{number}", MessageLayer(width, attention))
        self.dropout = nn.Dropout(dropout)
        self.node_dec = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.graph_dec = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, n_outputs))

    def forward(self, features: Tensor, positions: Tensor, n_atoms: Tensor) -> Tensor:
        """Return outputs ``(B, n_outputs)``.

        Args:
            features: ``(B, N, F)``; those beyond ``n_atoms`` are ignored.
            positions: ``(B, N, 3)``, all in one unit.
            n_atoms: Integers ``(B,)`` in 1..N: the number of real atoms, which come first.

        Raises:
            ValueError: The shapes do not match, or ``n_atoms`` are not integers or (checked on the CPU only) outside
                1..N.
        """
        self._check(features, positions, n_atoms)
        real = torch.arange(features.shape[1], device=features.device) < n_atoms[:, None]  # (B, N)
        other = ~torch.eye(features.shape[1], dtype=torch.bool, device=features.device)
        edges = (real[:, :, None] & real[:, None, :] & other).to(features.dtype)[..., None]  # (B, N, N, 1)
        # Padding may hold anything, NaN included: multiplying it by 0 would keep the NaN.
        features = features.masked_fill(~real[..., None], 0)
        positions = positions.masked_fill(~real[..., None], 0)
        distances = (positions[:, :, None] - positions[:, None]).square().sum(dim=-1, keepdim=True)
        states = self.embedding(features)
        for name, layer in self.named_children():
            if name.startswith("gcl_"):
                states = self.dropout(layer(states, distances, edges))
        states = self.node_dec(states) * real[..., None]
        return self.graph_dec(states.sum(dim=1))

    def _check(self, features: Tensor, positions: Tensor, n_atoms: Tensor) -> None:
        wanted = self.embedding.in_features
        if (
            features.ndim != 3
            or features.shape[2] != wanted
            or positions.shape != (*features.shape[:2], 3)
            or n_atoms.shape != features.shape[:1]
        ):
            raise ValueError(
                f"features, positions and n_atoms must be (B, N, {wanted}), (B, N, 3) and (B,), got "
                f"{tuple(features.shape)}, {tuple(positions.shape)} and {tuple(n_atoms.shape)}"
            )
        if n_atoms.is_floating_point() or n_atoms.dtype == torch.bool:
            raise ValueError(f"n_atoms must be integers, got {n_atoms.dtype}")
        # On an accelerator this check would force a synchronisation.
        if n_atoms.device.type == "cpu" and n_atoms.numel():
            low, high = (int(end) for end in n_atoms.aminmax())
            if low < 1 or high > features.shape[1]:
                raise ValueError(f"n_atoms must lie in 1..{features.shape[1]}, got {low} to {high}")


class EgnnRegressor(nn.Module):
    """EGNN that predicts mean and log-variance ``(B, targets)`` of standardised molecular properties.

    Args:
        num_features: F.
        num_targets: Number of properties.
        width, num_layers, attention, dropout: As in ``EGNN``.
        log_variance_limit: Log-variances are clamped to plus and minus this.
    """

    def __init__(
        self,
        num_features: int,
        num_targets: int,
        *,
        width: int = 128,
        num_layers: int = 7,
        attention: bool = True,
        dropout: float = 0.0,
        log_variance_limit: float = LOG_VARIANCE_LIMIT,
    ) -> None:
        super().__init__()
        self.log_variance_limit = log_variance_limit
        self.network = EGNN(
            num_features,
            width=width,
            n_layers=num_layers,
            attention=attention,
            n_outputs=2 * num_targets,
            dropout=dropout,
        )
        with torch.no_grad():
            cast(nn.Linear, self.network.graph_dec[2]).bias[num_targets:] = 0

    def forward(self, features: Tensor, positions: Tensor, n_atoms: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance; the arguments are those of ``EGNN``."""
        mean, log_variance = self.network(features, positions, n_atoms).chunk(2, dim=1)
        return mean, log_variance.clamp(-self.log_variance_limit, self.log_variance_limit)


class MessageLayer(nn.Module):
    """Message-passing layer: every atom updates its state with messages from all others.

    Args:
        width: W.
        attention: Weight the messages.
    """

    def __init__(self, width: int, attention: bool) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(2 * width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.att_mlp = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid()) if attention else None

    def forward(self, states: Tensor, distances: Tensor, edges: Tensor) -> Tensor:
        """Return new states ``(B, N, W)`` from states, squared distances and mask, both ``(B, N, N, 1)``."""
        first = cast(nn.Linear, self.edge_mlp[0])
        own, others, far = first.weight.split([states.shape[-1], states.shape[-1], 1], dim=1)
        # The first layer is linear in both states and the distance, so (B, N, N, 2 W + 1) is never built, and each
        # state is multiplied once instead of once for each of its N edges.
        sources = functional.linear(states, own, first.bias)[:, :, None]
        hidden = sources + functional.linear(states, others)[:, None] + distances * far[:, 0]
        messages = self.edge_mlp[1:](hidden)
        weights = edges if self.att_mlp is None else edges * self.att_mlp(messages)
        received = (weights * messages).sum(dim=2)
        return states + self.node_mlp(torch.cat([states, received], dim=-1))
