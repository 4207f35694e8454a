"""PTX text → Module: what is declared, and every instruction with its operands and its
line of source.

Nothing is executed or decoded here. The grammar is that of the PTX ISA document,
"Syntax" and "State Spaces, Types, and Variables"; what compilers write of it is
understood, and anything else is a ValueError with its line.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import NoReturn, TypeAlias

_TYPE_BITS = {
    "pred": 1,
    **{f"{kind}{bits}": bits for kind in "bsu" for bits in (8, 16, 32, 64)},
    "b128": 128,
    "f16": 16,
    "f16x2": 32,
    "bf16": 16,
    "bf16x2": 32,
    "f32": 32,
    "f64": 64,
}
_SPECIAL = re.compile(
    r"%(?:(?:tid|ntid|ctaid|nctaid|clusterid|nclusterid|cluster_ctaid|cluster_nctaid)"
    r"\.[xyz]|laneid|warpid|nwarpid|smid|nsmid|gridid|is_explicit_cluster"
    r"|cluster_ctarank|cluster_nctarank|lanemask_(?:eq|le|lt|ge|gt)|clock(?:_hi|64)?"
    r"|pm\d(?:_64)?|envreg\d+|globaltimer(?:_lo|_hi)?|reserved_smem_offset_\w+"
    r"|(?:total|aggr|dynamic)_smem_size|current_graph_exec)"
)
_OF_A_THREAD = ("local", "param")
_INTEGER = re.compile(r"([+-]?)\s*(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_FLOAT_BITS = re.compile(r"([+-]?)0(?:[fF]([0-9a-fA-F]{8})|[dD]([0-9a-fA-F]{16}))")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?")
_SUM = re.compile(r"(.+?)\s*([+-])\s*(-?\s*\w+)")

_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)\s*")
_STATEMENT = re.compile(r"(?:@\s*(!?)\s*([\w$%]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_HEADER = re.compile(r"(?:\.(?:visible|extern|weak|common)\s+)*\.(entry|func)\b")
_ENTRY = re.compile(r".*?\.entry\s+([\w$%]+)\s*(?:\((.*?)\))?\s*([^()]*)", re.DOTALL)
_FUNCTION = re.compile(
    r".*?\.func\s+(?:\(([^()]*)\)\s*)?(?:\.noreturn\s+)?([\w$%]+)\s*(?:\(([^()]*)\))?.*",
    re.DOTALL,
)
_PER_KERNEL = re.compile(r"\.(\w+)((?:\s*,?\s*\d+)*)")
_REGISTERS = re.compile(r"\.reg\s*\.(\w+)\s+(.*)", re.DOTALL)
_REGISTER = re.compile(r"([\w$%]+)(?:<(\d+)>)?")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)(?:\s+\.ptr(?:\s+\.\w+)*?(?:\s+\.align\s+\d+)?)?"
    r"\s+([\w$%]+)\s*((?:\[\d+\])*)"
)
_VARIABLE = re.compile(
    r"((?:\.(?:visible|extern|weak|common)\s+)*)\.(global|const|shared|local)\s+"
    r"(?:\.align\s+(\d+)\s+)?(?:\.(v[24])\s+)?\.(\w+)\s+(.*)",
    re.DOTALL,
)
_DECLARATOR = re.compile(r"([\w$%]+)\s*((?:\[\s*\d*\s*\]\s*)*)(?:=\s*(.*))?", re.DOTALL)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_LOC = re.compile(
    r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)"
    r"(?:\s*,\s*function_name\s+[^,]+,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
)
_PLACE = re.compile(r"([^\s@\[\]]+):(\d+):(\d+)")


class UnknownOpcode(ValueError):
    """The emulator does not know this form of an instruction."""

    def __init__(self, opcode: str):
        super().__init__(f"the emulator does not know {opcode}")
        self.opcode = opcode


@dataclass(frozen=True, slots=True)
class Register:
    """`%r1`, or `!%p1` where negated. A name of a nested scope is made unique:
    `name@scope`.
    """

    name: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Special:
    """A special register such as `%tid.x`, its `%` included."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant. `kind` says what `value` is: "integer" a signed number as written,
    "f32" and "f64" the bits of a float of that width.
    """

    text: str
    kind: str
    value: int

    def bits(self, operand_type: str) -> int:
        """Unsigned bits of the constant as an operand of this type: "pred", "b16",
        "b32", "b64", "f16", "f32" or "f64".

        A float is converted to the operand's width ("Floating-Point Constants").
        ValueError: an integer where a float is due, or a float that is no 32 or 64 bits
        wide there.
        """
        width = 1 if operand_type == "pred" else int(operand_type[1:])
        if self.kind == "integer":
            if operand_type == "pred":
                return int(self.value != 0)
            if operand_type in ("f32", "f64"):
                raise ValueError(f"the integer {self.text} where a float is due")
            return self.value & ((1 << width) - 1)
        if width == int(self.kind[1:]):
            return self.value
        if width not in (32, 64):
            raise ValueError(f"the constant {self.text} as an operand of {width} bits")
        format, size_bytes = ("<f", 4) if self.kind == "f32" else ("<d", 8)
        (number,) = struct.unpack(format, self.value.to_bytes(size_bytes, "little"))
        return _float_bits(number, f"f{width}")


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable or a parameter, `offset` bytes further."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Label:
    """A place in the kernel's code, or a list of branch targets: its unique name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sink:
    """`_`: the result is dropped."""


