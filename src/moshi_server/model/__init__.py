"""The models, as tensors only: no sockets, no files but checkpoints."""
