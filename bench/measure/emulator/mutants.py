"""Can the emulator be believed? Kernels that are wrong by one instruction, and whether
that is noticed.

Of a variant's compiled PTX one barrier, wait, fence, mask, parity or field of a
descriptor is taken out or changed at a time, and the variant's own launches are executed
with that. It is noticed if a check finds a fault, the result is not within tolerance, or
it is refused, in any of the schedules. What is not noticed has either changed nothing,
which is shown (see `Judged`), or is a hole in the emulator.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from batchline.bench import texts
from batchline.bench.measure.checking import check
from batchline.bench.measure.emulator import execution, ptx, subjects
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import EARLY, LATE, SHUFFLED, Schedule
from batchline.bench.measure.emulator.launch import LaunchRefused
from batchline.bench.measure.emulator.layout import (
    SHADOW_READ,
    SHADOW_WRITTEN,
    Finding,
)
from batchline.bench.measure.emulator.subjects import Subject
from batchline.bench.statuses import NotMeasured
from batchline.kernels.draw import Draw
from batchline.kernels.op import Op

SCHEDULES = (LATE, EARLY, SHUFFLED)
# Other orders of warps, in which what seems redundant must give the same bits too: of
# what takes more than so many instructions the first two.
_MORE_ORDERS = tuple(Schedule(seed, is_early=seed % 2 == 1) for seed in range(2, 7))
_LONG, _ORDERS_OF_LONG = 2**20, 2
NOTICED, REDUNDANT, MISSED = "noticed", "redundant", "missed"
BROKEN = "broken"
# Why a mutant has changed nothing.
NOT_EXECUTED = "never executed"
SAME_LANES = "the same lanes on these inputs"
SAME_BITS = "the same bits, and every access allowed"
NOTHING_BETWEEN = "no access that conflicts up to the next barrier"
SAME_ORDER = "no pair of accesses that it alone orders"

_GUARD = r"^(?P<indent>\s*)(?P<guard>@!?[\w%$]+\s+)?"
_LINE = re.compile(_GUARD + r"(?P<opcode>[a-z][\w.:]*)(?P<rest>[^;]*);\s*(?://.*)?$")
# Taken out as they stand.
_TAKEN_OUT = (
    ("barrier", re.compile(r"(bar|barrier)(\.cta)?(\.warp)?\.(sync|arrive)")),
    ("copy wait", re.compile(r"cp\.async\.(wait_group|wait_all)")),
    ("product wait", re.compile(r"wgmma\.wait_group|tcgen05\.wait")),
    ("store wait", re.compile(r"cp\.async\.bulk\.wait_group")),
    (
        "commit",
        re.compile(r"(cp\.async|cp\.async\.bulk|wgmma)\.commit_group|tcgen05\.commit"),
    ),
    ("product fence", re.compile(r"wgmma\.fence")),
    ("proxy fence", re.compile(r"fence\.proxy\.async")),
    ("map fence", re.compile(r"fence\.proxy\.tensormap")),
    ("memory fence", re.compile(r"membar|fence\.(acq_rel|sc|gpu|cta)")),
    ("scale copy", re.compile(r"tcgen05\.cp")),
    ("map field", re.compile(r"tensormap\.(replace|cp_fenceproxy)")),
    ("arrival", re.compile(r"mbarrier\.arrive(\.|$)")),
    ("mbarrier", re.compile(r"mbarrier\.init")),
)
_GROUPS = re.compile(r"(wgmma|cp\.async|cp\.async\.bulk)\.wait_group")
_WAIT_KINDS = {
    "wgmma": "product wait",
    "cp.async": "copy wait",
    "cp.async.bulk": "store wait",
}
_GUARDED = re.compile(r"(ld|st|red|atom)\.|cp\.async\.(ca|cg)|cp\.async\.bulk\.tensor")
_WAIT = re.compile(r"mbarrier\.(try_wait|test_wait)\.parity")
_TEST = re.compile(r"(\s*)([\w%]+)\s*,\s*(\[[^]]*\])\s*,\s*([\w%]+)(.*)", re.DOTALL)
_SIZED_COPY = re.compile(
    r"(?P<before>\s*\[[^]]*\]\s*,\s*\[[^]]*\]\s*,\s*)(?P<bytes>\w+)\s*,\s*%\w+"
)
_REGISTER_64 = re.compile(r"%rd\d+")
_MADE = re.compile(r"\s*(%rd\d+)\s*,\s*([^,]+),\s*(-?(?:0x)?[0-9a-fA-F]+)\s*$")
_SCALED = re.compile(
    r"tcgen05\.mma\S*\.block_scale\S* \[[^]]*\], %rd\d+, %rd\d+, (%r\d+),"
)
_NUMBER = re.compile(r"\s*(%r\d+)\s*,\s*(\d+)$")
# Of a matrix descriptor (PTX ISA, "Matrix Descriptor Format"): lowest bit, bits.
_FIELDS = {
    "start": (0, 14),
    "leading offset": (16, 14),
    "stride offset": (32, 14),
    "base offset": (49, 3),
    "swizzle": (62, 2),
}
# A probe of bmm's own that is deeper than any pipeline, and has more tiles than a large
# GPU has multiprocessors.
DEEP = "deep_entries"
_DEEP_SHAPES = (531, 8, 392), (531, 392, 16)
_ON_TMA = (
    "bmm/gluon_3xbf16",
    "bmm/gluon_6xbf16",
    "bmm/gluon_cluster",
    "bmm/gluon_pair",
    "bmm/gluon_ping_pong",
    "bmm/gluon_tcgen05",
    "bmm/triton_persistent_tma",
    "bmm/triton_warp_specialized",
)
_PROBES = ("aligned_tiles", "ragged", "one_token")
# A mutant's block hangs after so many times the instructions of the longest one, and some.
_MORE_STEPS, _STEPS_OF_ANY = 16, 100_000
_UNSUPPORTED = execution.WORDS[Finding.UNSUPPORTED][0]
_DATA_KINDS = frozenset(
    {"mask", "branch", "descriptor", "map field", "scale", "scale copy"}
)


@dataclass(frozen=True)
class Mutant:
    """A PTX text with one change: what was changed at which line (from 1) of the
    original, the instruction there, and the whole text as it is now.
    """

    kind: str
    line: int
    text: str
    change: str
    ptx: str

    def __str__(self) -> str:
        return f"{self.kind} {self.change} at line {self.line}: {self.text}"


@dataclass(frozen=True)
class Judged:
    """What came of a mutant: NOTICED, REDUNDANT, MISSED or BROKEN, and by what.

    It is redundant if its instruction is not executed, if no conflicting access lies
    between a barrier and the next or the last one on any path, or if in all schedules
    no check finds anything and the outputs have the same bits: then a change of data
    has changed nothing, and of what orders, the vector clocks of all schedules hold no
    pair of accesses that it alone had ordered. What changes bits and is not noticed is
    missed. It is broken if the emulator itself fails on it: that proves nothing.
    """

    subject: Subject
    mutant: Mutant
    status: str
    by: str


# --- what is changed ----------------------------------------------------------------


def mutants(text: str, entry: str) -> list[Mutant]:
    """Every single change of the kinds known here to an entry of a PTX text."""
    lines = text.split("\n")
    descriptors, instructions = _descriptors(lines), _scaled_instructions(lines)
    found = []
    for number in range(_first_line(lines, entry), len(lines)):
        parts = _LINE.match(lines[number])
        if parts is None:
            continue
        for kind, change, new in _changes(parts, descriptors, instructions):
            changed = [*lines[:number], new, *lines[number + 1 :]]
            shown = " ".join(lines[number].split("//")[0].split())
            found.append(Mutant(kind, number + 1, shown, change, "\n".join(changed)))
    return found


def _first_line(lines: list[str], entry: str) -> int:
    return next(
        number
        for number, line in enumerate(lines)
        if re.search(rf"\.entry\s+{re.escape(entry)}\b", line)
    )


def _descriptors(lines: list[str]) -> frozenset[str]:
    """The registers that hold matrix descriptors."""
    return frozenset(
        register
        for line in lines
        if re.search(r"wgmma\.mma_async|tcgen05\.(mma|cp)\.", line)
        for register in _REGISTER_64.findall(line)
    )


def _scaled_instructions(lines: list[str]) -> frozenset[str]:
    """The registers that hold the instruction descriptors of block-scaled products."""
    found = (_SCALED.search(line) for line in lines)
    return frozenset(one[1] for one in found if one)


def _changes(parts, descriptors, instructions) -> Iterator[tuple[str, str, str]]:
    """(kind, change, the line as it is then) for each change of a line."""
    opcode, rest = parts["opcode"], parts["rest"]
    guard, indent = parts["guard"] or "", parts["indent"]
    if guard and opcode in ("bra", "bra.uni"):
        yield "branch", "always taken", f"{indent}{opcode}{rest};"
        yield "branch", "never taken", f"{indent}// {opcode}"
    for kind, pattern in _TAKEN_OUT:
        if pattern.match(opcode):
            yield kind, "taken out", f"{indent}// {opcode}"
    if groups := _GROUPS.match(opcode):
        number = int(rest.strip(), 0) + 1
        yield _WAIT_KINDS[groups[1]], "for one group less", (
            f"{indent}{guard}{opcode} {number};"
        )
    if _WAIT.match(opcode):
        yield from _changed_wait(indent, guard, opcode, rest)
    if opcode.startswith("mbarrier.init"):
        address, count = rest.rsplit(",", 1)
        yield "mbarrier", "expects one more", (
            f"{indent}{guard}{opcode}{address}, {int(count, 0) + 1};"
        )
    if "expect_tx" in opcode and rest.rsplit(",", 1)[1].strip().isdigit():
        before, count = rest.rsplit(",", 1)
        for step, change in ((16, "of 16 bytes more"), (-16, "of 16 bytes less")):
            yield "arrival", change, (
                f"{indent}{guard}{opcode}{before}, {int(count) + step};"
            )
    if guard and _GUARDED.match(opcode) and ".param" not in opcode:
        other = "@" + guard[2:] if guard[1] == "!" else "@!" + guard[1:]
        yield "mask", "dropped", f"{indent}{opcode}{rest};"
        yield "mask", "negated", f"{indent}{other}{opcode}{rest};"
    if re.match(r"cp\.async\.c[ag]", opcode) and (copy := _SIZED_COPY.match(rest)):
        yield "mask", "dropped", (
            f"{indent}{guard}{opcode}{copy['before']}{copy['bytes']};"
        )
    if opcode == "mov.b32" and (made := _NUMBER.match(rest)):
        if made[1] in instructions:
            yield from _changed_scales(f"{indent}{opcode} {made[1]}, ", int(made[2]))
    made = _MADE.match(rest)
    if made and made[1] in descriptors and re.match(r"(or|add|mov)\.\w*64", opcode):
        for change, value in _changed_descriptor(int(made[3], 0)):
            yield "descriptor", change, (
                f"{indent}{guard}{opcode} {made[1]}, {made[2]}, {value};"
            )


def _changed_wait(indent: str, guard: str, opcode: str, rest: str):
    """A wait for a phase that does not wait, and one for the other phase."""
    parts = _TEST.match(rest)
    _, is_done, address, parity, more = parts.groups()
    yield "mbarrier wait", "taken out", f"{indent}setp.eq.u32 {is_done}, 0, 0;"
    if parity.startswith("%"):
        flipped = (
            f"{{ .reg .b32 flipped; xor.b32 flipped, {parity}, 1; "
            f"{guard}{opcode} {is_done}, {address}, flipped{more}; }}"
        )
    else:
        flipped = f"{guard}{opcode} {is_done}, {address}, {int(parity, 0) ^ 1}{more};"
    yield "parity", "flipped", indent + flipped


def _changed_descriptor(value: int) -> Iterator[tuple[str, int]]:
    value &= (1 << 64) - 1
    is_whole = value >> 32 != 0  # or only an offset of its start
    for name, (low, bits) in _FIELDS.items():
        if not is_whole and name != "start":
            continue
        most = (1 << bits) - 1
        field = value >> low & most
        new = {
            "start": field + 2,
            "leading offset": field + 8,
            "stride offset": 2 * field or 64,
        }.get(name, field + 1)
        changed = value & ~(most << low) | (new & most) << low
        yield f"{name} {field} → {new & most}", changed - (changed >> 63 << 64)


def _changed_scales(before: str, value: int) -> Iterator[tuple[str, str, str]]:
    """A block-scaled product that takes the next byte of A's or B's scales."""
    for name, low in (("A", 29), ("B", 4)):
        byte = value >> low & 3
        changed = value ^ (byte ^ (byte + 1) % 4) << low
        yield "scale", f"{name}'s byte {byte} → {(byte + 1) % 4}", f"{before}{changed};"


def sampled(all_: Iterable[Mutant], most: int | None) -> list[Mutant]:
    """Of each kind and change at most so many, evenly spread over the text."""
    by_kind: dict[tuple[str, str], list[Mutant]] = {}
    for one in all_:
        change = one.change.split(" ")[0]
        by_kind.setdefault((one.kind, change), []).append(one)
    chosen = []
    for group in by_kind.values():
        count = len(group) if most is None else min(most, len(group))
        chosen += [group[place * len(group) // count] for place in range(count)]
    return sorted(chosen, key=lambda one: one.line)


def chosen(
    ops: Iterable[Op], architectures: Iterable[int] | None = None
) -> list[Subject]:
    """Those of all GPU variants that `one_of_each` chooses."""
    return one_of_each(subjects.subjects(ops, architectures))


def one_of_each(all_: Iterable[Subject]) -> list[Subject]:
    """Of each variant one subject for each architecture: its first dtype, on the first
    of _PROBES that it takes.
    """
    found: dict[tuple[str, int], list[Subject]] = {}
    for one in all_:
        if one.declined is None:
            found.setdefault((one.variant, one.architecture), []).append(one)
    return [_chosen(every) for every in found.values()]


def _chosen(every: list[Subject]) -> Subject:
    first = every[0]
    if first.variant in _ON_TMA:
        return replace(first, probe=DEEP)
    by_probe = {one.probe: one for one in every if one.dtype == first.dtype}
    return next((by_probe[name] for name in _PROBES if name in by_probe), first)


# --- what comes of it ---------------------------------------------------------------


class _Noticed(Exception):
    """A check has found a fault."""


class _Broke(Exception):
    """The emulator can't execute a mutant, and no check says why."""


