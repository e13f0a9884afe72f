"""How fast poiesis is, next to its peers: one command, a table and JSON lines.

python benchmarks/speed.py                                everything, all cores, wall clock
python benchmarks/speed.py --only gpt --rounds 3          the workloads with "gpt" in their name
python benchmarks/speed.py --clock cpu --threads 1        processor time of one thread, busy machine
python benchmarks/speed.py --device cuda --out gpu.jsonl  on a GPU

The sides of a comparison take turns, every other round backwards, each in a process of its own;
figures are medians. How to install the peers, and how to read the table: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

if "--serve" not in sys.argv or any(word.startswith("poiesis") for word in sys.argv):
    # As our users have it: the package is imported first and says how threads wait. A peer's
    # process loads torch first, with its own settings.
    import poiesis  # noqa: F401

import torch
from threadpoolctl import threadpool_limits

from poiesis.models.base import hardware_bf16
from workloads import dcgan, fid, gpt, residual_gans, unet, vae
from workloads.common import OURS, Machine, MissingPeer, Timing, Worker, Workload, compare, serve

PACKAGES = ("poiesis", "torch", "numpy", "scipy", "diffusers", "transformers", "pythae")
WORKLOADS = [w for module in (dcgan, residual_gans, unet, gpt, vae, fid) for w in module.WORKLOADS]


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    machine = Machine(device=device, threads=args.threads, clock=args.clock, every=args.emulated)
    with threadpool_limits(args.threads):
        if args.serve:
            name, side = args.serve
            workload = next(w for w in WORKLOADS if w.name == name)
            workload.sides[side].load()
            serve(workload.sides[side], machine, workload.count)
            return
        if args.memory_of:
            print(json.dumps(_peak(*args.memory_of, device)))
            return
        chosen = [w for w in WORKLOADS if args.only in w.name]
        if not chosen:
            sys.exit(f"no workload has {args.only!r} in its name: {', '.join(_names())}")
        lines: list[dict[str, Any]] = []
        facts = _facts(machine)
        for workload in chosen:
            _say(f"{workload.name}: {workload.title}")
            if not args.memory:
                start = functools.partial(_start, workload.name, args)
                timings, peaks = compare(workload, machine, args.rounds, start, _say)
                lines += [{**facts, **line} for line in _speed_lines(workload, timings, peaks)]
            if workload.memory:
                lines += [{**facts, **line} for line in _memory_lines(workload, args)]
        _write(lines, args.out)
        print(table(lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="workloads containing NAME")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory only")
    parser.add_argument("--emulated", action="store_true", help="bf16 sides on any processor")
    parser.add_argument(
        "--memory-of", nargs=2, metavar=("WORKLOAD", "SIDE"), help=argparse.SUPPRESS
    )
    parser.add_argument("--serve", nargs=2, metavar=("WORKLOAD", "SIDE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(workload: str, args: argparse.Namespace, side: str) -> Worker:
    command = [sys.executable, __file__, "--serve", workload, side, "--clock", args.clock]
    return Worker([*command, "--threads", str(args.threads), "--device", args.device])


def _names() -> list[str]:
    return [w.name for w in WORKLOADS]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# -- speed ----------------------------------------------------------------------------------------


def _speed_lines(
    workload: Workload, timings: dict[str, Timing], peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """Return one line per side, ours with its gates."""
    rates = {name: workload.items / t.median for name, t in timings.items()}
    lines = []
    for name, timing in timings.items():
        line: dict[str, Any] = {
            "workload": workload.name,
            "title": workload.title,
            "side": name,
            "metric": "speed",
            "unit": workload.unit,
            "median": rates[name],
            "spread": [workload.items / s for s in (max(timing.seconds), min(timing.seconds))],
            "n": len(timing.seconds),
            "peak_gflops": peaks,
        }
        if timing.flops:
            line["gflops"] = timing.flops / timing.median / 1e9
            line["of_peak"] = {k: line["gflops"] / peak for k, peak in peaks.items()}
        if name == OURS:
            line["gates"] = _gates(workload, rates)
            results = {side: t.result for side, t in timings.items()}
            if workload.check is not None and len(results) > 1:
                line["check"] = workload.check(results)
        lines.append(line)
    return lines


def _gates(workload: Workload, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Return, for each gate whose peer was timed, the ratio reached by our fastest side."""
    peers = {name: rate for name, rate in rates.items() if not name.startswith(OURS)}
    ours = max((name for name in rates if name not in peers), key=lambda n: rates[n])
    found = []
    for gate in workload.gates:
        side = (
            max(peers, key=lambda n: peers[n], default="")
            if gate.against == "best"
            else gate.against
        )
        if side not in peers:
            found.append({"against": gate.against, "gate": gate.factor, "ratio": None})
            continue
        ratio = rates[ours] / rates[side]
        best = " (best peer)" if gate.against == "best" else ""
        found.append(
            {
                "ours": ours,
                "against": side + best,
                "gate": gate.factor,
                "ratio": ratio,
                "reached": ratio >= gate.factor,
            }
        )
    return found


