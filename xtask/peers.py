#!/usr/bin/env python3
"""Times other libraries' RMSNorm on the cells of the bench and writes what `cargo xtask bench --peers` reads.

    cargo xtask bench list | python3 xtask/peers.py --out peers.json

Needs a GPU and PyTorch. The file is written anew after each cell, so that whatever ends the run leaves what was measured; what was not
reached is listed in it. --seconds N ends the run by itself. Folders of PYTHONPATH may have .pth files. PyTorch's own F.rms_norm and torch.compile of the formula are always measured; Liger, QuACK and
flash-attention's Triton kernel if they can be imported. The method is that of the bench: a CUDA graph goes through several
buffer sets, x and y of which are together four times as large as the L2 cache; a time is the median over replays, divided by
the number of sets. Forward is that of training, which stores what backward needs, as the bench's does. Backward is torch.autograd.grad of (x, weight)
with dy, and is captured in the same way.

Every result is compared with f64: an output whose relative error in the Euclidean norm is above ERROR_MAX is wrong.
ERROR_MAX is 4 units of roundoff of a 16-bit type, and 1e-4 for f32: loose, since other libraries round where they like. It
finds wrong formulas and missing elements, not lost digits.
"""

import argparse
import importlib.metadata
import json
import math
import os
import signal
import site
import statistics
import sys
import time

# `pip install --target` leaves .pth files, which Python reads in its own folders only.
for folder in filter(os.path.isdir, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    site.addsitedir(os.path.abspath(folder))

import torch
import torch._dynamo
import torch._functorch.config
import torch.nn.functional as F

EPS = 1e-5
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ERROR_MAX = {"f32": 1e-4, "f16": 4 * 2.0**-11, "bf16": 4 * 2.0**-8}
SETS_MAX = 1 << 14  # of the bench, as the two below
LAUNCHES_MAX = 1 << 16
REPLAYS_OF_LONG_GRAPHS = 9
ELEMENTS_AT_ONCE = 1 << 24  # of a comparison in f64


class Cell:
    def __init__(self, text):
        dtype, shape = text.split(":")
        self.text, self.dtype = text, dtype
        self.rows, self.hidden = map(int, shape.split("x"))
        self.bytes = self.rows * self.hidden * DTYPES[dtype].itemsize

    def rank(self):
        """What matters most is measured first: large tensors, bf16 before f32, widths in the middle."""
        middle = 512 <= self.hidden <= 16384
        return (self.rows < 512, not middle, ["bf16", "f32", "f16"].index(self.dtype), -self.bytes, self.hidden)


def libraries():
    """Each library's y = f(x, weight), differentiable; or why there is none."""
    compiled = {}

    def compile_(x, weight):
        # Compiled anew for each shape: nothing is left dynamic.
        key = (x.shape, x.dtype)
        if key not in compiled:
            torch._dynamo.reset()
            compiled.clear()
            compiled[key] = torch.compile(native, dynamic=False)
        return compiled[key](x, weight)

    def native(x, weight):
        return F.rms_norm(x, (x.shape[-1],), weight, EPS)

    def liger():
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        # Not in place: a replay would read its own output as dy.
        return lambda x, weight: LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)

    def quack():
        from quack.rmsnorm import rmsnorm

        return lambda x, weight: rmsnorm(x, weight, eps=EPS)

    def flash():
        from flash_attn.ops.triton.layer_norm import rms_norm_fn

        return lambda x, weight: rms_norm_fn(x, weight, None, eps=EPS)

    found, missing = {"torch": native, "compile": compile_}, {}
    for name, package, load in [
        ("liger", "liger-kernel", liger),
        ("quack", "quack-kernels", quack),
        ("flash-attn", "flash-attn", flash),
    ]:
        try:
            found[name] = load()
        except Exception as error:  # An installed package may fail in any way when it is imported.
            missing[name] = f"{package} cannot be imported: {first_line(error)}"
    return found, missing


