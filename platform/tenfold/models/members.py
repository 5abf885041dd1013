"""Vectorised forward passes of ensemble members or posterior samples: K sets of parameters of one network.

Run one by one, small networks on few inputs spend most of their time on call overhead. ``vmap`` merges K calls into one
but costs some tens of microseconds per operation itself. A repeated vectorised pass is therefore recorded, once per
input shape, and replayed: the same operations on the same numbers, without that overhead.
"""

import copy
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ACTIVATION_BYTES = 4 * 2**20
"""Largest intermediate tensor on a CPU; sets how many members run at once. Larger ones fall out of the caches, and the
allocator requests new pages at every call: 30 ``DigitCNN`` with 32 inputs take twice as long in one pass as one by one
(``tests/benchmarks/bench_members.py``)."""
MAX_ROWS = 256
"""Rows at once on a CPU, to bound the memory of intermediate tensors."""
DEVICE_ROWS = 4096
"""Rows times members at once on other devices."""
MAX_SHAPES = 64
"""Input shapes whose plans are kept; the oldest is dropped first."""
Sides = int | list[int] | tuple[int, ...]


class Members:
    """One network with K sets of parameters, as one function of its inputs; thread-safe.

    Outputs equal those of the members one by one up to rounding, and are the same at every call. Any network works: a
    network whose operations depend on the numbers cannot be recorded and is vectorised at each call; one that cannot be
    vectorised either runs member by member.

    Args:
        network: The architecture, which treats the rows of its inputs independently. It runs as in ``eval()``, on a
            copy that shares its tensors.
        parameters: Parameters and buffers of K members by name, ``(K, ...)``. Those not named are taken from the
            network, for all members.

    Raises:
        ValueError: There is no member, a name is unknown, or the names have different numbers of members.
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        known = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        unknown = sorted(set(parameters) - set(known))
        if unknown or not parameters:
            raise ValueError(
                f"parameters must name tensors of the network, got {len(parameters)} names, unknown: {unknown}"
            )
        counts = {len(value) if value.ndim else 0 for value in parameters.values()}
        if len(counts) > 1 or 0 in counts:
            raise ValueError(f"parameters must have the same number of members, at least one, got {sorted(counts)}")
        self.count = counts.pop()
        self._network = _same_tensors(network).eval()
        self._idle: list[nn.Module] = []
        self._names = tuple(parameters)
        self._values = [value.detach().contiguous() for value in parameters.values()]
        self._plans: dict[tuple[object, ...], _Plan] = {}

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> "Members":
        """Build members from networks of one architecture; their parameters and buffers are copied.

        Raises:
            ValueError: There is no network.
            RuntimeError: The networks differ in class or shapes.
        """
        if not networks:
            raise ValueError("an ensemble needs at least one network, got none")
        parameters, buffers = stack_module_state(list(networks))
        return cls(networks[0], {**parameters, **buffers})

    def __call__(self, *inputs: Tensor) -> Any:
        """Run all members.

        Args:
            inputs: Inputs of the network, ``(N, ...)`` each, on the device of the parameters.

        Returns:
            The network's output (a tensor or a tree of tensors), each tensor ``(K, N, ...)``, without gradient.

        Raises:
            ValueError: There is no input, or the inputs do not all have N rows, N at least 1.
        """
        lengths = {len(each) if each.ndim else 0 for each in inputs}
        if len(lengths) != 1 or 0 in lengths:
            shapes = ", ".join(str(tuple(each.shape)) for each in inputs) or "none"
            raise ValueError(f"inputs must be (N, ...) with N at least 1, got {shapes}")
        rows = MAX_ROWS if inputs[0].is_cpu else max(1, DEVICE_ROWS // self.count)
        # A recorded operation assumes one memory layout.
        parts = zip(*(each.contiguous().split(rows) for each in inputs), strict=True)
        with torch.no_grad():
            return _joined([self._answer(part) for part in parts], dim=1)

    def _answer(self, inputs: tuple[Tensor, ...]) -> Any:
        kind = inputs[0].device.type
        shapes = tuple((each.shape, each.dtype, each.device) for each in inputs)
        key = (*shapes, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(inputs)
            # Always a new dictionary, so that no thread sees it change.
            self._plans = dict([*self._plans.items(), (key, plan)][-MAX_SHAPES:])
        groups = plan.groups  # fixed for this call; another thread may replace them
        try:
            return self._follow(plan, groups, inputs)
        except (RuntimeError, TypeError, ValueError):
            # Errors of the network itself surfaced when one member ran alone, so this one is from vmap.
            if len(groups) == self.count:
                raise
            plan.groups = self._groups(1)
            return self._follow(plan, plan.groups, inputs)

    def _make_plan(self, inputs: tuple[Tensor, ...]) -> "_Plan":
        """Run one member alone, to surface errors in the inputs and to measure its largest activation."""
        with _Largest() as largest, _Substitutes():
            self._alone(*(value[:1] for value in self._values), *inputs)
        at_once = min(max(1, ACTIVATION_BYTES // max(1, largest.num_bytes)), self.count)
        return _Plan(self._groups(at_once if inputs[0].is_cpu else self.count), {})

    def _groups(self, at_once: int) -> list[tuple[Tensor, ...]]:
        """Split the parameters of all members into parts of at most ``at_once``, equal in size except the last."""
        size = -(-self.count // -(-self.count // at_once))
        return list(zip(*(value.split(size) for value in self._values), strict=True))

    def _follow(self, plan: "_Plan", groups: list[tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> Any:
        answers = []
        for members in groups:
            count = len(members[0])
            if count not in plan.passes:
                plan.passes[count] = _Pass(self._alone if count == 1 else self._together)
            answers.append(plan.passes[count](*members, *inputs))
        return _joined(answers, dim=0)

    def _alone(self, *tensors: Tensor) -> Any:
        values = [value[0] for value in tensors[: len(self._names)]]
        return tree_map(lambda value: value[None], self._call(values, tensors))

    def _together(self, *tensors: Tensor) -> Any:
        return vmap(lambda *values: self._call(values, tensors))(*tensors[: len(self._names)])

    def _call(self, values: Sequence[Tensor], tensors: tuple[Tensor, ...]) -> Any:
        # functional_call temporarily swaps the parameters in, so concurrent calls need a network each.
        try:
            network = self._idle.pop()
        except IndexError:
            network = _same_tensors(self._network)
        try:
            return functional_call(network, dict(zip(self._names, values, strict=True)), tensors[len(self._names) :])
        finally:
            self._idle.append(network)


@dataclass
class _Plan:
    """Execution plan for inputs of one shape."""

    groups: list[tuple[Tensor, ...]]
    """Parameters of the members that run at once, for each pass."""
    passes: dict[int, "_Pass"]
    """Pass by the number of members that run at once."""


class _Pass:
    """Function of tensors of fixed shapes: called the first time, recorded the second, replayed from the third.

    The operations are the same each time, so the outputs are bitwise equal.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._seen = False
        self._repeat: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> Any:
        if self._repeat is not None:
            return self._repeat(*tensors)
        with _Substitutes() as substitutes:
            if not self._seen:
                self._seen = True
                return self._function(*tensors)
            with _Recording(tensors) as recording:
                answer = self._function(*tensors)
        program = None if substitutes.left_torch else recording.program(answer)
        self._repeat = program or (self._substituted if substitutes.used else self._function)
        return answer

    def _substituted(self, *tensors: Tensor) -> Any:
        with _Substitutes():
            return self._function(*tensors)