# -- memory ---------------------------------------------------------------------------------------


def _peak(name: str, side_name: str, device: torch.device) -> dict[str, float]:
    """Return the bytes that a side's training adds to this process, at its peak."""
    workload = next(w for w in WORKLOADS if w.name == name)
    side = workload.sides[side_name]
    side.load()
    torch.manual_seed(0)
    if device.type == "cuda":
        run = side.build(device)
        for _ in range(workload.memory):
            run()
        return {"bytes": torch.cuda.max_memory_allocated()}
    # Nobody's: the arithmetic library's own buffers, and the modules that torch imports with the
    # first optimizer (80 MiB, unless a peer did so before).
    x = torch.randn(256, 256, requires_grad=True)
    (x @ x).sum().backward()
    torch.optim.Adam([x]).step()
    before = _status("VmRSS")
    run = side.build(device)
    for _ in range(workload.memory):
        run()
    return {"bytes": _status("VmHWM") - before}


def _status(key: str) -> int:
    """Return a size of this process from the kernel, bytes (Linux only)."""
    # Not getrusage: its maximum begins with that of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def _memory_lines(workload: Workload, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each side in a process of its own, three times; return one line per side."""
    peaks: dict[str, list[float]] = {}
    for _ in range(3):
        for name, side in workload.sides.items():
            if side.bf16 and not (args.emulated or hardware_bf16(torch.device(args.device))):
                continue
            try:
                side.find()
            except MissingPeer:
                continue
            command = [sys.executable, __file__, "--memory-of", workload.name, name]
            command += ["--threads", str(args.threads), "--device", args.device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1])["bytes"])
    medians = {name: sorted(values)[len(values) // 2] / 2**20 for name, values in peaks.items()}
    lines = []
    for name, values in peaks.items():
        line: dict[str, Any] = {
            "workload": workload.name,
            "title": "peak memory of " + workload.title,
            "side": name,
            "metric": "memory",
            "unit": "MiB",
            "median": medians[name],
            "spread": [min(values) / 2**20, max(values) / 2**20],
            "n": len(values),
        }
        if name == OURS and len(medians) > 1:
            peer = min((n for n in medians if n != OURS), key=lambda n: medians[n])
            ratio = medians[OURS] / medians[peer]
            line["gates"] = [
                {
                    "against": f"{peer} (best peer)",
                    "gate": 1.0,
                    "ratio": ratio,
                    "reached": ratio <= 1.0,
                }
            ]
        lines.append(line)
    return lines


# -- what is written ------------------------------------------------------------------------------


def _facts(machine: Machine) -> dict[str, Any]:
    """Return what every line says about when, where and with what it was measured."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    import poiesis

    versions["poiesis"] = poiesis.__version__
    name = _processor()
    if machine.device.type == "cuda":
        name = f"{torch.cuda.get_device_name()}; {name}"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": name,
        "cores": os.cpu_count(),
        "bf16_hardware": hardware_bf16(machine.device),
        "threads": machine.threads,
        "clock": machine.clock,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "revision": _revision(),
    }


def _processor() -> str:
    fields = ("model name", "cpu family", "model\t", "stepping")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = [next((x.split(":")[1].strip() for x in lines if x.startswith(f)), "?") for f in fields]
    return "{} (family {} model {} stepping {})".format(*found)


def _revision() -> str:
    """Return the commit that is checked out; "" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def _write(lines: list[dict[str, Any]], out: Path | None) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(text)


def table(lines: list[dict[str, Any]]) -> str:
    """Return Markdown: every side, then every gate."""
    rows = [
        "| work | side | median | range | n | of fp32 / bf16 GEMM |",
        "|---|---|---:|---|---:|---|",
    ]
    gates = ["| work | against | ratio | gate | |", "|---|---|---:|---:|---|"]
    for line in lines:
        what = line["workload"] + (", peak memory" if line["metric"] == "memory" else "")
        low, high = line["spread"]
        share = line.get("of_peak", {})
        parts = " / ".join(f"{share[k]:.2f}" for k in ("fp32", "bf16") if k in share)
        value = f"{line['median']:.4g} {line['unit']}"
        rows.append(
            f"| {what} | {line['side']} | {value} | {low:.4g}…{high:.4g} | {line['n']} | {parts} |"
        )
        sign = "≤" if line["metric"] == "memory" else "≥"
        for gate in line.get("gates", []):
            if gate["ratio"] is None:
                gates.append(
                    f"| {what} | {gate['against']} | – | {sign} {gate['gate']} | not timed |"
                )
                continue
            end = "reached" if gate["reached"] else "not reached"
            ratio = f"{gate['ratio']:.2f}"
            against = gate["against"]
            if gate.get("ours", OURS) != OURS:
                against = f"{against}, by {gate['ours']}"
            gates.append(f"| {what} | {against} | {ratio} | {sign} {gate['gate']} | {end} |")
        if "check" in line:
            facts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in line["check"].items())
            gates.append(f"| {what} | results | – | – | {facts} |")
    return "\n".join([*rows, "", *gates])


if __name__ == "__main__":
    main()
