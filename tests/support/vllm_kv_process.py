"""Run by `.venv-vllm`: answers of vLLM with one kind of cache, as JSON. Arguments: those of `vllm_kv.answers`.

`compressed` is what the plug-in makes of `TQ_KV`. `reference` is vLLM's own cache, into which keys and values go only
after they have been packed and unpacked; `plain` is that without it.
"""

import json
import sys
from typing import Any

from tqcli.kv.settings import parse_widths
from tqcli.kv.vectors import Codec, dequantise, quantise


def round_trip_before_writing(kv: str) -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    widths = parse_widths(kv)
    write = CPUAttentionBackendImpl.do_kv_cache_update

    def trip(vectors: Any, bits: int) -> Any:
        codec = Codec(vectors.shape[-1], bits, 0)
        return dequantise(quantise(vectors, codec), codec, vectors.dtype)

    def update(self: Any, layer: Any, key: Any, value: Any, kv_cache: Any, slots: Any) -> None:
        write(self, layer, trip(key, widths.keys), trip(value, widths.values), kv_cache, slots)

    CPUAttentionBackendImpl.do_kv_cache_update = update


def unpack_little_at_a_time(part_bytes: int) -> None:
    from tqcli.runtime.vllm.kv import backend

    workspace = backend.Workspace
    backend.Workspace = lambda shape, dtype: workspace(shape, dtype, part_bytes)


def main() -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(model=asked["model"], enforce_eager=True, seed=0, disable_log_stats=False, **asked["options"])
    sampling = SamplingParams(temperature=0, max_tokens=asked["new_tokens"], logprobs=1, ignore_eos=True)
    answers = []
    for prompts in asked["rounds"]:
        found = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
        answers.append([answer(one) for one in found])
    preemptions = sum(one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions")
    print("ANSWERS", json.dumps({"answers": answers, "preemptions": preemptions}))


def answer(found: Any) -> dict[str, Any]:
    (best,) = found.outputs
    chosen = [one[token].logprob for one, token in zip(best.logprobs, best.token_ids, strict=True)]
    return {"tokens": list(best.token_ids), "logprobs": chosen, "cached": found.num_cached_tokens}


asked = json.loads(sys.argv[1])
# In the processes that vLLM starts as well: they import this file again.
if asked["cache"] == "reference":
    round_trip_before_writing(asked["kv"])
if asked["part_bytes"]:
    unpack_little_at_a_time(asked["part_bytes"])
if __name__ == "__main__":
    main()