@dataclass(frozen=True, slots=True)
class Vector:
    """`{a, b, ...}`."""

    operands: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """`a|b`: two results."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`, the offset in bytes; `[base, {coordinates}]` for a tensor."""

    base: Register | Symbol | None
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """`(results), target, (arguments)`; indirect: the target is a register."""

    target: str
    results: tuple[Operand, ...] = ()
    arguments: tuple[Operand, ...] = ()
    is_indirect: bool = False


Operand: TypeAlias = (
    Register
    | Special
    | Immediate
    | Symbol
    | Label
    | Sink
    | Vector
    | Pair
    | Address
    | Call
)


@dataclass(frozen=True, slots=True)
class Source:
    """A place in the source; `inlined_at` is where the function of that place was
    called, if it was inlined. Line 0: the compiler names none.
    """

    file: str
    line: int
    column: int
    inlined_at: Source | None = None

    @property
    def outermost(self) -> Source:
        """The place in the kernel itself, out of all inlined functions."""
        return self if self.inlined_at is None else self.inlined_at.outermost

    @property
    def user_line(self) -> str:
        """The outermost line, as "product.py:46"."""
        place = self.outermost
        return f"{PurePath(place.file).name}:{place.line}"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction.

    `index` is its place in the kernel, `text` the statement on one line without its
    semicolon, `ptx_line` the line it starts on, from 1.
    """

    index: int
    opcode: str
    operands: tuple[Operand, ...]
    guard: str | None
    guard_negated: bool
    text: str
    ptx_line: int
    source: Source | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A kernel parameter; `offset` in the parameter buffer, by natural alignment."""

    name: str
    type: str
    size_bytes: int
    align: int
    offset: int


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in memory. `space`: global, const, shared, local, or param for what a
    function is called with. `initial`: all its bytes, or None. Of `[]` the size is 0.
    """

    name: str
    space: str
    type: str
    size_bytes: int
    align: int
    initial: bytes | None = None
    is_extern: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """An entry.

    `registers`: name → width in bits, predicates 1. `labels`: name → index of the
    instruction it stands before (their number, at the end). `branch_targets`: name of a
    list → labels. `local` has also what functions are called with. Threads and blocks
    are (x, y, z), or None where nothing is said.
    """

    name: str
    parameters: tuple[Parameter, ...]
    registers: dict[str, int]
    shared: tuple[Variable, ...]
    local: tuple[Variable, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    branch_targets: dict[str, tuple[str, ...]]
    required_threads: tuple[int, int, int] | None = None
    max_threads: tuple[int, int, int] | None = None
    required_cluster: tuple[int, int, int] | None = None
    max_registers: int | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A device function, as a kernel is; `parameters` and `results` are names. Shared
    arrays that it declares are the module's.
    """

    name: str
    parameters: tuple[str, ...]
    results: tuple[str, ...]
    registers: dict[str, int]
    local: tuple[Variable, ...]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    branch_targets: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Module:
    """All of one PTX text. `target`: 90 for sm_90a. `functions`: the device functions
    whose code is in it.
    """

    version: str
    target: int
    files: dict[int, str]
    kernels: dict[str, Kernel]
    variables: dict[str, Variable]
    functions: dict[str, Function]


def parse(text: str) -> Module:
    """Module of a PTX text; ValueError with the line that is not understood."""
    return _Reader().read(text)


