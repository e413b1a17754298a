"""Adapters: mtl_axes inside the trainers people have. Each is imported on its own, with the library it adapts to."""