class _Recording(TorchDispatchMode):
    """Recording of tensor operations as a ``torch.fx`` graph.

    Not traced by ``torch.fx`` itself, which patches ``nn.Module`` for all threads while it traces.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph, self._constants = fx.Graph(), nn.Module()
        self._nodes = {id(tensor): self._graph.placeholder(f"given{i}") for i, tensor in enumerate(tensors)}
        self._alive = list(tensors)  # an id is unique only while its tensor lives
        self._complete = True

    def program(self, answer: Any) -> Callable[..., Any] | None:
        """Return the recorded operations as a function; None if they depend on the numbers."""
        if not self._complete:
            return None
        self._graph.output(tree_map(self._node, answer))
        return fx.GraphModule(self._constants, self._graph).forward

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            # A constant in the network's code, cloned so that in-place changes do not carry over to the next call.
            func = torch.ops.aten.clone.default
        operation = self._graph.call_function(func, *tree_map(self._node, (tuple(args), dict(kwargs or {}))))
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, Tensor):
            self._note(answer, operation)
        elif isinstance(answer, (tuple, list)):
            for number, part in enumerate(answer):
                if isinstance(part, Tensor):
                    self._note(part, self._graph.call_function(operator.getitem, (operation, number)))
        only_tensors = all(isinstance(leaf, Tensor) or leaf is None for leaf in tree_leaves(answer))
        self._complete &= only_tensors and torch.Tag.dynamic_output_shape not in func.tags
        return answer

    def _note(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)

    def _node(self, value: Any) -> Any:
        if isinstance(value, Tensor) and id(value) not in self._nodes:
            name = f"constant{len(self._alive)}"
            self._constants.register_buffer(name, value)
            self._note(value, self._graph.get_attr(name))
        return self._nodes[id(value)] if isinstance(value, Tensor) else value


class _Largest(TorchDispatchMode):
    """Size of the largest computed tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if isinstance(answer, Tensor) and not func.is_view:
            self.num_bytes = max(self.num_bytes, answer.nbytes)
        return answer


class _Substitutes(TorchFunctionMode):
    """Replace max-pooling by an equal, faster version, and note whether values leave torch, where recording ends."""

    LEAVING = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr})

    def __init__(self) -> None:
        super().__init__()
        self.left_torch, self.used = False, False

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.left_torch |= func in self.LEAVING
        if func in (functional.max_pool2d, torch.max_pool2d):
            func, self.used = _max_pool2d, True
        return func(*args, **(kwargs or {}))


def _max_pool2d(
    input: Tensor,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    dilation: Sides = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Compute ``functional.max_pool2d``; on a CPU, non-overlapping windows as the maximum of slices.

    PyTorch's CPU kernel is scalar: it takes a third of the time of ``DigitCNN``.
    """
    window, step = _pair(kernel_size), _pair(stride or kernel_size)
    tiles = window == step and _pair(padding) == (0, 0) and _pair(dilation) == (1, 1)
    if not tiles or ceil_mode or return_indices or not input.is_cpu or min(input.shape[-2:]) < max(window):
        pool: Any = functional.max_pool2d  # its type hints accept return_indices only as a literal
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    height, width = (side // size * size for side, size in zip(input.shape[-2:], window, strict=True))
    rows = functools.reduce(torch.maximum, [input[..., i : height : window[0], :] for i in range(window[0])])
    return functools.reduce(torch.maximum, [rows[..., i : width : window[1]] for i in range(window[1])])


def _pair(value: Sides) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _joined(answers: Sequence[Any], dim: int) -> Any:
    return answers[0] if len(answers) == 1 else tree_map(lambda *parts: torch.cat(parts, dim), *answers)


def _same_tensors(network: nn.Module) -> nn.Module:
    """Copy the modules, sharing parameters and buffers."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
