"""Doing it: a run on disk, its seeds side by side, each level trained, judged and written."""
