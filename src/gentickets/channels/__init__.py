"""Smaller networks: which channels live and die together, and a network without those that are pruned."""

from gentickets.channels.groups import ChannelGroups, channel_groups
from gentickets.channels.kept import save_small
from gentickets.channels.pretrained import save_pretrained
from gentickets.channels.shrinking import shrink
from gentickets.channels.small import load_small

__all__ = ["ChannelGroups", "channel_groups", "load_small", "save_pretrained", "save_small", "shrink"]
