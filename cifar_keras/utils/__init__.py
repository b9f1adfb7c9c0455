"""Files, paths, the runtime, and text: nothing here knows what a model is."""
