"""Per-example gradients of a batch in one vectorised pass."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

Loss = Callable[[Tensor, Tensor], Tensor]
"""Loss of one example: outputs ``(1, ...)`` and targets ``(1, ...)`` to a scalar, e.g. ``functional.cross_entropy``."""


def per_example_gradients(
    module: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, *, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """Return the gradient of the loss of each example.

    Args:
        module: A network whose output for an example does not depend on the other examples.
        loss_fn: Loss of one example.
        inputs: ``(B, ...)``.
        targets: ``(B, ...)``.
        chunk_size: Examples per pass; None: all. The result always has B times the size of the network.

    Returns:
        ``(B, ...)`` by name, in the order of ``named_parameters()``, for the parameters that require a gradient.

    Raises:
        ValueError: The network has batch normalisation or active dropout, no parameter requires a gradient, or inputs
            and targets have no examples or different numbers of them.
    """
    check_independent(module)
    check_pairs(inputs, targets)
    names = trained_names(module)
    return gradients_of(module, loss_fn, inputs, targets, names, chunk_size)


def gradients_of(
    module: nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, names: Iterable[str], chunk_size: int | None
) -> dict[str, Tensor]:
    """Compute ``per_example_gradients`` of the named parameters only, without checks."""
    chosen = set(names)
    state = {name: value.detach() for name, value in module.named_parameters()}
    moved = {name: value for name, value in state.items() if name in chosen}
    fixed = {name: value for name, value in state.items() if name not in chosen} | dict(module.named_buffers())

    def loss(parameters: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(module, {**fixed, **parameters}, (example.unsqueeze(0),))
        return loss_fn(outputs, target.unsqueeze(0))

    return vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=chunk_size)(moved, inputs, targets)


def trained_names(module: nn.Module) -> list[str]:
    """Return the names of the parameters that require a gradient.

    Raises:
        ValueError: No parameter does.
    """
    names = [name for name, value in module.named_parameters() if value.requires_grad]
    if not names:
        raise ValueError("the network must have a parameter that requires a gradient, got none")
    return names


def check_pairs(inputs: Tensor, targets: Tensor) -> None:
    """Check that inputs and targets have the same number of examples, at least one.

    Raises:
        ValueError: They do not.
    """
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets) or not len(inputs):
        raise ValueError(
            f"inputs and targets must be (B, ...) with one B of at least 1, "
            f"got {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )


def check_independent(module: nn.Module) -> None:
    """Check that the gradient of an example depends on this example only.

    Raises:
        ValueError: The network has batch normalisation, which mixes examples, or active dropout, which makes gradients
            random.
    """
    for name, part in module.named_modules():
        what = f"{name or 'the network'} ({type(part).__name__})"
        if isinstance(part, _BatchNorm):
            raise ValueError(  # noqa: TRY004 - the argument has the right type; its layers are not supported
                f"{what} normalises over the batch, so per-example gradients are undefined; "
                f"use group or layer normalisation instead"
            )
        if part.training and _drop_rate(part) > 0:
            raise ValueError(f"{what} is active dropout, which makes gradients noisy; set its rate to 0 or call eval()")


def _drop_rate(part: nn.Module) -> float:
    """Dropout rate of torch's and timm's dropout layers, and of layers with internal dropout (attention, recurrent)."""
    names = ("p", "drop_prob") if "drop" in type(part).__name__.lower() else ("dropout",)
    for name in names:
        rate = getattr(part, name, None)
        if isinstance(rate, (int, float)) and not isinstance(rate, bool):
            return float(rate)
    return 0.0
