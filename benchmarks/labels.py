"""The words in which README.md and docs/results.md name the cases and metrics of the results."""

SHORT_MARKETS = {"BTCUSDT_USDM": "BTC USD-M", "BTCUSD_PERP_CM": "BTC COIN-M"}

MASKS = {  # in the order in which tables show them
    "patch": "patches of 16 states x 8 levels",
    "span": "four spans of 16 states",
    "span64": "one span of 64 states",
    "tail": "the last 64 states",
    "level": "whole levels",
    "entry": "single values",
}

PROBES = {
    "direction": "next move of the mid is up",
    "depletion": "best ask is gone before the best bid",
    "move_10": "mid moves within 10 states",
    "move_50": "mid moves within 50 states",
    "widening": "spread widens within 50 states",
    "volatility_50": "volatility of the next 50 states (R2)",
    "volatility_500": "volatility of the next 500 states (R2)",
}

FIRST_COLUMN = {
    "training": "network and settings",
    "training_2": "network and settings",
    "parser": "input",
    "peers": "package",
    "export": "network and file",
    "export_cuda": "network and file",
    "stream": "network and what it takes",
    "stream_cuda": "network and what it takes",
    "latency": "how the encoder runs",
}

CASES = {  # (benchmark and) case -> words
    # training
    "limits": "what the GPU can do",
    "deep_narrow_as_configured": "`deep_narrow`, FP8, 192 windows per step, as the reference",
    "deep_narrow_best": "`deep_narrow`, bf16, 512 windows per step",
    "deep_narrow_fp8_large": "`deep_narrow`, FP8, 512 windows per step",
    "deep_narrow_streaming": "`deep_narrow`, bf16, 192 windows per step, read from files",
    "wide_fp8": "`wide`, FP8, 192 windows per step",
    "wide_bf16": "`wide`, bf16, 192 windows per step",
    "default_recipe": "`cell`, the default, FP8, 64 windows per step",
    "default_recipe_bf16": "`cell`, the default, bf16, 64 windows per step",
    "reference_settings": "`deep_narrow`, FP8, 192 windows per step, inputs of the reference",
    "reference": "the published reference's own trainer, 192 windows per step in 4 passes",
    "two_gpu_scaling": "two GPUs instead of one",
    # parser
    "kernel": "updates in memory",
    "coinapi_gzip": "CoinAPI, gzip, states not written",
    "coinapi_to_disk": "CoinAPI, states of 96 levels written",
    "coinapi_days": "daily CoinAPI files of one pair, side by side",
    "memory": "anonymous memory of the parser",
    "binance_json": "Binance, synthetic messages of 40 levels",
    "cm_btcusd_perp_202408": "Binance BTC/USD perpetual (COIN-M), August 2024",
    "spot_btcusdt_202408": "Binance BTC/USDT spot, August 2024",
    "usdm_btcusdt_202304": "Binance BTC/USDT perpetual (USD-M), April 2023",
    "usdm_btcusdt_202407": "Binance BTC/USDT perpetual (USD-M), July 2024",
    "usdm_btcusdt_202408": "Binance BTC/USDT perpetual (USD-M), August 2024",
    "usdm_ethusdt_202407": "Binance ETH/USDT perpetual (USD-M), July 2024",
    # peers
    "ours": "this repository",
    "order_book": "order-book (C)",
    "hftbacktest_HashMapMarketDepth": "hftbacktest, HashMapMarketDepth (Rust)",
    "hftbacktest_ROIVectorMarketDepth": "hftbacktest, ROIVectorMarketDepth (Rust)",
    "pandas": "pandas, rolling",
    # windows
    "windows kernel": "statistics in memory, 2 cores",
    # latency
    "latency/cuda/eager": "eager layers",
    "latency/cuda/compiled": "torch.compile",
    "latency/cuda/torchscript": "TorchScript",
    "latency/cuda/graphed": "one CUDA graph",
}

FORMATS = {
    "torchscript": "TorchScript",
    "onnx": "ONNX",
    "eager": "eager layers",
    "graphed": "one CUDA graph",
    "stream": "a stream",
}

