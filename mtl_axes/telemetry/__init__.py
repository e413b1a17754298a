"""Telemetry: what the calls of a criterion did, for its report, its log and its History."""
