"""The settings of the published reference, as keys of fp8_ddp_trainer.py."""

REFERENCE = {
    "model_size": "deep_narrow_transformer",
    "normalization": "minmax",
    "fill": "none",
    "mask_mode": "entry",
    "mirror": False,
    "slow": 0.0,
    "size_noise": 0.0,
    "outlook": 0.0,
    "dropout": 0.0,
    "weight_decay": 0.01,
    "batch_size": 48,
    "accumulation_steps": 4,
    "max_lr": 2.5e-4,
    "epochs": 10,
}
