"""What is alive, what is held to that, and what is written down: mask sets, names, tickets."""

from gentickets.masks.chance import Overlap, overlap
from gentickets.masks.difference import Difference, difference
from gentickets.masks.layers import left_out
from gentickets.masks.liveness import check_connected
from gentickets.masks.ticket import Ticket
from gentickets.masks.value import Masks

__all__ = ["Difference", "Masks", "Overlap", "Ticket", "check_connected", "difference", "left_out", "overlap"]
