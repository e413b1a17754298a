"""The parts of the C-MAPSS example: data, simulator, windows, model, metrics, training, study, report and plots."""
