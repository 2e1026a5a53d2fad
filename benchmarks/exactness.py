"""Count what arrives of 64 ranks in five minutes in which everything between them and the stores fails in turn.

``python benchmarks/exactness.py``; two numbers, ranks of each of the two tenants and seconds, make it another size.
Gateway, webhook, uploads and a node agent are killed and started again, broker, gateway, webhook and a sampler are held
for a while, and the other sampler is restarted, one after the other and again. Needs the programs that the tests need.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from exact import TENANTS, Exact, expected_uploads
from programs import wait_until

PAUSE_S = 0.25


def main() -> int:
    """Print what was recorded and what arrived; return 1 if that differs."""
    ranks, seconds = int(sys.argv[1] if len(sys.argv) > 1 else 32), float(sys.argv[2] if len(sys.argv) > 2 else 300)
    steps, failures, ok = int(seconds / PAUSE_S), 0, True
    with tempfile.TemporaryDirectory() as name, Exact.started(Path(name)) as exact:
        trainings, until = exact.train(ranks, steps, PAUSE_S), time.monotonic() + seconds
        while time.monotonic() < until:
            for disturb in exact.disturbances:
                disturb(5.0)
                failures += 1
        codes = [training.wait(300) for training in trainings]
        wait_until(lambda: all(exact.completed(tenant) >= ranks * steps for tenant in TENANTS), 300)
        wait_until(lambda: exact.uploads().keys() >= expected_uploads(ranks, steps), 300)
        wait_until(lambda: len(exact.steps(TENANTS[-1])) >= ranks * steps, 300)
        for tenant in TENANTS:
            found, counted = exact.steps(tenant), exact.completed(tenant)
            ok &= set(found.values()) == {1} and len(found) == counted == ranks * steps
            print(f"{tenant}: {ranks * steps} steps; in the store {len(found)}, of {sum(found.values())} ids")
            print(f"{tenant}: {counted:.0f} steps counted")
        uploads, expected = exact.uploads(), expected_uploads(ranks, steps)
        ok &= uploads.keys() == expected
        print(f"{len(expected)} uploads; {len(uploads)} ids at the webhook in {sum(uploads.values())} calls")
    print(f"{failures} failures in {seconds:.0f} s, trainings ended with {codes}: {'exact' if ok else 'NOT exact'}")
    return not ok


if __name__ == "__main__":
    sys.exit(main())
