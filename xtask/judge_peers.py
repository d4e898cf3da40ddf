#!/usr/bin/env python3
"""Runs the RMSNorms that peers.py times over the inputs of `cargo xtask cases`, for the judge:

    cargo xtask cases --quick --out cases
    python3 xtask/judge_peers.py cases outputs
    cargo xtask judge outputs/LIBRARY --cases cases        # torch, compile, liger, quack, flash-attn

What a library refuses, or none of its kind takes (no weight, zero-centred weights), is printed and left out. Needs PyTorch and safetensors. compile, QuACK and
flash-attention's kernel compile for seconds a case: --jobs N has N processes take turns with the cases. Of the launch shapes that a Triton kernel would
time each case with, it gets the middle one: they decide speed.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import peers
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def one_shape():
    """Triton's autotuner compiles and times a kernel in each of its shapes, tens of seconds a case; of one there is nothing to time."""
    from triton.runtime.autotuner import Autotuner

    begin = Autotuner.__init__

    def with_one(self, fn, arg_names, configs, *rest, **named):
        begin(self, fn, arg_names, configs[len(configs) // 2 :][:1], *rest, **named)

    Autotuner.__init__ = with_one


def outputs(function, given):
    x, weight = given["x"].requires_grad_(), given["weight"].requires_grad_()
    y = function(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), given["dy"].to(y.dtype))
    return {"y": y.detach(), "dx": dx, "dw": dw}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--libraries", help="separated by commas; if absent, all that can be imported")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--job", type=int, help="one of them alone, from 0")
    options = parser.parse_args()
    if options.jobs > 1 and options.job is None:
        running = [subprocess.Popen([sys.executable, *sys.argv, "--job", str(job)]) for job in range(options.jobs)]
        sys.exit(max([job.wait() for job in running]))
    cases, out, device = options.cases, options.out, options.device
    if device == "cuda":
        one_shape()  # Before what has such kernels is imported.
    found, missing = peers.libraries()
    for name, why in missing.items():
        print(f"{name}: {why}")
    if options.libraries:
        found = {name: function for name, function in found.items() if name in options.libraries.split(",")}
    listed = json.loads((cases / "manifest.json").read_text())["cases"][options.job or 0 :: options.jobs]
    for library, function in found.items():
        (out / library).mkdir(parents=True, exist_ok=True)
        written = 0
        for case in listed:
            with safe_open(cases / (case["name"] + ".safetensors"), "pt", device=device) as file:
                given = {name: file.get_tensor(name) for name in file.keys()}
            if case["offset"] != 0 or "weight" not in given:
                print(f"{library} {case['name']}: {'weight + 1' if case['offset'] else 'no weight'}")
                continue
            peers.EPS = case["eps"]  # What each of the functions reads.
            torch._dynamo.reset()  # A compiled one has the eps of its first call.
            try:
                got = outputs(function, given)
            except Exception as error:  # Whatever a library does, the others are still run.
                print(f"{library} {case['name']}: {peers.first_line(error)}", flush=True)
                continue
            got = {name: tensor.contiguous().cpu() for name, tensor in got.items()}
            save_file(got, out / library / (case["name"] + ".out.safetensors"))
            written += 1
        print(f"{library}: outputs of {written} of {len(listed)} cases in {out / library}", flush=True)


if __name__ == "__main__":
    main()
