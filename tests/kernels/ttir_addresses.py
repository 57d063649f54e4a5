"""Follows the integers of a compiled kernel to the addresses that one program accesses."""

import re
from collections.abc import Mapping

import numpy as np

Value = np.ndarray

DTYPES = {"i32": np.int32, "i64": np.int64, "i1": np.bool_}
OPERATION = re.compile(r"(?:%(?P<result>\S+) = )?(?P<name>\w+\.\w+) (?P<rest>.*)")
BINARY = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.divsi": lambda a, b: (np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b)).astype(a.dtype),
    "arith.remsi": lambda a, b: np.fmod(a, b),
}


def shape_of(kind: str) -> list[int]:
    return [int(size) for size in re.findall(r"(\d+)x", kind)]


def dtype_of(kind: str) -> type:
    return DTYPES[re.findall(r"i(?:1|32|64)\b", kind)[-1]]


def accesses(
    ttir: str, program: int | tuple[int, int, int], arguments: Mapping[str, int]
) -> dict[str, list[Value]]:
    """The element offsets that a program loads or stores through each pointer argument.

    Integers wrap as the machine's do. Only straight-line kernels: a loop's addresses are left out.

    Args:
        ttir: The kernel in Triton's IR.
        program: Its program id, or those of the three axes.
        arguments: Values of its integer arguments.
    """
    integers: dict[str, Value] = {}
    pointers: dict[str, tuple[str, Value]] = {}
    found: dict[str, list[Value]] = {}
    for name, kind in re.findall(r"%(\w+): (!tt\.ptr<\w+>|i32|i64)", ttir.partition("\n  }")[0]):
        if kind in DTYPES:
            integers[name] = np.array([arguments.get(name, 0)], DTYPES[kind])
        else:
            pointers[name] = name, np.zeros(1, np.int64)
    for line in ttir.splitlines():
        matched = OPERATION.match(line.strip().partition(" loc(")[0])
        if not matched:
            continue
        result, name, rest = matched["result"], matched["name"], matched["rest"]
        names = re.findall(r"%([\w#]+)", rest)
        kind = re.split(r" : | -> ", rest)[-1]
        if name in ("tt.load", "tt.store") and names[0] in pointers:
            pointer, offsets = pointers[names[0]]
            found.setdefault(pointer, []).append(offsets)
        elif name == "tt.addptr" and names[0] in pointers and names[1] in integers:
            pointer, offsets = pointers[names[0]]
            pointers[result] = pointer, offsets + integers[names[1]].astype(np.int64)
        elif name in ("tt.splat", "tt.broadcast", "tt.expand_dims") and names[0] in pointers:
            pointer, offsets = pointers[names[0]]
            pointers[result] = pointer, reshaped(name, offsets, rest, kind)
        elif name == "tt.get_program_id":
            axis = "xyz".index(rest[0])
            number = program if isinstance(program, int) else program[axis]
            integers[result] = np.array([number], np.int32)
        elif name == "arith.constant" and (value := re.match(r"(?:dense<)?(-?\d+)>? : ", rest)):
            integers[result] = np.full(shape_of(kind) or [1], int(value[1]), dtype_of(kind))
        elif name == "tt.make_range":
            integers[result] = np.arange(*range_of(rest), dtype=np.int32)
        elif names and all(operand in integers for operand in names):
            operands = [integers[operand] for operand in names]
            if name in BINARY:
                integers[result] = BINARY[name](*operands)
            elif name in ("arith.extsi", "arith.trunci"):
                integers[result] = operands[0].astype(dtype_of(kind))
            elif name in ("tt.splat", "tt.broadcast", "tt.expand_dims"):
                integers[result] = reshaped(name, operands[0], rest, kind)
    return found


def range_of(rest: str) -> tuple[int, int]:
    bounds = {key: int(value) for key, value in re.findall(r"(start|end) = (\d+)", rest)}
    return bounds["start"], bounds["end"]


def reshaped(name: str, value: Value, rest: str, kind: str) -> Value:
    if name == "tt.expand_dims":
        axis = re.search(r"axis = (\d+)", rest)
        assert axis
        return np.expand_dims(value, int(axis[1]))
    return np.broadcast_to(value, shape_of(kind))
