"""Everything that decides a run, in YAML: read and refused without torch."""