def judged(
    subject: Subject, most: int | None = None, part: int = 0, parts: int = 1
) -> Iterator[Judged]:
    """Each mutant of each kernel that the subject launches, at most so many of a kind
    and change; of these every `parts`th, from the one numbered `part`.

    Raises:
        ValueError: if the subject itself is not right or not without a fault.
    """
    runs = _Runs(subject)
    every = [
        (text, mutant)
        for text, launch in runs.kernels.items()
        for mutant in sampled(mutants(text, launch.entry), most)
    ]
    for text, mutant in every[part::parts]:
        yield Judged(subject, mutant, *runs.judge(text, mutant))


def inputs_of(subject: Subject) -> tuple:
    """The subject's inputs, which may be DEEP's too."""
    if subject.probe != DEEP:
        return subjects.inputs_of(subject)
    draw = Draw(getattr(torch, subject.dtype), "cpu", 1)
    return tuple(draw.normal(*shape) for shape in _DEEP_SHAPES)


class _Runs:
    """A subject's launches as they are, and with mutants in them."""

    def __init__(self, subject: Subject):
        self._subject = subject
        self._variant = subjects.variant_of(subject)
        inputs = inputs_of(subject)
        reference = check.expect(self._variant.op, inputs)
        self._expected = check.held_to(self._variant, inputs, reference)
        self.kernels = {}
        self._base: dict[str, list] = {}
        self._rereads: dict[str, bool] = {}
        self._bits = []
        self._longest_block = 0
        for schedule in SCHEDULES:
            self._bits.append(self._outcome(schedule, self._note))
        if None in self._bits:
            raise ValueError(f"{subject} is not right without any mutant")
        if len(set(self._bits)) > 1:
            raise ValueError(f"{subject} has other bits in another order")

    def _note(self, launch, memory, schedule):
        done = execution.execute(launch, memory, schedule)
        if any(one.is_fault for one in done.findings):
            raise ValueError(f"{self._subject} has a fault without any mutant")
        self.kernels.setdefault(launch.ptx, launch)
        if schedule is LATE:
            self._base.setdefault(launch.ptx, []).append(done)
            self._rereads[launch.ptx] = _is_read_and_written(memory)
        self._longest_block = max(self._longest_block, done.longest_block)
        return done

    def _outcome(self, schedule: Schedule, execute) -> bytes | None:
        """A digest of the outputs' bits; None if they are wrong, or the inputs are."""
        inputs = inputs_of(self._subject)
        call = emulate_call(
            self._variant,
            inputs,
            self._subject.architecture,
            lambda launch, memory: execute(launch, memory, schedule),
        )
        if not check.same_bits(inputs, inputs_of(self._subject)):
            return None
        try:
            check.check_outputs(call.returned, inputs, self._expected, "")
        except NotMeasured:  # what the checker calls wrong, and nothing else
            return None
        return _digest(call.returned)

    def judge(self, text: str, mutant: Mutant) -> tuple[str, str]:
        before = _executed_at(self._base[text], mutant.line)
        if not before[0 if mutant.kind == "mask" else 1]:
            return REDUNDANT, NOT_EXECUTED
        is_same = True
        for schedule, bits in zip(SCHEDULES, self._bits):
            schedule = self._limited(schedule)
            done: list = []
            try:
                got = self._outcome(schedule, _with(text, mutant.ptx, done))
            except _Noticed as found:
                return NOTICED, str(found)
            except _Broke as broke:
                return BROKEN, str(broke)
            except Exception as error:  # the launcher's own, of what it was given back
                return NOTICED, texts.error_line(error)
            if got is None:
                return NOTICED, "wrong result"
            is_same = is_same and got == bits
            if done and mutant.kind == "mask":
                if _executed_at(done, mutant.line) == before:
                    return REDUNDANT, SAME_LANES
        if not is_same:
            return MISSED, "other bits, within tolerance"
        if mutant.kind in _DATA_KINDS:
            return REDUNDANT, SAME_BITS
        if mutant.kind == "barrier" and self._is_idle(text, mutant.line):
            return REDUNDANT, NOTHING_BETWEEN
        return self._judge_in_more_orders(text, mutant)

    def _limited(self, schedule: Schedule) -> Schedule:
        most_steps = _MORE_STEPS * self._longest_block + _STEPS_OF_ANY
        return replace(
            schedule, is_counting=False, is_brief=True, most_steps=most_steps
        )

    def _judge_in_more_orders(self, text: str, mutant: Mutant) -> tuple[str, str]:
        """Whether what no clock holds to be needed shows in the bits of any order."""
        instructions = sum(one.warp_instructions for one in self._base[text])
        count = _ORDERS_OF_LONG if instructions > _LONG else len(_MORE_ORDERS)
        for schedule in _MORE_ORDERS[:count]:
            try:
                execute = _with(text, mutant.ptx, [])
                got = self._outcome(self._limited(schedule), execute)
            except _Noticed as found:
                return NOTICED, f"{found}, in another order"
            except _Broke as broke:
                return BROKEN, str(broke)
            except Exception as error:
                return NOTICED, texts.error_line(error)
            if got != self._bits[0]:
                return MISSED, "other bits in another order"
        return REDUNDANT, SAME_ORDER

    def _is_idle(self, text: str, line: int) -> bool:
        program = self._base[text][0].program
        return is_idle(program.kernel, line, self._rereads[text])


