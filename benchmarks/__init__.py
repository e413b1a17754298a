"""What `mtl_axes` costs, measured. See the README of this folder."""

import os

# Silences notes on every profile, which would be printed between the progress bars; errors are still shown. Read when torch
# is imported and when its profiler first starts.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