# (benchmark and) metric -> heading and the factor to its unit; None: not shown
METRICS: dict[str, tuple[str, float] | None] = {
    "windows_per_second": ("windows/s", 1),
    "peers windows_per_second": ("million windows/s", 1e-6),
    "windows windows_per_second": ("million windows/s", 1e-6),
    "updates_per_second": ("million updates/s", 1e-6),
    "updates_with_state_per_second": ("million updates/s, 96 levels read after each", 1e-6),
    "messages_per_second": ("messages/s", 1),
    "pyarrow_rows_per_second": ("million rows/s of pyarrow", 1e-6),
    "copyto_states_per_second": ("million states/s of a plain copy", 1e-6),
    "ratio_to_limit": ("times as fast", 1),
    "gzip_mb_per_second": ("MB/s of gzip", 1),
    "hours_for_60_gb_2_cores": ("hours for 60 GB on 2 cores", 1),
    "hours_for_60_gb_16_cores": ("on 16 cores (computed)", 1),
    "anonymous_mb_1": ("MB for a stream", 1),
    "anonymous_mb_4": ("MB for one 4 times as long", 1),
    "largest_relative_difference": ("largest relative difference from ours", 1),
    "ratio_1024_to_256": ("time of windows of 1,024 states over 256", 1),
    "p50": ("median (ms)", 1),
    "p99": ("99th percentile (ms)", 1),
    "p50_ms": ("median (ms)", 1),
    "p99_ms": ("99th percentile (ms)", 1),
    "best_batch": ("in batches of", 1),
    "bf16_tflops": ("bf16 products (TFLOP/s)", 1),
    "fp8_tflops": ("FP8 products (TFLOP/s)", 1),
    "copy_gb_per_second": ("copies (GB/s)", 1),
    "model_tflops": ("TFLOP/s of the model", 1),
    "data_wait_share": ("waiting for data (%)", 100),
    "peak_memory_gb": ("GPU memory (GB)", 1),
    "share_of_bf16_matrix_rate": ("of the bf16 product rate (%)", 100),
    "train_loss": None,
    "deep_narrow_best": ("`deep_narrow`, bf16, 512 windows per step", 1),
    "wide_fp8": ("`wide`, FP8", 1),
}

WITH_NOTES = ("ratio_to_limit",)  # what such a ratio is taken to differs by case: its note is shown

# The README's rows of speed: what, how fast, and what to compare that with.
# A number is put in place of {benchmark|case|metric}.
SPEED = (
    (
        "training the default network (width 384), one H200, bf16",
        "{training|default_recipe_bf16|windows_per_second} windows/s",
        "FP8: {training|default_recipe|windows_per_second}",
    ),
    (
        "training with the settings of CryptoOBPretraining [1] (width 192), H200, FP8",
        "{training|reference_settings|windows_per_second} windows/s",
        "its own trainer, 4 passes a step: {training|reference|windows_per_second}",
    ),
    (
        "training `wide_transformer` (width 2048), one H200, FP8",
        "{training|wide_fp8|model_tflops} TFLOP/s",
        "bf16: {training|wide_bf16|model_tflops} TFLOP/s",
    ),
    (
        "`wide_transformer` on two H200",
        "{training_2|two_gpu_scaling|wide_fp8} times one",
        "",
    ),
    (
        "a window's vector, default network, bf16, one H200",
        "{stream_cuda|cell_transformer/graphed_bf16_cuda|p50_ms} ms (99 %: "
        "{stream_cuda|cell_transformer/graphed_bf16_cuda|p99_ms})",
        "40 layers of 192: {stream_cuda|deep_narrow_transformer/graphed_bf16_cuda|p50_ms} ms",
    ),
    (
        "a new state's vector, the same network as a stream",
        "{stream_cuda|cell_transformer/stream_bf16_cuda|p50_ms} ms (99 %: "
        "{stream_cuda|cell_transformer/stream_bf16_cuda|p99_ms})",
        "40 layers of 192: {stream_cuda|deep_narrow_transformer/stream_bf16_cuda|p50_ms} ms",
    ),
    (
        "a new state's vector, the size that ships (width 64), one CPU thread",
        "{stream|small_cell_transformer/stream_fp32_cpu|p50_ms} ms",
        "its whole window: {stream|small_cell_transformer/eager_fp32_cpu|p50_ms} ms",
    ),
    (
        "order book, best prices read after each update, one core",
        "{peers|ours|updates_per_second} million updates/s",
        "hftbacktest: {peers|hftbacktest_ROIVectorMarketDepth|updates_per_second}",
    ),
    (
        "order book, 96 levels read after each update, one core",
        "{peers|ours|updates_with_state_per_second} million updates/s",
        "hftbacktest: {peers|hftbacktest_ROIVectorMarketDepth|updates_with_state_per_second}",
    ),
    (
        "11 statistics of every window, 2 cores",
        "{peers|ours|windows_per_second} million windows/s",
        "pandas, 5 statistics: {peers|pandas|windows_per_second} million",
    ),
)
