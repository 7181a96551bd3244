"""The model families δ-mem attaches to, one file each: a mapping `HOOKS` from model types to attention hooks."""