def flatten(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
    """Operands in the order of the text, vectors and pairs taken apart."""
    flat: list[Operand] = []
    for operand in operands:
        if isinstance(operand, Vector):
            flat.extend(flatten(operand.operands))
        elif isinstance(operand, Pair):
            flat.extend((operand.first, operand.second))
        else:
            flat.append(operand)
    return tuple(flat)


# (text, line, the last .loc before it, scope)
_Statement: TypeAlias = "tuple[str, int, tuple | None, int]"


@dataclass
class _Body:
    """What the text of a kernel or a function says, before names are resolved."""

    kind: str  # "entry" or "func"
    header: str
    line: int
    statements: list[_Statement] = field(default_factory=list)
    parents: list[int] = field(default_factory=lambda: [-1])
    names: list[dict[str, str]] = field(default_factory=lambda: [{}])
    registers: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, tuple[str, int]] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)

    def declare(self, scope: int, name: str) -> str:
        """The unique name of what is declared in a scope; 0 is the kernel's own."""
        unique = name if scope == 0 else f"{name}@{scope}"
        self.names[scope][name] = unique
        return unique

    def resolve(self, scope: int, name: str) -> str | None:
        while scope >= 0:
            unique = self.names[scope].get(name)
            if unique is not None:
                return unique
            scope = self.parents[scope]
        return None


class _Reader:
    """The state of reading one text from its first line to its last."""

    def __init__(self):
        self.version = ""
        self.target = 0
        self.files: dict[int, str] = {}
        self.variables: dict[str, Variable] = {}
        self.bodies: list[_Body] = []
        self._body: _Body | None = None
        self._scopes: list[int] = []
        self._location: tuple | None = None

    def read(self, text: str) -> Module:
        for statement, line in self._statements(text):
            self._take(statement, line)
        if self._body is not None:
            raise ValueError("PTX: the text ends within a kernel")
        resolve_source = _Sources(self.files).resolve
        # Shared arrays of functions are known before any kernel is built.
        functions = [
            _build_function(body, self.variables, resolve_source)
            for body in self.bodies
            if body.kind == "func"
        ]
        kernels = [
            _build_kernel(body, self.variables, resolve_source)
            for body in self.bodies
            if body.kind == "entry"
        ]
        return Module(
            self.version,
            self.target,
            self.files,
            {kernel.name: kernel for kernel in kernels},
            self.variables,
            {function.name: function for function in functions},
        )

    def _statements(self, text: str) -> Iterator[tuple[str, int]]:
        """(statement, line): "{", "}", "label:", a header with its "{" or ";", a
        directive, or what ends with a semicolon, without it. `.loc` and debug sections
        are taken out on the way.
        """
        if "/*" in text:
            text = re.sub(
                r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n") + " ", text, flags=re.S
            )
        pending, first_line, in_section = "", 0, False
        for number, line in enumerate(text.split("\n"), 1):
            line = line.strip()
            if in_section:
                in_section = not line.endswith("}")
                continue
            if line.startswith((".loc ", ".loc\t")):
                self._location = self._read_location(line, number)
                continue
            if line.startswith(".file"):
                self._read_file(line, number)
                continue
            if line.startswith(".section"):
                in_section = not line.endswith("}")
                continue
            if "//" in line:
                line = line[: line.index("//")].rstrip()
            if not line:
                continue
            if pending:
                pending += "\n" + line
            elif (
                line[-1] == ";"
                and line[0] not in "{}"
                and line.find(";") + 1 == len(line)
            ):
                if ":" not in line or not _LABEL.match(line):
                    yield line[:-1], number
                    continue
                pending, first_line = line, number
            else:
                pending, first_line = line, number
            while pending:
                statement, rest = _split_statement(pending)
                if statement is None:
                    break
                yield statement, first_line
                pending, first_line = rest.lstrip(), number
        if pending:
            _refuse(pending, first_line)

    def _read_location(self, line: str, number: int) -> tuple:
        found = _LOC.match(line)
        if found is None:
            _refuse(line, number)
        comment = line[found.end() :].strip()
        return tuple(int(part) if part else 0 for part in found.groups()), comment

    def _read_file(self, line: str, number: int) -> None:
        found = _FILE.match(line)
        if found is None:
            _refuse(line, number)
        self.files[int(found[1])] = found[2]

    def _take(self, statement: str, line: int) -> None:
        if self._body is None:
            self._take_outside(statement, line)
        elif statement == "{":
            self._open_scope()
        elif statement == "}":
            self._scopes.pop()
            if not self._scopes:
                self._body = None
        elif statement[-1] == ":":
            self._take_label(statement[:-1].rstrip())
        elif statement[0] == ".":
            self._take_declaration(statement, line)
        else:
            self._body.statements.append(
                (statement, line, self._location, self._scopes[-1])
            )

    def _take_outside(self, statement: str, line: int) -> None:
        header = _HEADER.match(statement)
        if header is not None:
            self._take_header(header[1], statement, line)
        elif statement.startswith(".version"):
            self.version = statement.split()[1]
        elif statement.startswith(".target"):
            target = re.search(r"sm_(\d+)", statement)
            if target is None:
                _refuse(statement, line)
            self.target = int(target[1])
        elif variables := _read_variables(statement, line):
            self.variables |= {variable.name: variable for variable in variables}
        elif not statement.startswith((".address_size", ".pragma")):
            _refuse(statement, line)

    def _take_header(self, kind: str, statement: str, line: int) -> None:
        if statement.endswith("{"):
            self._body = _Body(kind, statement[:-1], line)
            self._scopes = [0]
            self._location = None
            self.bodies.append(self._body)

    def _open_scope(self) -> None:
        self._body.parents.append(self._scopes[-1])
        self._body.names.append({})
        self._scopes.append(len(self._body.parents) - 1)

    def _take_label(self, name: str) -> None:
        unique = self._body.declare(self._scopes[-1], name)
        self._body.labels[unique] = len(self._body.statements)

    def _take_declaration(self, statement: str, line: int) -> None:
        body, scope = self._body, self._scopes[-1]
        if statement.startswith(".reg"):
            for name, width in _read_registers(statement, line):
                body.registers[body.declare(scope, name)] = width
        elif statement.startswith(".branchtargets"):
            # The label before it names the list.
            name = next(reversed(body.labels))
            del body.labels[name]
            body.branch_targets[name] = (statement.split(None, 1)[1], scope)
        elif variables := _read_variables(statement, line):
            for variable in variables:
                unique = body.declare(scope, variable.name)
                body.variables.append(replace(variable, name=unique))
        elif statement.startswith(".param"):
            (passed,) = _read_parameters(statement, line)
            unique = body.declare(scope, passed.name)
            size, align = passed.size_bytes, passed.align
            body.variables.append(Variable(unique, "param", passed.type, size, align))
        elif not statement.startswith((".pragma", ".callprototype", ".calltargets")):
            _refuse(statement, line)