def _with(text: str, mutated: str, done: list):
    """Executes the mutant instead of the kernel, and raises what it finds."""

    def execute(launch, memory, schedule):
        if launch.ptx != text:
            return execution.execute(launch, memory, schedule)
        try:
            one = execution.execute(replace(launch, ptx=mutated), memory, schedule)
        except LaunchRefused:
            raise
        except Exception as error:
            raise _Broke(texts.error_line(error)) from error
        done.append(one)
        found = next((each for each in one.findings if each.is_fault), None)
        if found is not None:
            raise (_Broke if found.word == _UNSUPPORTED else _Noticed)(found.word)
        return one

    return execute


def _executed_at(executions: list, line: int) -> tuple[int, int]:
    """How often the instructions of a line of PTX were executed, and by how many
    lanes.
    """
    times = lanes = 0
    for one in executions:
        for row in range(len(one.executed)):
            if one.executed[row] and one.program.instruction(row).ptx_line == line:
                times += int(one.executed[row])
                lanes += int(one.lanes[row])
    return times, lanes


def _is_read_and_written(memory) -> bool:
    both = SHADOW_READ | SHADOW_WRITTEN
    return any(
        bool(((one.shadow & both) == both).any())
        for one in memory.allocations
        if one.size_bytes <= 2**28
    )


