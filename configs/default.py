"""Every field of a run with the paper's values; the other configurations change a few of them.

Where the paper is silent the comment names the source that is followed: [P] the paper, [S] the code
of SerialOE and its recipes, [B] the official DCASE 2021 baseline.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of the paper for all machines in `data_dir`."""
    config = ml_collections.ConfigDict()
    config.data_dir = ""  # holds <machine>/{train,source_test,target_test}
    config.machines = ()  # the targets; empty: every machine that has test recordings
    config.validation_sections = (0, 1, 2)  # choose K, clusters and Data [P]
    config.evaluation_sections = (3, 4, 5)  # are reported [P]
    config.seeds = (0,)
    config.progress = True  # bars on the terminal; no part of a run's identity
    config.checkpoint_seconds = 60.0  # likewise
    config.devices = 0  # how many share the work, of all hosts together; 0: all; likewise
    config.precision = "float32"  # of activations: "bfloat16" for accelerators, half the memory
    config.parallel = "mesh"  # how they share the training: "mesh" (jit) or "pmap"; likewise

    config.data = data = ml_collections.ConfigDict()
    data.year = 2021  # of DCASE Task 2 [P]: names, folders and official score, data/years.py
    data.rate = 16000  # Hz [P]
    data.segment_seconds = 4.0  # training crop and test window [P]
    data.hop_seconds = 1.0  # between test windows: seven in 10 s, 75 % overlap [P]
    data.standardise = "recording"  # mean 0, variance 1 of each [P]; or "machine" [S], "none" [B]
    data.train_share = 0.85  # of a section's source recordings, and all but one of target [P]
    data.resample = False  # accept recordings of another rate
    data.channel = -1  # accept recordings of several channels and take this one
    data.skip_bad = False  # leave refused recordings out; in the results they stay, unscored
    data.labels = ""  # evaluator's ground-truth folder or eval_data_list.csv; empty: in data_dir
    data.normal = ""  # instead of data_dir: recordings of any names to learn from,
    data.score = ""  # and those to score; one machine, one section
    data.others = ""  # more pseudo-anomalous sounds: a folder, "factory"; "none": AE alone
    data.cache_dir = ""  # decoded waveforms; empty: in the workdir
    data.device_gigabytes = 4.0  # of training recordings on every device; more are read from the
    # cache while training, 0: always; no part of a run's identity
    data.synthetic = False  # write the embedded factory into the workdir and use it

    config.autoencoder = ae = ml_collections.ConfigDict()
    ae.front_end = ml_collections.ConfigDict(  # [P]; Slaney mel, dB [B]
        {
            "rate": data.get_ref("rate"),
            "window_ms": 64.0,
            "hop_ms": 32.0,
            "mels": 128,
            "low_hz": 50.0,
            "high_hz": 7800.0,
        }
    )
    ae.precision = config.get_ref("precision")
    ae.adjacent_frames = 5  # [P]
    ae.hidden = 128  # [B]
    ae.depth = 4  # hidden layers on either side of the bottleneck [B]
    ae.bottleneck = 8  # [B]
    ae.cached_mel = False  # crops on the hop grid out of the log-mel of whole recordings, computed
    # once: another method, since a window need not start on a hop
    ae.learning_rate = 1e-3  # Adam, fixed [P]
    ae.batch = 16  # segments [P]
    ae.epochs = 1500  # one crop of every training recording each [P]
    ae.validate_every = 5  # epochs; the lowest validation loss is kept [S]

    config.serial_oe = oe = ml_collections.ConfigDict()
    oe.front_end = ml_collections.ConfigDict(  # [P]; magnitude, no logarithm, HTK mel [S]
        {
            "rate": data.get_ref("rate"),
            "window_ms": 128.0,
            "hop_ms": 16.0,
            "mels": 224,
            "low_hz": 50.0,
            "high_hz": 7800.0,
        }
    )
    oe.backbone = ml_collections.ConfigDict(  # EfficientNet-B0 [P]
        {
            "stem": 32,
            # expand, channels, repeats, stride, kernel
            "stages": (
                (1, 16, 1, 1, 3),
                (6, 24, 2, 2, 3),
                (6, 40, 2, 2, 5),
                (6, 80, 3, 2, 3),
                (6, 112, 3, 1, 5),
                (6, 192, 4, 2, 5),
                (6, 320, 1, 1, 3),
            ),
            "head": 1280,
            "width": 1.0,
            "depth": 1.0,
        }
    )
    oe.precision = config.get_ref("precision")
    oe.feature = 128  # [P]
    oe.dropout = 0.3  # [S]
    oe.machine_head = "linear"  # g_mac [P]; "squared_norm" as in [S]
    oe.product_weight = 5.0  # lambda_id [P]
    oe.mixup_alpha = 0.2  # [S]
    oe.mixup_schedule = "always"  # [P] is silent; "ramp_up", "ramp_down": two recipes of [S]
    oe.init_from = ""  # backbone from timm's tf_efficientnet_b0.ns_jft_in1k.safetensors [S]; random
    oe.learning_rate = 1e-3  # peak of OneCycle [P]
    oe.weight_decay = 0.0  # of AdamW [S]
    oe.batch = 128  # half of the target machine, half pseudo-anomalous [P]
    oe.target_per_batch = -1  # target-domain recordings: -1: as any other; 0 or 1 a batch [S]
    oe.epochs = 150  # every training recording of the target once each [P]
    oe.validate_every = 5  # epochs [S]

    config.inlier = inlier = ml_collections.ConfigDict()  # h, a GMM for each section
    inlier.clusters = (1, 2, 4, 8, 16, 32)  # [P] Table I, [S]
    inlier.default_clusters = 2  # for a machine without validation sections
    inlier.fit_split = "all"  # normal training recordings [P]: "train", "validation" [S] or "all"

    config.smoothing = smoothing = ml_collections.ConfigDict()  # the pool Y of eq. 7
    smoothing.unit = "segment"  # or "clip"; fits Table I's K
    smoothing.scope = "section"  # or "machine"; fits Table I's K
    smoothing.default_k = 32  # without validation sections; at most a fifth of the smallest pool
    # Beyond the paper, without labels (docs/beyond.md): each that is changed has its row in Table
    # II by itself, and all of them one together.
    smoothing.generative = "ae"  # what is smoothed; or "gmm" of mean spectra, "serial_oe", or the
    # sum of some of their z-scores, as "ae+serial_oe" and "ae+gmm+serial_oe"
    smoothing.score_transform = "none"  # "log" of a_G; "calibrated": less what is usual nearby, too
    smoothing.domain_normalisation = "none"  # within section and domain: "z" or "ranks"
    smoothing.pool = "test"  # "test+train": training recordings are neighbours, too
    smoothing.space = "f_d"  # of the neighbours; joined with the mean residual: "f_d+residual"
    smoothing.method = "mean"  # eq. 7; "diffusion" over the graph of nearest neighbours

    config.threshold_percentile = 90.0  # of the training recordings' scores, for decisions [B]

    config.report = ml_collections.ConfigDict()  # no part of a run's identity
    config.report.write = True  # report.html, figures/, ranking.csv, curves.csv
    config.report.megabytes = 24.0  # of sounds held in it; the others are linked

    config.scoring_batch = 32  # segments that each device scores at a time
    return config
