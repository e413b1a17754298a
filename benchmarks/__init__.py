"""What `mtl_axes` costs, measured. See the README of this folder."""

import os

# Read when torch is imported and when its profiler first starts: notes on every profile, on stderr between the progress
# bars. Errors are still shown.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