class _Sources:
    """`.loc` as it was read → Source, each resolved once."""

    def __init__(self, files: dict[int, str]):
        self._files = files
        # Of what was inlined only the file's name is told, unless two share it.
        names = [PurePath(path).name for path in files.values()]
        self._by_name = {
            PurePath(path).name: path
            for path in files.values()
            if names.count(PurePath(path).name) == 1
        }
        self._resolved: dict[tuple, Source] = {}
        self._at: dict[tuple, Source] = {}

    def resolve(self, location: tuple | None) -> Source | None:
        if location is None:
            return None
        source = self._resolved.get(location)
        if source is None:
            source = self._resolved[location] = self._make(location)
        return source

    def _make(self, location: tuple) -> Source:
        (number, line, column, *inlined), comment = location
        caller = None
        if inlined[0]:
            caller = self._at.get(tuple(inlined)) or Source(
                self._file(inlined[0]), inlined[1], inlined[2]
            )
        elif "@[" in comment:
            # "callee.py:1:2 @[ caller.py:3:4 @[ its caller ... ] ]"
            for name, *place in reversed(_PLACE.findall(comment)[1:]):
                file = self._by_name.get(name, name)
                caller = Source(file, int(place[0]), int(place[1]), caller)
        source = Source(self._file(number), line, column, caller)
        self._at[number, line, column] = source
        return source

    def _file(self, number: int) -> str:
        return self._files.get(number, f"file {number}")


def _split_statement(text: str) -> tuple[str | None, str]:
    """The first statement of the text and the rest; None where it isn't complete."""
    if text[0] in "{}":
        return text[0], text[1:]
    if text[0] != ".":
        label = _LABEL.match(text)
        if label is not None:
            return label[1] + ":", text[label.end() :]
    elif text.startswith((".version", ".target", ".address_size")):
        line, _, rest = text.partition("\n")
        return line, rest
    elif _HEADER.match(text):
        end = re.search(r"[{;]", text)
        if end is None:
            return None, text
        return text[: end.end()], text[end.end() :]
    statement, semicolon, rest = text.partition(";")
    return (statement.rstrip(), rest) if semicolon else (None, text)


