"""Adapters: mtl_axes inside common trainers. Import each by its own name, next to the library it adapts to."""
