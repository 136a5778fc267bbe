"""Run the bench on an accelerator machine that has torch and timm but not this package installed.

PYTHONPATH=src python benchmarks/accelerator.py OUT_DIR [tiny,small,base] [bf16,fp32] [BATCH]
PYTHONPATH=src python benchmarks/accelerator.py OUT_DIR georank [cuda,cpu] [BATCH]

The second line measures what GeoRank adds to a step (see ``georank.py``). Of the first, one encoder and precision takes
a few minutes, most of them compiling, so give them one at a time where a command's time is limited; every call writes
its own files.
"""

import sys

from terrasieve.bench import run_bench, write

if sys.argv[2:3] == ["georank"]:
    import georank

    georank.main(sys.argv[1], *(sys.argv[3:] or ["cuda"]))
    raise SystemExit

out_dir, encoders, precisions, batch = [
    *sys.argv[1:],
    *("bench", "tiny,small,base", "bf16,fp32", "256")[len(sys.argv) - 1 :],
]
result = run_bench(
    encoders=encoders.split(","),
    precisions=precisions.split(","),
    devices=("cuda",),
    batch_size=int(batch),
    threads=8,
    repeats=9,
    warmup=5,
    on_progress=lambda words: print(words, flush=True),
)
name = f"bench_{result['date'][:10]}_cuda_{encoders}_{precisions}".replace(",", "-")
for path in write(result, out_dir, name):
    print(path)