def _read_registers(statement: str, line: int) -> Iterator[tuple[str, int]]:
    """(name, width in bits) of a `.reg` declaration."""
    found = _REGISTERS.match(statement)
    if found is None or found[1] not in _TYPE_BITS:
        _refuse(statement, line)
    width = _TYPE_BITS[found[1]]
    for item in found[2].split(","):
        declared = _REGISTER.fullmatch(item.strip())
        if declared is None:
            _refuse(statement, line)
        if declared[2] is None:
            yield declared[1], width
        else:
            for number in range(int(declared[2])):
                yield f"{declared[1]}{number}", width


def _read_variables(statement: str, line: int) -> list[Variable]:
    """What a declaration of memory declares; nothing if it is another statement."""
    found = _VARIABLE.fullmatch(statement)
    if found is None:
        return []
    linkage, space, align, vector, kind, rest = found.groups()
    if kind not in _TYPE_BITS:
        _refuse(statement, line)
    element_bytes = _TYPE_BITS[kind] // 8 * (int(vector[1]) if vector else 1)
    variables = []
    for item in _split_operands(rest):
        declared = _DECLARATOR.fullmatch(item)
        if declared is None:
            _refuse(statement, line)
        name, dimensions, initial = declared.groups()
        values = None
        if initial is not None:
            values = _read_initial(initial, kind, statement, line)
        size_bytes = element_bytes
        for dimension in re.findall(r"\[\s*(\d*)\s*\]", dimensions):
            size_bytes *= int(dimension or 0)
        if values is not None:
            size_bytes = size_bytes or len(values)
            values = values.ljust(size_bytes, b"\0")
        variables.append(
            Variable(
                name,
                space,
                kind,
                size_bytes,
                int(align or element_bytes),
                values,
                ".extern" in linkage,
            )
        )
    return variables


def _read_initial(text: str, kind: str, statement: str, line: int) -> bytes:
    values = b""
    for item in text.replace("{", " ").replace("}", " ").split(","):
        number = _read_number(item.strip())
        if number is None:
            _refuse(statement, line)
        width = _TYPE_BITS[kind]
        operand_type = kind if kind in ("f32", "f64") else f"b{width}"
        values += number.bits(operand_type).to_bytes(width // 8, "little")
    return values


def _build_kernel(
    body: _Body,
    variables: dict[str, Variable],
    resolve_source: Callable[[tuple | None], Source | None],
) -> Kernel:
    found = _ENTRY.fullmatch(body.header)
    if found is None:
        _refuse(body.header, body.line)
    name, listed, per_kernel = found.groups()
    parameters = _read_parameters(listed or "", body.line)
    for parameter in parameters:
        body.names[0][parameter.name] = parameter.name
    instructions = _build_instructions(body, variables, resolve_source)
    limits = {
        directive: tuple(int(number) for number in re.findall(r"\d+", numbers))
        for directive, numbers in _PER_KERNEL.findall(per_kernel)
    }
    return Kernel(
        name,
        parameters,
        body.registers,
        tuple(v for v in body.variables if v.space == "shared"),
        tuple(v for v in body.variables if v.space in _OF_A_THREAD),
        instructions,
        body.labels,
        _resolve_targets(body),
        _extents(limits.get("reqntid")),
        _extents(limits.get("maxntid")),
        _extents(limits.get("reqnctapercluster")),
        limits.get("maxnreg", (None,))[0],
    )


def _build_function(
    body: _Body,
    variables: dict[str, Variable],
    resolve_source: Callable[[tuple | None], Source | None],
) -> Function:
    found = _FUNCTION.fullmatch(body.header)
    if found is None:
        _refuse(body.header, body.line)
    results, name, parameters = found.groups()
    formals = [
        tuple(_read_formal(one, body) for one in _split_operands(listed) if one)
        for listed in (parameters or "", results or "")
    ]
    variables |= {v.name: v for v in body.variables if v.space == "shared"}
    return Function(
        name,
        *formals,
        body.registers,
        tuple(v for v in body.variables if v.space in _OF_A_THREAD),
        _build_instructions(body, variables, resolve_source),
        body.labels,
        _resolve_targets(body),
    )


def _read_formal(text: str, body: _Body) -> str:
    """The name of a parameter or result of a function, which is declared with that."""
    if text.startswith(".reg"):
        for name, width in _read_registers(text, body.line):
            body.registers[name] = width
    else:
        (parameter,) = _read_parameters(text, body.line)
        name = parameter.name
    body.names[0][name] = name
    return name


def _build_instructions(
    body: _Body,
    variables: dict[str, Variable],
    resolve_source: Callable[[tuple | None], Source | None],
) -> tuple[Instruction, ...]:
    for variable in body.variables:
        # Visible from here only, but they live as long as the module.
        if variable.space in ("global", "const"):
            variables[variable.name] = variable
    read_operand = _Operands(body, variables).read
    return tuple(
        [
            _build_instruction(index, statement, body, read_operand, resolve_source)
            for index, statement in enumerate(body.statements)
        ]
    )


def _resolve_targets(body: _Body) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(
            body.resolve(scope, label.strip()) or label.strip()
            for label in targets.split(",")
        )
        for name, (targets, scope) in body.branch_targets.items()
    }


