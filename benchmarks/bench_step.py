"""How long a training step takes while one of two equal encoders is paused.

    python benchmarks/bench_step.py --seeds 3 [--device cuda] [--hidden 192 --layers 6 --batch 32]

A step is what the trainer does: forward, backward, clipping per modality, AdamW. The encoders are two equal vision
transformers on random pixels. One JSON line per stage, seed, and set of training modalities goes to
benchmarks/results/step.jsonl (median and half of the distance between the quartiles, in ms); the table is printed.
In stage 2, where the fused head takes a paused modality as missing, it is measured too.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from environment import environment
from timing import timed
from transformers import ViTConfig, ViTModel

from ecsfusion import FusionForClassification
from ecsfusion.training.clipping import clip_by_part
from ecsfusion.training.parameter_groups import parameters_by_part

RESULTS = Path(__file__).parent / "results" / "step.jsonl"
NAMES = ("first", "second")


def measure(args: argparse.Namespace, stage: str, training: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Time steps of one model in which only `training` is trained."""
    torch.manual_seed(seed)
    device = torch.device(args.device)
    config = ViTConfig(
        image_size=args.pixels,
        patch_size=16,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        intermediate_size=4 * args.hidden,
    )
    encoders = {name: ViTModel(config, add_pooling_layer=False) for name in NAMES}
    model = FusionForClassification.from_modality_pretrained(encoders, num_labels=10).to(device).train()
    model.set_stage(stage)
    parts = {name: list(parameters.values()) for name, parameters in parameters_by_part(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {
        name: {"pixel_values": torch.randn(args.batch, 3, args.pixels, args.pixels, device=device)}
        for name in NAMES
    }
    labels = torch.randint(10, (args.batch,), device=device)
    model.set_active(training)

    def step() -> None:
        model(**batch, labels=labels).loss.backward()
        clip_by_part(parts, 1.0)
        optimizer.step()
        model.zero_grad()

    milliseconds, spread = timed(step, device, args.seconds)
    return {
        "benchmark": "step",
        "stage": stage,
        "training": list(training),
        "seed": seed,
        "milliseconds": milliseconds,
        "spread": spread,
        "batch": args.batch,
        "hidden": args.hidden,
        "layers": args.layers,
        "pixels": args.pixels,
        **environment("transformers"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds, and the share of a full step, as a Markdown table."""
    lines = ["| stage | who trains | ms | share of a full step |", "| --- | --- | --- | --- |"]
    for stage in ("unimodal", "joint"):
        times: dict[int, list[float]] = {}
        for row in rows:
            if row["stage"] == stage:
                times.setdefault(len(row["training"]), []).append(row["milliseconds"])
        for number, who in ((2, "both"), (1, "one of two")):
            share = mean(times[number]) / mean(times[2])
            lines.append(f"| {stage} | {who} | {mean(times[number]):.1f} | {share:.0%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    args = parser.parse_args()
    cases = [(stage, names) for stage in ("unimodal", "joint") for names in (NAMES, NAMES[:1], NAMES[1:])]
    rows = [measure(args, stage, names, seed) for seed in range(args.seeds) for stage, names in cases]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
