"""The ratios in docs/performance.md are those of the JSON files that it names, each group of rows of one run."""

from __future__ import annotations

import json
import re

import pytest

from test_docs_numbers import ALL, NUMBER, ROOT, agree

RUNS = {
    run: {
        benchmark["name"]: {contender["name"]: contender["ratio"] for contender in benchmark["contenders"]}
        for benchmark in json.loads((ROOT / "docs" / "results" / f"bench-{run}.json").read_text())["benchmarks"]
    }
    for run in ("1-thread", "small-nets-1-thread", "foreign-1-thread", "h200")
}
CALM, WHOLE = "small-nets-1-thread", "1-thread"
TABLES = [table for table in ALL if table.page == "docs/performance.md"]
NETS = {"linear AE": "linear-ae", "deep AE": "deep-ae", "VAE": "vae", "DCGAN": "dcgan"}
HELD = {
    "`masks.hold`": "gentickets hold",
    "weights multiplied one by one after the step": "multiplied one by one",
    "state dictionary multiplied and reloaded": "state dict multiplied and reloaded",
    "`torch.nn.utils.prune`": "torch.nn.utils.prune",
    "parametrization": "parametrization",
    "`torch.nn.utils.prune`, default Adam": "torch.nn.utils.prune, default Adam",
    "dense, default Adam": "dense, default Adam",
}


def table_after(words: str):
    """The first table after these words."""
    return min((t for t in TABLES if words in t.before), key=lambda table: len(table.before))


def is_ratio(cell: str, ratio: dict[str, float]) -> bool:
    """Whether a cell is a median, with or without its quartiles; the files have four digits."""
    shown = len(NUMBER.findall(cell))
    wanted = [ratio[key] for key in ("median", "q25", "q75")][:shown]
    return agree(cell, wanted) or agree(cell, [value - 1e-4 for value in wanted])


def check(table, row, cells) -> None:
    """Each (cell, run, benchmark, contender) of a row."""
    wrong = [
        f"{row}: {cell} is {RUNS[run][benchmark][contender]} of {benchmark} in {run}"
        for cell, run, benchmark, contender in cells
        if NUMBER.search(cell) and not is_ratio(cell, RUNS[run][benchmark][contender])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("words", "kind", "run"),
    [
        ("## Sparse training: `gt.accelerate`", "sparse-training", CALM),
        ("Inference of the decoder or generator", "sparse-inference", WHOLE),
    ],
)
def test_sparse_layers_and_their_rivals_are_of_one_run(words, kind, run):
    table = table_after(words)
    checked = 0
    for name, *cells in table.rows:
        net, _, rival = name.strip("*").partition(", ")
        if net not in NETS:
            continue  # of memory, not of time
        rivals = {"": "gentickets accelerate", "dead units removed": "dead units removed"}
        contender = rivals.get(rival, "torch.sparse, sampled gradients")
        source = run if net == "linear AE" else WHOLE
        shares = [float(head.split()[0]) / 100 for head in table.head[1:]]
        places = [f"{kind}/{NETS[net]}/{share:g}" for share in shares]
        check(table, name, [(c, source, place, contender) for c, place in zip(cells, places, strict=True)])
        checked += 1
    assert checked >= 5


def test_the_networks_of_the_paper():
    table = table_after("Every network of the paper")
    for name, *cells in table.rows:
        preset = "paper-" + name.lower().replace(" ", "-")
        source = CALM if name == "linear AE" else WHOLE
        places = [f"sparse-catalogue/{preset}/{share}" for share in (0.7, 0.9)]
        check(table, name, [(c, source, p, "gentickets accelerate") for c, p in zip(cells, places, strict=False)])


def test_networks_of_other_people():
    table = table_after("## Other people's networks")
    checked = 0
    for name, *cells in table.rows:
        net = name.strip("`")
        heads = [head.replace(", batch ", f"/{net}/") for head in table.head[1:]]
        places = [(cell, f"sparse-foreign/{head}/0.9") for cell, head in zip(cells, heads, strict=True) if cell != "–"]
        check(table, name, [(cell, "foreign-1-thread", place, "gentickets accelerate") for cell, place in places])
        checked += len(places)
    assert checked == len(RUNS["foreign-1-thread"])


