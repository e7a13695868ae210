"""Networks and front ends in PyTorch, step by step those of `dns_jax`, to be timed beside them.

SerialOE's backbone is geffnet's EfficientNet (timm's layers and names, SAME padding), its head and
the autoencoder are PyTorch's own layers. Needs `pip install -e .[bench]` and
`pip install --no-deps geffnet==1.0.2`.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import jax
import librosa
import numpy as np
import torch
from flax import nnx, traverse_util
from geffnet.efficientnet_builder import decode_arch_def, round_channels
from geffnet.gen_efficientnet import GenEfficientNet
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from dns_jax.features import POWER_FLOOR, FrontEnd
from dns_jax.models.weights import to_timm

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_FUSE = {
    (torch.nn.Conv2d, torch.nn.BatchNorm2d): fuse_conv_bn_eval,
    (torch.nn.Linear, torch.nn.BatchNorm1d): fuse_linear_bn_eval,
}


class SerialOE(torch.nn.Module):
    """f_D of a spectrum, with the linear heads g_mac and g_id."""

    def __init__(self, config, products: int):
        super().__init__()
        self.backbone = _make_backbone(config.backbone)
        self.dropout = torch.nn.Dropout(config.dropout)
        self.neck = torch.nn.Linear(self.backbone.conv_head.out_channels, config.feature)
        self.neck_norm = torch.nn.BatchNorm1d(config.feature)
        self.slope = torch.nn.Parameter(torch.tensor(0.25))
        self.embed = torch.nn.Linear(config.feature, config.feature)
        self.machine = torch.nn.Linear(config.feature, 1)
        self.product = torch.nn.Linear(config.feature, products, bias=False)

    def forward(self, spectra: torch.Tensor) -> torch.Tensor:
        """Map ``spectra: f32[batch, 1, mels, frames] -> f32[batch, feature]``."""
        pooled = self.backbone.features(spectra).mean((2, 3))
        hidden = self.neck_norm(self.neck(self.dropout(pooled)))
        return self.embed(torch.nn.functional.prelu(hidden, self.slope))

    def classify_machine(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the logit g_mac: ``f32[batch, feature] -> f32[batch]``."""
        return self.machine(features).squeeze(1)

    def classify_product(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the logits g_id: ``f32[batch, feature] -> f32[batch, C]``."""
        return self.product(features)


class Autoencoder(torch.nn.Module):
    """f_G, with the batch norm of Keras's defaults."""

    def __init__(self, config):
        super().__init__()
        vector = config.adjacent_frames * config.front_end.mels
        half = (config.hidden,) * config.depth
        sizes = (vector, *half, config.bottleneck, *half, vector)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(i, o) for i, o in pairwise(sizes))
        self.norms = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(o, eps=1e-3, momentum=0.01) for o in sizes[1:-1]
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Reconstruct ``vectors: f32[rows, D]``."""
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            vectors = torch.relu(norm(layer(vectors)))
        return self.layers[-1](vectors)


class LogMel(torch.nn.Module):
    """psi of the autoencoder, `dns_jax.features.log_mel`."""

    def __init__(self, front_end: FrontEnd):
        super().__init__()
        self.front_end = front_end
        self.register_buffer("window", torch.hann_window(front_end.window))
        self.register_buffer("bank", _make_bank(front_end, htk=False, norm="slaney"))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """Map ``f32[batch, samples] -> f32[batch, mels, frames]`` in dB."""
        spectrum = _transform(segments, self, "constant")
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.matmul(self.bank, power).clamp_(min=POWER_FLOOR).log10_().mul_(10)


class MelMagnitude(torch.nn.Module):
    """psi of SerialOE, `dns_jax.features.mel_magnitude`."""

    def __init__(self, front_end: FrontEnd):
        super().__init__()
        self.front_end = front_end
        self.register_buffer("window", torch.hann_window(front_end.window))
        bank = _make_bank(front_end, htk=True, norm=None)
        self.register_buffer("bank", bank / torch.linalg.vector_norm(self.window))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """Map ``f32[batch, samples] -> f32[batch, mels, frames]``."""
        return torch.matmul(self.bank, _transform(segments, self, "reflect").abs())


class AutoencoderScore(torch.nn.Module):
    """a_AE of eq. 2 of every segment."""

    def __init__(self, config, front_end: FrontEnd):
        super().__init__()
        self.adjacent = config.adjacent_frames
        self.log_mel = LogMel(front_end)
        self.autoencoder = Autoencoder(config)

    def extract(self, segments: torch.Tensor) -> torch.Tensor:
        """Compute psi: ``f32[batch, samples] -> f32[vectors of all segments, D]``."""
        frames = self.log_mel(segments).transpose(1, 2)
        windows = frames.unfold(1, self.adjacent, 1).transpose(2, 3).flatten(2)
        return windows.flatten(0, 1)

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """Map ``f32[batch, samples] -> f32[batch]``."""
        vectors = self.extract(segments)
        error = (vectors - self.autoencoder(vectors)).square()
        return error.view(len(segments), -1).mean(1)


def draw_weights(make: Callable[[], nnx.Module]) -> nnx.Module:
    """Build a network of ours with random weights, without running its initialisers."""
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def draw(path, array):
        if path[-1].key in ("scale", "var"):
            return jax.numpy.asarray(rng.uniform(0.5, 1.5, array.shape), array.dtype)
        width = 1 / math.sqrt(math.prod(array.shape[:-1]) or 1)
        return jax.numpy.asarray(width * rng.standard_normal(array.shape), array.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))


def make_serial_oe(config, products: int) -> SerialOE:
    """Build the twin of `dns_jax.models.serial_oe.SerialOE`, tensors with the channels last.

    Args:
      config: `config.serial_oe`, whose machine_head is "linear".
      products: C.
    """
    return SerialOE(config, products).to(memory_format=torch.channels_last)


def make_autoencoder(config) -> Autoencoder:
    """Build the twin of `dns_jax.models.autoencoder.Autoencoder`.

    Args:
      config: `config.autoencoder`.
    """
    return Autoencoder(config)


def load_weights(rival: torch.nn.Module, ours: nnx.Module) -> None:
    """Give the twin our weights and running statistics.

    Raises:
      RuntimeError: naming what one of the two lacks, or has in another shape.
    """
    tensors = {}
    for (*modules, leaf), array in traverse_util.flatten_dict(
        nnx.to_pure_dict(nnx.state(ours))
    ).items():
        if modules[:1] != ["backbone"]:
            array = np.asarray(array)
            name = ".".join(map(str, [*modules, _LEAVES.get(leaf, leaf)]))
            tensors[name] = array.T if leaf == "kernel" else array
    if hasattr(ours, "backbone"):
        for name, array in to_timm(ours.backbone).items():
            tensors[f"backbone.{name}"] = array
    counts = {name: x for name, x in rival.state_dict().items() if name.endswith("_tracked")}
    state = {name: torch.tensor(np.array(array)) for name, array in tensors.items()}
    rival.load_state_dict(state | counts)


def fold_norms(rival: torch.nn.Module) -> torch.nn.Module:
    """Fold every batch norm into the layer before it, in place; for inference alone."""
    rival.eval()
    for module in list(rival.modules()):
        if isinstance(module, Autoencoder):
            for i, norm in enumerate(module.norms):
                module.layers[i] = fuse_linear_bn_eval(module.layers[i], norm)
                module.norms[i] = torch.nn.Identity()
        for (first, layer), (second, norm) in pairwise(module.named_children()):
            for (layers, norms), fuse in _FUSE.items():
                if isinstance(layer, layers) and isinstance(norm, norms):
                    setattr(module, first, fuse(layer, norm))
                    setattr(module, second, torch.nn.Identity())
    return rival


def _make_bank(front_end, htk, norm):
    bank = librosa.filters.mel(
        sr=front_end.rate,
        n_fft=front_end.window,
        n_mels=front_end.mels,
        fmin=front_end.low,
        fmax=front_end.high,
        htk=htk,
        norm=norm,
    )
    return torch.from_numpy(bank)


def _transform(segments, module, pad):
    return torch.stft(
        segments,
        module.front_end.window,
        module.front_end.hop,
        window=module.window,
        center=True,
        pad_mode=pad,
        return_complex=True,
    )


def _make_backbone(config):
    stages = [
        [f"{'ir' if e > 1 else 'ds'}_r{repeats}_k{kernel}_s{stride}_e{e}_c{channels}_se0.25"]
        for e, channels, repeats, stride, kernel in config.stages
    ]
    backbone = GenEfficientNet(
        decode_arch_def(stages, config.depth),
        in_chans=1,
        stem_size=config.stem,
        num_features=round_channels(config.head, config.width),
        channel_multiplier=config.width,
        pad_type="same",
        act_layer=torch.nn.SiLU,
        norm_kwargs={"eps": 1e-3},
    )
    backbone.classifier = torch.nn.Identity()
    return backbone