def _digest(returned) -> bytes:
    tensors = returned if isinstance(returned, (tuple, list)) else (returned,)
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(dtype=torch.uint8).numpy().tobytes())
    return digest.digest()


# --- barriers that nothing needs ----------------------------------------------------


def is_idle(kernel: ptx.Kernel, line: int, is_read_back: bool) -> bool:
    """Whether no two accesses that conflict lie before and behind the barrier at a line
    of the PTX, on any path, up to the next barriers of the whole block.

    `is_read_back`: some byte of global memory is both read and written.
    """
    index = next(one.index for one in kernel.instructions if one.ptx_line == line)
    after = _reached(kernel, index, _successors(kernel))
    before = _reached(kernel, index, _predecessors(kernel))
    shared_before, shared_after = _touched(before, "shared"), _touched(after, "shared")
    if "write" in shared_before and shared_after:
        return False
    if "write" in shared_after and shared_before:
        return False
    global_before, global_after = _touched(before, "global"), _touched(after, "global")
    if "write" in global_before and "write" in global_after:
        return False
    if not is_read_back:
        return True
    return not (
        "write" in global_before
        and global_after
        or "write" in global_after
        and global_before
    )


def _successors(kernel: ptx.Kernel) -> list[list[int]]:
    following = []
    for one in kernel.instructions:
        targets = []
        head = one.opcode.split(".")[0]
        if head == "bra":
            targets.append(kernel.labels[one.operands[0].name])
        if head not in ("bra", "ret", "exit") or one.guard is not None:
            targets.append(one.index + 1)
        following.append([each for each in targets if each < len(kernel.instructions)])
    return following