def test_what_holding_costs():
    table = next(t for t in TABLES if any("masks.hold" in row[0] for row in t.rows))
    for name, *cells in table.rows:
        plain = [re.sub(r" \(.*\)", "", cell) for cell in cells]
        places = [f"masked-step/{NETS[head]}/0.9" for head in table.head[1:]]
        check(table, name, [(c, CALM, p, HELD[name]) for c, p in zip(plain, places, strict=True)])


def test_threads_and_precision():
    table = next(t for t in TABLES if any("channels_last" in row[0] for row in t.rows))
    ways = {
        "two threads against one": ("threads", "two threads"),
        "two processes of one thread against one of two": ("processes", "two processes, one thread each"),
        "channels_last": ("channels-last", "channels_last"),
        "bfloat16 autocast": ("half-precision", "bf16 autocast"),
    }
    for name, *cells in table.rows:
        kind, contender = ways[name]
        named = [(cell, NETS[head]) for cell, head in zip(cells, table.head[1:], strict=True) if NUMBER.search(cell)]
        check(table, name, [(cell, WHOLE, f"{kind}/{net}", contender) for cell, net in named])


def test_narrower_networks():
    table = next(t for t in TABLES if t.head[0] == "channels kept")
    ways = ("shrunk ticket", "shrunk ticket, multiples of 8", "born narrow")
    for name, *cells in table.rows:
        share = f"{float(name.split()[0]) / 100:g}"
        places = [(f"channels/{net}/{share}", way) for net in ("dcgan", "vae") for way in ways]
        check(table, name, [(c, WHOLE, place, way) for c, (place, way) in zip(cells, places, strict=True)])


def test_the_readme_says_the_same():
    (table,) = (t for t in ALL if t.page == "README.md" and any("6.9M" in row[0] for row in t.rows))
    nets = ("deep-ae", "vae", "dcgan")
    for (name, *cells), net in zip(table.rows, nets, strict=False):
        places = [f"sparse-training/{net}/{share}" for share in (0.9, 0.95, 0.99)]
        check(table, name, [(c, WHOLE, p, "gentickets accelerate") for c, p in zip(cells, places, strict=True)])


ON_A_GPU = {
    "a dense training step": ("gpu-step/{}", {
        "TF32 products": "eager, TF32", "bfloat16 autocast": "eager, bf16 autocast", "`torch.compile`": "torch.compile",
        "CUDA graph": "CUDA graph", "CUDA graph, bfloat16": "CUDA graph, bf16 autocast",
        "CUDA graph, held at 90 %": "CUDA graph, held at 90 %",
    }),
    "a masked step, of the dense one": ("masked-step/{}/0.9", HELD),
    "Table 2's DCGAN, batches of 100": ("gpu-table2", {
        "dense, bfloat16 autocast": "dense, bf16 autocast", "held to a mask of 79 %": "held at 79 %",
        "early bird, 57 % of the channels gone": "early bird", "dense, CUDA graph": "dense, CUDA graph",
        "early bird, bfloat16 autocast": "early bird, bf16 autocast",
        "early bird, CUDA graph": "early bird, CUDA graph",
        "early bird, CUDA graph, bfloat16": "early bird, CUDA graph, bf16 autocast",
    }),
    "a linear layer forwards, of float32's time": ("gpu-linear/{}", {
        "bfloat16": "bfloat16", "bfloat16, 2:4": "bfloat16, 2:4", "`torch.sparse` at 95 %": "torch.sparse at 95%",
        "`torch.sparse` at 99 %": "torch.sparse at 99%",
    }),
}  # fmt: skip
COLUMNS = NETS | {
    "1024 of 4096, 128 images": "1024/4096/128",
    "4096 of 4096, 128": "4096/4096/128",
    "4096 of 4096, 4096": "4096/4096/4096",
}


@pytest.mark.parametrize("first", ON_A_GPU)
def test_what_a_gpu_takes(first):
    place, contenders = ON_A_GPU[first]
    table = next(t for t in TABLES if t.head[0] == first)
    checked = 0
    for name, *cells in table.rows:
        if name in contenders:
            places = [place.format(COLUMNS.get(head, "")) for head in table.head[1:]]
            ratios = cells[:1] if place == "gpu-table2" else cells
            given = zip(ratios, places, strict=False)
            check(table, name, [(cell, "h200", where, contenders[name]) for cell, where in given])
            checked += 1
    assert checked == len(table.rows) - any(row[0] in ("eager", "dense") for row in table.rows)
