"""Time both networks at inference beside PyTorch and ONNX Runtime.

    python benchmarks/scoring.py --out=docs/scoring_speed

SerialOE maps spectra to f_D (the front end is measured by benchmarks/frontend.py): EfficientNet-B0
on 224 mels x 251 frames, and the network of configs/small.py on 64 x 126, in batches of 8 and 32.
The autoencoder scores 32 segments, a batch of a run, and 64 from their waveforms. float32, the same
random weights. PyTorch runs in inference mode, channels last, with its batch norms folded into the
layers before them; "compiled" is `torch.compile` with frozen weights. ONNX Runtime gets the network
as it is, and folds by itself. All results are compared with ours before they are timed.
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pandas as pd
import torch
import torch._inductor.config
from flax import nnx
from rivals import AutoencoderScore, draw_weights, fold_norms, load_weights, make_serial_oe
from side_by_side import OURS, THREADS, check_equal, report, time_in_turn

from configs import default, small
from dns_jax.memory import keep_freed_memory
from dns_jax.models.autoencoder import Autoencoder, score_segments
from dns_jax.models.serial_oe import SerialOE

PRODUCTS = 6
NETWORKS = {"B0": default, "small": small}
BATCHES = {"B0": (8, 32), "small": (8, 32), "autoencoder": (32, 64)}


def lower_ours(network: nnx.Module, function: Callable, inputs: np.ndarray) -> tuple:
    """Compile ``function(network, inputs)``; return it, and the weights and inputs it takes."""
    graph, state = nnx.split(network)
    array = jnp.asarray(inputs)
    compiled = jax.jit(lambda state, x: function(nnx.merge(graph, state), x)).lower(state, array)
    return compiled.compile(), state, array


def compile_ours(network: nnx.Module, function: Callable, inputs: np.ndarray) -> Callable:
    """Return the call of our network; its weights are arguments as they are in a run."""
    compiled, state, array = lower_ours(network, function, inputs)
    return lambda: compiled(state, array).block_until_ready()


def embed(serial_oe: SerialOE, spectra: jax.Array) -> jax.Array:
    """Compute f_D as `SerialOE` does behind its front end."""
    pooled = jnp.mean(serial_oe.backbone(spectra, train=False), (1, 2))
    hidden = serial_oe.neck_norm(serial_oe.neck(pooled), train=False)
    return serial_oe.embed(jnp.where(hidden > 0, hidden, serial_oe.slope[...] * hidden))


def prepare_ours(network: str, batch: int) -> tuple[SerialOE, Callable, np.ndarray]:
    """Return SerialOE with random weights, what computes f_D with it, and spectra."""
    config = NETWORKS[network].get_config().serial_oe
    ours = draw_weights(lambda: SerialOE(config, PRODUCTS, rngs=nnx.Rngs(0)))
    frames = ours.front_end.count_frames(64000)
    shape = batch, ours.front_end.mels, frames
    return ours, embed, np.random.default_rng(0).gamma(2.0, size=shape).astype(np.float32)


def run_onnx(rival: torch.nn.Module, inputs: np.ndarray) -> Callable:
    """Return the call of ONNX Runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(rival, (torch.from_numpy(inputs),), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: inputs}
    return lambda: session.run(None, feed)[0]


def prepare(network: str, batch: int) -> dict[str, Callable]:
    """Return the call of every method, with the same weights and inputs."""
    rng = np.random.default_rng(0)
    if network == "autoencoder":
        config = default.get_config().autoencoder
        ours = draw_weights(lambda: Autoencoder(config, rngs=nnx.Rngs(0)))
        rival = AutoencoderScore(config, ours.front_end).eval()
        load_weights(rival.autoencoder, ours)
        inputs = rng.standard_normal((batch, 64000)).astype(np.float32)
        methods = {OURS: compile_ours(ours, score_segments, inputs)}
        tensor = torch.from_numpy(inputs)
    else:
        ours, _, spectra = prepare_ours(network, batch)
        rival = make_serial_oe(NETWORKS[network].get_config().serial_oe, PRODUCTS).eval()
        load_weights(rival, ours)
        methods = {OURS: compile_ours(ours, embed, spectra)}
        methods["ONNX Runtime"] = run_onnx(rival, spectra[:, None])
        tensor = torch.from_numpy(spectra[:, None]).contiguous(memory_format=torch.channels_last)
    fold_norms(rival)
    compiled = torch.compile(rival, dynamic=False)
    methods["torch"] = lambda: rival(tensor)
    methods["torch, compiled"] = lambda: compiled(tensor)
    return methods


def measure(network: str, batch: int, turns: int) -> dict[str, float]:
    """Return the median seconds of every method."""
    methods = prepare(network, batch)
    with torch.inference_mode():
        expected = methods[OURS]()
        for name, method in methods.items():
            check_equal(f"{network}, {batch}: {name}", method(), expected)
        return time_in_turn(methods, turns)


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--batches", nargs="+", type=int, help="instead of each network's own")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="table and figure, no ending")
    args = parser.parse_args()
    keep_freed_memory()  # as a run does, and for all of them
    torch.set_num_threads(THREADS)
    torch._inductor.config.freezing = True
    logging.getLogger("torch").setLevel(logging.ERROR)
    records = [
        {"network": network, "segments": batch, **measure(network, batch, args.turns)}
        for network in args.networks
        for batch in args.batches or BATCHES[network]
    ]
    packages = ("jax", "torch", "onnxruntime")
    table = pd.DataFrame(records)
    report(table, ["network", "segments"], packages, args.out)


if __name__ == "__main__":
    main()
