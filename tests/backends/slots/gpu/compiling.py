"""Compiles the kernels for a GPU that need not be there, as ``TritonAttention`` would launch them.

Run as a program of its own (in the tests' process the kernels are interpreted): its arguments are ``attention`` or
``pointwise`` and a list of cases in JSON, each with what ``_attention`` or ``_pointwise`` takes; it prints what ptxas
says of each kernel, as JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from asyncgen.backends.slots.cache import PAGE
from asyncgen.backends.slots.gpu import kernels, pointwise, pointwise_kernels
from asyncgen.backends.slots.gpu.lanes import ROWS, Lanes, Packed, Shared
from asyncgen.backends.slots.gpu.triton_attention import TritonAttention

CAPABILITY = 90
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


class Recorder:
    """In a kernel's place: keeps what it would have been launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: tuple[Any, ...] = ()
        self.keywords: dict[str, Any] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Recorder:
        assert all(number > 0 for number in grid)
        return self

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments, self.keywords = arguments, keywords


def _argument(parameter: Any, value: Any) -> tuple[str, bool]:
    """Its type, and whether the compiler is told that it is a multiple of 16, by Triton's rules."""
    if isinstance(value, Tensor):
        return TYPES[value.dtype], not parameter.do_not_specialize_on_alignment
    if isinstance(value, float):
        return "fp32", False
    return "i32", value % 16 == 0 and not parameter.do_not_specialize


def _compiled(launch: Recorder) -> dict[str, Any]:
    named = ("num_warps", "num_stages")
    options: dict[str, Any] = {name: launch.keywords.pop(name) for name in named if name in launch.keywords}
    signature, hints = {}, {}
    for number, (parameter, value) in enumerate(zip(launch.kernel.params, launch.arguments, strict=False)):
        signature[parameter.name], hinted = _argument(parameter, value)
        if hinted:
            hints[number,] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(launch.keywords, "constexpr")
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=launch.keywords, attrs=hints)
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    return {"shared": compiled.metadata.shared, **options, **_said(compiled.asm["ptx"])}


def _said(ptx: str) -> dict[str, int]:
    """Registers and spilled bytes of a thread."""
    binary = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command: list[str | Path] = [binary, "-v", "--gpu-name=sm_90a", source, "-o", Path(folder, "kernel.cubin")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = {name: re.search(pattern, said) for name, pattern in PATTERNS.items()}
    return {name: int(match[1]) for name, match in found.items() if match} | {"dots": len(re.findall("mma", ptx))}


PATTERNS = {
    "registers": r"Used (\d+) registers",
    "spills": r"(\d+) bytes spill stores",
    "stack": r"(\d+) bytes stack frame",
}


def _case(what: str, case: dict[str, Any]) -> dict[str, Any]:
    """What becomes of the kernels for shapes like these."""
    module, launch_all = PARTS[what]
    launches = {name: Recorder(getattr(module, name)) for name in module.__all__}
    for name, launch in launches.items():
        setattr(module, name, launch)
    try:
        launch_all(**case | {"dtype": getattr(torch, case["dtype"])})
    finally:
        for name, launch in launches.items():
            setattr(module, name, launch.kernel)
    return {name: _compiled(launch) for name, launch in launches.items()}


def _attention(dtype: torch.dtype, size: int, group: int, kv_heads: int) -> None:
    tokens, heads = 16, group * kv_heads
    fused = torch.empty((tokens, (heads + 2 * kv_heads) * size), dtype=dtype)
    cuts = [heads * size, kv_heads * size, kv_heads * size]
    queries, keys, values = (each.view(tokens, -1, size) for each in torch.split(fused, cuts, dim=1))
    pool = tuple(torch.empty((2, kv_heads, PAGE, size), dtype=dtype) for _ in range(2))
    ints = torch.zeros((tokens, 9), dtype=torch.int32)
    row = ints[:, 0]
    shared = Shared(ints, row)
    lanes = Lanes(torch.ones(tokens, dtype=torch.bool), row, ints, row, shared, row, ints[:, :ROWS])
    packed = Packed(row, row, row, row, row, row[:1], shared, row, row[:1])
    TritonAttention().decode(queries, keys, values, (pool[0], pool[1]), lanes, size**-0.5)
    TritonAttention().prefill(queries, keys, values, (pool[0], pool[1]), packed, size**-0.5)


def _pointwise(dtype: torch.dtype, hidden: int, inner: int, heads: int, kv_heads: int, size: int) -> None:
    tokens = 16
    rows, both = torch.empty((1, tokens, hidden), dtype=dtype), torch.empty((1, tokens, 2 * inner), dtype=dtype)
    pointwise.rms_norm(rows, rows[0, 0], 1e-6)
    pointwise.silu_product(both[..., :inner], both[..., inner:])
    fused = torch.empty((tokens, (heads + 2 * kv_heads) * size), dtype=dtype)
    cuts = [heads * size, kv_heads * size, kv_heads * size]
    queries, keys, _ = (each.view(1, tokens, -1, size).transpose(1, 2) for each in torch.split(fused, cuts, dim=1))
    angles = torch.empty((1, tokens, size), dtype=dtype)
    pointwise.rotate(queries, keys, angles, angles)


PARTS: dict[str, tuple[Any, Any]] = {
    "attention": (kernels, _attention),
    "pointwise": (pointwise_kernels, _pointwise),
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps([_case(sys.argv[1], case) for case in json.loads(sys.argv[2])]))
