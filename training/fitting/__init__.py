"""The optimiser's loop: resumable at any step (state), on several processes (parallel); how busy it keeps the device (mfu)."""
