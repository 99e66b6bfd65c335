"""Compiles the sampler's kernels for an H100 or H200, without one, and prints what became of each as a line of JSON.

Arguments are the kinds of logits, as triton calls them. A program of its own, for in a process whose kernels are
interpreted nothing can be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asyncgen.backends import sampling_kernels as kernels

POINTERS = {
    "logits": "",
    **dict.fromkeys(
        ("temperatures", "edges", "maxima", "masses", "best", "ceilings", "found", "penalties", "out"), "*fp32"
    ),
    **dict.fromkeys(("totals", "shares"), "*fp64"),
    **dict.fromkeys(("seeds", "positions", "tokens"), "*i64"),
    **dict.fromkeys(("warm", "rows", "seen"), "*u8"),
}
ALIGNED = {"logits", "stride", "vocabulary", "maxima", "masses", "seen", "seen_stride", "out", "out_stride"}
"""What is a multiple of 16 for a vocabulary of 151,936."""


def compiled(kernel: Any, logits: str, warps: int, **constants: Any) -> dict[str, Any]:
    names = [parameter.name for parameter in kernel.params]
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") or logits for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name in ALIGNED}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]
    said = assembled(code)
    return {
        "kernel": kernel.__name__,
        "logits": logits,
        "constants": {name: value for name, value in constants.items() if isinstance(value, bool)},
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "loads": sorted(set(re.findall(r"ld\.global\S*", code))),
    }


def assembled(code: str) -> str:
    """What ptxas says of it."""
    program = str(Path(triton.__file__).parent / "backends/nvidia/bin/ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code)
        file.flush()
        command = [program, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main() -> None:
    tile = {"BLOCK": 128, "TILE": 16}
    row = {"BLOCK": 128, "BLOCKS": 2048}
    cold = {"warm": None, "temperatures": None}
    for kind in sys.argv[1:]:
        mask = {"*bf16": 0x7FFF, "*fp32": 0x7FFFFFFF}[kind]
        for made in (
            compiled(kernels.survey, kind, 4, WARM=True, EDGED=False, edges=None, **tile),
            compiled(kernels.survey, kind, 4, WARM=False, EDGED=False, edges=None, temperatures=None, **tile),
            compiled(kernels.survey, kind, 4, WARM=True, EDGED=True, **tile),
            compiled(kernels.penalise, kind, 4, TILE=2048),
            compiled(kernels.nucleus, kind, 8, LOWEST=-mask, MASK=mask, BLOCK=128, TILE=32),
            compiled(kernels.choose, kind, 8, WARM=True, EDGED=True, **row),
            compiled(kernels.choose, kind, 8, WARM=False, EDGED=False, edges=None, **cold, **row),
        ):
            sys.stdout.write(json.dumps(made) + "\n")
    sys.stdout.write(json.dumps(compiled(kernels.sum_rows, "", 4, WARM=True, BLOCKS=2048)) + "\n")


if __name__ == "__main__":
    main()