def _extents(numbers: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    if not numbers:
        return None
    return tuple((*numbers, 1, 1)[:3])


def _read_parameters(listed: str, line: int) -> tuple[Parameter, ...]:
    parameters: list[Parameter] = []
    end = 0
    for item in filter(None, (item.strip() for item in listed.split(","))):
        found = _PARAMETER.fullmatch(item)
        if found is None or found[2] not in _TYPE_BITS:
            _refuse(item, line)
        stated, kind, name, dimensions = found.groups()
        size_bytes = element_bytes = _TYPE_BITS[kind] // 8
        for dimension in re.findall(r"\d+", dimensions):
            size_bytes *= int(dimension)
        align = int(stated or element_bytes)
        offset = -(-end // align) * align
        parameters.append(Parameter(name, kind, size_bytes, align, offset))
        end = offset + size_bytes
    return tuple(parameters)


def _build_instruction(
    index: int,
    statement: _Statement,
    body: _Body,
    read_operand: Callable[[int, str], Operand],
    resolve_source: Callable[[tuple | None], Source | None],
) -> Instruction:
    text, line, location, scope = statement
    found = _STATEMENT.fullmatch(text)
    if found is None:
        _refuse(text, line)
    negated, guard, opcode, rest = found.groups()
    try:
        if guard is not None:
            unique = body.resolve(scope, guard)
            if unique not in body.registers:
                raise ValueError
            guard = unique
        if opcode == "call" or opcode.startswith("call."):
            operands = (_read_call(rest, scope, body, read_operand),)
        elif not rest:
            operands = ()
        else:
            operands = tuple(
                [read_operand(scope, part) for part in _split_operands(rest)]
            )
    except ValueError:
        _refuse(text, line)
    return Instruction(
        index,
        opcode,
        operands,
        guard,
        bool(negated),
        " ".join(text.split()),
        line,
        resolve_source(location),
    )


def _read_call(
    rest: str,
    scope: int,
    body: _Body,
    read_operand: Callable[[int, str], Operand],
) -> Call:
    """`(results), target, (arguments)`, of which only the target must be there; that of
    an indirect call is followed by a prototype or a list of functions.
    """
    parts = _split_operands(rest)

    def take_listed() -> tuple[Operand, ...]:
        if not parts or not parts[0].startswith("("):
            return ()
        inside = parts.pop(0)[1:-1].strip()
        names = _split_operands(inside) if inside else []
        return tuple([read_operand(scope, name) for name in names])

    results = take_listed()
    if not parts:
        raise ValueError
    target = parts.pop(0)
    is_indirect = body.resolve(scope, target) in body.registers
    return Call(target, results, take_listed(), is_indirect)


def _split_operands(text: str) -> list[str]:
    """Split at the commas that stand within no brackets."""
    if "{" not in text and "[" not in text and "(" not in text:
        return [part.strip() for part in text.split(",")]
    parts: list[str] = []
    depth = 0
    pending = ""
    for piece in text.split(","):
        pending = f"{pending},{piece}" if depth else piece
        depth += sum(piece.count(bracket) for bracket in "{[(")
        depth -= sum(piece.count(bracket) for bracket in "}])")
        if depth == 0:
            parts.append(pending.strip())
    if depth:
        raise ValueError
    return parts


class _Operands:
    """Operand texts of one kernel → Operand, each read once a scope; ValueError for
    what is none.
    """

    def __init__(self, body: _Body, variables: dict[str, Variable]):
        self._body = body
        self._variables = variables
        self._labels = body.labels.keys() | body.branch_targets.keys()
        self._read: dict[tuple[int, str], Operand] = {}

    def read(self, scope: int, text: str) -> Operand:
        operand = self._read.get((scope, text))
        if operand is None:
            operand = self._read[scope, text] = self._make(scope, text)
        return operand

    def _make(self, scope: int, text: str) -> Operand:
        if not text:
            raise ValueError
        if text == "_":
            return Sink()
        if text[0] == "[" and text[-1] == "]":
            return self._make_address(scope, text[1:-1].strip())
        if text[0] == "{" and text[-1] == "}":
            return Vector(self._read_list(scope, text[1:-1]))
        if "|" in text:
            first, second = text.split("|")
            return Pair(
                self.read(scope, first.strip()), self.read(scope, second.strip())
            )
        if text[0] == "!":
            register = self.read(scope, text[1:].strip())
            if not isinstance(register, Register):
                raise ValueError
            return Register(register.name, True)
        named = self._named(scope, text)
        if named is not None:
            return named
        number = _read_number(text)
        if number is not None:
            return number
        base, offset = self._read_sum(scope, text)
        if not isinstance(base, Symbol):
            raise ValueError
        return Symbol(base.name, offset)

    def _read_list(self, scope: int, text: str) -> tuple[Operand, ...]:
        return tuple(self.read(scope, part) for part in _split_operands(text))

    def _named(self, scope: int, name: str) -> Operand | None:
        unique = self._body.resolve(scope, name)
        if unique in self._body.registers:
            return Register(unique)
        if unique in self._labels:
            return Label(unique)
        if unique is not None or name in self._variables:
            return Symbol(unique or name)
        if _SPECIAL.fullmatch(name):
            return Special(name)
        return Immediate(name, "integer", 32) if name == "WARP_SZ" else None

    def _make_address(self, scope: int, text: str) -> Address:
        parts = _split_operands(text)
        coordinates: tuple[Operand, ...] = ()
        if len(parts) == 2 and parts[1][0] == "{":
            coordinates = self._read_list(scope, parts[1][1:-1])
        elif len(parts) != 1:
            raise ValueError
        base, offset = self._read_sum(scope, parts[0])
        return Address(base, offset, coordinates)

    def _read_sum(self, scope: int, text: str) -> tuple[Register | Symbol | None, int]:
        """(base, offset) of `base`, `base+4`, `base + -4` or a number."""
        number = _read_number(text)
        if number is not None:
            return None, number.value
        offset = 0
        base = self._named(scope, text)
        if base is None:
            found = _SUM.fullmatch(text)
            number = _read_number(found[3].replace(" ", "")) if found else None
            if number is None or number.kind != "integer":
                raise ValueError
            offset = -number.value if found[2] == "-" else number.value
            base = self._named(scope, found[1])
        if not isinstance(base, Register | Symbol):
            raise ValueError
        return base, offset


def _read_number(text: str) -> Immediate | None:
    """The constant that is all of the text, or None."""
    found = _INTEGER.fullmatch(text)
    if found is not None:
        digits = found[2]
        is_octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
        value = int(digits, 8 if is_octal else 0)
        return Immediate(text, "integer", -value if found[1] == "-" else value)
    found = _FLOAT_BITS.fullmatch(text)
    if found is not None:
        kind = "f32" if found[2] else "f64"
        value = int(found[2] or found[3], 16)
        sign = 1 << (int(kind[1:]) - 1)
        return Immediate(text, kind, value ^ sign if found[1] == "-" else value)
    if _DECIMAL.fullmatch(text):
        return Immediate(text, "f64", _float_bits(float(text), "f64"))
    return None


def _float_bits(number: float, kind: str) -> int:
    """Bits of the number as a float of this kind, rounded to nearest even; what is
    beyond the largest f32 becomes infinite.
    """
    if kind == "f64":
        return int.from_bytes(struct.pack("<d", number), "little")
    try:
        return int.from_bytes(struct.pack("<f", number), "little")
    except OverflowError:
        return 0x7F800000 if number > 0 else 0xFF800000


def _refuse(text: str, line: int) -> NoReturn:
    raise ValueError(f"PTX line {line} is not understood: {' '.join(text.split())}")
