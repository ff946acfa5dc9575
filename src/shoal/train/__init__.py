"""The only training loop, and what it is built from: optimizers, schedule, checkpoints, telemetry, evaluation."""
