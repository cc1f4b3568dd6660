"""A known law, and its runs as each tool would have written them."""

import csv
import json
import struct

import numpy as np
import pytest

from hf_muscaling.readers import events

TRUTH = {"E": 1.8, "A": 20.0, "B": 60.0, "alpha": 0.3, "beta": 0.28}
TOKENS_PER_STEP = 2048


def loss_at(n, d):
    """The true loss, nats per token."""
    p = TRUTH
    return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


def curves(sizes, steps=range(100, 2001, 100), b=TOKENS_PER_STEP):
    """(name, N, [(step, tokens, loss)]) of one run a size."""
    return [
        (f"run-{i}", float(n), [(s, float(s * b), float(loss_at(n, s * b))) for s in steps])
        for i, n in enumerate(sizes)
    ]


SIZES = [1e5, 3e5, 1e6, 3e6, 1e7]


def write_csv(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def recovers(table, tolerance=2e-3):
    """Fit the Chinchilla law to a table that holds the noiseless truth."""
    from hf_muscaling.laws import ChinchillaLaw

    found = ChinchillaLaw(objective="least_squares").fit(table).params_
    return all(abs(found[k] / v - 1) < tolerance * (50 if k in "AB" else 10) for k, v in TRUTH.items())


def write_state(folder, rows, **state):
    """A trainer_state.json as transformers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"log_history": rows, "global_step": max(r["step"] for r in rows), "train_batch_size": 8, **state}
    (folder / "trainer_state.json").write_text(json.dumps(document))


def record(payload):
    """One TFRecord."""
    length = struct.pack("<Q", len(payload))
    crc = struct.pack("<I", events._masked_crc(length)), struct.pack("<I", events._masked_crc(payload))
    return length + crc[0] + payload + crc[1]


def varint(n):
    out = b""
    while True:
        out, n = out + bytes([n & 0x7F | (0x80 if n > 0x7F else 0)]), n >> 7
        if not n:
            return out


def scalar_event(tag, step, value):
    """An Event with one simple_value, encoded by hand."""
    name = tag.encode()
    body = b"\x0a" + varint(len(name)) + name + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + varint(len(body)) + body
    return record(b"\x09" + struct.pack("<d", 1.0) + b"\x10" + varint(step) + b"\x2a" + varint(len(summary)) + summary)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
