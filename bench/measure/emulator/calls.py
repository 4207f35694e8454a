"""Calls of device functions: each is replaced by the function's instructions.

Registers, labels and local arrays get names of their own at each call, so that what is
executed has no call left. A parameter of a function is the caller's variable itself,
which lies in the caller's local memory: one that is read and was never written is found
as any local memory is. Recursion and calls through a register have no such text.

Of the functions that the driver has, a failed assertion traps, and what is printed is
dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from batchline.bench.measure.emulator.ptx import (
    Address,
    Call,
    Function,
    Immediate,
    Instruction,
    Kernel,
    Label,
    Module,
    Operand,
    Pair,
    Register,
    Symbol,
    UnknownOpcode,
    Variable,
    Vector,
)

_ASSERTION, _PRINTING = "__assertfail", "vprintf"
_ZERO = Immediate("0", "integer", 0)
_MOST_INSTRUCTIONS = 1 << 18  # order.py keeps 20 bits of each, and some become two rows


def inline_calls(module: Module, kernel: Kernel) -> Kernel:
    """The kernel with all that it calls in it.

    Raises:
        UnknownOpcode: for a function that is not in the module, that calls itself, or
        whose address is in a register; and where too many instructions come of it.
    """
    if not any(_is_call(one) for one in kernel.instructions):
        return kernel
    text = _Text(module)
    text.append(kernel, _Names("", {}, frozenset()), None, ())
    return replace(
        kernel,
        registers=text.registers,
        local=tuple(text.local),
        instructions=tuple(text.instructions),
        labels=text.labels,
        branch_targets=text.branch_targets,
    )


def _is_call(instruction: Instruction) -> bool:
    return instruction.opcode.split(".")[0] == "call"


@dataclass(frozen=True)
class _Names:
    """What the names of a function are at one of its calls: behind a prefix, but for
    its parameters, which are variables of the caller, and what is the module's.
    """

    prefix: str
    parameters: Mapping[str, Symbol]
    local: frozenset[str]

    def of(self, operand: Operand) -> Operand:
        if isinstance(operand, Register):
            return replace(operand, name=self.prefix + operand.name)
        if isinstance(operand, Label):
            return Label(self.prefix + operand.name)
        if isinstance(operand, Symbol):
            return self._of_symbol(operand)
        if isinstance(operand, Vector):
            return Vector(self._of_all(operand.operands))
        if isinstance(operand, Pair):
            return Pair(self.of(operand.first), self.of(operand.second))
        if isinstance(operand, Address):
            base = None if operand.base is None else self.of(operand.base)
            return Address(base, operand.offset, self._of_all(operand.coordinates))
        if isinstance(operand, Call):
            return replace(
                operand,
                results=self._of_all(operand.results),
                arguments=self._of_all(operand.arguments),
            )
        return operand

    def _of_all(self, operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
        return tuple(map(self.of, operands))

    def _of_symbol(self, symbol: Symbol) -> Symbol:
        actual = self.parameters.get(symbol.name)
        if actual is not None:
            return Symbol(actual.name, actual.offset + symbol.offset)
        if symbol.name in self.local:
            return Symbol(self.prefix + symbol.name, symbol.offset)
        return symbol


class _Text:
    """A kernel's text while calls are replaced in it."""

    def __init__(self, module: Module):
        self.registers: dict[str, int] = {}
        self.local: list[Variable] = []
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.branch_targets: dict[str, tuple[str, ...]] = {}
        self._module = module
        self._calls = 0
        self._local_names: set[str] = set()

    def append(
        self,
        code: Kernel | Function,
        names: _Names,
        end: Label | None,
        callers: tuple[str, ...],
    ) -> None:
        """Append a function under these names, which returns to the label `end`; a
        kernel has none, and ends.
        """
        prefix = names.prefix
        names = replace(names, local=frozenset(one.name for one in code.local))
        self.registers |= {prefix + name: bits for name, bits in code.registers.items()}
        self.local += [replace(one, name=prefix + one.name) for one in code.local]
        self._local_names |= {prefix + one.name for one in code.local}
        self.branch_targets |= {
            prefix + name: tuple(prefix + target for target in targets)
            for name, targets in code.branch_targets.items()
        }
        places = []
        for instruction in code.instructions:
            places.append(len(self.instructions))
            renamed = _renamed(instruction, names)
            if _is_call(renamed):
                self._append_call(renamed, callers)
            elif renamed.opcode.split(".")[0] == "ret" and end is not None:
                self._add(renamed, "bra", (end,))
            else:
                self._add(renamed, self._opcode(renamed), renamed.operands)
        places.append(len(self.instructions))
        self.labels |= {prefix + name: places[at] for name, at in code.labels.items()}

    def _add(
        self, instruction: Instruction, opcode: str, operands: tuple[Operand, ...]
    ) -> None:
        if len(self.instructions) == _MOST_INSTRUCTIONS:
            raise UnknownOpcode(
                f"a kernel of more than {_MOST_INSTRUCTIONS} instructions with all that "
                "it calls"
            )
        index = len(self.instructions)
        self.instructions.append(
            replace(instruction, index=index, opcode=opcode, operands=operands)
        )

    def _opcode(self, instruction: Instruction) -> str:
        """What is passed to a function and from it is local memory of the caller."""
        opcode = instruction.opcode
        bases = [one.base for one in instruction.operands if isinstance(one, Address)]
        if ".param" in opcode and any(
            isinstance(base, Symbol) and base.name in self._local_names
            for base in bases
        ):
            return opcode.replace(".param::func", ".local").replace(".param", ".local")
        return opcode

    def _append_call(self, instruction: Instruction, callers: tuple[str, ...]) -> None:
        (call,) = instruction.operands
        if call.target == _ASSERTION:
            self._add(instruction, "trap", ())
            return
        if call.target == _PRINTING:
            for result in call.results:
                self._add(instruction, "st.local.b32", (Address(result), _ZERO))
            return
        function = self._function(call, callers)
        self._calls += 1
        prefix = f"{call.target}.{self._calls}:"
        end = Label(f"{prefix}end")
        if instruction.guard is not None:
            negated = not instruction.guard_negated
            self._add(replace(instruction, guard_negated=negated), "bra", (end,))
        formals = (*function.parameters, *function.results)
        parameters = dict(zip(formals, (*call.arguments, *call.results)))
        names = _Names(prefix, parameters, frozenset())
        self.append(function, names, end, (*callers, call.target))
        self.labels[end.name] = len(self.instructions)

    def _function(self, call: Call, callers: tuple[str, ...]) -> Function:
        function = self._module.functions.get(call.target)
        if call.is_indirect:
            raise UnknownOpcode(f"a call through a register, {call.target}")
        if function is None:
            raise UnknownOpcode(f"a call of {call.target}, whose code is not there")
        if call.target in callers:
            raise UnknownOpcode(f"recursion, as of {call.target}")
        actuals = (*call.arguments, *call.results)
        if any(name in function.registers for name in function.parameters) or not all(
            isinstance(one, Symbol) for one in actuals
        ):
            raise UnknownOpcode(f"a call of {call.target} with values in registers")
        if len(actuals) != len(function.parameters) + len(function.results):
            raise ValueError(f"{call.target} is called with {len(actuals)} variables")
        return function


def _renamed(instruction: Instruction, names: _Names) -> Instruction:
    guard = instruction.guard
    return replace(
        instruction,
        operands=tuple(map(names.of, instruction.operands)),
        guard=None if guard is None else names.prefix + guard,
    )
