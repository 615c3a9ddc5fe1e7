"""Ranks: the launch environment, the device, Megatron's process groups, and the CPU engine."""
