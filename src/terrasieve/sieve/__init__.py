"""The sieve: pure, batched functions that decide which patches are worth computing on. No state, no host waits."""
