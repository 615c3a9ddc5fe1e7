"""The network on Megatron-core's parallel layers, its initial weights, and its loss."""
