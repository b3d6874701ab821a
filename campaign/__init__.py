"""The campaign: the paper's claims at the scale of nights, run one after another beside other work."""
