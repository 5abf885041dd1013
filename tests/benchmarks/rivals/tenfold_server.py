"""Our endpoint with one model: the network, or with ``--constant`` a predictor that computes nothing."""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from serve.deployment.endpoint import deploy
from serve.settings import ServedModel, ServeSettings
from tenfold.bundle import PROBE_FILE, Bundle, save_bundle
from tenfold.engine import cluster
from tenfold.probes import write_probes
from tenfold.tasks import Signature, multi_label
from tenfold.types import Preprocessing
from tests.benchmarks.rivals.network import (
    MAX_BATCH_SIZE,
    NUM_CLASSES,
    SIZE,
    build_network,
    random_images,
)
from tests.benchmarks.rivals.processes import wait_for_stop

_CONSTANT_BATCH_SIZE = 128  # holds the largest body, so that none is cut into pieces


class ConvPredictor:
    """The network as a predictor."""

    def __init__(self, signature: Signature, network: nn.Module) -> None:
        self.signature = signature
        self._network = network

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        logits = self._network(images.permute(0, 3, 1, 2).float().div(255))
        return {"probs": logits.sigmoid(), "logits": logits}


class ConstantPredictor:
    """Predictor that computes nothing, which leaves the cost of serving."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        zeros = torch.zeros(len(images), NUM_CLASSES)
        return {"probs": zeros, "logits": zeros}


def load_conv(bundle: Bundle, device: str = "cpu") -> ConvPredictor:
    network = build_network()
    network.load_state_dict(bundle.tensors())
    return ConvPredictor(bundle.metadata.signature, network)


def load_constant(bundle: Bundle, device: str = "cpu") -> ConstantPredictor:
    return ConstantPredictor(bundle.metadata.signature)


def make_bundle(folder: Path, size: int, constant: bool) -> Path:
    network = build_network()
    signature = multi_label([str(k) for k in range(NUM_CLASSES)], Preprocessing(image_size=size))
    predictor = ConstantPredictor(signature) if constant else ConvPredictor(signature, network)
    return save_bundle(
        folder,
        config={},
        tensors=network.state_dict(),
        method="bench",
        signature=signature,
        metrics={},
        data_name="none",
        data_fingerprint="0" * 64,
        files={PROBE_FILE: write_probes(predictor, torch.from_numpy(random_images(4, size)))},
    ).folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--placement", choices=("inline", "own"), help="of the model; default: the endpoint's own choice"
    )
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of the images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bundle = make_bundle(Path(folder) / "conv", options.size, options.constant)
        model = ServedModel(
            name="conv",
            version="1",
            folder=str(bundle),
            loader=f"tests.benchmarks.rivals.tenfold_server:load_{'constant' if options.constant else 'conv'}",
            max_batch_size=_CONSTANT_BATCH_SIZE if options.constant else MAX_BATCH_SIZE,
            **({"placement": options.placement} if options.placement else {}),
        )
        with deploy([model], ServeSettings(port=options.port, access_log=False, drain_timeout_s=5)):
            wait_for_stop()
        cluster.stop()


if __name__ == "__main__":
    main()
