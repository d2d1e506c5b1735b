"""The public files that the recordings of benchmarks/markets.py are made of, and how.

A recording is the public file itself, or is converted from one or more of them. Files are pinned by
version and SHA-256. So are the rows that a conversion makes: they are byte for byte those that the
results were made with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import conversions

GITHUB, PYPI = "https://raw.githubusercontent.com", "https://files.pythonhosted.org"


@dataclass(frozen=True)
class Original:
    """A public file: its server, its path there, the SHA-256 of its content and its size.

    path: with the commit, or with a hash of the content, so that the content never changes.
    """

    host: str
    path: str
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Recording:
    """What a file of a market is made of.

    sha256: of the unpacked text, if it is converted, else of the file; convert: makes rows of the
    originals' files, in this order; None: the file is the original.
    """

    originals: tuple[Original, ...]
    sha256: str
    convert: Callable[[Sequence[Path]], pd.DataFrame] | None = None


def copied(path: str, sha256: str, size: int) -> Recording:
    original = Original(GITHUB, path, sha256, size)
    return Recording((original,), sha256)


# Later commits dropped the older files, or keep them in Git LFS.
HFTBACKTEST_2023 = "nkaz001/hftbacktest/b73eae70c674050dca294e1a1f53e4e2d0221ff0/examples"
HFTBACKTEST_202407 = "nkaz001/hftbacktest/73bfa1728c130d24b491c4680055769f6fa3742b/examples"
HFTBACKTEST_202408 = "nkaz001/hftbacktest/5f3ec40b2afb764e0fea112f941ed85523ef4e88/examples"
GDAX_0415 = "timothyyu/gdax-orderbook-ml/68d9b26a1be0d883911998047debc061bb1570ad/test_data"
GDAX_0416 = "timothyyu/gdax-orderbook-ml/567150cb18906344fb45cbdab276d441ec6eb96b/test_data"
GDAX_0424 = "timothyyu/gdax-orderbook-ml/2058ffc7a8e3af8b842eaa23a114ebb34ee8098d/raw_data"
DOLPHINDB = "dolphindb/Tutorials_CN/35282f623b8f93e596fb36fa4261ef2a76564325"

OBADIAH = Original(
    GITHUB,
    "petr-fedorov/obadiah/10dae2a46b0a5260e0a35b830ea6b04ab4228568/inst/extdata/testdata.rda",
    "dbab20a5ce5fafb668d8d45c65f2a2722b2da4e3f7268336928e8871e2f21f31",
    3_114_315,
)
AXORDERBOOK = Original(
    GITHUB,
    "fpga2u/AXOrderBook/0d1e93f2a9c084500df552223cc72668b170a20e/"
    "data/20230207/AX_sbe_sse_600519.zip",
    "b6aa008aee9d141b0c2efb0d1cf2bf5a9b858b896ffa51624ec30a2ccb30d098",
    1_642_316,
)
ORDERBOOKMDP = Original(
    PYPI,
    "packages/41/6d/2b7bcbbb3d3dcfeceda26d0a3c7a1b19bbdd364d4eecc6913bc72bfdd2ba/"
    "orderbookmdp-0.1.2.tar.gz",
    "b873b5b648e6fd86def81f919f694d891156e17eae3685a10ab6ba818a2b9ef5",
    4_913_966,
)
DOLPHINDB_DAY = Original(
    GITHUB,
    f"{DOLPHINDB}/data/dolphinscheduler_integration/20230201.zip",
    "709722b02c8463577a74fec3ce091bf21c30f51d5ab65f5ec97c5276cc119413",
    1_983_980,
)
DOLPHINDB_ENGINE = (
    Original(
        GITHUB,
        f"{DOLPHINDB}/script/orderBookSnapshotEngine/SHorders.zip",
        "e9e2c211d880b35cb1daf4cbcbf58bf98438c049f502bb3d4fc52079079b4e86",
        2_830_753,
    ),
    Original(
        GITHUB,
        f"{DOLPHINDB}/script/orderBookSnapshotEngine/SHtrans.zip",
        "414d838d6a6525446706b9a593e98dbfee28db6241824185b53390c636cb62e3",
        1_922_516,
    ),
)
GDAX = {
    "20180415": (
        Original(
            GITHUB,
            f"{GDAX_0415}/snapshot_bids.csv",
            "45056774064a1bc9e9e9c8de9d5406d20f76893b886e0497e3fecb52afb0a666",
            216_024,
        ),
        Original(
            GITHUB,
            f"{GDAX_0415}/snapshot_asks.csv",
            "28bdf5b0311f6d9ff016f8206455ca6819e05d5b94e0c61fbe589dfdd3e24d37",
            333_398,
        ),
        Original(
            GITHUB,
            f"{GDAX_0415}/l2update.csv",
            "c0521f8d26ff5b87ae266d6bcbff956bae47fbcabd29996df935e71ce354f010",
            315_705,
        ),
    ),
    "20180416": (
        Original(
            GITHUB,
            f"{GDAX_0416}/snapshot_bids.csv",
            "fe1e129720250f0cc5b369a698a3b6578af93ac763d87c7309eaeedbb946de34",
            192_472,
        ),
        Original(
            GITHUB,
            f"{GDAX_0416}/snapshot_asks.csv",
            "b32504323438d3b2ef0402babb67c662ac0e217aabd8367f7fc883d3b581a585",
            338_795,
        ),
        Original(
            GITHUB,
            f"{GDAX_0416}/l2update.csv",
            "efd763e3b0f3f062115279e29b9837e9275ab2fce81ca74fd23236ce6c97fa3c",
            873_775,
        ),
    ),
    "20180424": (
        Original(
            GITHUB,
            f"{GDAX_0424}/snapshot_bids.csv",
            "c0fed77b5154efbd17e9afceb470aaa089c05772d159f97164b40dd868a9b7a6",
            241_284,
        ),
        Original(
            GITHUB,
            f"{GDAX_0424}/snapshot_asks.csv",
            "78ea793ef2879296b6425a73fecb316bde37aaeea4a4c4acbfa5791e37bc9006",
            282_159,
        ),
        Original(
            GITHUB,
            f"{GDAX_0424}/l2update_15min_1.csv",
            "94f4fd23c6bd9516d09dda6ab7cee4e20912b5daf8e31c3e30642d557b82fcc3",
            2_139_438,
        ),
        Original(
            GITHUB,
            f"{GDAX_0424}/l2update_15min_2.csv",
            "7e4c239bafc7094313cb2e7530e42aa14a377b80777fa49e7596ab8f55fd73e7",
            2_113_824,
        ),
        Original(
            GITHUB,
            f"{GDAX_0424}/l2update_15min_3.csv",
            "1ab5f744409fa8d5354b9a06b66eea39c04fb5ab6dac42588a500985925e33cf",
            2_096_261,
        ),
        Original(
            GITHUB,
            f"{GDAX_0424}/l2update_15min_4.csv",
            "41ac773a194b98b5d8c4ac4b2ca83d9cf09a4ab92e6251500e883da6f2d871e8",
            2_109_573,
        ),
    ),
}
# By the file of benchmarks/markets.py.
RECORDINGS = {
    "binance/usdm/btcusdt_20230404.dat.gz": copied(
        f"{HFTBACKTEST_2023}/usdm/btcusdt_20230404.dat.gz",
        "85c1c350353bc5d73c8d48daf1519d1a7ce8d0bbe703be0b45278171876e110d",
        578_568,
    ),
    "binance/usdm/btcusdt_20230405.dat.gz": copied(
        f"{HFTBACKTEST_2023}/usdm/btcusdt_20230405.dat.gz",
        "f08860355a5924f7220dc26836485ea0f36dc3dabb22948d0d36af00e08e89c0",
        2_313_536,
    ),
    "binance/usdm/btcusdt_20240718.gz": copied(
        f"{HFTBACKTEST_202407}/usdm/btcusdt_20240718.gz",
        "e4163718b819a93b858d1259bfeb53e170ee31e03738f88e172af74078cd45be",
        572_468,
    ),
    "binance/usdm/btcusdt_20240719.gz": copied(
        f"{HFTBACKTEST_202407}/usdm/btcusdt_20240719.gz",
        "33bab357ff6e97be8134efd35d3489794807bedeb47f1a1f6cc81ece65d88b58",
        2_568_733,
    ),
    "binance/usdm/ethusdt_20240718.gz": copied(
        f"{HFTBACKTEST_202407}/usdm/ethusdt_20240718.gz",
        "f2260198a4e9e8015fa9c0867746baec1675670a0c82cb9332beb4bf87696d4c",
        675_222,
    ),
    "binance/usdm/ethusdt_20240719.gz": copied(
        f"{HFTBACKTEST_202407}/usdm/ethusdt_20240719.gz",
        "1412e7aa1091fc74d928b7cda4abf1bc0742cea7d8f770e2c63565b926e8817e",
        2_529_120,
    ),
    "binance/usdm/btcusdt_20240808.gz": copied(
        f"{HFTBACKTEST_202408}/usdm/btcusdt_20240808.gz",
        "0ad7b3a0f5cff220761ea890cfd6e3c15f6899edc7f94637ec915043d7a72251",
        3_637_062,
    ),
    "binance/cm/btcusd_perp_20240808.gz": copied(
        f"{HFTBACKTEST_202408}/cm/btcusd_perp_20240808.gz",
        "795efa5540bfca87d20181df5c444741a8cc31810689c429a4004cbbd0b3a374",
        2_143_383,
    ),
    "binance/cm/btcusd_perp_20240809.gz": copied(
        f"{HFTBACKTEST_202408}/cm/btcusd_perp_20240809.gz",
        "49ae1c7797b924e7f1dca4c5a64f5cebafaf08473041227b4b142b447c56c766",
        2_366_357,
    ),
    "binance/spot/btcusdt_20240808.gz": copied(
        f"{HFTBACKTEST_202408}/spot/btcusdt_20240808.gz",
        "5d263f4c5379cfc27379ef0e22779aa33804463d1b69c292e9c0714e31f2e1b4",
        1_274_097,
    ),
    "binance/spot/btcusdt_20240809.gz": copied(
        f"{HFTBACKTEST_202408}/spot/btcusdt_20240809.gz",
        "2981a27474b8903133cc66e25f4da561140dd061c942b84801b9d8c60e4b3599",
        1_754_087,
    ),
    "coinapi/BTCUSD_COINBASE_L2/20180415.csv.gz": Recording(
        GDAX["20180415"],
        "0079e9ffe2cc58b7a2690834d9962ee4c8ba53d1c032b2667d67fd6f86b4fd4c",
        conversions.convert_gdax,
    ),
    "coinapi/BTCUSD_COINBASE_L2/20180416.csv.gz": Recording(
        GDAX["20180416"],
        "091b045b98dfa37d9d132039fe29cf8a30b83cd53733becc4d1462bc62e23613",
        conversions.convert_gdax,
    ),
    "coinapi/BTCUSD_COINBASE_L2/20180424.csv.gz": Recording(
        GDAX["20180424"],
        "a37bfa95729bdd135682ea798a9ac1fbda9aca51f27c2c80dde91c23453f11c0",
        conversions.convert_gdax,
    ),
    "coinapi/BTCUSD_COINBASE_L3/20180713.csv.gz": Recording(
        (ORDERBOOKMDP,),
        "38f761b688846b4fe0300b7228f07b3ad689ba6411706f463dc698f1a8ff298b",
        conversions.convert_orderbookmdp,
    ),
    "coinapi/BTCUSD_BITSTAMP_L2/20190412.csv.gz": Recording(
        (OBADIAH,),
        "6201d6d5fe4843365ee57a2d13ca52245d0e71d6f471e84912b3bd524e6c527e",
        partial(conversions.convert_obadiah, table="bitstamp_btcusd_depth"),
    ),
    "coinapi/ETHUSD_BITFINEX/20190412.csv.gz": Recording(
        (OBADIAH,),
        "9231df6d9c906b72a018677105e49ce18c9afa2dc6e3fcdb64207b834a515ffc",
        partial(conversions.convert_obadiah, table="bitfinex_ethusd_depth"),
    ),
    "coinapi/SSE_600519/20230201.csv.gz": Recording(
        (DOLPHINDB_DAY,),
        "f50c84f417c40177275bb183f4b354419e1de4d042630d3d6c83c51c56d1db97",
        conversions.convert_dolphindb_day,
    ),
    "coinapi/SSE_600519/20230207.csv.gz": Recording(
        (AXORDERBOOK,),
        "6937b0423c468036c30381c0126ead28ace7f036c0d351ba3d9daef11e79dd1e",
        conversions.convert_axorderbook,
    ),
    "coinapi/SSE_600961/20230711.csv.gz": Recording(
        DOLPHINDB_ENGINE,
        "82cf3b9f0410e13b876c99969d6776ea9863c790a01fa829c65c3d8c0a148db4",
        partial(conversions.convert_dolphindb_engine, share="600961.SH"),
    ),
    "coinapi/SSE_601825/20230711.csv.gz": Recording(
        DOLPHINDB_ENGINE,
        "4aefd463f3aee2ad1c8c4ced04e490a66e5b2c3e0c519b4017cfc4e45c74feb3",
        partial(conversions.convert_dolphindb_engine, share="601825.SH"),
    ),
}
