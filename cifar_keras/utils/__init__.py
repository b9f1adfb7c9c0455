"""Files, paths, text, the operating system and the runtime. Nothing here knows about models."""
