"""One case from inputs to facts: check, memory, time, and a second look at the very output that was timed."""
from __future__ import annotations

import functools
import zlib

import torch

from bench.cases import Case, Profile
from bench.measure import check, memory
from bench.measure.clocks import Effort, clock_for
from bench.records import FAILED, OUT_OF_MEMORY, NotMeasured

_RAISED = (Exception, SystemExit)


class Runner:
    """Measures cases one after another on one device ("cpu" or "cuda")."""

    def __init__(self, profile: Profile, device: str):
        self.device = device
        self.clock = clock_for(device)
        self._effort = Effort(profile.warm_up_s, profile.sampling_s)
        self._verdicts: dict[tuple[str, str], NotMeasured | None] = {}
        self._problem = functools.lru_cache(maxsize=1)(self._make_problem)
        if device == "cpu":
            memory.limit_to_available()
        else:
            # The contract is fp32 accumulation; cuBLAS may otherwise add split-K partial sums in the narrow type.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def measure(self, case: Case, benchmark) -> None:
        """Measure `case` through pytest-benchmark's fixture and leave the facts in its extra_info.

        Raises:
            NotMeasured: with the status and the reason; then the fixture's samples, if it took any, do not count.
        """
        try:
            if case.refusal:
                raise NotMeasured(*case.refusal)
            self._require_right(case)
            benchmark.extra_info.update(self._measure(case, benchmark))
        except NotMeasured:
            benchmark.has_error = True
            raise
        except _RAISED as error:  # whatever a variant raises ends as its row, and the run goes on
            benchmark.has_error = True
            raise _as_not_measured(error) from error

    def _measure(self, case: Case, benchmark) -> dict:
        variant = case.variant
        inputs, expected = self._problem(case.op, case.scenario, case.batch, case.dtype)
        where = f"on {case.scenario} at B={case.batch}"
        outputs, accuracy = check.checked_call(variant, inputs, expected, where)
        output_bytes = sum(tensor.numel() * tensor.element_size() for tensor in outputs)
        del outputs
        launch = functools.partial(variant.function, *inputs)
        peak = memory.peak_of(launch, self.device)
        timed = self.clock.run(benchmark, launch, self._effort)
        check.check_outputs(timed, inputs, expected, f"{where}, the output that was timed")
        return {
            "backend": variant.backend, "clock": self.clock.name,
            # A page holds more than a tiny output: the outputs are there all the same.
            "peak_bytes": None if peak.bytes is None else max(peak.bytes, output_bytes),
            "memory_method": peak.method, "output_bytes": output_bytes,
            "error": accuracy.error, "error_of_tolerance": accuracy.error_of_tolerance,
            "flops": case.op.flops(*inputs), "least_bytes": case.op.least_bytes(*inputs),
        }

    def _require_right(self, case: Case) -> None:
        """Raise unless the variant passes its op's probes in this dtype; they are walked once for each."""
        key = case.variant.id, case.dtype
        if key not in self._verdicts:
            try:
                check.check_variant(case.variant, getattr(torch, case.dtype), self.device)
                self._verdicts[key] = None
            except NotMeasured as refusal:
                self._verdicts[key] = refusal
            except _RAISED as error:  # as above: it is this variant's row, in each of its cases
                self._verdicts[key] = _as_not_measured(error)
        refusal = self._verdicts[key]
        if refusal:
            raise NotMeasured(refusal.status, refusal.reason)

    def _make_problem(self, op, scenario: str, batch: int, dtype: str):
        seed = zlib.crc32(f"{op.name}/{scenario}/{dtype}/B{batch}".encode())
        inputs = op.make_inputs(scenario, batch, dtype, self.device, seed)
        return inputs, check.expect(op, inputs)


def _as_not_measured(error: BaseException) -> NotMeasured:
    first_line = str(error).strip().partition("\n")[0] or "no message"
    status = OUT_OF_MEMORY if memory.is_out_of_memory(error) else FAILED
    return NotMeasured(status, f"{type(error).__name__}: {first_line}")
