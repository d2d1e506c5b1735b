"""The recordings that the encoder is trained and judged on: one table, and who may see what.

A market is a pair's folder under `raw/`, the recorded files in it, and its role:

- `train`: encoders are trained on it, and probes across markets are fitted on it;
- `validation`: recipes are compared on it;
- `test`: opened once, for the recipe that is committed. NOTES.md says how often it was.

No day of a test market is a day of a training market, whatever the pair. Files are named below a
folder of recordings (`benchmarks/lay_recordings.py` lays them out).
"""

from dataclasses import dataclass

DEEP, SHALLOW = 96, 40  # depths: levels of a state, bids and asks together
SHORT = "SHORT_CAPTURES"  # the group of captures that are too short for a cell each
ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Market:
    """A recording: its folder under `raw/`, its files, its role and what a reader must know.

    levels: of a side, which its states have at least; words: as tables name it; source: who
    recorded it, with the licence; group: the name of its cell in tables, if it shares one; counted:
    whether it counts among the cells that are summed up.
    """

    pair: str
    files: tuple[str, ...]
    role: str
    levels: int
    words: str
    source: str
    group: str | None = None
    counted: bool = True

    @property
    def depth(self) -> int:
        """The depth at which it is judged."""
        return DEEP if 2 * self.levels >= DEEP else SHALLOW

    @property
    def cell(self) -> str:
        return self.group or self.pair

    def depths(self) -> tuple[int, ...]:
        """Return the depths at which it is parsed: encoders of both are trained."""
        if self.depth == SHALLOW:
            return (SHALLOW,)
        return (DEEP,) if self.role == "test" else (DEEP, SHALLOW)


HFTBACKTEST = "nkaz001/hftbacktest, MIT"
CRYPTOFEED = "bmoscon/cryptofeed, permissive"
OBADIAH = "petr-fedorov/obadiah, GPL"
OB_ANALYTICS = "phil8192/ob-analytics, GPL"
DOLPHINDB = "dolphindb/Tutorials_CN, Apache-2.0"