class Sets:
    """Normal random numbers, so many times over as leave the L2 cache fourfold."""

    def __init__(self, cell, l2_bytes):
        torch.manual_seed(0)
        count = max(2, min(SETS_MAX, math.ceil(4 * l2_bytes / (2 * cell.bytes))))
        new = lambda *shape: torch.randn(*shape, device="cuda", dtype=DTYPES[cell.dtype])
        self.x = [new(cell.rows, cell.hidden).requires_grad_() for _ in range(count)]
        self.dy = [new(cell.rows, cell.hidden) for _ in range(count)]
        self.weight = [new(cell.hidden).requires_grad_() for _ in range(count)]

    def calls(self):
        return list(zip(self.x, self.weight, self.dy))


def timed(calls, replays, stream):
    """Captures `calls` in one graph and replays it. Returns the times of a call, and what the replays of the first wrote."""
    for _ in range(2):
        calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        # All are kept: memory that is used again would stay in the L2 cache.
        results = [call() for call in calls]
    first = [out.detach() for out in (results[0] if isinstance(results[0], tuple) else (results[0],))]
    for out in first:
        out.fill_(math.nan)  # What a replay does not write is found.
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    replays = min(replays, max(LAUNCHES_MAX // len(calls), REPLAYS_OF_LONG_GRAPHS))
    us = []
    for replay in range(replays + 3):
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        if replay >= 3:
            us.append(start.elapsed_time(stop) * 1e3 / len(calls))
    us.sort()
    at = lambda q: us[round((len(us) - 1) * q)]
    timing = {"us_median": statistics.median(us), "us_p10": at(0.1), "us_p90": at(0.9), "replays": replays}
    return timing, [out.clone() for out in first]


def errors(cell, x, weight, dy, got):
    """Relative error of each output of `got`, {"y": ..} or {"dx": .., "dw": ..}, in the Euclidean norm, against f64."""
    square = {name: [0.0, 0.0] for name in got}
    dw = torch.zeros(cell.hidden, dtype=torch.float64, device=x.device)
    weight = weight.detach().double()

    def add(name, want, out):
        square[name][0] += (out.double() - want).square().sum().item()
        square[name][1] += want.square().sum().item()

    step = max(1, ELEMENTS_AT_ONCE // cell.hidden)
    for row in range(0, cell.rows, step):
        rows = slice(row, row + step)
        z = x.detach()[rows].double()
        rstd = (z.square().mean(-1, keepdim=True) + EPS).rsqrt()
        x_hat = z * rstd
        if "y" in got:
            add("y", x_hat * weight, got["y"][rows])
            continue
        wdy = dy[rows].double() * weight
        add("dx", rstd * (wdy - x_hat * (wdy * x_hat).mean(-1, keepdim=True)), got["dx"][rows])
        dw += (dy[rows].double() * x_hat).sum(0)
    if "dw" in got:
        add("dw", dw, got["dw"])
    # What is not finite is infinitely wrong.
    relative = lambda d, n: math.sqrt(d / n) if math.isfinite(d) else 1e300
    return {name: relative(*of) for name, of in square.items()}


def measure(function, cell, sets, replays, stream):
    """Both directions of one library on one cell, all on the current stream: backward runs where forward ran."""
    x, weight, dy = sets.calls()[0]
    # As in training, where what backward needs is stored: the bench's forward stores rstd.
    timing, (y,) = timed([lambda x=x, w=w: function(x, w) for x, w, _ in sets.calls()], replays, stream)
    yield "forward", timing, errors(cell, x, weight, dy, {"y": y})
    del y
    ys = [(function(x, w), x, w, dy) for x, w, dy in sets.calls()]
    grad = lambda y, x, w, dy: torch.autograd.grad(y, (x, w), dy, retain_graph=True)
    timing, (dx, dw) = timed([lambda of=of: grad(*of) for of in ys], replays, stream)
    yield "backward", timing, errors(cell, x, weight, dy, {"dx": dx, "dw": dw})


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def versions(names):
    found = {"torch": torch.__version__, "cuda of torch": str(torch.version.cuda)}
    for package in ["triton", "liger-kernel", "quack-kernels", "flash-attn", "nvidia-cutlass-dsl"]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def write(path, report):
    """A file is either the old one or the whole new one; what is no file, such as a device, is written to."""
    path = os.path.realpath(path)
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "w") as file:
            file.write(text)
        return
    unfinished = f"{path}.{os.getpid()}"
    with open(unfinished, "w") as file:
        file.write(text)
    os.replace(unfinished, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="FILE.json")
    parser.add_argument("--cells", help="separated by commas; if absent, read from stdin, one a line")
    parser.add_argument("--types", default="bf16,f32", help="element types to measure (default %(default)s)")
    parser.add_argument("--libraries", help="separated by commas; if absent, all that can be imported")
    parser.add_argument("--replays", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=200, metavar="N", help="for all of it (default %(default)s)")
    parser.add_argument("--cell-limit-s", type=int, default=30, help="for one library on one cell, compilation included")
    options = parser.parse_args()
    if min(options.seconds, options.cell_limit_s, options.replays) < 1:
        parser.error("--seconds, --cell-limit-s and --replays are at least 1")
    begun, started = time.monotonic(), int(time.time())
    texts = options.cells.split(",") if options.cells else sys.stdin.read().split()
    found, missing = libraries()
    if options.libraries:
        found = {name: function for name, function in found.items() if name in options.libraries.split(",")}
    left_out = [{"library": name, "cell": None, "why": why} for name, why in missing.items()]
    measured, reached = [], set()
    cells = sorted(map(Cell, texts), key=Cell.rank)
    torch._functorch.config.donated_buffer = False  # A graph that is kept may not give its buffers away.
    gpu = torch.cuda.get_device_properties(0)

    limits = ", ".join(f"{dtype} {limit:.1e}" for dtype, limit in ERROR_MAX.items())

    def report(why):
        """All that is known; what was not reached is left out for this reason."""
        pairs = [(library, cell.text) for cell in cells for library in found if (library, cell.text) not in reached]
        return {
            "schema": 1,
            "gpu": gpu.name,
            "started_unix_s": started,
            "elapsed_s": time.monotonic() - begun,
            "versions": versions(found),
            "method": "replays of a CUDA graph over buffer sets of which x and y are four times the L2 cache, medians; forward "
            "with gradients tracked, backward by torch.autograd.grad of x and weight; results compared with f64, relative error in "
            f"the Euclidean norm at most {limits}",
            "measured": measured,
            "left_out": left_out + [{"library": library, "cell": cell, "why": why} for library, cell in pairs],
        }

    def alarm(*_):
        raise TimeoutError("it took too long")

    signal.signal(signal.SIGALRM, alarm)
    stream = torch.cuda.Stream()
    torch.cuda.set_stream(stream)
    remaining = lambda: options.seconds - (time.monotonic() - begun)
    for cell in cells:
        if remaining() < 1:
            break
        write(options.out, report("the run ended before it"))
        skip = lambda library, why: left_out.append({"library": library, "cell": cell.text, "why": why})
        if cell.dtype not in options.types.split(","):
            for library in found:
                reached.add((library, cell.text))
                skip(library, f"{cell.dtype} was not asked for")
            continue
        sets = None
        for library, function in found.items():
            if remaining() < 1:
                break
            reached.add((library, cell.text))
            limit = min(options.cell_limit_s, math.ceil(remaining()))
            try:
                signal.alarm(limit)
                sets = sets or Sets(cell, gpu.L2_cache_size)
                for direction, timing, error in measure(function, cell, sets, options.replays, stream):
                    wrong = max(error.values()) > ERROR_MAX[cell.dtype]
                    entry = {"library": library, "cell": cell.text, "direction": direction, **timing}
                    measured.append({**entry, "errors": error, "wrong": wrong})
                    print(f"{time.monotonic() - begun:5.0f} s  {cell.text:20} {library:10} {direction:8} "
                          f"{timing['us_median']:9.2f} µs{'  WRONG' if wrong else ''}", file=sys.stderr, flush=True)
            except Exception as error:  # Whatever a library does, the others are still measured.
                skip(library, f"more than {limit} s" if isinstance(error, TimeoutError) else first_line(error))
                print(f"{cell.text} {library}: {first_line(error)}", file=sys.stderr, flush=True)
            finally:
                signal.alarm(0)
        del sets
        torch.cuda.empty_cache()

    last = report(f"the time limit of {options.seconds} s")
    write(options.out, last)
    missed = len(last["left_out"]) - len(left_out)
    print(f"{len(measured)} times in {options.out}; not reached in {options.seconds} s: {missed} of "
          f"{len(cells) * len(found)} pairs of a library and a cell", file=sys.stderr)


if __name__ == "__main__":
    main()
