"""The study files that ship with evalengine: `evalengine train embedded`."""
