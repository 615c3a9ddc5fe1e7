"""`dnapretrain plan`: what a run needs before it is started. Needs no torch, but for its checks."""
