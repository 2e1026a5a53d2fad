"""A training script for the tests: ``python tests/trainer.py STEPS [PERIOD_S]``.

Step ``n`` records the metric ``n``, and every tenth a checkpoint. When a call has returned, a line on stdout says so:
what it says must not be lost, whatever happens to this process afterwards.
"""

import os
import sys
import time

import periflow_otel as pf

STEPS, PERIOD_S = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0

pf.init(total_train_steps=STEPS, local_log_name="train.log")
os.write(1, b"begun 0\n")
for step in range(1, STEPS + 1):
    with pf.train_step():
        time.sleep(PERIOD_S)
    os.write(1, b"step %d\n" % step)
    pf.metric({"n": step, "loss": 1 / step, "text": "ok"})
    os.write(1, b"metric %d\n" % step)
    if step % 10 == 0:
        pf.upload_checkpoint()
        os.write(1, b"checkpoint %d\n" % step)
