"""The version, in a file that the build reads without importing torch."""

version = "0.1.0"