def _predecessors(kernel: ptx.Kernel) -> list[list[int]]:
    leading: list[list[int]] = [[] for _ in kernel.instructions]
    for index, targets in enumerate(_successors(kernel)):
        for target in targets:
            leading[target].append(index)
    return leading


def _reached(kernel: ptx.Kernel, index: int, edges) -> list[ptx.Instruction]:
    """The instructions reached from one without crossing a barrier of all warps."""
    left, seen = list(edges[index]), set()
    while left:
        place = left.pop()
        if place in seen:
            continue
        seen.add(place)
        if not _is_whole_barrier(kernel.instructions[place]):
            left += edges[place]
    return [kernel.instructions[place] for place in seen]


def _is_whole_barrier(one: ptx.Instruction) -> bool:
    tokens = [part for part in one.opcode.split(".") if part != "cta"]
    is_sync = tokens[0] in ("bar", "barrier") and tokens[1] in ("sync", "red")
    return is_sync and one.guard is None and len(one.operands) == 1


def _touched(instructions: Iterable[ptx.Instruction], space: str) -> set[str]:
    """Of "read" and "write" what the instructions do to shared or global memory."""
    found = set()
    for one in instructions:
        opcode = one.opcode
        head = opcode.split(".")[0]
        if head in ("ld", "st", "atom", "red", "ldu"):
            tokens = opcode.replace("::", ".").split(".")
            known = {"shared", "global", "local", "param", "const"} & set(tokens)
            if known and space not in known:
                continue
            found.add("read" if head in ("ld", "ldu") else "write")
        elif head in ("ldmatrix", "stmatrix"):
            if space == "shared":
                found.add("read" if head == "ldmatrix" else "write")
        elif head in ("cp", "mbarrier", "tensormap", "wgmma", "tcgen05"):
            found |= {"read", "write"}
    return found
