"""Concept realignment: curves in one pass, without a loop, flips in closed form, curves of concept embeddings.

    python -m tests.benchmarks.bench_concepts [--repeats 15] [--threads 1] [--only rollout flips curves state]

Each part times two or more ways to the same numbers in one run, compares the numbers, and prints ratios:

- ``rollout``: 512 images, 112 concepts in 28 groups, realigner 2 x 224, evaluation mode. The reference rolls out, then
  passes the recorded inputs through the realigner again; here the outputs of the rollout are the curve. ``same
  network`` is the reference's way with our realigner, which works in blocks. With a policy that does not read realigned
  concepts there is no loop over steps.
- ``flips``: divergences of 112 flipped concepts, 200 classes, embeddings of 16 values: two calls of the head for each
  concept against the closed form; time and peak memory.
- ``curves``: class logits after every correction of concept embeddings against those of a plain bottleneck: memory.
- ``state``: a correction of one image of 224 pixels, ResNet-34, by the state of the answer before against by the
  image: the whole predictor, decoding and protocol left out.

Memory is that of tensors, by the profiler's record of allocations.
"""

import argparse
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tenfold.data.concepts import concept_group_matrix
from tenfold.methods.concept_realignment.divergence import concept_flip_divergence
from tenfold.methods.concept_realignment.embeddings import embedding_curve_logits, mix_concept_embeddings
from tenfold.methods.concept_realignment.network import build_model
from tenfold.methods.concept_realignment.predictor import ConceptPredictor
from tenfold.methods.concept_realignment.realigner import ConceptRealigner
from tenfold.methods.concept_realignment.rollout import intervention_rollout
from tenfold.methods.concept_realignment.settings import Config
from tenfold.models.image_classifier import ModelConfig

CONCEPTS, GROUPS, CLASSES, SIZE = 112, 28, 200, 16
MEBIBYTE = 1 << 20


def milliseconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median time of each way; the ways alternate, so that a busy spell of the machine meets all."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for way in ways.values():
            way()
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * sorted(each)[repeats // 2] for name, each in times.items()}


def bench_rollout(repeats: int) -> None:
    torch.manual_seed(0)
    groups = concept_group_matrix(
        {str(number): range(4 * number, 4 * number + 4) for number in range(GROUPS)}, CONCEPTS
    )
    c_hat = torch.rand(512, CONCEPTS)
    c_true = torch.rand(512, CONCEPTS).round()
    realigner = ConceptRealigner(CONCEPTS).eval()

    def reference() -> Tensor:
        inputs, masks = reference_rollout(realigner, c_hat, c_true, groups)
        flat = (each.reshape(-1, CONCEPTS) for each in (inputs, masks, c_hat[:, None].expand_as(inputs)))
        return reference_step(realigner, *flat).view(inputs.shape)

    def same_network() -> Tensor:
        inputs, masks = reference_rollout(realigner, c_hat, c_true, groups, realigner)
        return realigner(inputs, masks, c_hat)[0]

    def one_pass() -> Tensor:
        return intervention_rollout(realigner, c_hat, c_true, "ucp", groups).outputs

    with torch.inference_mode():
        torch.testing.assert_close(one_pass(), reference(), rtol=0, atol=1e-5)
    took = milliseconds({"reference": reference, "same network": same_network, "one pass": one_pass}, repeats)
    print(f"rollout of 512 x {CONCEPTS} concepts x {GROUPS} groups: " + format_times(took))
    print(f"  one pass {took['reference'] / took['one pass']:.2f}x as fast as the reference's way")
    print(f"  {took['same network'] / took['one pass']:.2f}x if the reference has our network")
    compare_loop(realigner, c_hat, c_true, groups, repeats)
    compare_loop(ConceptRealigner(26).eval(), c_hat[:32, :26], c_true[:32, :26], None, repeats)


def compare_loop(
    realigner: ConceptRealigner, c_hat: Tensor, c_true: Tensor, groups: Tensor | None, repeats: int
) -> None:
    """Compare rollouts under a policy that does not read realigned concepts."""

    def looped() -> Tensor:
        step = lambda *arguments: realigner(*arguments)  # noqa: E731 - hides that it may be called once
        return intervention_rollout(step, c_hat, c_true, "ucp", groups, coupled=False).outputs

    def at_once() -> Tensor:
        return intervention_rollout(realigner, c_hat, c_true, "ucp", groups, coupled=False).outputs

    with torch.inference_mode():
        torch.testing.assert_close(at_once(), looped(), rtol=0, atol=1e-5)
    took = milliseconds({"loop": looped, "no loop": at_once}, repeats)
    steps = c_hat.shape[1] if groups is None else len(groups)
    print(f"  {len(c_hat)} images, {steps} steps: {format_times(took)}: {took['loop'] / took['no loop']:.2f}x")


def reference_rollout(
    realigner: ConceptRealigner,
    c_hat: Tensor,
    c_true: Tensor,
    groups: Tensor,
    step: Callable[..., tuple[Tensor, object]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Roll out as the released code does, keeping inputs and masks only; ``step`` replaces its network's pass."""
    step = step or (lambda *arguments: (reference_step(realigner, *arguments), None))
    current, mask = c_hat, torch.zeros_like(c_hat)
    inputs, masks = [c_hat.clone()], [mask.clone()]
    step(current, mask, c_hat)
    for _ in range(len(groups)):
        scores = 1 / ((current - 0.5).abs() + 1e-8)
        scores[mask == 1] = -1e10
        group_scores = scores @ (groups.T / groups.sum(1))
        selected = torch.zeros_like(group_scores)
        selected[range(len(selected)), group_scores.argmax(1)] = 1
        chosen = selected @ groups
        current = chosen * c_true + (1 - chosen) * current
        mask = mask + chosen
        inputs.append(current.clone())
        masks.append(mask.clone())
        current, _ = step(current, mask, c_hat)
    return torch.stack(inputs, 1), torch.stack(masks, 1)


def reference_step(realigner: ConceptRealigner, value: Tensor, mask: Tensor, c_hat: Tensor) -> Tensor:
    """Pass through the network layer by layer, all rows at once, as the released code does."""
    features = value * mask + c_hat * (1 - mask)
    for layer in realigner.hidden.children():
        features = torch.relu(features) if isinstance(layer, nn.ReLU) else layer(features)
    return value * mask + realigner.output(features).sigmoid() * (1 - mask)


def flip_case(batch: int = 128) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(CONCEPTS * SIZE, CLASSES)
    pos, neg = torch.randn(2, batch, CONCEPTS, SIZE)
    return head, torch.rand(batch, CONCEPTS), pos, neg


def called(head: nn.Linear, c_hat: Tensor, pos: Tensor, neg: Tensor) -> tuple[Tensor, Tensor]:
    """Mix and read the head twice for each concept."""
    base = head(mix_concept_embeddings(c_hat, pos, neg).flatten(1)).log_softmax(-1)
    found: list[list[Tensor]] = [[], []]
    for concept in range(c_hat.shape[1]):
        for value, parts in zip((1.0, 0.0), found, strict=True):
            flipped = c_hat.clone()
            flipped[:, concept] = value
            log_probs = head(mix_concept_embeddings(flipped, pos, neg).flatten(1)).log_softmax(-1)
            parts.append((log_probs.exp() * (log_probs - base)).sum(-1))
    return torch.stack(found[0], 1), torch.stack(found[1], 1)


def bench_flips(repeats: int) -> None:
    case = flip_case()
    with torch.inference_mode():
        for one, other in zip(concept_flip_divergence(*case), called(*case), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    took = milliseconds(
        {"2K calls": lambda: called(*case), "closed form": lambda: concept_flip_divergence(*case)}, max(3, repeats // 3)
    )
    whole = 4 * 512 * CONCEPTS * CLASSES / MEBIBYTE
    large = flip_case(512)
    memory = peak_memory(lambda: concept_flip_divergence(*large))
    print(f"flips of 128 x {CONCEPTS} concepts, {CLASSES} classes: " + format_times(took))
    print(f"  closed form {took['2K calls'] / took['closed form']:.1f}x as fast as 2K calls")
    print(f"  closed form {memory:.1f} MiB above its arguments for 512 images; [B, K, C] is {whole:.1f} MiB")


def curve_case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    pos, neg = torch.randn(2, 512, CONCEPTS, SIZE)
    return torch.rand(512, GROUPS + 1, CONCEPTS), pos, neg


def bench_curves(repeats: int) -> None:
    head, plain = nn.Linear(CONCEPTS * SIZE, CLASSES), nn.Linear(CONCEPTS, CLASSES)
    outputs, pos, neg = curve_case()
    mixed = lambda: head(mix_concept_embeddings(outputs, pos, neg).flatten(2))  # noqa: E731
    ours = lambda: embedding_curve_logits(outputs, pos, neg, head)  # noqa: E731
    with torch.inference_mode():
        torch.testing.assert_close(ours(), mixed(), rtol=1e-3, atol=1e-4)
    ways: dict[str, Callable[[], object]] = {"mixtures": mixed, "differences": ours, "CBM": lambda: plain(outputs)}
    took = milliseconds(ways, max(3, repeats // 3))
    memory = {name: peak_memory(way) for name, way in ways.items()}
    print(f"logits of 512 curves of {GROUPS + 1} points: " + format_times(took))
    print("  peak memory: " + ", ".join(f"{name} {used:.0f} MiB" for name, used in memory.items()))
    print(f"  differences {memory['differences'] / memory['CBM']:.2f}x the memory of the CBM's")


def bench_state(repeats: int) -> None:
    config = Config(image_size=224)
    model = ModelConfig(name="torchvision:resnet34")
    names = tuple(f"concept {number}" for number in range(CONCEPTS))
    groups = {str(number): tuple(range(4 * number, 4 * number + 4)) for number in range(GROUPS)}
    predictor = ConceptPredictor(
        build_model(config, model, CONCEPTS, CLASSES),
        config,
        tuple(f"class {number}" for number in range(CLASSES)),
        names,
        groups=groups,
        exclusive={},
        costs={},
        realigner=ConceptRealigner(CONCEPTS),
        realigner_name="network",
    )
    image = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    values, mask = torch.ones(1, CONCEPTS), torch.zeros(1, CONCEPTS, dtype=torch.uint8)
    mask[0, :4] = 1
    state = predictor(image, with_state=True)["state"]

    def by_image() -> dict[str, Tensor]:
        return predictor(image, concept_values=values, concept_mask=mask)

    def by_state() -> dict[str, Tensor]:
        return predictor(state=state, concept_values=values, concept_mask=mask)

    for name, value in by_image().items():
        assert torch.equal(value, by_state()[name]), name
    took = milliseconds({"image": by_image, "state": by_state}, repeats)
    print("a correction, ResNet-34 at 224 pixels: " + format_times(took))
    print(f"  by state {100 * took['state'] / took['image']:.1f} % of the time by image")


def peak_memory(work: Callable[[], object]) -> float:
    """Return the MiB of tensors that a computation holds at its peak, its results included, its arguments not."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    del result
    return max(accumulate(change for _, change in changes)) / MEBIBYTE


def format_times(took: dict[str, float]) -> str:
    return ", ".join(f"{name} {each:.1f} ms" for name, each in took.items())


PARTS: dict[str, Callable[[int], None]] = {
    "rollout": bench_rollout,
    "flips": bench_flips,
    "curves": bench_curves,
    "state": bench_state,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, float32, medians of {options.repeats} rounds")
    for name in options.only:
        PARTS[name](options.repeats)


if __name__ == "__main__":
    main()
