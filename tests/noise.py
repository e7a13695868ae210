"""A small factory of noise, and a configuration that is trained on it within seconds."""

import numpy as np
import soundfile
import tiny

RATE = 4000
BROKEN = "section_01_source_test_normal_0002"
LONG = "section_01_target_test_anomaly_0000"  # ten segments, the others have five


def name_recordings():
    """Yield (machine, folder, stem) of two sections of a fan, and a pump beside it."""
    for section in (0, 1):
        for domain, count in (("source", 6), ("target", 2)):
            for i in range(count):
                yield "fan", "train", f"section_{section:02d}_{domain}_train_normal_{i:04d}_A{i}"
            for label in ("normal", "anomaly"):
                for i in range(4):
                    stem = f"section_{section:02d}_{domain}_test_{label}_{i:04d}"
                    yield "fan", f"{domain}_test", stem
    for i in range(6):
        yield "pump", "train", f"section_00_source_train_normal_{i:04d}"


def write_tree(root):
    """Write coloured noise in WAV files below a folder; one of them is broken."""
    rng = np.random.default_rng(0)
    for machine, folder, stem in name_recordings():
        samples = rng.normal(0, 0.05, 6500 if stem == LONG else 4000)
        if machine == "pump":
            samples = np.convolve(samples, np.ones(8) / 4, "same")
        if "anomaly" in stem:
            samples += 0.01 * np.sin(np.arange(len(samples)) * rng.uniform(0.5, 2))
        path = root / machine / folder / f"{stem}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE, subtype="PCM_16")
    (root / "fan" / "source_test" / f"{BROKEN}.wav").write_bytes(b"RIFF")
    return root


def make_config(data_dir, **fields):
    """Return the configuration of a run on the fan of that tree, with other fields as given."""
    config = tiny.make_config()
    config.data_dir = str(data_dir)
    config.machines = ("fan",)
    config.validation_sections, config.evaluation_sections = (0,), (1,)
    config.data.skip_bad = True
    config.autoencoder.update({"epochs": 2, "depth": 1, "hidden": 8, "validate_every": 2})
    config.serial_oe.update({"epochs": 2, "validate_every": 1})
    config.serial_oe.backbone.stages = ((1, 8, 1, 1, 3),)
    config.inlier.clusters = (1, 2)
    config.update_from_flattened_dict(fields)
    return config
