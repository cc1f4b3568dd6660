"""What counting a large model costs: nanoLM's 52B GPT and models of that size, built on `meta`, in one process.

    python recipes/benchmarks/counting.py

Seconds, and the growth of the process's peak memory (Linux, macOS), for each count; imports are timed apart.
"""

import resource
import sys
import time

started = time.perf_counter()

from hf_muscaling import MuBertConfig, MuGPT2Config, MuLlamaConfig, MuT5Config, count_parameters  # noqa: E402

TARGETS = {
    "GPT-2 52B": MuGPT2Config(vocab_size=100256, n_embd=8192, n_head=128, n_layer=64, n_positions=2048),
    "Llama 70B": MuLlamaConfig(
        hidden_size=8192, num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672, num_hidden_layers=80,
    ),
    "BERT 52B": MuBertConfig(hidden_size=8192, num_attention_heads=128, intermediate_size=32768, num_hidden_layers=64),
    "T5 52B": MuT5Config(d_model=8192, num_heads=128, d_kv=64, d_ff=32768, num_layers=27),
}  # fmt: skip


def peak_mb() -> float:
    """Return the process's peak memory so far in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main() -> None:
    """Print one line a model."""
    for config in TARGETS.values():  # the import of the architecture's modelling code is no part of counting
        count_parameters(config.replace(**dict.fromkeys(config.mu_depth_fields, 1)))
    print(f"imports and first use: {time.perf_counter() - started:.1f} s, peak {peak_mb():.0f} MB")
    for name, config in TARGETS.items():
        before, start = peak_mb(), time.perf_counter()
        count = count_parameters(config)
        seconds = time.perf_counter() - start
        more = peak_mb() - before
        print(f"{name}: {count / 1e9:.3f}e9 parameters in {seconds:.2f} s, {more:.0f} MB more (target 1 s, 200 MB)")


if __name__ == "__main__":
    main()