BINANCE = (
    Market(
        pair="BTCUSDT_USDM",
        files=(
            "binance/usdm/btcusdt_20230404.dat.gz",
            "binance/usdm/btcusdt_20230405.dat.gz",
            "binance/usdm/btcusdt_20240718.gz",
            "binance/usdm/btcusdt_20240719.gz",
        ),
        role="train",
        levels=500,
        words="Binance BTC/USDT perpetual (USD-M), April 2023 and July 2024",
        source=HFTBACKTEST,
    ),
    Market(
        pair="ETHUSDT_USDM",
        files=("binance/usdm/ethusdt_20240718.gz", "binance/usdm/ethusdt_20240719.gz"),
        role="train",
        levels=500,
        words="Binance ETH/USDT perpetual (USD-M), July 2024",
        source=HFTBACKTEST,
    ),
    Market(
        pair="BTCUSDT_USDM_202408",
        files=("binance/usdm/btcusdt_20240808.gz",),
        role="test",
        levels=500,
        words="Binance BTC/USDT perpetual (USD-M), August 2024",
        source=HFTBACKTEST,
    ),
    Market(
        pair="BTCUSD_PERP_CM",
        files=("binance/cm/btcusd_perp_20240808.gz", "binance/cm/btcusd_perp_20240809.gz"),
        role="test",
        levels=500,
        words="Binance BTC/USD perpetual (COIN-M), August 2024",
        source=HFTBACKTEST,
    ),
    Market(
        pair="BTCUSDT_SPOT",
        files=("binance/spot/btcusdt_20240808.gz", "binance/spot/btcusdt_20240809.gz"),
        role="test",
        levels=500,
        words="Binance BTC/USDT spot, August 2024",
        source=HFTBACKTEST,
    ),
)
COINBASE = (
    Market(
        pair="BTCUSD_COINBASE_20180424",
        files=("coinapi/BTCUSD_COINBASE_L2/20180424.csv.gz",),
        role="train",
        levels=12_500,
        words="Coinbase BTC/USD, 24 April 2018",
        source="timothyyu/gdax-orderbook-ml, BSD-3-Clause",
    ),
    Market(
        pair="BTCUSD_COINBASE_20180415",
        files=(
            "coinapi/BTCUSD_COINBASE_L2/20180415.csv.gz",
            "coinapi/BTCUSD_COINBASE_L2/20180416.csv.gz",
        ),
        role="test",
        levels=12_500,
        words="Coinbase BTC/USD, 15 and 16 April 2018",
        source="timothyyu/gdax-orderbook-ml, BSD-3-Clause",
    ),
    Market(
        pair="BTCUSD_COINBASE_L3",
        files=("coinapi/BTCUSD_COINBASE_L3/20180713.csv.gz",),
        role="test",
        levels=6_600,
        words="Coinbase BTC/USD, order by order, 13 July 2018",
        source="orderbookmdp 0.1.2 (PyPI), MIT",
    ),
)
OTHER_CRYPTO = (
    # Two recordings of the same exchange, pair and day. The first is the deeper one, rebuilt from
    # single orders and only approximate: it may be trained on, and nothing may be claimed on it.
    Market(
        pair="BTCUSD_BITSTAMP_2015",
        files=("coinapi/BTCUSD_BITSTAMP_L3_2015/20150501.csv.gz",),
        role="train",
        levels=99,
        words="Bitstamp BTC/USD, order by order, 1 May 2015",
        source=OB_ANALYTICS,
    ),
    Market(
        pair="BTCUSD_BITSTAMP_2015_D20",
        files=("coinapi/BTCUSD_BITSTAMP_D20/20150501.csv.gz",),
        role="train",
        levels=20,
        words="Bitstamp BTC/USD, 20 levels, 1 May 2015",
        source=OB_ANALYTICS,
    ),
    Market(
        pair="BTCUSD_BITSTAMP_2019",
        files=("coinapi/BTCUSD_BITSTAMP_L2/20190412.csv.gz",),
        role="test",
        levels=510,
        words="Bitstamp BTC/USD, 12 April 2019",
        source=OBADIAH,
    ),
    Market(
        pair="ETHUSD_BITFINEX",
        files=("coinapi/ETHUSD_BITFINEX/20190412.csv.gz",),
        role="test",
        levels=39,
        words="Bitfinex ETH/USD, 12 April 2019",
        source=OBADIAH,
    ),
    Market(
        pair="BTCCNY_OKCOIN",
        files=("coinapi/BTCCNY_OKCOIN_D20/20160303.csv.gz",),
        role="test",
        levels=20,
        words="OKCoin BTC/CNY, 20 levels, 3 March 2016",
        source="seedgreedy/BitcoinDataFormat, MIT",
    ),
)
SHANGHAI = (
    Market(
        pair="SSE_600519_20230201",
        files=("coinapi/SSE_600519/20230201.csv.gz",),
        role="validation",
        levels=198,
        words="Shanghai 600519, 1 February 2023",
        source=DOLPHINDB,
    ),
    Market(
        pair="SSE_600519_20230207",
        files=("coinapi/SSE_600519/20230207.csv.gz",),
        role="test",
        levels=198,
        words="Shanghai 600519, 7 February 2023",
        source="fpga2u/AXOrderBook, MIT",
    ),
    Market(
        pair="SSE_600961",
        files=("coinapi/SSE_600961/20230711.csv.gz",),
        role="test",
        levels=49,
        words="Shanghai 600961, 11 July 2023",
        source=DOLPHINDB,
    ),
    Market(
        pair="SSE_601825",
        files=("coinapi/SSE_601825/20230711.csv.gz",),
        role="test",
        levels=36,
        words="Shanghai 601825, 11 July 2023",
        source=DOLPHINDB,
    ),
)
# Prices of a bet lie between 0 and 1, and 18 contracts of 15 minutes follow one another: this is
# another kind of market, and is shown apart.
POLYMARKET_TIMES = (
    *("0900", "0915", "0930", "0945", "1000", "1015", "1030", "1045", "1100", "1115", "1130"),
    *("1200", "1215", "1230", "1245", "1300", "1315", "1330"),
)
POLYMARKET = Market(
    pair="POLYMARKET_BTC15M_UP",
    files=tuple(
        f"coinapi/POLYMARKET_BTC15M_UP/20260928T{time}.csv.gz" for time in POLYMARKET_TIMES
    ),
    role="test",
    levels=20,
    words="Polymarket, BTC up within 15 minutes, 28 September 2026",
    source="resolvedkit 0.1.0 (PyPI), MIT",
    counted=False,
)
SHORT_FILES = (
    "CF_BINANCEUS_BTCUSD/20210405_BINANCE_US-63b290",
    "CF_BINANCEUS_ETHBTC/20210405_BINANCE_US-63b290",
    "CF_BINANCE_BTCUSDT/20210404_BINANCE-ee25be",
    "CF_BINANCE_DENTUSDT/20210405_BINANCE-b38f7c",
    "CF_BINANCE_DOTUSDT/20210404_BINANCE-ee25be",
    "CF_BINANCE_ETHUSDT/20210404_BINANCE-ee25be",
    "CF_BINANCE_MANAUSDT/20210405_BINANCE-b38f7c",
    "CF_BINANCE_ZILUSDT/20210405_BINANCE-b38f7c",
    "CF_COINBASE_BANDBTC/20210417_COINBASEws28",
    "CF_COINBASE_CRVEUR/20210417_COINBASEws28",
    "CF_COINBASE_DASHBTC/20210417_COINBASEws28",
    "CF_COINBASE_NMREUR/20210417_COINBASEws28",
    "CF_COINBASE_SKLBTC/20210417_COINBASEws28",
    "CF_COINBASE_SKLUSD/20210417_COINBASEws28",
    "CF_FTX_ETHUSD/20220429_FTX_TRws1",
    "CF_FTX_ETHUSDT/20220429_FTX_TRws1",
    "CF_FTX_SOLUSD/20220429_FTX_TRws1",
    "CF_FTX_SUSHIBULLUSD/20210405_FTX-6d2b81",
    "CF_FTX_XRPUSD/20210417_FTXws32",
    "CF_KRAKENFUT_FI_ETHUSD_210625/20210417_KRAKEN_FUTURESws46",
    "CF_KRAKENFUT_FI_XBTUSD_210625/20210417_KRAKEN_FUTURESws46",
    "CF_KRAKENFUT_FI_XBTUSD_210924/20210722_KRAKEN_FUTURESws1",
    "CF_KRAKENFUT_FI_XRPUSD_210625/20210417_KRAKEN_FUTURESws46",
    "CF_KRAKENFUT_PI_BCHUSD/20210417_KRAKEN_FUTURESws46",
    "CF_KRAKENFUT_PI_ETHUSD/20210722_KRAKEN_FUTURESws1",
    "CF_KRAKEN_ALGOXBT/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_DASHEUR/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_FILXBT/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_ICXUSD/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_KAVAUSD/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_LSKUSD/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_OMGUSD/20210417_KRAKENws50",
    "CF_KRAKEN_SCEUR/20210417_KRAKENws50",
    "CF_KRAKEN_WAVESEUR/20210417_KRAKENws50",
    "CF_KRAKEN_XBTUSD/20210405_KRAKEN-c197c0",
    "CF_KRAKEN_XMRUSD/20210417_KRAKENws50",
    "CF_OKCOIN_ETHUSD/20210405_OKCOIN-726568",
    "CF_OKCOIN_USDTUSD/20210405_OKCOIN-726568",
    "CF_OKEX_KNCUSDTSWAP/20210417_OKEXws56",
    "CF_OKEX_ONTUSDT/20210722_OKEXws1",
    "CF_OKEX_UNIUSDSWAP/20210417_OKEXws56",
    "CF_OKEX_YFIUSDSWAP/20210417_OKEXws56",
    "CF_OKX_ELONUSDT/20220227_OKXws1",
    "CF_OKX_UNIUSDSWAP/20220227_OKXws1",
)
SHORT_CAPTURES = tuple(
    Market(
        pair=name.split("/")[0],
        files=(f"short/{name}.csv.gz",),
        role="test",
        levels=24,
        words="short captures, 2021 and 2022",
        source=CRYPTOFEED,
        group=SHORT,
    )
    for name in SHORT_FILES
)
MARKETS = (*BINANCE, *COINBASE, *OTHER_CRYPTO, *SHANGHAI, POLYMARKET, *SHORT_CAPTURES)
