"""Hunts for inputs that end in anything but a value or one line: `python -m tests.fuzz.tickets --inputs 10000`."""
