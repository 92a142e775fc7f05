"""The optimiser's loop, resumable at any step (state), on several processes (parallel), and how busy it keeps the device (mfu)."""
